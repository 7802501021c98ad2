//! What a resource matches: which paths under `/dev`, which devices in sysfs, and what has to be
//! looked at to find them.

use crds::discovery::{
    GroupDiscovery, IdFrom, PciMatcher, SimulatedDiscovery, Topology, UsbMatcher,
};
use crds::resource::Resource;

use crate::patterns::{Patterns, UdevPatterns};
use crate::sight::Sight;
use crate::uevent::Uevent;

/// A resource's discovery, its patterns compiled.
#[derive(Clone, Debug)]
pub struct Rule {
    resource: String,
    id_from: IdFrom,
    topology: Topology,
    matches: Matches,
}

/// What a rule finds devices by.
#[derive(Clone, Debug)]
pub(crate) enum Matches {
    /// Paths of device nodes.
    Paths(Patterns),
    /// Lists of device nodes.
    Groups(Vec<GroupDiscovery>),
    /// What the kernel and udev say.
    Udev(UdevPatterns),
    /// PCI functions.
    Pci(Vec<PciMatcher>),
    /// USB devices.
    Usb(Vec<UsbMatcher>),
    /// Nothing that exists.
    Simulated(SimulatedDiscovery),
}

/// What of sysfs a rule has to be shown.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Wanted<'a> {
    /// Nothing.
    Nothing,
    /// The devices of a subsystem that have a device node.
    Subsystem {
        /// Its name.
        name: &'a str,
        /// Names of attributes; those that start with `../` are of a device above.
        attributes: Vec<&'a str>,
        /// Whether udev's database is needed as well.
        properties: bool,
    },
    /// PCI functions with `vendor`, `device`, `class` and driver.
    PciFunctions,
    /// USB devices with `idVendor`, `idProduct` and `serial`.
    UsbDevices,
}

/// Why a resource's discovery cannot be acted on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RuleError {
    /// The pattern's syntax is wrong.
    #[error("failed to read glob {glob:?}")]
    ReadGlob {
        /// The pattern.
        glob: String,
        /// What is wrong with it.
        source: globset::Error,
    },
    /// A value's pattern cannot be read.
    #[error("failed to read the pattern {pattern:?} of {field} {name:?}")]
    ReadPattern {
        /// `property` or `attribute`.
        field: &'static str,
        /// Its name.
        name: String,
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        source: globset::Error,
    },
    /// An attribute's name leads somewhere else.
    #[error(
        "attribute {name:?} must be a file in the device's directory in sysfs, such as \
         \"interface\" or \"power/control\", or, after one \"../\", of a device above it"
    )]
    NameAttribute {
        /// The name.
        name: String,
    },
    /// A later version's discovery, or none.
    #[error("resource {resource:?} names no kind of discovery that this agent knows")]
    NameDiscovery {
        /// The resource.
        resource: String,
    },
}

impl Rule {
    /// Compiles a resource's discovery.
    ///
    /// # Errors
    /// When a pattern's syntax is wrong, or there is no kind of discovery.
    pub fn new(resource: &Resource) -> Result<Self, RuleError> {
        let discovery = &resource.discovery;
        let matches = if let Some(paths) = &discovery.paths {
            Matches::Paths(Patterns::new(paths)?)
        } else if let Some(groups) = &discovery.groups {
            Matches::Groups(groups.clone())
        } else if let Some(udev) = &discovery.udev {
            Matches::Udev(UdevPatterns::new(udev)?)
        } else if let Some(pci) = &discovery.pci {
            Matches::Pci(pci.clone())
        } else if let Some(usb) = &discovery.usb {
            Matches::Usb(usb.clone())
        } else if let Some(simulated) = &discovery.simulated {
            Matches::Simulated(simulated.clone())
        } else {
            return Err(RuleError::NameDiscovery {
                resource: resource.name.clone(),
            });
        };
        Ok(Self {
            resource: resource.name.clone(),
            id_from: resource.id_from,
            topology: resource.topology,
            matches,
        })
    }

    /// Name of the resource.
    pub fn resource(&self) -> &str {
        &self.resource
    }

