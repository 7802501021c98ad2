//! The whole operator against an API server in the process.

#[cfg(test)]
mod bench;
#[cfg(test)]
mod election;
#[cfg(test)]
mod ledger;
#[cfg(test)]
mod server;
#[cfg(test)]
mod stories;
