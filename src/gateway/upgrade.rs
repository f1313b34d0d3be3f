//! `GET /` and `GET /ws` that ask for a WebSocket: the way into the room of connections (`nodes`).

use std::net::SocketAddr;
use std::sync::Arc;

use super::drill::Drill;
use super::record::Record;
use super::routes;
use super::state::State;
use super::{Gateway, Refused, address, errors};
use crate::base::error::{Error, Kind};
use crate::health::overload::Action;
use crate::net::http::{Head, Request};
use crate::net::service::{Admission, Step};
use crate::net::websocket::{self, Accept};
use crate::nodes::{Nodes, Ticket};

/// Where it is asked for.
const PATHS: [&str; 2] = ["/", routes::WEBSOCKET_PATH];

/// Whether a request wants a WebSocket, where there is one.
pub(super) fn wanted(head: &Head) -> bool {
    PATHS.contains(&head.path()) && websocket::wanted(head)
}

impl Gateway {
    /// Lets WebSocket connections in, from now on. Once.
    pub fn open_room(&self, nodes: &Arc<Nodes>) {
        let _ = self.room.set(Arc::downgrade(nodes));
    }

    /// Whether an upgrade is welcome, as far as its head tells. Who it is comes later, in the room.
    pub(super) fn admit_upgrade(
        &self,
        state: &State,
        head: &Head,
        peer: &SocketAddr,
    ) -> Result<Admission, Refused> {
        if self.hold.on() {
            let context = "the gateway takes nobody in now: its operator drains it";
            return Err(Error::new(Kind::Draining, context).into());
        }
        if self.overload.does(Action::CallsRefused) {
            let context = "the gateway is overloaded and takes nobody in; try again shortly";
            let error = Error::new(Kind::Overloaded, context);
            return Err(error.retry_after(Some(self.overload.retry_after())).into());
        }
        websocket::accept(head)?;
        let admission = self.within_limits(state, head, peer, routes::websocket(), None)?;
        Ok(Admission { body_max: 0, ..admission })
    }

    /// Hands the connection over, or says why not.
    pub(super) fn upgrade(&self, request: &Request, state: &State) -> Step {
        let mut record = Record::of_request(request, &self.metrics);
        match self.place(request, state) {
            Ok((accept, ticket, nodes)) => {
                record.finish(101, 0);
                let taker = Box::new(move |upgraded| nodes.take(ticket, upgraded));
                Step::Upgrade { accept, taker }
            }
            Err(error) => {
                record.failed(&error);
                let response = errors::response(&error, request.head.path());
                record.finish(response.status, response.body.len() as u64);
                Step::Respond(state.readable(&request.head.headers, response))
            }
        }
    }

    /// A WebSocket that sends back what it is sent.
    pub(super) fn echo(&self, request: &Request, drill: &Arc<Drill>) -> Step {
        let mut record = Record::of_request(request, &self.metrics);
        match websocket::accept(&request.head) {
            Ok(accept) => {
                record.finish(101, 0);
                let (drill, beats) = (Arc::clone(drill), Arc::clone(&self.heartbeats));
                let taker = Box::new(move |upgraded| drill.echoes.take(upgraded, &beats));
                Step::Upgrade { accept, taker }
            }
            Err(error) => {
                record.failed(&error);
                let response = errors::response(&error, request.head.path());
                record.finish(response.status, response.body.len() as u64);
                Step::Respond(response)
            }
        }
    }

    fn place(
        &self,
        request: &Request,
        state: &State,
    ) -> Result<(Accept, Ticket, Arc<Nodes>), Error> {
        let accept = websocket::accept(&request.head)?;
        let room = self.room.get().and_then(std::sync::Weak::upgrade);
        let nodes = room.ok_or_else(|| Error::new(Kind::Draining, "the gateway is starting"))?;
        let ticket = nodes.admit(address(state, &request.head, &request.peer))?;
        Ok((accept, ticket, nodes))
    }
}
