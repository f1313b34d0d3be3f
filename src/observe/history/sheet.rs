//! An answer while it is made: for each series a point in each step, filled from memory and from the
//! store in any order, then taken together and told.

use serde_json::{Map, Value, json};

use super::point::{Point, Shape};
use super::question::{Grid, Question, Reduce};

/// Label names and values of a series.
pub type Labels = Vec<(String, String)>;

/// The answer to a question.
#[derive(Debug)]
pub struct Sheet {
    grid: Grid,
    shape: Shape,
    bounds: Vec<f64>,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    labels: Labels,
    points: Vec<Point>,
}

impl Sheet {
    /// An empty one.
    pub fn new(grid: Grid, shape: Shape, bounds: Vec<f64>) -> Sheet {
        Sheet { grid, shape, bounds, rows: Vec::new() }
    }

    /// The steps.
    pub fn grid(&self) -> &Grid {
        &self.grid
    }

    /// The row of the series with these labels, a new one if need be. `None` for a series that is
    /// measured in another way: of another version of the program.
    pub fn row(&mut self, labels: Labels, shape: Shape, bounds: &[f64]) -> Option<usize> {
        if shape != self.shape || bounds != self.bounds {
            return None;
        }
        let found = self.rows.iter().position(|row| row.labels == labels);
        Some(found.unwrap_or_else(|| {
            let points = vec![Point::default(); self.grid.slots];
            self.rows.push(Row { labels, points });
            self.rows.len() - 1
        }))
    }

    /// Puts what was seen at a moment, or in a stretch that begins with it, behind what its step has.
    pub fn add(&mut self, row: usize, at: u64, point: &Point) {
        if let Some(slot) = self.grid.slot(at)
            && let Some(row) = self.rows.get_mut(row)
        {
            row.points[slot].append(point);
        }
    }

    /// The answer as it is told: a list of times, and for each series a list of values, where `null`
    /// says that nothing was seen.
    pub fn tell(self, question: &Question, notes: &[String]) -> Value {
        let Sheet { grid, shape, bounds, rows } = self;
        let reduce = question.reduce.unwrap_or_else(|| Reduce::of(shape));
        let mut series = grouped(rows, question.by.as_deref());
        series.sort_by(|a, b| a.labels.cmp(&b.labels));
        let series = series.into_iter().map(|row| {
            let values = row.points.iter().map(|point| reduce.apply(shape, point, &bounds));
            let values: Vec<Option<f64>> = values.collect();
            let labels: Map<String, Value> =
                row.labels.into_iter().map(|(key, text)| (key, Value::from(text))).collect();
            json!({ "labels": labels, "values": values })
        });
        let times = (0..grid.slots as u64).map(|slot| grid.start + slot * grid.step);
        json!({
            "metric": question.metric,
            "type": shape.as_str(),
            "fn": reduce.as_str(),
            "from": grid.start,
            "to": question.to,
            "step": grid.step,
            "notes": notes,
            "times": times.collect::<Vec<u64>>(),
            "series": series.collect::<Vec<Value>>(),
        })
    }
}

/// Rows that do not differ in these labels, taken together.
fn grouped(rows: Vec<Row>, by: Option<&[String]>) -> Vec<Row> {
    let Some(by) = by else { return rows };
    let mut groups: Vec<Row> = Vec::new();
    for mut row in rows {
        row.labels.retain(|(key, _)| by.contains(key));
        match groups.iter_mut().find(|group| group.labels == row.labels) {
            Some(group) => {
                for (all, point) in group.points.iter_mut().zip(&row.points) {
                    all.overlay(point);
                }
            }
            None => groups.push(row),
        }
    }
    groups
}
