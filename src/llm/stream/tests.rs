use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;

use super::*;
use crate::llm::Route;
use crate::llm::echo::Echo;

/// A small bound, so that tests reach it.
const LINE_MAX: usize = 4096;

const CHAT: &str =
    r#"{"model":"alias","messages":[{"role":"user","content":"hello"}],"stream":true}"#;
const CHAT_USAGE: &str = r#"{"model":"alias","messages":[{"role":"user","content":"hello"}],"stream":true,"stream_options":{"include_usage":true}}"#;
const GENERATE: &str = r#"{"model":"alias","prompt":"hello"}"#;
const COMPLETION: &str = r#"{"model":"alias","prompt":"hello","stream":true}"#;

/// One attempt in a test.
struct Try {
    reply: Reply,
    stream: Stream,
    out: Vec<u8>,
    feed: Feed,
}

impl Try {
    fn new(route: Route, body: &str, upstream: Dialect) -> Try {
        let ask = Ask::parse(route, body.as_bytes().to_vec()).unwrap();
        let created = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let reply = Reply::new(&ask, "alias", "chatcmpl-7", created);
        let stream = Stream::new(&reply, &ask, upstream, LINE_MAX);
        Try { reply, stream, out: Vec::new(), feed: Feed::default() }
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let feed = self.stream.feed(&mut self.reply, bytes, &mut self.out)?;
        self.feed.events += feed.events;
        self.feed.content |= feed.content;
        Ok(())
    }

    /// Feeds the pieces, then ends.
    fn run<'a>(&mut self, pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<(), Fault> {
        for piece in pieces {
            self.feed(piece)?;
        }
        self.stream.end(&mut self.reply, &mut self.out)
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }
}

/// Runs a whole stream, which must end well, and gives what the client gets.
fn good(route: Route, body: &str, upstream: Dialect, sent: &str) -> String {
    let mut one = Try::new(route, body, upstream);
    one.run([sent.as_bytes()]).unwrap();
    assert!(one.stream.done() && one.stream.committed());
    let mut bytewise = Try::new(route, body, upstream);
    bytewise.run(sent.as_bytes().chunks(1)).unwrap();
    assert_eq!(one.text(), bytewise.text());
    assert_eq!(one.feed, bytewise.feed);
    assert_eq!(one.stream.usage(), bytewise.stream.usage());
    one.text().to_owned()
}

/// Runs a stream that must go wrong, and gives what the client got and why it ended.
fn bad(route: Route, body: &str, upstream: Dialect, sent: &str) -> (String, Fault) {
    let mut one = Try::new(route, body, upstream);
    let fault = one.run([sent.as_bytes()]).unwrap_err();
    assert!(!one.stream.done());
    assert_eq!(one.stream.committed(), !one.out.is_empty());
    let mut bytewise = Try::new(route, body, upstream);
    assert_eq!(bytewise.run(sent.as_bytes().chunks(1)), Err(fault.clone()));
    assert_eq!(one.text(), bytewise.text());
    // After a fault nothing more comes.
    let before = one.out.len();
    assert_eq!(one.feed(b"data: [DONE]\n\n{\"done\":true}\n"), Err(Fault::Cut));
    assert_eq!(one.stream.end(&mut one.reply, &mut one.out), Err(Fault::Cut));
    assert_eq!(one.out.len(), before);
    (one.text().to_owned(), fault)
}

fn openai(body: &str, sent: &str) -> String {
    good(Route::ChatCompletions, body, Dialect::OpenAi, sent)
}

fn ollama(sent: &str) -> String {
    good(Route::OllamaChat, CHAT, Dialect::Ollama, sent)
}

const ROLE: &str = "data: {\"id\":\"u-1\",\"model\":\"alias\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n";
const WORD: &str = "data: {\"id\":\"u-1\",\"model\":\"alias\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"hi\"},\"finish_reason\":null}]}\n\n";
const STOP: &str = "data: {\"id\":\"u-1\",\"model\":\"alias\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const USAGE: &str = "data: {\"id\":\"u-1\",\"model\":\"alias\",\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1,\"total_tokens\":4}}\n\n";
const END: &str = "data: [DONE]\n\n";
const LINE: &str = "{\"model\":\"alias\",\"created_at\":\"x\",\"message\":{\"role\":\"assistant\",\"content\":\"hi\"},\"done\":false}\n";
const EMPTY_LINE: &str =
    "{\"model\":\"alias\",\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":false}\n";
const LAST: &str = "{\"model\":\"alias\",\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true,\"done_reason\":\"stop\",\"prompt_eval_count\":3,\"eval_count\":1}\n";

// === Same dialect, OpenAI ===

