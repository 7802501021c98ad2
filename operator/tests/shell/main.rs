//! The whole operator against an API server in the process.

#[cfg(test)]
mod bench;
#[cfg(test)]
mod server;
#[cfg(test)]
mod stories;
