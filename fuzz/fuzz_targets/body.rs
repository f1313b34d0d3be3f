//! Bodies; the first byte chooses the framing.
#![no_main]

use libfuzzer_sys::fuzz_target;
// The oracle names them as the crate does that it is part of.
use tidegate::{base, net};

#[allow(dead_code, reason = "each target checks one part")]
#[path = "../../src/net/http1/oracle.rs"]
mod oracle;

fuzz_target!(|bytes: &[u8]| oracle::body(bytes));