#[test]
fn events_are_forwarded_as_they_came() {
    let sent = [ROLE, WORD, WORD, STOP, END].concat();
    assert_eq!(openai(CHAT, &sent), sent);
    // With everything that the form allows.
    let sent = [
        ": comment\nid: 1\nevent: x\nretry: 5\n",
        &WORD.replace("data: ", "data:"),
        &WORD.replace('\n', "\r\n"),
        ": alone\n\n",
        &STOP.replace("null", "null , \"x\" : [ 1, { } ]"),
        END,
    ]
    .concat();
    assert_eq!(openai(CHAT, &sent), sent);
}

#[test]
fn only_the_value_of_the_model_is_replaced() {
    let sent = [ROLE, WORD, STOP, END].concat();
    let upstream = sent.replace("\"model\":\"alias\"", "\"model\" : \"gpt-\\u0034o\"");
    let expected = sent.replace("\"model\":\"alias\"", "\"model\" : \"alias\"");
    assert_eq!(openai(CHAT, &upstream), expected);
    let upstream = sent.replace("\"model\"", "\"mod\\u0065l\"").replace("alias", "other");
    assert_eq!(openai(CHAT, &upstream), sent.replace("\"model\"", "\"mod\\u0065l\""));
}

#[test]
fn data_in_several_lines_is_read_as_one() {
    let sent =
        WORD.replace("\"choices\"", "\ndata: \"choices\"").replace("data: {", "id: 9\ndata: {");
    assert_eq!(openai(CHAT, &[&sent, STOP, END].concat()), [&sent, STOP, END].concat());
    let upstream = sent.replace("alias", "other");
    let expected = WORD.replace("\"choices\"", " \"choices\"").replace("data: {", "id: 9\ndata: {");
    assert_eq!(openai(CHAT, &[&upstream, STOP, END].concat()), [&expected, STOP, END].concat());
}

#[test]
fn a_byte_order_mark_is_dropped_at_the_start_only() {
    let sent = [ROLE, WORD, STOP, END].concat();
    assert_eq!(openai(CHAT, &format!("\u{feff}{sent}")), sent);
    let (_, fault) =
        bad(Route::OllamaChat, CHAT, Dialect::Ollama, &format!("{LINE}\u{feff}{LAST}"));
    assert!(matches!(fault, Fault::Malformed(_)));
    assert_eq!(ollama(&format!("\u{feff}{LINE}{LAST}")), format!("{LINE}{LAST}"));
}

#[test]
fn events_without_data_never_leave() {
    let empty = "data:\n\n\n\nevent: ping\n\nid: 4\n\ndata\n\ndata: \n\nretry: 4\n\n";
    let sent = [WORD, empty, STOP, empty, END].concat();
    assert_eq!(openai(CHAT, &sent), [WORD, STOP, END].concat());
}

#[test]
fn comments_before_the_commit_are_dropped() {
    let sent = [": wait\n\n", ROLE, ": wait\n\n", WORD, ": wait\n\n", STOP, END].concat();
    let expected = [ROLE, WORD, ": wait\n\n", STOP, END].concat();
    assert_eq!(openai(CHAT, &sent), expected);
}

#[test]
fn the_usage_chunk_is_for_those_who_asked() {
    let sent = [ROLE, WORD, STOP, USAGE, END].concat();
    assert_eq!(openai(CHAT_USAGE, &sent), sent);
    assert_eq!(openai(CHAT, &sent), [ROLE, WORD, STOP, END].concat());
    let mut one = Try::new(Route::ChatCompletions, CHAT, Dialect::OpenAi);
    one.run([sent.as_bytes()]).unwrap();
    assert_eq!(one.stream.usage(), Some(Usage { input: 3, output: 1, ..Usage::default() }));
    // Null, and usage beside content, stay.
    let null = WORD.replace("\"choices\"", "\"usage\":null,\"choices\"");
    let beside = STOP.replace("\"choices\"", "\"usage\":{\"prompt_tokens\":1},\"choices\"");
    let filter = WORD.replace("[{", "[],\"prompt_filter_results\":[{");
    let filter = filter.split_once("]}").map(|_| {
        "data: {\"model\":\"alias\",\"choices\":[],\"usage\":null,\"prompt_filter_results\":[1]}\n\n"
    });
    let sent = [filter.unwrap(), &null, &beside, END].concat();
    assert_eq!(openai(CHAT, &sent), sent);
}

#[test]
fn nothing_after_the_terminator_is_forwarded() {
    let sent = [WORD, STOP, END, WORD, "garbage \u{1}\n\n", END].concat();
    assert_eq!(openai(CHAT, &sent), [WORD, STOP, END].concat());
    assert_eq!(ollama(&[LINE, LAST, LINE, "garbage\n"].concat()), [LINE, LAST].concat());
}

