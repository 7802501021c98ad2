//! The ids of the devices of one resource: each from the best that identifies it and no other.
//!
//! The answer depends on nothing but what is there now, so that an agent that starts gives the same
//! ids as the one before. Where it changes while a container holds a device (a twin with the same
//! serial number was plugged in), the device's other ids tell that it is held.

use std::collections::BTreeMap;

use crds::discovery::IdFrom;

use crate::identity::{bus_device_id, path_device_id, serial_device_id};
use crate::sight::Sight;

/// The id of a device.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Name {
    /// The id.
    pub id: String,
    /// The ids that it would have by other means.
    pub also: Vec<String>,
    /// What users should know of it, as a clause.
    pub remark: Option<String>,
}

/// Devices that are being named.
pub(crate) struct Naming<'a> {
    resource: &'a str,
    from: IdFrom,
    devices: Vec<Identities>,
}

/// Ids by serial number, bus path and device path.
struct Identities {
    serial: Option<String>,
    ids: [Option<String>; 3],
}

impl<'a> Naming<'a> {
    /// Names devices of a resource.
    pub(crate) fn new(resource: &'a str, from: IdFrom) -> Self {
        Self {
            resource,
            from,
            devices: Vec::new(),
        }
    }

    /// A device with what sysfs has of it, and its path.
    pub(crate) fn add(&mut self, sight: Option<&Sight>, path: &str) {
        let serial = sight.and_then(Sight::serial);
        let bus = sight.and_then(Sight::bus_path);
        let ids = [
            serial
                .as_ref()
                .map(|serial| serial_device_id(self.resource, serial)),
            bus.map(|bus| bus_device_id(self.resource, &bus)),
            Some(path_device_id(self.resource, path)),
        ];
        self.devices.push(Identities { serial, ids });
    }

    /// The names in the order of the devices. A device without what is asked for, and all that share
    /// it, are named by the next.
    pub(crate) fn names(self) -> Vec<Name> {
        let first = match self.from {
            IdFrom::Serial => 0,
            IdFrom::BusPath => 1,
            IdFrom::Auto | IdFrom::DevicePath => 2,
        };
        let mut count: BTreeMap<&String, usize> = BTreeMap::new();
        for id in self
            .devices
            .iter()
            .flat_map(|device| device.ids.iter().flatten())
        {
            *count.entry(id).or_default() += 1;
        }
        let is_one = |id: &&String| count.get(id).is_some_and(|count| *count == 1);
        let name = |device: &Identities| {
            let mut own = device.ids.iter().skip(first).flatten();
            let by_path = device.ids.iter().flatten().last();
            let id = own.find(is_one).or(by_path).cloned().unwrap_or_default();
            let others = device.ids.iter().flatten().filter(|other| **other != id);
            let by_serial = device.ids.first().and_then(Option::as_ref);
            let is_shared = first == 0 && by_serial.is_some_and(|id| !is_one(&id));
            let serial = device.serial.as_deref().unwrap_or_default();
            Name {
                also: others.cloned().collect(),
                remark: is_shared.then(|| {
                    format!("shares its serial number with another device ({serial:?}): its id is that of the place it is plugged into")
                }),
                id,
            }
        };
        self.devices.iter().map(name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sight::tests::levels;

    const RESOURCE: &str = "example.com/serial";

    fn port(port: &str, serial: Option<&str>) -> Sight {
        let mut levels = levels(&["pci 0000:00:14.0", "usb usb1", &format!("usb 1-{port}")]);
        levels[0].usb = Some(("0403".to_owned(), "6001".to_owned()));
        levels[0].serial = serial.map(str::to_owned);
        Sight {
            levels,
            ..Sight::default()
        }
    }

    fn named(from: IdFrom, devices: &[(Option<&Sight>, &str)]) -> Vec<Name> {
        let mut naming = Naming::new(RESOURCE, from);
        for (sight, path) in devices {
            naming.add(*sight, path);
        }
        naming.names()
    }

    fn stems(names: &[Name]) -> Vec<&str> {
        names
            .iter()
            .map(|name| name.id.rsplit_once('-').unwrap().0)
            .collect()
    }

    #[test]
    fn each_device_has_the_best_id_that_is_its_own() {
        let (with, without) = (port("1", Some("A10K")), port("2", None));
        let devices = [
            (Some(&with), "/dev/a"),
            (Some(&without), "/dev/b"),
            (None, "/dev/c"),
        ];
        let check = |from, expected: [&str; 3]| {
            assert_eq!(stems(&named(from, &devices)), expected, "{from:?}");
        };
        let (one, two) = ("pci-0000-00-14.0-usb-1", "pci-0000-00-14.0-usb-2");
        check(IdFrom::Serial, ["0403-6001-A10K", two, "c"]);
        check(IdFrom::BusPath, [one, two, "c"]);
        check(IdFrom::DevicePath, ["a", "b", "c"]);
    }

    #[test]
    fn twins_are_named_by_their_places_and_known_by_the_serial_number() {
        let (one, other) = (port("1", Some("0001")), port("2", Some("0001")));
        let alone = named(IdFrom::Serial, &[(Some(&one), "/dev/a")]);
        assert_eq!(
            (stems(&alone)[0], alone[0].remark.clone()),
            ("0403-6001-0001", None)
        );
        let both = named(
            IdFrom::Serial,
            &[(Some(&one), "/dev/a"), (Some(&other), "/dev/b")],
        );
        let places = ["pci-0000-00-14.0-usb-1", "pci-0000-00-14.0-usb-2"];
        assert_eq!(stems(&both), places);
        for twin in &both {
            assert!(twin.also.contains(&alone[0].id));
            assert!(twin.remark.as_ref().unwrap().contains("0403-6001-0001"));
        }
        let reordered = named(
            IdFrom::Serial,
            &[(Some(&other), "/dev/a"), (Some(&one), "/dev/b")],
        );
        assert_eq!(
            [&reordered[1].id, &reordered[0].id],
            [&both[0].id, &both[1].id]
        );
        // The same place as well: two nodes of one device.
        let nodes = named(
            IdFrom::BusPath,
            &[(Some(&one), "/dev/a"), (Some(&one), "/dev/b")],
        );
        assert_eq!(stems(&nodes), ["a", "b"]);
    }
}
