//! The texts in which the kernel and udev tell of devices.

use crate::discovery::Numbers;

/// Variables of a `uevent` file: `DEVNAME=ttyUSB0` on each line. Lines that are none are left out.
pub fn variables(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| line.split_once('='))
}

/// Properties in an entry of udev's database: the variables on lines that start with `E:`.
pub fn properties(entry: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = entry.lines().filter_map(|line| line.strip_prefix("E:"));
    lines.filter_map(|line| line.split_once('='))
}

/// Numbers of a device node: `188:0`.
pub fn numbers(text: &str) -> Option<Numbers> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_as_far_as_they_make_sense() {
        let entry = "I:7\nE:ID_MODEL=a=b\nE:\nE:X\nS:link\nE:=\nID_VENDOR=x\n";
        let all: Vec<_> = properties(entry).collect();
        assert_eq!(all, [("ID_MODEL", "a=b"), ("", "")]);
        let all: Vec<_> = variables("MAJOR=188\n\nDEVNAME=x y\nbroken").collect();
        assert_eq!(all, [("MAJOR", "188"), ("DEVNAME", "x y")]);
        let check = |text: &str, expected| assert_eq!(numbers(text), expected, "{text:?}");
        check("188:0\n", Some((188, 0)));
        for nonsense in ["", ":", "1:", "-1:0", "4294967296:0", "1:2:3"] {
            check(nonsense, None);
        }
    }
}