#[test]
fn nothing_is_written_before_the_first_content() {
    let mut one = Try::new(Route::ChatCompletions, CHAT, Dialect::OpenAi);
    one.feed(ROLE.as_bytes()).unwrap();
    let empty = "data: {\"choices\":[{\"delta\":{\"content\":\"\",\"tool_calls\":[ ],\"x\":{},\"refusal\":null,\"role\":\"assistant\"}}]}\n\n";
    one.feed(empty.as_bytes()).unwrap();
    assert!(one.out.is_empty() && !one.stream.committed());
    assert_eq!(one.feed, Feed { events: 2, content: false });
    one.feed(WORD.as_bytes()).unwrap();
    assert_eq!(one.text(), [ROLE, empty, WORD].concat());
    assert!(one.stream.committed() && one.feed.content && !one.stream.done());
}

#[test]
fn whatever_is_not_empty_in_a_delta_is_content() {
    for delta in [
        r#"{"content":" "}"#,
        r#"{"reasoning_content":"x"}"#,
        r#"{"reasoning":"x"}"#,
        r#"{"thinking":"x"}"#,
        r#"{"refusal":"no"}"#,
        r#"{"tool_calls":[{"index":0}]}"#,
        r#"{"function_call":{"name":"f"}}"#,
        r#"{"audio":{"id":"a"}}"#,
        r#"{"content":[{"type":"text","text":"x"}]}"#,
        r#"{"something_new":"x"}"#,
    ] {
        let mut one = Try::new(Route::ChatCompletions, CHAT, Dialect::OpenAi);
        let event = format!("data: {{\"choices\":[{{\"delta\":{delta}}}]}}\n\n");
        one.feed(event.as_bytes()).unwrap();
        assert_eq!(one.text(), event);
    }
    let mut one = Try::new(Route::Completions, COMPLETION, Dialect::OpenAi);
    one.feed(b"data: {\"choices\":[{\"text\":\"\"}]}\n\n").unwrap();
    assert!(!one.stream.committed());
    one.feed(b"data: {\"choices\":[{\"text\":\"x\"}]}\n\n").unwrap();
    assert!(one.stream.committed());
}

#[test]
fn an_empty_answer_that_ends_well_is_an_answer() {
    assert_eq!(openai(CHAT, &[ROLE, STOP, END].concat()), [ROLE, STOP, END].concat());
    assert_eq!(ollama(LAST), LAST);
    let load = "{\"model\":\"alias\",\"message\":{},\"done_reason\":\"load\",\"done\":true}\n";
    assert_eq!(ollama(load), load);
    let (out, fault) = bad(Route::ChatCompletions, CHAT, Dialect::OpenAi, &[ROLE, END].concat());
    assert_eq!(out, "");
    assert!(matches!(fault, Fault::Malformed(_)));
    let (_, fault) = bad(Route::OllamaChat, CHAT, Dialect::Ollama, "{\"done\":true}\n");
    assert!(matches!(fault, Fault::Malformed(_)));
}

#[test]
fn an_end_without_terminator_is_a_cut() {
    for sent in ["", ROLE, "data: {\"choi", ": wait\n\n"] {
        let (out, fault) = bad(Route::ChatCompletions, CHAT, Dialect::OpenAi, sent);
        assert_eq!((out.as_str(), fault), ("", Fault::Cut));
    }
    for rest in ["", "data: {\"choi", WORD.trim_end(), "data: [DON", "[DONE]\n"] {
        let sent = [WORD, STOP, rest].concat();
        let (out, fault) = bad(Route::ChatCompletions, CHAT, Dialect::OpenAi, &sent);
        assert_eq!((out, fault), ([WORD, STOP].concat(), Fault::Cut), "{rest}");
    }
    for rest in ["", "{\"done\":tr", LINE.trim_end()] {
        let sent = [LINE, rest].concat();
        let (out, fault) = bad(Route::OllamaChat, CHAT, Dialect::Ollama, &sent);
        assert_eq!((out.as_str(), fault), (LINE, Fault::Cut), "{rest}");
    }
}

#[test]
fn a_terminator_needs_no_line_end_after_it() {
    let expected = [WORD, STOP, END].concat();
    for end in [
        "data: [DONE]",
        "data: [DONE]\n",
        "data:[DONE]\r\n",
        "data: [DONE]\r\r",
        "data: [DONE]\r\n\r",
    ] {
        assert_eq!(openai(CHAT, &[WORD, STOP, end].concat()), expected, "{end:?}");
    }
    assert_eq!(ollama(&[LINE, LAST.trim_end()].concat()), [LINE, LAST].concat());
}

