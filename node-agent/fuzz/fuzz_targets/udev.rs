//! The files of udev's database, and the kernel's own `uevent` and `dev` files.

#![no_main]

use libfuzzer_sys::fuzz_target;
use node_agent_core::udev;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    for (name, value) in udev::properties(&text).chain(udev::variables(&text)) {
        assert!(!name.contains('=') && !name.contains('\n') && !value.contains('\n'));
    }
    for line in text.lines() {
        let _ = udev::numbers(line);
    }
});
