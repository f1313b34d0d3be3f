//! Calls of tools. OpenAI streams them in fragments, with ids, the arguments as a string; Ollama
//! sends each whole, older versions without an id, the arguments as an object.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Fault, json};

/// Most calls in one answer. Past it the answer counts as malformed: models that loop make more.
pub(super) const CALLS_MAX: usize = 256;

/// One whole call.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    /// Its id, if its maker gave one.
    pub id: Option<String>,
    /// The function.
    pub name: String,
    /// The arguments.
    pub arguments: Map<String, Value>,
}

/// A call, or a fragment of one, as OpenAI writes it.
#[derive(Deserialize)]
struct OpenAiCall {
    index: Option<u64>,
    id: Option<String>,
    function: Option<OpenAiFunction>,
}

#[derive(Deserialize)]
struct OpenAiFunction {
    name: Option<String>,
    /// A string; an object from servers that do not keep to it.
    arguments: Option<Value>,
}

/// A call as Ollama writes it.
#[derive(Deserialize)]
struct OllamaCall {
    id: Option<String>,
    function: OllamaFunction,
}

#[derive(Deserialize)]
struct OllamaFunction {
    name: String,
    /// An object; a string from servers that do not keep to it.
    arguments: Option<Value>,
}

/// Reads the calls of an Ollama answer.
pub(super) fn from_ollama(text: &str) -> Result<Vec<Call>, Fault> {
    let calls: Vec<OllamaCall> = json::read(text).map_err(unreadable)?;
    let whole = |call: OllamaCall| {
        let arguments = match call.function.arguments {
            None | Some(Value::Null) => Some(Map::new()),
            Some(Value::Object(members)) => Some(members),
            Some(Value::String(text)) => arguments(&text),
            Some(_) => None,
        };
        let id = call.id.filter(|id| !id.is_empty());
        let arguments = arguments.ok_or_else(no_object)?;
        Ok(Call { id, name: call.function.name, arguments })
    };
    calls.into_iter().map(whole).collect()
}

/// Reads the calls of a whole OpenAI answer.
pub(super) fn from_openai(text: &str) -> Result<Vec<Call>, Fault> {
    let mut fragments = Fragments::default();
    let calls: Vec<OpenAiCall> = json::read(text).map_err(unreadable)?;
    for call in calls {
        fragments.begin(call)?;
    }
    fragments.finish()
}

/// Reads the arguments of a call, as the string that OpenAI makes of them.
pub(super) fn arguments(text: &str) -> Option<Map<String, Value>> {
    match text.trim_ascii() {
        "" | "null" => Some(Map::new()),
        text => json::read(text).ok(),
    }
}

fn no_object() -> Fault {
    Fault::Malformed("a tool call's arguments are no object".to_owned())
}

fn unreadable(error: serde_json::Error) -> Fault {
    Fault::Malformed(format!("tool_calls: {error}"))
}

/// Calls that come in fragments.
#[derive(Debug, Default)]
pub(super) struct Fragments {
    calls: Vec<Partial>,
    bytes: usize,
}

#[derive(Debug)]
struct Partial {
    index: Option<u64>,
    id: Option<String>,
    name: String,
    arguments: String,
}

impl Fragments {
    /// Adds the fragments of one chunk; all together may hold `bytes_max` bytes.
    pub fn add(&mut self, text: &str, bytes_max: usize) -> Result<(), Fault> {
        self.bytes += text.len();
        if self.bytes > bytes_max {
            return Err(Fault::LineTooLong);
        }
        let fragments: Vec<OpenAiCall> = json::read(text).map_err(unreadable)?;
        for fragment in fragments {
            let same = match fragment.index {
                Some(index) => self.calls.iter().position(|call| call.index == Some(index)),
                // Some servers leave the index out: what names nothing belongs to the last call.
                None if names_something(&fragment) => None,
                None => self.calls.len().checked_sub(1),
            };
            match same.and_then(|at| self.calls.get_mut(at)) {
                Some(call) => call.add(fragment),
                None => self.begin(fragment)?,
            }
        }
        Ok(())
    }

    fn begin(&mut self, fragment: OpenAiCall) -> Result<(), Fault> {
        if self.calls.len() == CALLS_MAX {
            return Err(Fault::Malformed(format!("more than {CALLS_MAX} tool calls")));
        }
        let (name, arguments) = (String::new(), String::new());
        let mut call = Partial { index: fragment.index, id: None, name, arguments };
        call.add(fragment);
        self.calls.push(call);
        Ok(())
    }

