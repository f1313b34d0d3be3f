//! Orders about the process: reload, reopen, stop.

use std::time::Duration;

use super::{Done, Route};
use crate::base::clock;
use crate::base::error::Error;
use crate::base::orders::Order;
use crate::net::http::Method;
use crate::ops::Parts;

/// How long an order may take: a reload with the largest configuration takes a second.
pub(super) const ORDER_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) const ROUTES: &[Route] = &[
    Route { method: Method::Post, path: "/reload", run: |parts, _| order(parts, Order::Reload) },
    Route { method: Method::Post, path: "/reopen", run: |parts, _| order(parts, Order::Reopen) },
    Route { method: Method::Post, path: "/stop", run: |parts, _| order(parts, Order::Stop) },
];

/// Has an order carried out by the main loop.
pub(super) fn order(parts: &Parts, order: Order) -> Result<Done, Error> {
    let outcome = parts.desk.ask(order, clock::now() + ORDER_TIMEOUT)?;
    Ok(Done::json(&outcome))
}
