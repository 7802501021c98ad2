//! What the kernel says of devices that come and go.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use node_agent_core::rule::Rule;
use node_agent_core::uevent::Uevent;

static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let discoveries = [
        "paths: {globs: ['/dev/tty*']}",
        "udev: {subsystem: tty, properties: {A: '*'}}",
        "pci: [{vendor: '8086'}, {class: '03'}]",
        "usb: [{vendor: '0403', serial: A}]",
    ];
    let rule = |discovery: &str| {
        let text = format!("{{name: example.com/x, discovery: {{{discovery}}}}}");
        Rule::new(&serde_yaml::from_str(&text).unwrap()).unwrap()
    };
    discoveries.into_iter().map(rule).collect()
});

fuzz_target!(|bytes: &[u8]| {
    if let Some(event) = Uevent::read(bytes) {
        for rule in RULES.iter() {
            let _ = rule.is_touched_by(&event);
        }
    }
});