    /// The whole calls.
    pub fn finish(&mut self) -> Result<Vec<Call>, Fault> {
        let whole = |call: Partial| {
            if call.name.is_empty() {
                return Err(Fault::Malformed("a tool call without a function's name".to_owned()));
            }
            let arguments = arguments(&call.arguments).ok_or_else(no_object)?;
            Ok(Call { id: call.id, name: call.name, arguments })
        };
        std::mem::take(&mut self.calls).into_iter().map(whole).collect()
    }
}

fn names_something(fragment: &OpenAiCall) -> bool {
    let name = fragment.function.as_ref().and_then(|function| function.name.as_ref());
    fragment.id.as_ref().is_some_and(|id| !id.is_empty()) || name.is_some_and(|n| !n.is_empty())
}

impl Partial {
    fn add(&mut self, fragment: OpenAiCall) {
        self.id = self.id.take().or(fragment.id.filter(|id| !id.is_empty()));
        let Some(function) = fragment.function else { return };
        if self.name.is_empty() {
            self.name = function.name.unwrap_or_default();
        }
        match function.arguments {
            Some(Value::String(text)) => self.arguments.push_str(&text),
            Some(Value::Null) | None => {}
            Some(other) => self.arguments.push_str(&other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn call(id: Option<&str>, name: &str, arguments: Value) -> Call {
        let Value::Object(arguments) = arguments else { panic!("{arguments}") };
        Call { id: id.map(str::to_owned), name: name.to_owned(), arguments }
    }

    #[test]
    fn fragments_are_put_together_by_index() {
        let mut calls = Fragments::default();
        for fragment in [
            r#"[{"index":0,"id":"a","type":"function","function":{"name":"f","arguments":""}}]"#,
            r#"[{"index":0,"function":{"arguments":"{\"x\""}}]"#,
            r#"[{"index":1,"id":"b","function":{"name":"g","arguments":"{}"}},{"index":0,"id":"","function":{"name":"","arguments":":1}"}}]"#,
        ] {
            calls.add(fragment, 1000).unwrap();
        }
        let expected = [call(Some("a"), "f", json!({"x": 1})), call(Some("b"), "g", json!({}))];
        assert_eq!(calls.finish().unwrap(), expected);
    }

    #[test]
    fn fragments_without_an_index_belong_to_the_last_call() {
        let mut calls = Fragments::default();
        calls.add(r#"[{"id":"a","function":{"name":"f","arguments":"{\"x\":"}}]"#, 1000).unwrap();
        calls.add(r#"[{"function":{"arguments":"2}"}}]"#, 1000).unwrap();
        calls.add(r#"[{"function":{"name":"g","arguments":{"y":3}}}]"#, 1000).unwrap();
        let expected = [call(Some("a"), "f", json!({"x": 2})), call(None, "g", json!({"y": 3}))];
        assert_eq!(calls.finish().unwrap(), expected);
    }

    #[test]
    fn fragments_have_a_limit_in_bytes_and_in_number() {
        let fragment = r#"[{"index":0,"function":{"name":"f","arguments":"{}"}}]"#;
        let mut calls = Fragments::default();
        assert_eq!(calls.add(fragment, fragment.len()), Ok(()));
        assert_eq!(calls.add("[]", fragment.len() + 1), Err(Fault::LineTooLong));
        let mut calls = Fragments::default();
        let one = |index: usize| format!("[{{\"index\":{index},\"function\":{{\"name\":\"f\"}}}}]");
        for index in 0..CALLS_MAX {
            assert_eq!(calls.add(&one(index), usize::MAX), Ok(()));
        }
        assert!(matches!(calls.add(&one(CALLS_MAX), usize::MAX), Err(Fault::Malformed(_))));
    }

    #[test]
    fn calls_that_nobody_can_make_are_malformed() {
        for text in [
            r#"[{"id":"a","type":"function","function":{"name":"f","arguments":"{\"x\""}}]"#,
            r#"[{"id":"a","type":"function","function":{"name":"f","arguments":"[1]"}}]"#,
            r#"[{"id":"a","type":"custom","custom":{"name":"f","input":"x"}}]"#,
            r#"[1]"#,
        ] {
            assert!(matches!(from_openai(text), Err(Fault::Malformed(_))), "{text}");
        }
        assert!(from_ollama(r#"[{"function":{"arguments":{}}}]"#).is_err());
        assert!(from_ollama(r#"[{"function":{"name":"f","arguments":[]}}]"#).is_err());
        let string = from_ollama(r#"[{"function":{"name":"f","arguments":"{\"x\":1}"}}]"#);
        assert_eq!(string.unwrap(), [call(None, "f", json!({"x": 1}))]);
        let fine = from_openai(r#"[{"id":"a","function":{"name":"f","arguments":" null "}}]"#);
        assert_eq!(fine.unwrap(), [call(Some("a"), "f", json!({}))]);
    }
}
