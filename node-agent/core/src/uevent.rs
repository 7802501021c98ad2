//! What the kernel says of devices that come, go and change, as it sends it to whoever listens.

/// Longest message that the kernel makes: its buffer for the variables has 2 KiB, and the head holds
/// one path. What is longer is not the kernel's.
pub const MESSAGE_MAX: usize = 8192;

/// One change.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Uevent {
    /// `add`, `remove`, `change`, `bind`, …
    pub action: String,
    /// The device's directory below `/sys`, such as `/devices/virtual/mem/null`.
    pub path: String,
    /// Bus or class that it belongs to.
    pub subsystem: String,
    /// Numbers of its device node.
    pub numbers: Option<(u32, u32)>,
}

impl Uevent {
    /// Reads a message: `add@/devices/x`, and variables, each ended by a zero byte. Nothing for what
    /// is none of the kernel's messages.
    pub fn read(message: &[u8]) -> Option<Self> {
        if message.len() > MESSAGE_MAX {
            return None;
        }
        let mut parts = message.split(|byte| *byte == 0);
        let head = std::str::from_utf8(parts.next()?).ok()?;
        let (action, path) = head.split_once('@')?;
        if action.is_empty() || !path.starts_with('/') {
            return None;
        }
        let mut event = Self {
            action: action.to_owned(),
            path: path.to_owned(),
            ..Self::default()
        };
        let (mut major, mut minor) = (None, None);
        for part in parts {
            // A variable may hold anything, such as the bytes of a serial number.
            let Some((name, value)) = std::str::from_utf8(part)
                .ok()
                .and_then(|p| p.split_once('='))
            else {
                continue;
            };
            match name {
                "SUBSYSTEM" => event.subsystem = value.to_owned(),
                "MAJOR" => major = value.parse().ok(),
                "MINOR" => minor = value.parse().ok(),
                _ => {}
            }
        }
        event.numbers = major.zip(minor);
        Some(event)
    }

    /// Whether the device is a PCI function or behind one.
    pub fn is_below_pci(&self) -> bool {
        self.path.split('/').any(is_pci_address)
    }

    /// Whether the device is on a USB bus.
    pub fn is_below_usb(&self) -> bool {
        let is_bus = |name: &str| {
            let number = name.strip_prefix("usb");
            number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        };
        self.subsystem == "usb" || self.path.split('/').any(is_bus)
    }
}

/// Whether a name is that of a PCI function: `0000:3b:00.0`.
pub fn is_pci_address(name: &str) -> bool {
    let Some((domain, (bus, slot))) = name
        .split_once(':')
        .and_then(|(domain, rest)| Some((domain, rest.split_once(':')?)))
    else {
        return false;
    };
    let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let (device, function) = slot.split_once('.').unwrap_or_default();
    (4..=8).contains(&domain.len())
        && (bus.len(), device.len(), function.len()) == (2, 2, 1)
        && [domain, bus, device, function].into_iter().all(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADD: &[u8] =
        b"add@/devices/pci0000:00/0000:00:14.0/usb1/1-1/1-1:1.0/ttyUSB0/tty/ttyUSB0\0\
        ACTION=add\0DEVPATH=/x\0SUBSYSTEM=tty\0MAJOR=188\0MINOR=0\0DEVNAME=ttyUSB0\0SEQNUM=7\0";

    #[test]
    fn a_message_of_the_kernel_is_read() {
        let event = Uevent::read(ADD).unwrap();
        assert_eq!(
            (event.action.as_str(), event.subsystem.as_str()),
            ("add", "tty")
        );
        assert!(event.path.ends_with("/tty/ttyUSB0"));
        assert_eq!(event.numbers, Some((188, 0)));
        assert!(event.is_below_pci() && event.is_below_usb());
        let event = Uevent::read(b"change@/devices/virtual/mem/null\0SUBSYSTEM=mem\0").unwrap();
        assert!(!event.is_below_pci() && !event.is_below_usb());
        assert_eq!(event.numbers, None);
    }

    #[test]
    fn whatever_comes_is_no_panic() {
        let check = |message: &[u8], expected: bool| {
            assert_eq!(Uevent::read(message).is_some(), expected, "{message:?}");
        };
        check(b"", false);
        check(b"\0\0\0", false);
        check(b"@", false);
        check(b"@/x", false);
        check(b"add@", false);
        check(b"add@x", false);
        check(b"libudev\0\xfe\xed\xca\xfe", false);
        check(b"\xff\xff@/x", false);
        check(b"add@/x", true);
        check(
            b"add@/x\0=\0MAJOR=\0MAJOR=-1\0MINOR=99999999999\0\xff=\xff\0SUBSYSTEM",
            true,
        );
        check(&[b'a'; MESSAGE_MAX + 1], false);
        // Every message that was cut, and every one with a wrong byte.
        for length in 0..ADD.len() {
            let _any = Uevent::read(&ADD[..length]);
            let mut wrong = ADD.to_vec();
            for byte in [0, b'@', b'=', 0xff] {
                wrong[length] = byte;
                let _any = Uevent::read(&wrong);
            }
        }
    }

    #[test]
    fn addresses_of_pci_functions() {
        let check = |name: &str, expected: bool| {
            assert_eq!(is_pci_address(name), expected, "{name:?}");
        };
        check("0000:3b:00.0", true);
        check("10000:e1:00.7", true);
        check("pci0000:00", false);
        check("0003:046D:C52B.0001", false);
        check("1-1:1.0", false);
        check("0000:3b:00", false);
        check("::.", false);
        check("", false);
    }
}
