//! Who listens to what, beside what everybody hears: to the list of sessions, and to single ones.
//! Kept by connection, and gone with it.

use std::sync::Arc;

use super::refusal::Refusal;
use super::sessions::SessionId;
use crate::base::bounded::{Map, Set};
use crate::base::metrics::{Limit, Registry};

/// Connections that listen to something of their own.
pub const LISTENERS_MAX: usize = 4096;

/// Sessions that one connection listens to.
pub const SESSIONS_EACH_MAX: usize = 64;

/// The subscriptions of all connections.
pub struct Subscriptions {
    lists: Set<u64>,
    messages: Map<u64, Vec<SessionId>>,
}

impl Subscriptions {
    /// None yet.
    pub fn new(registry: &Registry) -> Self {
        let limit = |name| registry.limit(name, "", LISTENERS_MAX as u64, "UNAVAILABLE");
        Subscriptions::within(
            limit("nodes.session_list_listeners_max"),
            limit("nodes.session_listeners_max"),
        )
    }

    fn within(lists: Arc<Limit>, messages: Arc<Limit>) -> Self {
        Subscriptions { lists: Set::new(lists), messages: Map::new(messages) }
    }

    /// This connection hears of changes of sessions.
    ///
    /// # Errors
    /// `UNAVAILABLE` when too many do.
    pub fn listen_to_list(&mut self, number: u64) -> Result<(), Refusal> {
        if self.lists.contains(&number) || self.lists.insert(number) {
            return Ok(());
        }
        Err(Refusal::unavailable("too many connections listen to sessions"))
    }

    /// It does not any more.
    pub fn leave_list(&mut self, number: u64) {
        self.lists.remove(&number);
    }

    /// Whether it does.
    pub fn hears_list(&self, number: u64) -> bool {
        self.lists.contains(&number)
    }

    /// This connection hears what is said in a session.
    ///
    /// # Errors
    /// `UNAVAILABLE` when too many do, or it listens to too many.
    pub fn listen(&mut self, number: u64, session: SessionId) -> Result<(), Refusal> {
        let Some(sessions) = self.messages.get_or_insert_with(number, Vec::new) else {
            return Err(Refusal::unavailable("too many connections listen to sessions"));
        };
        if sessions.contains(&session) {
            return Ok(());
        }
        if sessions.len() >= SESSIONS_EACH_MAX {
            let text = format!("a connection listens to at most {SESSIONS_EACH_MAX} sessions");
            return Err(Refusal::unavailable(text));
        }
        sessions.push(session);
        Ok(())
    }

    /// It does not any more.
    pub fn leave(&mut self, number: u64, session: &SessionId) {
        if let Some(sessions) = self.messages.get_mut(&number) {
            sessions.retain(|known| known != session);
            if sessions.is_empty() {
                self.messages.remove(&number);
            }
        }
    }

    /// It hears of no session any more.
    pub fn leave_all(&mut self, number: u64) {
        self.messages.remove(&number);
    }

    /// Whether it does.
    pub fn hears(&self, number: u64, session: &SessionId) -> bool {
        self.messages.get(&number).is_some_and(|sessions| sessions.contains(session))
    }

    /// A connection has ended.
    pub fn gone(&mut self, number: u64) {
        self.leave_list(number);
        self.leave_all(number);
    }

    /// Connections that listen to something.
    pub fn len(&self) -> usize {
        self.lists.len() + self.messages.len()
    }

    /// Whether nobody does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(n: usize) -> SessionId {
        SessionId { account: None, key: format!("agent:main:{n}").into() }
    }

    #[test]
    fn what_a_connection_listens_to_is_bounded_and_gone_with_it() {
        let mut subscriptions = Subscriptions::within(Limit::detached(1), Limit::detached(2));
        for n in 0..SESSIONS_EACH_MAX {
            subscriptions.listen(1, session(n)).unwrap();
            subscriptions.listen(1, session(n)).unwrap();
        }
        assert!(subscriptions.listen(1, session(SESSIONS_EACH_MAX)).is_err());
        subscriptions.listen(2, session(0)).unwrap();
        assert!(subscriptions.listen(3, session(0)).is_err());
        assert!(subscriptions.listen_to_list(1).is_ok() && subscriptions.listen_to_list(1).is_ok());
        assert!(subscriptions.listen_to_list(2).is_err());
        assert!(subscriptions.hears(1, &session(0)) && subscriptions.hears_list(1));
        subscriptions.leave(2, &session(0));
        assert!(!subscriptions.hears(2, &session(0)));
        subscriptions.gone(1);
        assert!(subscriptions.is_empty());
    }
}
