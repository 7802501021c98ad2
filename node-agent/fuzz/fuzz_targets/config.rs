//! The config as users write it, and as the agent reads it.

#![no_main]

use crds::{AgentConfig, DevicePluginConfigSpec, Resource};
use libfuzzer_sys::fuzz_target;
use node_agent_core::rule::Rule;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let written = serde_yaml::from_str::<DevicePluginConfigSpec>(text).map(|spec| spec.resources);
    let read = serde_json::from_str::<AgentConfig>(text).map(|config| config.resources);
    for resource in written.into_iter().flatten().chain(read.into_iter().flatten()) {
        use_it(&resource);
    }
});

fn use_it(resource: &Resource) {
    let Ok(rule) = Rule::new(resource) else {
        return;
    };
    for path in ["/dev", "/dev/serial/by-id/usb-1", "/dev/../x", "", "/"] {
        let _ = rule.matches(path);
        let _ = rule.may_hold_matches(path);
    }
}