#[test]
fn errors_in_band_are_faults_and_never_forwarded() {
    let faults = [
        (
            "{\"error\":{\"message\":\"over\\nloaded\",\"type\":\"x\",\"code\":503}}",
            "over loaded",
            Some(503),
        ),
        ("{\"error\":{\"message\":\"slow down\",\"code\":\"429\"}}", "slow down", Some(429)),
        ("{\"error\":\"out of memory\"}", "out of memory", None),
        ("{\"error\":true}", "the upstream told an error without a reason", None),
        ("{\"error\":{\"code\":500}}", "the upstream told an error without a reason", Some(500)),
        ("{\"object\":\"error\",\"message\":\"bad\",\"code\":400}", "bad", Some(400)),
        (
            "{\"id\":\"x\",\"error\":{\"message\":\"m\",\"code\":502},\"choices\":[{\"delta\":{\"content\":\"\"},\"finish_reason\":\"error\"}]}",
            "m",
            Some(502),
        ),
        (
            "{\"choices\":[{\"delta\":{},\"finish_reason\":\"error\"}]}",
            "the upstream ended the answer with an error",
            None,
        ),
    ];
    for (data, message, status) in faults {
        let expected = Fault::InBand { message: message.to_owned(), status };
        let event = format!("data: {data}\n\n");
        let (out, fault) =
            bad(Route::ChatCompletions, CHAT, Dialect::OpenAi, &[ROLE, &event].concat());
        assert_eq!((out.as_str(), &fault), ("", &expected));
        let (out, fault) =
            bad(Route::ChatCompletions, CHAT, Dialect::OpenAi, &[WORD, &event].concat());
        assert_eq!((out.as_str(), &fault), (WORD, &expected));
        // Also when the connection ends with it.
        let (_, fault) =
            bad(Route::ChatCompletions, CHAT, Dialect::OpenAi, &[WORD, event.trim_end()].concat());
        assert_eq!(fault, expected);
    }
    let named = "event: error\ndata: {\"message\":\"broken\"}\n\n";
    let (_, fault) = bad(Route::ChatCompletions, CHAT, Dialect::OpenAi, &[WORD, named].concat());
    assert_eq!(fault, Fault::InBand { message: "broken".to_owned(), status: None });
    let (out, fault) =
        bad(Route::OllamaChat, CHAT, Dialect::Ollama, &[LINE, "{\"error\":\"oom\"}\n"].concat());
    assert_eq!(
        (out.as_str(), fault),
        (LINE, Fault::InBand { message: "oom".to_owned(), status: None })
    );
    // What Python takes for false is no error.
    for nothing in ["null", "\"\"", "{}", "[]", "0", "false"] {
        let sent = [&WORD.replace("{\"id\"", &format!("{{\"error\":{nothing},\"id\"")), STOP, END]
            .concat();
        assert_eq!(openai(CHAT, &sent), sent);
    }
}

#[test]
fn malformed_events_never_leave() {
    for data in [
        "{",
        "nonsense",
        "[1]",
        "1",
        "\"x\"",
        "null",
        "{\"choices\":1}",
        "{\"choices\":[1]}",
        "{\"choices\":[{\"delta\":1}]}",
        "{\"choices\":[],\"choices\":[]}",
        "{} {}",
        "[DONE] x",
        "{\"model\":\"a\",\"model\":\"b\"}",
    ] {
        let sent = [WORD, &format!("data: {data}\n\n"), WORD].concat();
        let (out, fault) = bad(Route::ChatCompletions, CHAT, Dialect::OpenAi, &sent);
        assert_eq!(out, WORD, "{data}");
        assert!(matches!(fault, Fault::Malformed(_)), "{data}");
    }
    for line in [
        "{",
        "x",
        "1",
        "{\"done\":1}",
        "{\"message\":\"x\"}",
        "{\"done\":false,\"done\":true}",
        "{\"a\":\r1}",
    ] {
        let sent = [LINE, line, "\n", LINE].concat();
        let (out, fault) = bad(Route::OllamaChat, CHAT, Dialect::Ollama, &sent);
        assert_eq!(out, LINE, "{line}");
        assert!(matches!(fault, Fault::Malformed(_)), "{line}");
    }
    let mut one = Try::new(Route::OllamaChat, CHAT, Dialect::Ollama);
    assert!(matches!(one.feed(b"\"\xff\"\n"), Err(Fault::Malformed(_))));
    let deep = format!("data: {{\"x\":{}1{}}}\n\n", "[".repeat(200), "]".repeat(200));
    let (out, fault) = bad(Route::ChatCompletions, CHAT, Dialect::OpenAi, &[WORD, &deep].concat());
    assert_eq!(out, WORD);
    assert!(matches!(fault, Fault::Malformed(_)));
}

#[test]
fn an_event_at_the_limit_passes_and_one_past_it_does_not() {
    let event = |length: usize| {
        let frame = "data: {\"choices\":[{\"delta\":{\"content\":\"\"}}]}\n\n";
        frame.replace("\"\"", &format!("\"{}\"", "x".repeat(length - frame.len())))
    };
    let fine = event(LINE_MAX);
    assert_eq!(fine.len(), LINE_MAX);
    let sent = [&fine, STOP, END].concat();
    assert_eq!(openai(CHAT, &sent), sent);
    let (out, fault) =
        bad(Route::ChatCompletions, CHAT, Dialect::OpenAi, &[WORD, &event(LINE_MAX + 1)].concat());
    assert_eq!((out.as_str(), fault), (WORD, Fault::LineTooLong));
    let (out, fault) = bad(Route::OllamaChat, CHAT, Dialect::Ollama, &"x".repeat(LINE_MAX + 1));
    assert_eq!((out.as_str(), fault), ("", Fault::LineTooLong));
}

