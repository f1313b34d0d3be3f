//! Sessions: conversations by account and key. A table of at most `nodes.sessions_max`; the one
//! unused longest makes room, unless a run is under way in it.
//!
//! What is here lives in memory: after a restart sessions begin anew.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::{Value, json};

use super::history::{History, Message};
use super::refusal::Refusal;
use crate::base::bounded::Map;
use crate::base::id::RequestId;
use crate::base::metrics::Limit;
use crate::llm::Usage;

/// The one agent there is.
pub const AGENT: &str = "main";

/// The session that clients mean when they name none.
pub const MAIN: &str = "agent:main:main";

/// Longest key of a session, in bytes (the protocol's).
pub const KEY_BYTES_MAX: usize = 512;

/// Longest label, in bytes (the protocol's).
pub const LABEL_BYTES_MAX: usize = 512;

/// System events that wait for the next turn of a session. Past it: the oldest is forgotten.
pub const EVENTS_MAX: usize = 20;

/// Longest system event, in bytes. What is longer is cut.
pub const EVENT_BYTES_MAX: usize = 8 * 1024;

/// Bytes of a preview.
const PREVIEW_CHARS: usize = 200;

/// What stands in the keys that others' sessions have for an administrator.
const FOREIGN: &str = "agent:main:account:";

/// Whose session, and which.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionId {
    /// The account; none where nobody is asked for a key.
    pub account: Option<Arc<str>>,
    /// The key, in its full form.
    pub key: Arc<str>,
}

impl SessionId {
    /// The key as someone of `account` sees it: others' sessions, which only administrators see,
    /// have their account in it.
    pub fn shown_to(&self, account: Option<&str>) -> String {
        if self.account.as_deref() == account {
            return self.key.to_string();
        }
        let rest = self.key.strip_prefix("agent:main:").unwrap_or(&self.key);
        format!("{FOREIGN}{}:{rest}", self.account.as_deref().unwrap_or("-"))
    }

    /// The session that someone of `account` means by `key`; for an administrator it may be another
    /// account's.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for no proper key, and for an agent that we do not have.
    pub fn parse(account: Option<&Arc<str>>, key: &str, admin: bool) -> Result<Self, Refusal> {
        let written = key.trim();
        let key = canonical(key)?;
        if let Some(rest) = key.strip_prefix(FOREIGN).filter(|_| admin)
            && let Some((name, rest)) = whose(rest)
        {
            // Keys have no case, names of accounts do: this one as it was written.
            let at = FOREIGN.len() - (key.len() - written.len());
            let name = written.get(at..at + name.len()).unwrap_or(name);
            let account = (name != "-").then(|| name.into());
            return Ok(SessionId { account, key: format!("agent:main:{rest}").into() });
        }
        Ok(SessionId { account: account.cloned(), key: key.into() })
    }
}

/// The account and the rest of a foreign key. A device's account has a colon of its own.
fn whose(rest: &str) -> Option<(&str, &str)> {
    let from = if rest.starts_with("device:") { "device:".len() } else { 0 };
    let at = from + rest.get(from..)?.find(':')?;
    Some((&rest[..at], &rest[at + 1..]))
}

/// The full form of a key: `agent:main:` stands before every one, and `main` is the main session.
fn canonical(key: &str) -> Result<String, Refusal> {
    let key = key.trim();
    if key.is_empty() || key.len() > KEY_BYTES_MAX || key.chars().any(char::is_control) {
        return Err(Refusal::invalid(format!(
            "a session key has 1 to {KEY_BYTES_MAX} bytes and no control characters"
        )));
    }
    let key = key.to_ascii_lowercase();
    let Some(rest) = key.strip_prefix("agent:") else { return Ok(format!("agent:main:{key}")) };
    match rest.split_once(':') {
        Some((agent, rest)) if !rest.is_empty() => {
            agent_known(agent)?;
            Ok(key)
        }
        _ => Err(Refusal::invalid("a session key that begins with agent: names agent:ID:SESSION")),
    }
}

