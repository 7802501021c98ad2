//! What `$(DEVICE_IDS)` and the like become in an environment variable.

use std::collections::{BTreeMap, BTreeSet};

use crate::allocation::DeviceNode;
use crate::inventory::Device;

/// What expansions stand for.
pub(crate) struct Expansions {
    replacements: [(&'static str, String); 5],
}

impl Expansions {
    /// For the devices of a container and their nodes in it.
    pub(crate) fn of(chosen: &BTreeMap<&str, &Device>, nodes: &[DeviceNode]) -> Self {
        let ids: Vec<&str> = chosen.keys().copied().collect();
        let paths: Vec<&str> = nodes
            .iter()
            .map(|one| one.container_path.as_str())
            .collect();
        let hardware = || chosen.values().map(|device| &device.hardware);
        let addresses: BTreeSet<&str> = hardware()
            .filter_map(|hardware| hardware.pci_address.as_deref())
            .collect();
        let addresses: Vec<&str> = addresses.into_iter().collect();
        let numa: BTreeSet<u32> = hardware()
            .flat_map(|hardware| hardware.numa_nodes.iter().copied())
            .collect();
        let numa: Vec<String> = numa.iter().map(u32::to_string).collect();
        Self {
            replacements: [
                ("(DEVICE_IDS)", ids.join(",")),
                ("(DEVICE_PATHS)", paths.join(",")),
                ("(PCI_ADDRESSES)", addresses.join(",")),
                ("(NUMA_NODES)", numa.join(",")),
                ("$", "$".to_owned()),
            ],
        }
    }

    /// A value with its expansions replaced; `$$` is one dollar sign, and a dollar sign before
    /// anything else is itself.
    pub(crate) fn expanded(&self, value: &str) -> String {
        let mut expanded = String::new();
        let mut rest = value;
        while let Some((before, after)) = rest.split_once('$') {
            expanded.push_str(before);
            let found = self.replacements.iter().find_map(|(name, with)| {
                after.strip_prefix(name).map(|rest| (with.as_str(), rest))
            });
            let (with, after) = found.unwrap_or(("$", after));
            expanded.push_str(with);
            rest = after;
        }
        expanded.push_str(rest);
        expanded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansions() {
        let expansions = Expansions {
            replacements: [
                ("(DEVICE_IDS)", "i".to_owned()),
                ("(DEVICE_PATHS)", "p".to_owned()),
                ("(PCI_ADDRESSES)", "a".to_owned()),
                ("(NUMA_NODES)", "n".to_owned()),
                ("$", "$".to_owned()),
            ],
        };
        let check = |value: &str, expected: &str| assert_eq!(expansions.expanded(value), expected);
        check("", "");
        check("plain", "plain");
        check("$(DEVICE_IDS)", "i");
        check("<$(DEVICE_IDS)|$(DEVICE_PATHS)>", "<i|p>");
        check("$(PCI_ADDRESSES)/$(NUMA_NODES)", "a/n");
        check("$$", "$");
        check("$$(DEVICE_IDS)", "$(DEVICE_IDS)");
        check("$$$(DEVICE_IDS)", "$i");
        check("5$ $x $", "5$ $x $");
        check("$(OTHER)", "$(OTHER)");
    }
}