    /// What ids are made from; for `Auto` what suits the kind of discovery.
    pub(crate) fn id_from(&self) -> IdFrom {
        match (self.id_from, &self.matches) {
            (IdFrom::Auto, Matches::Pci(_)) => IdFrom::BusPath,
            (IdFrom::Auto, Matches::Udev(_) | Matches::Usb(_)) => IdFrom::Serial,
            (IdFrom::Auto, Matches::Paths(_) | Matches::Groups(_) | Matches::Simulated(_)) => {
                IdFrom::DevicePath
            }
            (asked @ (IdFrom::Serial | IdFrom::BusPath | IdFrom::DevicePath), _) => asked,
        }
    }

    /// Whether the kubelet is told where devices are.
    pub(crate) fn topology(&self) -> Topology {
        self.topology
    }

    /// Whether a path, such as `/dev/ttyUSB0`, is a candidate: whoever walks `/dev` looks at no
    /// other.
    pub fn matches(&self, path: &str) -> bool {
        match &self.matches {
            Matches::Groups(groups) => groups.iter().any(|group| paths(group).any(|p| p == path)),
            Matches::Paths(_)
            | Matches::Udev(_)
            | Matches::Pci(_)
            | Matches::Usb(_)
            | Matches::Simulated(_) => self.precedence(path).is_some(),
        }
    }

    /// Whether a directory, such as `/dev/serial`, can hold candidates at any depth. Links to
    /// directories are not meant: they are not followed.
    pub fn may_hold_matches(&self, directory: &str) -> bool {
        let is_below = |path: &str| {
            let rest = path.strip_prefix(directory);
            rest.is_some_and(|rest| rest.starts_with('/'))
        };
        match &self.matches {
            Matches::Paths(patterns) => patterns.lead_through(directory),
            Matches::Groups(groups) => groups.iter().any(|group| paths(group).any(is_below)),
            Matches::Udev(_) | Matches::Pci(_) | Matches::Usb(_) | Matches::Simulated(_) => false,
        }
    }

    /// The position of the first glob that matches a path.
    pub(crate) fn precedence(&self, path: &str) -> Option<usize> {
        match &self.matches {
            Matches::Paths(patterns) => patterns.precedence(path),
            Matches::Groups(_)
            | Matches::Udev(_)
            | Matches::Pci(_)
            | Matches::Usb(_)
            | Matches::Simulated(_) => None,
        }
    }

    /// What of sysfs the rule has to be shown.
    pub fn wanted(&self) -> Wanted<'_> {
        match &self.matches {
            Matches::Paths(_) | Matches::Groups(_) | Matches::Simulated(_) => Wanted::Nothing,
            Matches::Udev(udev) => Wanted::Subsystem {
                name: udev.subsystem(),
                attributes: udev.attributes(),
                properties: udev.asks_properties(),
            },
            Matches::Pci(_) => Wanted::PciFunctions,
            Matches::Usb(_) => Wanted::UsbDevices,
        }
    }

    /// Whether a device in sysfs is one of the resource: of those that are not, neither nodes nor
    /// levels need to be read.
    pub fn accepts(&self, sight: &Sight) -> bool {
        match &self.matches {
            Matches::Udev(udev) => udev.accepts(sight),
            Matches::Pci(matchers) => matchers.iter().any(|one| is_function(one, sight)),
            Matches::Usb(matchers) => matchers.iter().any(|one| is_usb_device(one, sight)),
            Matches::Paths(_) | Matches::Groups(_) | Matches::Simulated(_) => false,
        }
    }

    /// Whether a change that the kernel told can change what the rule finds.
    pub fn is_touched_by(&self, event: &Uevent) -> bool {
        match &self.matches {
            Matches::Udev(udev) => event.subsystem == udev.subsystem(),
            // The nodes of VFIO are made elsewhere than the functions.
            Matches::Pci(_) => {
                event.is_below_pci() || matches!(event.subsystem.as_str(), "vfio" | "misc")
            }
            Matches::Usb(_) => event.is_below_usb(),
            Matches::Paths(_) | Matches::Groups(_) | Matches::Simulated(_) => false,
        }
    }

    /// What the rule finds devices by.
    pub(crate) fn by(&self) -> &Matches {
        &self.matches
    }
}

fn paths(group: &GroupDiscovery) -> impl Iterator<Item = &str> {
    let all = group.paths.iter().chain(&group.optional_paths);
    all.map(String::as_str)
}

