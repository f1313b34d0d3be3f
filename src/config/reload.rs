//! What a reload may change.

use super::settings::Config;

/// A setting that is read once, at start, and how to see that it differs.
type Restart = (&'static str, fn(&Config, &Config) -> bool);

/// Every setting of reload class `restart`. A test compares it with the schema.
const RESTART: [Restart; 7] = [
    ("server.listen", |a, b| a.server.listen != b.server.listen),
    ("server.workers", |a, b| a.server.workers != b.server.workers),
    ("server.queue_max", |a, b| a.server.queue_max != b.server.queue_max),
    ("ops.listen", |a, b| a.ops.listen != b.ops.listen),
    ("log.pending_max", |a, b| a.log.pending_max != b.log.pending_max),
    ("state.dir", |a, b| a.state_dir != b.state_dir),
    ("store.pending_max", |a, b| a.store.pending_max != b.store.pending_max),
];

/// The settings that differ and that only a restart can change. When there is one, the reload is
/// refused whole: half of a new configuration is none.
pub fn compare(old: &Config, new: &Config) -> Vec<&'static str> {
    RESTART.iter().filter(|(_, differs)| differs(old, new)).map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::super::schema::{Shape, tree};
    use super::*;
    use crate::config::parse;

    fn config(text: &str) -> Config {
        parse(text, None, &|_| None).unwrap().config
    }

    #[test]
    fn the_table_is_that_of_the_schema() {
        let Shape::Table(tables) = tree() else { panic!("not a table") };
        let mut names = Vec::new();
        for table in &tables {
            let settings = match &table.shape {
                Shape::Table(settings) => settings,
                Shape::List { item, .. } => match &**item {
                    Shape::Table(settings) => settings,
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            };
            let restart = settings.iter().filter(|s| s.restart);
            names.extend(restart.map(|s| format!("{}.{}", table.key, s.key)));
        }
        assert_eq!(names, RESTART.map(|(name, _)| name));
    }

    #[test]
    fn changed_restart_settings_are_named_and_live_ones_are_not() {
        let old = config("");
        assert!(compare(&old, &old).is_empty());
        let all = config(
            "server = { listen = \"127.0.0.1:1\", workers = 999, queue_max = 1, body_max = 1024 }\n\
             ops.listen = \"127.0.0.1:2\"\nlog.pending_max = 99\nstate.dir = \"/x\"\n\
             store.pending_max = 99",
        );
        assert_eq!(compare(&old, &all), RESTART.map(|(name, _)| name));
        let live = config(
            "server.body_max = 1024\nlog.level = \"debug\"\n[[model]]\nname = \"a\"\nprimary = \"echo\"",
        );
        assert!(compare(&old, &live).is_empty());
    }
}
