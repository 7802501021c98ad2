//! The checks, one function for each behaviour, in the sections of the contract.

pub mod allocation;
pub mod lists;
pub mod losses;
pub mod preference;
pub mod preparation;
pub mod registration;
pub mod sockets;
