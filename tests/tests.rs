//! The tests of the running program, in one binary: each starts `tidegate run` in a folder of its
//! own, on ports of its own, and looks at it from outside (sockets, `/proc`, metrics, logs).
//!
//! `TIDEGATE_TEST_PATIENCE` multiplies every patience (default 1); `TIDEGATE_TEST_BIN` names another
//! program to test than the one that Cargo built.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test may fail loudly, print its figures, and use plain threads, locks and clocks"
)]

// Sandbox, daemon, raw client, fake upstreams; first, for its macro.
#[macro_use]
mod support;

// Rules, channels that fail and come back, silences, restarts in between.
mod alerts;
// Keys, Host, Origin, CORS, paths and methods.
mod auth;
// Circuit breakers: what a failing upstream still costs, and how it comes back.
mod breaker;
// Requests in a row on one connection.
mod brisk;
// Answers that are kept: single flight, replays, bounds.
mod cache;
// Chats over WebSocket: runs, events, sessions.
mod chat;
// A client that leaves, in every phase.
mod client_gone;
// The configuration, its commands and the files made from its schema.
mod config;
// The control socket: who may use it, and every command on it.
mod control;
// The page of the ops plane, and its live document.
mod dashboard;
// Who is let in on WebSocket: tokens, keys, devices.
mod devices;
// Both dialects on both sides, the catalog, bad requests.
mod dialects;
// Every fault of an upstream, in every combination.
mod faults;
// Threads that hang, checks, the status, and what is tried when it is bad.
mod health;
// Overload levels: each reached, what is done there, and the way back.
mod overload;
// Commands for nodes, and everything that can go wrong between an operator and a device.
mod invoke;
// Clients that mean harm: slow, many, endless.
mod hostile;
// Hooks for agents: tokens, lockouts, what they start.
mod hooks;
// Configurations of other gateways, taken over.
mod import;
// Upstreams that lie, requests with two readings, answers that must not be swapped.
mod lies;
// What metrics were: windows, steps, gaps, and what a restart keeps.
mod history;
// Every limit, at it and one past it.
mod limits;
// Access lines, secrets, rotation, dead disks and terminals.
mod logs;
// WebSocket connections: how they begin, live and end.
mod nodes;
// WebSocket connections that end badly: vanished peers, and ends in every phase.
mod nodes_life;
// Many WebSocket connections: memory, fan-out, latency, ticks.
mod nodes_load;
// WebSocket peers that mean harm.
mod nodes_hostile;
// Health and metrics.
mod ops;
// Operators on WebSocket: configuration, log, models, usage.
mod nodes_ops;
// HTTPS, proxies, names and addresses on the way to upstreams.
mod outbound;
// Limits on requests and tokens, lockouts, keys that end, types of bodies.
mod rates;
// Defects found, one test each.
mod regression;
// Everything that is kept has a limit, which holds under load and is shown.
mod registry;
// The commands of the runbook, each of them run.
mod runbook;
// SIGHUP, good and bad files.
mod reload;
// Drain, second signal, log files.
mod signals;
// Everything for an incident in one document, and no secret.
mod snapshot;
// Start, exit codes, ports.
mod startup;
// Mixed traffic with faults, cancels and reloads, after which nothing has grown.
mod soak;
// What is kept on disk, and every way in which the disk can fail.
mod store;
// Twice as many clients as there is room for.
mod storm;
// Requests that are no proper HTTP, and smuggling.
mod strict;
// Layers, marks, lists, documents in step.
mod tidy;
// The live view, on a terminal and without.
mod top;
// Versions of the configuration: crashes, bad ones, two writers.
mod versions;
// What an upstream is given: requests a minute, room, retries.
mod upstream_limits;
// Tokens and cost, by model, key, session and day.
mod usage;
// The WebSocket codec: the Autobahn suite's cases, and peers that mean harm.
mod websocket;
