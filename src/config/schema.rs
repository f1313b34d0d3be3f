//! The JSON Schema of the file, made from `config/raw.rs`, and the same thing as a tree that the
//! checks and the documents read.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::raw::Raw;
use super::unit::{Price, Rate, Size, Span};

/// The JSON Schema, as `tidegate config schema` prints it.
pub fn json() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<Raw>().to_value();
    tidy(&mut schema);
    if let Value::Object(root) = &mut schema {
        root.insert("title".into(), "tidegate.toml".into());
    }
    order(&mut schema);
    schema
}

/// What comes first in each schema; the rest follows as it came. The settings themselves keep the
/// order in which they are declared.
const ORDER: [&str; 14] = [
    "$schema",
    "title",
    "description",
    "type",
    "format",
    "const",
    "minimum",
    "maximum",
    "x-min",
    "x-max",
    "default",
    "x-default",
    "x-example",
    "x-at-limit",
];

fn order(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            let mut old = std::mem::take(object);
            for name in ORDER {
                if let Some(value) = old.shift_remove(name) {
                    object.insert(name.to_owned(), value);
                }
            }
            for (name, mut value) in old {
                match (name.as_str(), &mut value) {
                    ("properties", Value::Object(settings)) => {
                        settings.values_mut().for_each(order);
                    }
                    _ => order(&mut value),
                }
                object.insert(name, value);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(order),
        _ => {}
    }
}

