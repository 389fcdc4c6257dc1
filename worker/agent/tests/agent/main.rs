//! The agent against a coordinator that does as the test says, a real folder as store, and real child processes.

#![allow(clippy::unwrap_used)]

mod calls;
mod children;
mod containers;
mod pipeline;
mod session;
#[path = "../support/mod.rs"]
mod support;
mod tls;
