//! The runner as a process on a real socket, with programs that behave badly.

#![expect(clippy::unwrap_used, reason = "a test that meets the unexpected fails")]

mod built_ins;
mod containers;
mod programs;
mod rig;
mod talk;