/// Refuses agents that there are not.
///
/// # Errors
/// `INVALID_REQUEST` with the protocol's details.
pub fn agent_known(agent: &str) -> Result<(), Refusal> {
    if agent.eq_ignore_ascii_case(AGENT) {
        return Ok(());
    }
    // The protocol's details want an id.
    if agent.is_empty() {
        return Err(Refusal::invalid("an agent id must not be empty"));
    }
    let details = json!({"code": "UNKNOWN_AGENT_ID", "agentId": agent});
    let text = format!("unknown agent id \"{agent}\"; this gateway has one agent, {AGENT}");
    Err(Refusal::invalid(text).with(details))
}

/// How the last run of a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words of the protocol")]
pub enum Status {
    Running,
    Done,
    Failed,
    Killed,
    Timeout,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Status::Running => "running",
            Status::Done => "done",
            Status::Failed => "failed",
            Status::Killed => "killed",
            Status::Timeout => "timeout",
        }
    }
}

/// One conversation.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Session {
    /// Another one after a reset.
    pub id: Arc<str>,
    pub history: History,
    /// The model that its runs ask for, when it was set.
    pub model: Option<Box<str>>,
    pub label: Option<Box<str>>,
    pub created_ms: u64,
    pub updated_ms: u64,
    /// Tokens of all its runs.
    pub input: u64,
    pub output: u64,
    /// Tokens that its last run asked with.
    pub context: u64,
    /// The model that answered last.
    pub answered_by: Option<Box<str>>,
    /// The run that is under way.
    pub active: Option<Arc<str>>,
    /// Runs that wait for it to end, in order. Bounded with all runs (`nodes.runs_max`).
    pub queue: VecDeque<Arc<str>>,
    pub status: Option<Status>,
    pub last_error: Option<Box<str>>,
    /// What is to be told with the next turn.
    pub events: VecDeque<Box<str>>,
}

impl Session {
    fn new(now_ms: u64) -> Self {
        Session {
            id: new_id(),
            history: History::default(),
            model: None,
            label: None,
            created_ms: now_ms,
            updated_ms: now_ms,
            input: 0,
            output: 0,
            context: 0,
            answered_by: None,
            active: None,
            queue: VecDeque::new(),
            status: None,
            last_error: None,
            events: VecDeque::new(),
        }
    }

    /// Whether nothing runs in it, or waits to.
    pub fn idle(&self) -> bool {
        self.active.is_none() && self.queue.is_empty()
    }

    /// Something to be told with its next turn.
    pub fn tell(&mut self, text: &str) {
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(clip(text, EVENT_BYTES_MAX).into());
    }

    /// Begins anew; the model stays.
    pub fn reset(&mut self, now_ms: u64) {
        let fresh = Session::new(now_ms);
        let (model, label) = (self.model.take(), self.label.take());
        let (active, queue) = (self.active.take(), std::mem::take(&mut self.queue));
        *self = Session { model, label, active, queue, ..fresh };
    }

    /// Counts what a run took.
    pub fn took(&mut self, usage: Usage) {
        self.input = self.input.saturating_add(usage.input);
        self.output = self.output.saturating_add(usage.output);
        self.context = usage.input.saturating_add(usage.output);
    }

    /// The id of one of its messages.
    pub fn message_id(&self, seq: u64) -> String {
        format!("{}:{seq}", self.id)
    }

    /// What its first question was.
    pub fn title(&self) -> Option<String> {
        self.history.opening().map(|message| line(&message.text, 60))
    }

    /// Its last words.
    pub fn preview(&self) -> Option<String> {
        self.history.last().map(|message| line(&message.text, PREVIEW_CHARS))
    }

    /// As lists show it to someone of `account`.
    pub fn row(&self, id: &SessionId, account: Option<&str>) -> Value {
        let kind = if &*id.key == "agent:main:global" { "global" } else { "direct" };
        let mut row = json!({
            "key": id.shown_to(account), "sessionId": &*self.id, "kind": kind, "agentId": AGENT,
            "isMain": &*id.key == MAIN, "createdAt": self.created_ms, "updatedAt": self.updated_ms,
            "lastActivityAt": self.updated_ms, "inputTokens": self.input,
            "outputTokens": self.output,
            "totalTokens": self.input.saturating_add(self.output), "totalTokensFresh": true,
            "contextTokens": self.context, "hasActiveRun": self.active.is_some(),
            "activeRunIds": self.active.iter().map(|run| &**run).collect::<Vec<_>>(),
        });
        let mut put = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                row[name] = value.into();
            }
        };
        put("accountId", id.account.as_deref());
        put("label", self.label.as_deref());
        put("model", self.model.as_deref().or(self.answered_by.as_deref()));
        put("status", self.status.map(Status::as_str));
        put("lastRunError", self.last_error.as_deref());
        row
    }
}

