//! The limits on each request by itself: the largest that came, and how many were refused.

use std::sync::Arc;

use super::http::Head;
use super::settings::Settings;
use crate::base::error::Kind;
use crate::base::metrics::{Limit, Registry, Unit};

/// See the module.
pub struct Sizes {
    head: Arc<Limit>,
    headers: Arc<Limit>,
    target: Arc<Limit>,
    body: Arc<Limit>,
}

impl Sizes {
    /// Those of the engine called `owner`.
    pub fn new(registry: &Registry, owner: &str, settings: &Settings) -> Self {
        let each = |unit, name, consequence| registry.limit_each(unit, name, owner, 0, consequence);
        let sizes = Sizes {
            head: each(Unit::Bytes, "server.head_max", "431 head_too_large"),
            headers: each(Unit::Entries, "server.headers_max", "431 head_too_large"),
            target: each(Unit::Bytes, "server.target_max", "414 target_too_long"),
            body: each(Unit::Bytes, "server.body_max", "413 body_too_large"),
        };
        sizes.reconfigure(settings);
        sizes
    }

    /// Takes over changed bounds.
    pub fn reconfigure(&self, settings: &Settings) {
        self.head.set_max(settings.head.head_max as u64);
        self.headers.set_max(settings.head.headers_max as u64);
        self.target.set_max(settings.head.target_max as u64);
        self.body.set_max(settings.body_max);
    }

    /// A head of so many bytes was taken.
    #[inline]
    pub fn head(&self, head: &Head, bytes: usize) {
        self.head.saw(bytes as u64);
        self.headers.saw(head.headers.len() as u64);
        self.target.saw(head.target.len() as u64);
    }

    /// A body of so many bytes was taken.
    #[inline]
    pub fn body(&self, bytes: usize) {
        self.body.saw(bytes as u64);
    }

    /// A request was refused, when so many bytes of its head, or the head alone, had come.
    pub fn refused(&self, kind: Kind, head_bytes: usize) {
        match kind {
            // One kind for two limits: either the bytes are too many, or the fields are.
            Kind::HeadTooLarge if head_bytes as u64 >= self.head.max() => self.head.refuse(),
            Kind::HeadTooLarge => self.headers.refuse(),
            Kind::TargetTooLong => self.target.refuse(),
            Kind::BodyTooLarge => self.body.refuse(),
            _ => {}
        }
    }
}
