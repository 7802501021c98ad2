//! How agents of a revision behave on a node.

use std::time::Duration;

/// How an agent behaves.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Behaviour {
    /// As it should.
    #[default]
    Fine,
    /// Its preflight finds something.
    PreflightFails,
    /// It never registers.
    NeverRegisters,
    /// The kubelet's list stays empty although it has registered.
    ListStaysEmpty,
    /// It finds one device fewer.
    FewerDevices,
    /// It dies so long after each start.
    CrashAfter(Duration),
    /// It does not let go of anything while its process lives.
    Hangs,
    /// Its image cannot be pulled.
    NoImage,
}

impl Behaviour {
    /// The devices that it finds of those that are there.
    pub fn devices(self, there: u32) -> u32 {
        match self {
            Self::FewerDevices => there & there.saturating_sub(1),
            Self::Fine
            | Self::PreflightFails
            | Self::NeverRegisters
            | Self::ListStaysEmpty
            | Self::CrashAfter(_)
            | Self::Hangs
            | Self::NoImage => there,
        }
    }

    /// Whether a node with it cannot serve.
    pub fn is_bad(self) -> bool {
        match self {
            Self::Fine | Self::Hangs => false,
            Self::PreflightFails
            | Self::NeverRegisters
            | Self::ListStaysEmpty
            | Self::FewerDevices
            | Self::CrashAfter(_)
            | Self::NoImage => true,
        }
    }
}
