//! Tokens that were charged by estimate and are settled by what was used.

use std::net::IpAddr;
use std::sync::Arc;

use crate::base::clock;
use crate::config::settings::Routes;

use super::{Plan, What, Who};

/// Tokens of one request. Its drop settles them: what was charged and not used is given back, what
/// was used above it is charged. A request that never came to an answer has used nothing.
pub struct Bill {
    plan: Arc<Plan>,
    key: Option<Box<str>>,
    address: IpAddr,
    routes: Routes,
    charged: u64,
    used: u64,
}

impl Bill {
    pub(super) fn new(plan: Arc<Plan>, who: &Who<'_>, charged: u64) -> Self {
        Bill {
            plan,
            key: who.key.map(Into::into),
            address: who.address,
            routes: who.routes,
            charged,
            used: 0,
        }
    }

    /// So many tokens were used, by report or by estimate. The last word counts.
    pub fn used(&mut self, tokens: u64) {
        self.used = tokens;
    }
}

impl Drop for Bill {
    fn drop(&mut self) {
        if self.used == self.charged {
            return;
        }
        let now = clock::now();
        let who = Who { key: self.key.as_deref(), address: self.address, routes: self.routes };
        for bound in self.plan.covering(&who).filter(|bound| bound.limits(What::Tokens)) {
            match self.used.checked_sub(self.charged) {
                Some(more) => bound.debit(self.address, now, What::Tokens, more),
                None => {
                    let less = self.charged - self.used;
                    bound.credit(self.address, now, What::Tokens, less);
                }
            }
        }
    }
}
