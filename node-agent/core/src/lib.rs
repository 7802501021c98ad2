//! What the agent decides: which device a rule matches, which devices are advertised and how
//! healthy, what a container gets, when to register, and what to report.
//!
//! It deliberately knows no clock, no file, no socket and no client: the shell looks, passes what it
//! saw, and does what is answered.

pub mod allocation;
pub mod comparison;
pub mod conditions;
pub mod discovery;
pub mod first_time;
pub mod identity;
pub mod inventory;
pub mod news;
pub mod pace;
pub mod preflight;
pub mod registration;
pub mod report;
pub mod role;
pub mod rule;
pub mod seen;
pub mod writing;