#[test]
fn what_is_held_before_the_commit_has_a_limit() {
    let fits = LINE_MAX / ROLE.len();
    let (out, fault) = bad(Route::ChatCompletions, CHAT, Dialect::OpenAi, &ROLE.repeat(fits + 1));
    assert_eq!((out.as_str(), fault), ("", Fault::LineTooLong));
    let sent = [&ROLE.repeat(fits), WORD, STOP, END].concat();
    assert_eq!(openai(CHAT, &sent), sent);
}

// === Same dialect, Ollama ===

#[test]
fn lines_are_forwarded_as_they_came_and_blank_ones_dropped() {
    let sent = [EMPTY_LINE, LINE, LAST].concat();
    assert_eq!(ollama(&sent), sent);
    assert_eq!(ollama(&["\n", EMPTY_LINE, "\r\n  \n", LINE, "\n", LAST].concat()), sent);
    let upstream = sent.replace("\"alias\"", "\"llama3:8b\"");
    assert_eq!(ollama(&upstream), sent);
    let mut one = Try::new(Route::OllamaChat, CHAT, Dialect::Ollama);
    one.feed(EMPTY_LINE.as_bytes()).unwrap();
    assert!(one.out.is_empty());
    one.run([LINE.as_bytes(), LAST.as_bytes()]).unwrap();
    assert_eq!(one.stream.usage(), Some(Usage { input: 3, output: 1, ..Usage::default() }));
    assert_eq!(one.feed, Feed { events: 3, content: true });
}

#[test]
fn a_cut_stream_is_counted_by_estimate() {
    let mut one = Try::new(Route::OllamaGenerate, GENERATE, Dialect::Ollama);
    one.feed(b"{\"response\":\"123456789\",\"done\":false}\n").unwrap();
    assert_eq!(one.stream.usage(), None);
    // "hello" with its quotes is 7 bytes, the answer 9.
    assert_eq!(one.stream.tokens(), Usage { input: 2, output: 3, estimated: true, cached: 0 });
}

// === Across ===

fn chunk(choice: &str) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-7\",\"object\":\"chat.completion.chunk\",\
         \"created\":1700000000,\"model\":\"alias\",\"choices\":[{choice}]}}\n\n"
    )
}

fn delta(delta: &str, finish: &str) -> String {
    chunk(&format!(
        "{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish}}}"
    ))
}