/// Takes out what Rust's `Option` and integer types add and TOML does not know: null, and formats
/// such as `uint`. Says on each setting how a reload takes it, joins the lines of descriptions, and
/// drops default values of what must be written.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if let Some(Value::Array(options)) = object.get_mut("anyOf") {
                options.retain(|option| option.get("type") != Some(&Value::from("null")));
                if let [Value::Object(_)] = options.as_slice()
                    && let Some(Value::Object(only)) = options.pop()
                {
                    object.remove("anyOf");
                    for (name, value) in only {
                        object.entry(name).or_insert(value);
                    }
                }
            }
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    object.insert("type".into(), only);
                }
            }
            if object.get("format").and_then(Value::as_str).is_some_and(|f| f.starts_with("uint")) {
                object.remove("format");
            }
            if let Some(Value::String(text)) = object.get_mut("description") {
                *text = join_lines(text);
            }
            if object.get("default") == Some(&Value::Null) {
                object.remove("default");
            }
            let required: Vec<String> = object
                .get("required")
                .and_then(Value::as_array)
                .map(|names| names.iter().filter_map(|n| n.as_str().map(str::to_owned)).collect())
                .unwrap_or_default();
            if let Some(Value::Object(properties)) = object.get_mut("properties") {
                for (name, property) in properties {
                    if let Value::Object(property) = property {
                        let default = if required.contains(name) { "default" } else { "" };
                        property.remove(default);
                        let table = property.get("type") == Some(&Value::from("object"));
                        if !table {
                            property.entry("x-reload").or_insert_with(|| "live".into());
                        }
                    }
                }
            }
            for (name, value) in object.iter_mut() {
                if !matches!(name.as_str(), "default" | "x-example") {
                    tidy(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// Lines of a doc comment become paragraphs.
fn join_lines(text: &str) -> String {
    let paragraphs: Vec<String> =
        text.split("\n\n").map(|p| p.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    paragraphs.join("\n\n")
}

/// What a value may be.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// A table with these settings.
    Table(Vec<Setting>),
    /// A list of so many.
    List {
        /// What each is.
        item: Box<Shape>,
        /// How many at most.
        max: usize,
    },
    /// Either of two, told apart by their types in TOML.
    Either(Box<Shape>, Box<Shape>),
    /// A text of so many characters.
    Text {
        /// Fewest characters.
        min: usize,
        /// Most characters.
        max: usize,
    },
    /// One of these words.
    Word(Vec<Word>),
    /// A whole number.
    Integer {
        /// Least.
        min: u64,
        /// Greatest.
        max: u64,
    },
    /// True or false.
    Bool,
    /// A duration.
    Duration {
        /// Shortest.
        min: Span,
        /// Longest.
        max: Span,
    },
    /// A size.
    Size {
        /// Least.
        min: Size,
        /// Greatest.
        max: Size,
    },
    /// Bytes per second.
    Rate {
        /// Least.
        min: Rate,
        /// Greatest.
        max: Rate,
    },
    /// A price of a million tokens.
    Price {
        /// Greatest.
        max: Price,
    },
    /// A schema that this module cannot read. A test holds that there is none.
    Unknown,
}

/// One word of a choice.
#[derive(Clone, Debug, PartialEq)]
pub struct Word {
    /// As people write it.
    pub name: String,
    /// What it means.
    pub description: String,
}

/// One setting of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// Its key.
    pub key: String,
    /// What its value may be.
    pub shape: Shape,
    /// What it does.
    pub description: String,
    /// Its default, unless it has none or a computed one.
    pub default: Option<Value>,
    /// What stands in for a computed default.
    pub default_text: Option<String>,
    /// A value to show where there is no default.
    pub example: Option<Value>,
    /// What happens at the limit.
    pub at_limit: Option<String>,
    /// Whether a reload that changes it is refused.
    pub restart: bool,
    /// Whether it must be written.
    pub required: bool,
    /// Whether messages must not repeat its value.
    pub secret: bool,
}

/// The tree of all settings.
pub fn tree() -> Shape {
    shape(&json())
}

fn shape(schema: &Value) -> Shape {
    let Value::Object(object) = schema else { return Shape::Unknown };
    let number = |name: &str| object.get(name).and_then(Value::as_u64);
    let length = |name: &str| number(name).and_then(|n| usize::try_from(n).ok());
    if let Some(Value::Array(options)) = object.get("anyOf") {
        return match options.as_slice() {
            [a, b] => Shape::Either(Box::new(shape(a)), Box::new(shape(b))),
            _ => Shape::Unknown,
        };
    }
    if let Some(words) = object.get("oneOf").or_else(|| object.get("enum")) {
        return Shape::Word(words_of(words));
    }
    match object.get("format").and_then(Value::as_str) {
        Some("tidegate-duration") => {
            let min = bound(object, "x-min").unwrap_or_default();
            let max = bound(object, "x-max").unwrap_or(Span::seconds(24 * 3600));
            return Shape::Duration { min, max };
        }
        Some("tidegate-size") => {
            let min = bound(object, "x-min").unwrap_or_default();
            return Shape::Size { min, max: bound(object, "x-max").unwrap_or(Size(u64::MAX)) };
        }
        Some("tidegate-rate") => {
            let min = bound(object, "x-min").unwrap_or_default();
            return Shape::Rate { min, max: bound(object, "x-max").unwrap_or(Rate(u64::MAX)) };
        }
        Some("tidegate-price") => {
            return Shape::Price { max: bound(object, "x-max").unwrap_or(Price(u64::MAX)) };
        }
        _ => {}
    }
    match object.get("type").and_then(Value::as_str) {
        Some("object") => Shape::Table(settings(object)),
        Some("array") => Shape::List {
            item: Box::new(object.get("items").map_or(Shape::Unknown, shape)),
            max: length("maxItems").unwrap_or(usize::MAX),
        },
        Some("string") => Shape::Text {
            min: length("minLength").unwrap_or(0),
            max: length("maxLength").unwrap_or(4096),
        },
        Some("integer") => Shape::Integer {
            min: number("minimum").unwrap_or(0),
            max: number("maximum").unwrap_or(u64::MAX),
        },
        Some("boolean") => Shape::Bool,
        _ => Shape::Unknown,
    }
}

fn settings(object: &Map<String, Value>) -> Vec<Setting> {
    let required = |key: &str| match object.get("required") {
        Some(Value::Array(names)) => names.iter().any(|name| name == key),
        _ => false,
    };
    let Some(Value::Object(properties)) = object.get("properties") else { return Vec::new() };
    let setting = |(key, schema): (&String, &Value)| {
        let text = |name: &str| schema.get(name).and_then(Value::as_str).map(str::to_owned);
        Setting {
            key: key.clone(),
            shape: shape(schema),
            description: text("description").unwrap_or_default(),
            default: schema.get("default").cloned(),
            default_text: text("x-default"),
            example: schema.get("x-example").cloned(),
            at_limit: text("x-at-limit"),
            restart: text("x-reload").as_deref() == Some("restart"),
            required: required(key),
            secret: schema.get("x-secret").is_some(),
        }
    };
    properties.iter().map(setting).collect()
}

fn words_of(words: &Value) -> Vec<Word> {
    let word = |value: &Value| match value {
        Value::String(name) => Some(Word { name: name.clone(), description: String::new() }),
        _ => Some(Word {
            name: value.get("const")?.as_str()?.to_owned(),
            description: value.get("description")?.as_str()?.to_owned(),
        }),
    };
    words.as_array().map(|words| words.iter().filter_map(word).collect()).unwrap_or_default()
}

fn bound<T: std::str::FromStr>(object: &Map<String, Value>, name: &str) -> Option<T> {
    object.get(name)?.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each(shape: &Shape, path: &str, see: &mut dyn FnMut(&str, &Shape, Option<&Setting>)) {
        match shape {
            Shape::Table(settings) => {
                for setting in settings {
                    let path = format!("{path}.{}", setting.key);
                    see(&path, &setting.shape, Some(setting));
                    each(&setting.shape, &path, see);
                }
            }
            Shape::List { item, .. } => each(item, path, see),
            Shape::Either(a, b) => {
                see(path, a, None);
                see(path, b, None);
                each(a, path, see);
                each(b, path, see);
            }
            _ => {}
        }
    }

    #[test]
    fn every_setting_has_a_known_shape_a_description_and_a_bound() {
        let mut count = 0;
        each(&tree(), "", &mut |path, shape, setting| {
            count += 1;
            match shape {
                Shape::Unknown => panic!("{path}: unknown shape"),
                Shape::Integer { max, .. } => assert!(*max < u64::MAX, "{path}: no maximum"),
                Shape::List { max, .. } => assert!(*max < usize::MAX, "{path}: no maximum"),
                Shape::Size { max, .. } => assert!(max.0 < u64::MAX, "{path}: no x-max"),
                Shape::Rate { max, .. } => assert!(max.0 < u64::MAX, "{path}: no x-max"),
                Shape::Price { max } => assert!(max.0 < u64::MAX, "{path}: no x-max"),
                Shape::Duration { min, max } => assert!(min < max, "{path}: no bounds"),
                Shape::Word(words) => assert!(!words.is_empty(), "{path}: no words"),
                _ => {}
            }
            if let Some(setting) = setting {
                assert!(!setting.description.is_empty(), "{path}: no description");
                let shown = setting.default.is_some() || setting.example.is_some();
                assert!(shown || matches!(shape, Shape::Table(_)), "{path}: nothing to show");
            }
        });
        assert!(count > 50, "{count}");
    }

    #[test]
    fn the_schema_holds_no_null_and_no_rust_formats() {
        let text = json().to_string();
        assert!(!text.contains("null"), "{text}");
        assert!(!text.contains("\"uint"), "{text}");
    }

    #[test]
    fn bounds_are_those_of_the_attributes() {
        let Shape::Table(tables) = tree() else { panic!("not a table") };
        let server = tables.iter().find(|t| t.key == "server").unwrap();
        let Shape::Table(server) = &server.shape else { panic!("not a table") };
        let find = |key: &str| server.iter().find(|s| s.key == key).unwrap();
        assert_eq!(find("workers").shape, Shape::Integer { min: 1, max: 1024 });
        assert!(find("workers").restart);
        assert!(!find("body_max").restart);
        assert_eq!(find("body_max").shape, Shape::Size { min: Size::kib(1), max: Size::mib(1024) });
        assert_eq!(find("body_max").default, Some(Value::from("32MiB")));
    }
}
