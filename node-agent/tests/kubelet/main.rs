//! The agent against a kubelet that is not one: its two sockets are real, what it does is scripted.
//! The numbers in the tests' comments are those of `kubelet-contract.md`, section 2.

#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that meets the unexpected fails"
)]

mod allocate;
mod api;
mod comparison;
mod devices;
mod discovery;
mod fake_api;
mod fake_kubelet;
mod fake_pod_resources;
mod fake_runner;
mod first_time;
mod hand_over;
mod health;
mod hooks;
#[path = "../support/machine.rs"]
mod machine;
mod preferred;
mod process;
mod registration;
mod restart;
mod rig;
mod streams;