#[test]
fn an_ollama_chat_becomes_chunks() {
    let sent = [
        EMPTY_LINE,
        "{\"model\":\"m\",\"message\":{\"role\":\"assistant\",\"content\":\"\",\"thinking\":\"hm\\u006d\"},\"done\":false}\n",
        LINE,
        "{\"model\":\"m\",\"message\":{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":{\"x\":\"\\\"\"}}},{\"id\":\"call_u\",\"function\":{\"index\":1,\"name\":\"g\",\"arguments\":{}}}]},\"done\":false}\n",
        "{\"model\":\"m\",\"message\":{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"function\":{\"name\":\"h\",\"arguments\":{}}}]},\"done\":false}\n",
        LAST,
    ]
    .concat();
    let mut expected = [
        delta("{\"role\":\"assistant\",\"content\":\"\"}", "null"),
        delta("{\"reasoning_content\":\"hm\\u006d\"}", "null"),
        delta("{\"content\":\"hi\"}", "null"),
        delta(
            "{\"tool_calls\":[{\"index\":0,\"id\":\"call_7_0\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"x\\\":\\\"\\\\\\\"\\\"}\"}},\
             {\"index\":1,\"id\":\"call_u\",\"type\":\"function\",\"function\":{\"name\":\"g\",\"arguments\":\"{}\"}}]}",
            "null",
        ),
        delta(
            "{\"tool_calls\":[{\"index\":2,\"id\":\"call_7_2\",\"type\":\"function\",\"function\":{\"name\":\"h\",\"arguments\":\"{}\"}}]}",
            "null",
        ),
        delta("{}", "\"tool_calls\""),
    ]
    .concat();
    let across = |body| good(Route::ChatCompletions, body, Dialect::Ollama, &sent);
    assert_eq!(across(CHAT), format!("{expected}{END}"));
    expected.push_str(&chunk("").replace(
        "[]}",
        "[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1,\"total_tokens\":4}}",
    ));
    assert_eq!(across(CHAT_USAGE), format!("{expected}{END}"));
}

#[test]
fn an_ollama_answer_on_one_line_becomes_chunks() {
    let sent = "{\"message\":{\"content\":\"hi\"},\"done\":true,\"done_reason\":\"length\",\"logprobs\":[{\"token\":\"hi\",\"logprob\":-1.5}]}\n";
    let expected = [
        delta("{\"role\":\"assistant\",\"content\":\"\"}", "null"),
        delta("{\"content\":\"hi\"}", "null").replace(
            "\"logprobs\":null",
            "\"logprobs\":{\"content\":[{\"token\":\"hi\",\"logprob\":-1.5}],\"refusal\":null}",
        ),
        delta("{}", "\"length\""),
        END.to_owned(),
    ];
    assert_eq!(good(Route::ChatCompletions, CHAT, Dialect::Ollama, sent), expected.concat());
    let empty = [
        delta("{\"role\":\"assistant\",\"content\":\"\"}", "null"),
        delta("{}", "\"stop\""),
        END.to_owned(),
    ];
    assert_eq!(good(Route::ChatCompletions, CHAT, Dialect::Ollama, LAST), empty.concat());
}

#[test]
fn ollama_generate_becomes_completion_chunks() {
    let sent = "{\"response\":\"a\\n\",\"done\":false}\n{\"response\":\"\",\"done\":true,\"done_reason\":\"stop\",\"context\":[1]}\n";
    let head = "data: {\"id\":\"chatcmpl-7\",\"object\":\"text_completion\",\"created\":1700000000,\"model\":\"alias\",\"choices\":[{\"index\":0,\"text\":";
    let expected = format!(
        "{head}\"a\\n\",\"logprobs\":null,\"finish_reason\":null}}]}}\n\n\
         {head}\"\",\"logprobs\":null,\"finish_reason\":\"stop\"}}]}}\n\n{END}"
    );
    assert_eq!(good(Route::Completions, COMPLETION, Dialect::Ollama, sent), expected);
}

fn line(rest: &str) -> String {
    format!("{{\"model\":\"alias\",\"created_at\":\"2023-11-14T22:13:20.000000000Z\",{rest}}}\n")
}

fn message(rest: &str) -> String {
    line(&format!("\"message\":{{\"role\":\"assistant\",\"content\":{rest}}},\"done\":false"))
}

const FIGURES: &str = "\"total_duration\":0,\"load_duration\":0,\"prompt_eval_count\":3,\"prompt_eval_duration\":0,\"eval_count\":1,\"eval_duration\":0";

#[test]
fn chunks_become_an_ollama_chat() {
    let call = |fragment: &str| {
        format!("data: {{\"choices\":[{{\"delta\":{{\"tool_calls\":[{fragment}]}}}}]}}\n\n")
    };
    let sent = [
        ROLE,
        "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hmm\",\"reasoning\":\"hmm\"}}]}\n\n",
        WORD,
        "data: {\"choices\":[{\"delta\":{\"refusal\":\"no\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":[{\"type\":\"thinking\",\"thinking\":[{\"type\":\"text\",\"text\":\"t\"}]},{\"type\":\"text\",\"text\":\"c\"}]}}]}\n\n",
        &call("{\"index\":0,\"id\":\"a\",\"function\":{\"name\":\"f\",\"arguments\":\"\"}}"),
        &call("{\"index\":0,\"function\":{\"arguments\":\"{\\\"x\\\":1}\"}}"),
        &STOP.replace("\"stop\"", "\"tool_calls\""),
        USAGE,
        END,
    ]
    .concat();
    let expected = [
        message("\"\",\"thinking\":\"hmm\""),
        message("\"hi\""),
        message("\"no\""),
        message("\"c\",\"thinking\":\"t\""),
        message(
            "\"\",\"tool_calls\":[{\"id\":\"a\",\"function\":{\"index\":0,\"name\":\"f\",\"arguments\":{\"x\":1}}}]",
        ),
        line(&format!(
            "\"message\":{{\"role\":\"assistant\",\"content\":\"\"}},\"done\":true,\"done_reason\":\"stop\",{FIGURES}"
        )),
    ];
    assert_eq!(good(Route::OllamaChat, CHAT, Dialect::OpenAi, &sent), expected.concat());
}

#[test]
fn a_line_made_of_an_event_is_one_line_for_python_too() {
    let sent = [&WORD.replace("hi", "a\u{2028}b\u{85}é€"), STOP, END].concat();
    let lines = good(Route::OllamaChat, CHAT, Dialect::OpenAi, &sent);
    assert!(lines.starts_with(&message("\"a\\u2028b\\u0085é€\"")), "{lines}");
    assert_eq!(openai(CHAT, &sent), sent, "what is forwarded stays as it came");
}

#[test]
fn chunks_of_either_kind_become_generate_lines() {
    let last =
        line(&format!("\"response\":\"\",\"done\":true,\"done_reason\":\"length\",{FIGURES}"));
    let last = last.replace("\"prompt_eval_count\":3,", "").replace("\"eval_count\":1,", "");
    let expected = [line("\"response\":\"hi\",\"done\":false"), last].concat();
    let stop = STOP.replace("stop", "length");
    let chat = [ROLE, WORD, &stop, END].concat();
    assert_eq!(good(Route::OllamaGenerate, GENERATE, Dialect::OpenAi, &chat), expected);
    let completion = "data: {\"choices\":[{\"text\":\"hi\"}]}\n\ndata: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"length\"}]}\n\ndata: [DONE]\n\n";
    assert_eq!(good(Route::OllamaGenerate, GENERATE, Dialect::OpenAi, completion), expected);
}

#[test]
fn calls_that_cannot_be_made_end_a_translated_stream_without_terminator() {
    let call = "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"a\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"x\"}}]}}]}\n\n";
    let sent = [WORD, call, STOP, END].concat();
    let (out, fault) = bad(Route::OllamaChat, CHAT, Dialect::OpenAi, &sent);
    assert_eq!(out, message("\"hi\""));
    assert!(matches!(fault, Fault::Malformed(_)));
    let wrong = "{\"message\":{\"content\":\"\",\"tool_calls\":[1]},\"done\":false}\n";
    let (out, fault) = bad(Route::ChatCompletions, CHAT, Dialect::Ollama, wrong);
    assert_eq!(out, "");
    assert!(matches!(fault, Fault::Malformed(_)));
}

#[test]
fn the_echo_runs_through_the_same_stream() {
    for (route, body) in [
        (Route::ChatCompletions, CHAT),
        (Route::OllamaChat, CHAT),
        (Route::Completions, COMPLETION),
        (Route::OllamaGenerate, GENERATE),
    ] {
        let ask = Ask::parse(route, body.as_bytes().to_vec()).unwrap();
        let mut echo = Echo::new(&ask);
        let mut one = Try::new(route, body, echo.dialect());
        let mut bytes = Vec::new();
        while echo.next(&mut bytes) {
            one.feed(&std::mem::take(&mut bytes)).unwrap();
        }
        assert!(one.stream.done());
        assert_eq!(one.stream.usage(), Some(Usage { input: 1, output: 1, ..Usage::default() }));
        assert!(one.text().contains("hello"), "{}", one.text());
        assert!(!one.text().contains("usage"), "{}", one.text());
    }
}

// === Properties ===

/// Pieces of streams, good and bad.
fn piece(upstream: Dialect) -> impl Strategy<Value = Vec<u8>> {
    let pieces: &[&[u8]] = match upstream {
        Dialect::OpenAi => &[
            ROLE.as_bytes(),
            WORD.as_bytes(),
            STOP.as_bytes(),
            USAGE.as_bytes(),
            END.as_bytes(),
            b": wait\n\n",
            b"data:\n\n",
            b"id: 1\r\nevent: x\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"\xc3\xa9\"}}],\r\ndata: \"model\":\"other\"}\r\n\r\n",
            b"data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"a\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]}}]}\r\r",
            b"data: {\"error\":\"x\"}\n\n",
            b"data: {\"model\":\"other\",\"choices\":[{\"text\":\"x\"}]}\n\n",
            b"\n",
            b"\r",
            b"data: ",
            b"{}",
            b"\xef\xbb\xbf",
            b"\xff",
        ],
        Dialect::Ollama => &[
            LINE.as_bytes(),
            EMPTY_LINE.as_bytes(),
            LAST.as_bytes(),
            b"{\"model\":\"other\",\"message\":{\"thinking\":\"\xc3\xa9\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":{}}}]},\"done\":false}\r\n",
            b"{\"model\":\"other\",\"response\":\"x\",\"done\":false}\n",
            b"{\"error\":\"x\"}\n",
            b"\n",
            b"\r",
            b"{}",
            b"{\"done\":",
            b"\xef\xbb\xbf",
            b"\xff",
        ],
    };
    prop::sample::select(pieces.to_vec()).prop_map(<[u8]>::to_vec)
}

