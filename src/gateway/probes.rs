//! `/healthz` and `/readyz` of the data plane, for probes that know only one port: one word each. Who may
//! know more asks the ops plane.

use crate::base::clock;
use crate::base::health::{Board, Phase};
use crate::base::heartbeat::Heartbeats;
use crate::net::http::Response;

/// Whether every thread goes on that nobody can stand in for.
pub(super) fn live(heartbeats: &Heartbeats) -> Response {
    let hangs = heartbeats.late(clock::now()).iter().any(|pulse| pulse.essential);
    if hangs { answer(503, "stalled") } else { answer(200, "live") }
}

/// Whether requests are welcome.
pub(super) fn ready(board: &Board) -> Response {
    match board.phase() {
        Phase::Ready if board.ready(clock::now()) => answer(200, "ready"),
        Phase::Ready => answer(503, "unhealthy"),
        other => answer(503, other.as_str()),
    }
}

fn answer(status: u16, word: &str) -> Response {
    let body = format!("{{\"ok\":{},\"status\":\"{word}\"}}", status == 200);
    Response::new(status, "application/json", body).with("cache-control", "no-store")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn strangers_learn_one_word() {
        let board = Board::default();
        let told =
            |response: Response| (response.status, String::from_utf8(response.body).unwrap());
        assert_eq!(told(ready(&board)), (503, "{\"ok\":false,\"status\":\"starting\"}".into()));
        board.set_phase(Phase::Ready);
        assert_eq!(told(ready(&board)), (200, "{\"ok\":true,\"status\":\"ready\"}".into()));
        board.check("disk").failed("a secret path");
        assert_eq!(told(ready(&board)), (503, "{\"ok\":false,\"status\":\"unhealthy\"}".into()));
        let beats = Arc::<Heartbeats>::default();
        let _beat = beats.register("park", Duration::from_secs(5));
        let _other = beats.register_one_of_many("data-1", Duration::ZERO);
        assert_eq!(told(live(&beats)), (200, "{\"ok\":true,\"status\":\"live\"}".into()));
    }
}
