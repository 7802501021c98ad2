//! What the agent decides: which device a rule matches, which devices are advertised and how
//! healthy, what a container gets, when to register, and what to report.
//!
//! It deliberately knows no clock, no file, no socket and no client: the shell looks, passes what it
//! saw, and does what is answered.

pub mod advertised;
mod aliases;
pub mod allocation;
mod by_path;
mod by_sight;
pub mod care;
pub mod cdi;
pub mod claims;
pub mod comparison;
pub mod conditions;
pub mod discovery;
mod expansion;
pub mod first_time;
mod groups;
pub mod health;
pub mod holding;
pub mod hooks;
pub mod identity;
pub mod inventory;
mod names;
pub mod news;
pub mod pace;
mod patterns;
pub mod preferred;
pub mod preflight;
pub mod registration;
pub mod report;
pub mod resource_name;
pub mod role;
pub mod rule;
pub mod seen;
pub mod sight;
pub mod udev;
pub mod uevent;
pub mod work;
pub mod writing;
