//! The room of WebSocket connections, from start to stop.

use std::sync::Arc;
use std::time::Duration;

use crate::base::clock;
use crate::base::exit::Exit;
use crate::config::Config;
use crate::nodes::limits::Limits;

use super::running::Running;

impl Running {
    /// Takes over new settings.
    pub(super) fn reconfigure_nodes(&self, config: &Arc<Config>) {
        Limits::new(&self.registry, &config.nodes, &config.hooks);
        self.nodes.reconfigure(config);
    }

    /// Tells everybody, and closes them within `time`.
    pub(super) fn drain_nodes(&self, time: Duration) {
        self.nodes.begin_drain(time, self.exit == Exit::Restart);
    }

    /// Whether requests and connections have ended.
    pub(super) fn drained(&self) -> bool {
        self.data.drained() && self.nodes.drained()
    }

    /// Ends what is left of the connections; how many threads did not end.
    pub(super) fn stop_nodes(&self, time: Duration) -> usize {
        self.nodes.stop(clock::now() + time)
    }
}