fn new_id() -> Arc<str> {
    RequestId::generate().as_str().to_ascii_lowercase().into()
}

/// The first bytes of a text, at a character's end.
pub fn clip(text: &str, bytes_max: usize) -> &str {
    let mut end = bytes_max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A text on one line, cut at this many characters.
fn line(text: &str, chars_max: usize) -> String {
    let mut words = String::new();
    for word in text.split_whitespace() {
        if !words.is_empty() {
            words.push(' ');
        }
        words.push_str(word);
        if words.len() > 4 * chars_max {
            break;
        }
    }
    match words.char_indices().nth(chars_max) {
        Some((at, _)) => format!("{}\u{2026}", &words[..at]),
        None => words,
    }
}

/// The sessions there are.
pub struct Sessions {
    table: Map<SessionId, Session>,
    limit: Arc<Limit>,
    /// Bytes of the histories; told to the limit on each.
    each: Arc<Limit>,
}

impl Sessions {
    /// None yet; at most `limit`, each of at most `each` bytes.
    pub fn new(limit: Arc<Limit>, each: Arc<Limit>) -> Self {
        Sessions { table: Map::new(Arc::clone(&limit)), limit, each }
    }

    /// How many bytes of history a session has room for.
    pub fn bytes_max(&self) -> usize {
        usize::try_from(self.each.max()).unwrap_or(usize::MAX)
    }

    /// A session that there is.
    pub fn get(&self, id: &SessionId) -> Option<&Session> {
        self.table.get(id)
    }

    /// The same, to change.
    pub fn get_mut(&mut self, id: &SessionId) -> Option<&mut Session> {
        self.table.get_mut(id)
    }

    /// A session, made when there is none. The one unused longest makes room.
    ///
    /// # Errors
    /// `UNAVAILABLE` when a run is under way in every one.
    pub fn open(&mut self, id: &SessionId, now_ms: u64) -> Result<&mut Session, Refusal> {
        if self.table.get(id).is_none() {
            self.fit(1);
        }
        self.table
            .get_or_insert_with(id.clone(), || Session::new(now_ms))
            .ok_or_else(|| Refusal::unavailable("a run is under way in every session; try again"))
    }

    /// Makes room for so many more, as far as idle ones can go.
    pub fn fit(&mut self, more: usize) {
        let max = usize::try_from(self.limit.max()).unwrap_or(usize::MAX);
        while self.table.len() + more > max {
            let idle = self.table.iter().filter(|(_, session)| session.idle());
            let Some((oldest, _)) = idle.min_by_key(|(_, session)| session.updated_ms) else {
                return;
            };
            let oldest = oldest.clone();
            self.table.remove(&oldest);
        }
    }

    /// Takes over new bounds.
    pub fn adopt_bounds(&mut self) {
        self.fit(0);
        let bytes_max = self.bytes_max();
        let ids: Vec<SessionId> = self.table.iter().map(|(id, _)| id.clone()).collect();
        for id in ids {
            if let Some(session) = self.table.get_mut(&id) {
                session.history.fit(bytes_max);
            }
        }
    }

    /// Adds a message; returns its number.
    pub fn say(&mut self, id: &SessionId, message: Message) -> Option<u64> {
        let bytes_max = self.bytes_max();
        let session = self.table.get_mut(id)?;
        session.updated_ms = session.updated_ms.max(message.at_ms);
        let seq = session.history.push(message, bytes_max);
        self.each.saw(session.history.bytes() as u64);
        Some(seq)
    }

    /// Forgets a session.
    pub fn remove(&mut self, id: &SessionId) -> Option<Session> {
        self.table.remove(id)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&SessionId, &Session)> {
        self.table.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(account: Option<&str>, key: &str, admin: bool) -> Result<SessionId, Refusal> {
        SessionId::parse(account.map(Into::into).as_ref(), key, admin)
    }

    fn sessions(max: u64) -> Sessions {
        Sessions::new(Limit::detached(max), Limit::detached(10_000))
    }

    #[test]
    fn a_session_has_many_names_and_one_key() {
        for name in ["main", " Main ", "agent:main:main", "Agent:MAIN:Main"] {
            assert_eq!(&*id(None, name, false).unwrap().key, MAIN, "{name}");
        }
        assert_eq!(&*id(None, "trip", false).unwrap().key, "agent:main:trip");
        for wrong in ["", " ", "agent:", "agent:main", "agent:main:", "a\nb", &"x".repeat(513)] {
            assert!(id(None, wrong, false).is_err(), "{wrong:?}");
        }
        let refusal = id(None, "agent:work:main", false).unwrap_err();
        assert_eq!(refusal.details.unwrap()["code"], "UNKNOWN_AGENT_ID");
        assert!(agent_known("").unwrap_err().details.is_none());
    }

    #[test]
    fn others_sessions_have_keys_of_their_own_and_only_for_administrators() {
        for account in [None, Some("laptop"), Some("Laptop"), Some("device:0123456789ab")] {
            let theirs = id(account, "trip:a", false).unwrap();
            assert_eq!(theirs.shown_to(account), "agent:main:trip:a");
            let shown = theirs.shown_to(Some("admin"));
            assert_eq!(id(Some("admin"), &shown, true).unwrap(), theirs);
            let own = id(Some("admin"), &shown, false).unwrap();
            assert_eq!(own.account.as_deref(), Some("admin"));
        }
    }

    #[test]
    fn the_session_unused_longest_makes_room_but_never_a_busy_one() {
        let mut sessions = sessions(2);
        let [a, b, c] = ["a", "b", "c"].map(|key| id(None, key, false).unwrap());
        sessions.open(&a, 1).unwrap().active = Some("run".into());
        sessions.open(&b, 2).unwrap();
        sessions.open(&c, 3).unwrap();
        assert!(sessions.get(&a).is_some() && sessions.get(&b).is_none());
        sessions.get_mut(&c).unwrap().queue.push_back("next".into());
        assert!(sessions.open(&b, 4).is_err());
        assert_eq!(sessions.limit.now(), 2);
        sessions.get_mut(&a).unwrap().active = None;
        sessions.open(&b, 5).unwrap();
        assert!(sessions.get(&a).is_none());
    }

    #[test]
    fn a_reset_forgets_what_was_said_and_keeps_what_was_set() {
        let mut sessions = sessions(2);
        let main = id(None, "main", false).unwrap();
        let session = sessions.open(&main, 1).unwrap();
        (session.model, session.active) = (Some("m".into()), Some("run".into()));
        let first = Arc::clone(&session.id);
        sessions.say(&main, Message::user("hello\n there", Vec::new(), &"r".into(), 9)).unwrap();
        let session = sessions.get_mut(&main).unwrap();
        assert_eq!((session.updated_ms, session.title().as_deref()), (9, Some("hello there")));
        let row = session.row(&main, None);
        assert_eq!((&row["key"], &row["hasActiveRun"]), (&json!(MAIN), &json!(true)));
        session.reset(20);
        assert!(session.history.is_empty() && session.id != first);
        assert_eq!((session.model.as_deref(), session.active.as_deref()), (Some("m"), Some("run")));
    }

    #[test]
    fn events_that_wait_are_bounded() {
        let mut session = Session::new(1);
        for n in 0..=EVENTS_MAX {
            session.tell(&format!("{n}{}", "\u{e9}".repeat(EVENT_BYTES_MAX)));
        }
        assert_eq!(session.events.len(), EVENTS_MAX);
        assert!(session.events.iter().all(|event| event.len() <= EVENT_BYTES_MAX));
        assert!(session.events[0].starts_with('1'));
    }
}