fn pairing() -> impl Strategy<Value = (Route, &'static str, Dialect)> {
    let routes = [
        (Route::ChatCompletions, CHAT),
        (Route::ChatCompletions, CHAT_USAGE),
        (Route::Completions, COMPLETION),
        (Route::OllamaChat, CHAT),
        (Route::OllamaGenerate, GENERATE),
    ];
    let upstreams = [Dialect::OpenAi, Dialect::Ollama];
    (prop::sample::select(routes.to_vec()), prop::sample::select(upstreams.to_vec()))
        .prop_map(|((route, body), upstream)| (route, body, upstream))
}

fn session() -> impl Strategy<Value = ((Route, &'static str, Dialect), Vec<u8>)> {
    pairing().prop_flat_map(|pairing| {
        let pieces = prop::collection::vec(piece(pairing.2), 0..10);
        pieces.prop_map(move |pieces| (pairing, pieces.concat()))
    })
}

fn run(pairing: (Route, &str, Dialect), pieces: &[&[u8]]) -> (Vec<u8>, Result<(), Fault>, bool) {
    let mut one = Try::new(pairing.0, pairing.1, pairing.2);
    let result = one.run(pieces.iter().copied());
    (one.out, result, one.stream.committed())
}

/// Whether there is a terminator in what a client got.
fn terminated(route: Route, out: &[u8]) -> bool {
    let text = String::from_utf8_lossy(out);
    match route.dialect() {
        Dialect::OpenAi => text.split(['\n', '\r']).any(|line| line == "data: [DONE]"),
        Dialect::Ollama => text.lines().any(|line| line.contains("\"done\":true")),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_split_of_the_bytes_gives_the_same_output(
        (pairing, bytes) in session(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut start = 0;
        for cut in cuts {
            pieces.push(&bytes[start..cut]);
            start = cut;
        }
        pieces.push(&bytes[start..]);
        let whole = run(pairing, &[&bytes]);
        prop_assert_eq!(&whole, &run(pairing, &pieces));
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(&whole, &run(pairing, &single));
    }

    #[test]
    fn a_stream_that_goes_wrong_has_no_terminator_and_whole_events_only((pairing, bytes) in session()) {
        let (out, result, committed) = run(pairing, &[&bytes]);
        prop_assert_eq!(result.is_ok(), terminated(pairing.0, &out));
        if !committed {
            prop_assert!(out.is_empty());
        }
        let text = String::from_utf8(out).unwrap();
        match pairing.0.dialect() {
            Dialect::Ollama => {
                prop_assert!(text.is_empty() || text.ends_with('\n'));
                for line in text.lines() {
                    prop_assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{}", line);
                }
            }
            Dialect::OpenAi => {
                // Read as a client reads it.
                let mut search = Search::default();
                let mut start = 0;
                while let Some(end) = search.sse_end(text.as_bytes()) {
                    let event = Event::parse(&text.as_bytes()[start..end]).unwrap();
                    let fine = event.comment
                        || event.data == "[DONE]"
                        || serde_json::from_str::<serde_json::Value>(&event.data).is_ok();
                    prop_assert!(fine, "{:?} in {:?} of {:?}", event, text, String::from_utf8_lossy(&bytes));
                    start = end;
                }
                prop_assert!(text[start..].is_empty() || text.ends_with('\r'), "{:?}", &text[start..]);
            }
        }
    }

    #[test]
    fn no_prefix_of_a_good_stream_yields_a_terminator(pairing in pairing(), words in 0usize..4, cut in any::<prop::sample::Index>()) {
        let bytes = match pairing.2 {
            Dialect::OpenAi => [ROLE, &WORD.repeat(words), STOP, USAGE, END].concat(),
            Dialect::Ollama => [EMPTY_LINE, &LINE.repeat(words), LAST].concat(),
        };
        // The terminator is there with the last byte that is not a line end.
        let cut = cut.index(bytes.trim_end().len());
        let (out, result, _) = run(pairing, &[&bytes.as_bytes()[..cut]]);
        prop_assert_eq!(result, Err(Fault::Cut));
        prop_assert!(!terminated(pairing.0, &out));
        prop_assert!(run(pairing, &[bytes.as_bytes()]).1.is_ok());
    }

    #[test]
    fn what_is_said_survives_every_way_through(
        said in prop::collection::vec((any::<String>(), any::<String>()), 1..5),
        path in prop::collection::vec(any::<bool>(), 0..3),
    ) {
        // Texts and thoughts, sent as an Ollama chat, over any number of translations.
        let mut bytes = String::new();
        for (text, thought) in &said {
            let message = serde_json::json!({"role": "assistant", "content": text, "thinking": thought});
            bytes += &format!("{}\n", serde_json::json!({"message": message, "done": false}));
        }
        bytes += LAST;
        let mut upstream = Dialect::Ollama;
        for openai in path.into_iter().chain([false]) {
            let route = if openai { Route::ChatCompletions } else { Route::OllamaChat };
            let (out, result, _) = run((route, CHAT, upstream), &[bytes.as_bytes()]);
            prop_assert_eq!(result, Ok(()));
            bytes = String::from_utf8(out).unwrap();
            upstream = route.dialect();
        }
        let all = |member: &str| -> String {
            let lines = bytes.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
            lines.map(|line| line["message"][member].as_str().unwrap_or_default().to_owned()).collect()
        };
        let (texts, thoughts): (Vec<_>, Vec<_>) = said.into_iter().unzip();
        prop_assert_eq!(all("content"), texts.concat());
        prop_assert_eq!(all("thinking"), thoughts.concat());
    }

    #[test]
    fn changed_bytes_never_panic(
        (pairing, bytes) in session(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = bytes;
        for (at, byte) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
        let whole = run(pairing, &[&bytes]);
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(whole, run(pairing, &single));
    }
}
