//! What sysfs says of devices.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use node_agent_core::discovery::{Look, discovered};
use node_agent_core::rule::Rule;
use node_agent_core::sight::{Level, SeenNode, Sight};
use node_agent_core::udev;

/// One of each kind that looks at sysfs.
static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let texts = [
        "udev: {subsystem: tty, properties: {A: '*'}, attributes: {../b: '?*'}}",
        "pci: [{vendor: '8086'}, {driver: x}, {class: '03'}]",
        "usb: [{vendor: '0403', serial: A}, {vendor: '0403'}]",
    ];
    let rules = texts.map(|text| {
        let text = format!("{{name: example.com/x, idFrom: Serial, discovery: {{{text}}}}}");
        Rule::new(&serde_yaml::from_str(&text).unwrap()).unwrap()
    });
    rules.into()
});

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    // Each paragraph is a device, each line a level of it.
    let sights: Vec<Sight> = text.split("\n\n").take(16).map(sight).collect();
    let look = Look {
        sights,
        ..Look::default()
    };
    for rule in RULES.iter() {
        for id in discovered(rule, &look).devices.keys() {
            assert!(!id.is_empty() && id.len() <= 58, "{id:?}");
        }
    }
});

fn sight(text: &str) -> Sight {
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let attributes = udev::variables(text).map(owned).collect();
    let levels = text.lines().map(|line| {
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap_or_default().to_owned();
        Level {
            name: word(),
            subsystem: word(),
            serial: Some(word()),
            usb: Some((word(), word())),
            numa_node: word().parse().ok(),
        }
    });
    let nodes = text.lines().map(|line| {
        let (major, minor) = udev::numbers(line).unwrap_or_default();
        SeenNode {
            path: line.to_owned(),
            major,
            minor,
            is_shared: line.len() > 20,
            target: None,
        }
    });
    Sight {
        sysfs: text.lines().next().unwrap_or_default().to_owned(),
        attributes,
        properties: udev::properties(text).map(owned).collect(),
        driver: text.lines().last().map(str::to_owned),
        vfio_group: text.contains("vfio").then(|| text.to_owned()),
        levels: levels.collect(),
        nodes: nodes.collect(),
    }
}