fn is_function(matcher: &PciMatcher, sight: &Sight) -> bool {
    let is = |attribute: &str, wanted: &str| {
        let value = sight.attributes.get(attribute);
        let value = value.map(|value| value.trim_start_matches("0x"));
        wanted.is_empty() || value.is_some_and(|value| value.starts_with(wanted))
    };
    let driver = sight.driver.as_deref().unwrap_or_default();
    is("vendor", &matcher.vendor)
        && is("device", &matcher.device)
        && is("class", &matcher.class)
        && (matcher.driver.is_empty() || matcher.driver == driver)
}

fn is_usb_device(matcher: &UsbMatcher, sight: &Sight) -> bool {
    let is = |attribute: &str, wanted: &str| {
        let value = sight.attributes.get(attribute);
        wanted.is_empty() || value.is_some_and(|value| value == wanted)
    };
    is("idVendor", &matcher.vendor)
        && is("idProduct", &matcher.product)
        && is("serial", &matcher.serial)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crds::discovery::{Discovery, PathDiscovery};

    pub(crate) fn rule(globs: &[&str], exclude: &[&str]) -> Rule {
        let owned = |globs: &[&str]| globs.iter().map(|g| (*g).to_owned()).collect();
        let paths = PathDiscovery {
            globs: owned(globs),
            exclude: owned(exclude),
        };
        Rule::new(&resource(Discovery {
            paths: Some(paths),
            ..Discovery::default()
        }))
        .unwrap()
    }

    pub(crate) fn resource(discovery: Discovery) -> Resource {
        Resource {
            name: "example.com/serial".to_owned(),
            discovery,
            id_from: IdFrom::default(),
            topology: Topology::default(),
            replicas: 1,
            allow_multiple_replicas_per_container: false,
            preferred_allocation: crds::resource::PreferredAllocation::None,
            container: None,
            health_check: None,
            min_devices: 0,
        }
    }

    #[test]
    fn globs_match_whole_paths() {
        let check = |glob: &str, path: &str, expected: bool| {
            assert_eq!(
                rule(&[glob], &[]).matches(path),
                expected,
                "{glob:?} {path:?}"
            );
        };
        check("/dev/ttyUSB*", "/dev/ttyUSB0", true);
        check("/dev/ttyUSB*", "/dev/ttyUSB0/x", false);
        check("/dev/*", "/dev/serial/x", false);
        check("/dev/**", "/dev/serial/by-id/x", true);
        check("/dev/**/card?", "/dev/dri/card0", true);
        check("/dev/{kvm,net/tun}", "/dev/net/tun", true);
        check("/dev/tty[0-9]", "/dev/tty5", true);
        check("/dev/tty[0-9]", "/dev/ttyS", false);
    }

    #[test]
    fn excludes_win() {
        let rule = rule(&["/dev/ttyUSB*"], &["/dev/ttyUSB1"]);
        assert!(rule.matches("/dev/ttyUSB0") && !rule.matches("/dev/ttyUSB1"));
    }

    #[test]
    fn only_directories_on_a_way_are_looked_into() {
        let check = |glob: &str, directory: &str, expected: bool| {
            let found = rule(&[glob], &[]).may_hold_matches(directory);
            assert_eq!(found, expected, "{glob:?} {directory:?}");
        };
        check("/dev/fuse", "/dev", true);
        check("/dev/fuse", "/dev/fuse", false);
        check("/dev/serial/by-*/x", "/dev/serial", true);
        check("/dev/serial/by-*/x", "/dev/serial/by-id", true);
        check("/dev/serial/by-*/x", "/dev/serial/other", false);
        check("/dev/serial/by-*/x", "/dev/bus", false);
        check("/dev/{a/b,c}", "/dev/a", true);
        check("/dev/**", "/dev/bus/usb/001", true);
        check("/dev/bus/**/x", "/dev/bus/usb/001", true);
        check("/dev/bus/**/x", "/dev/net", false);
    }

    #[test]
    fn a_wrong_glob_is_named() {
        let paths = PathDiscovery {
            globs: vec!["/dev/[".to_owned()],
            exclude: Vec::new(),
        };
        let error = Rule::new(&resource(Discovery {
            paths: Some(paths),
            ..Discovery::default()
        }));
        assert_eq!(
            error.unwrap_err().to_string(),
            r#"failed to read glob "/dev/[""#
        );
        let error = Rule::new(&resource(Discovery::default()));
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("example.com/serial")
        );
    }
}
