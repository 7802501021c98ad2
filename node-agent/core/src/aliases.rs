//! Devices that a container holds under an id that they no longer have.

use std::collections::{BTreeMap, BTreeSet};

use crate::discovery::Found;

impl Found {
    /// Unhealthy while a container holds the device under another id, that of an earlier revision
    /// perhaps: it would be given out twice.
    pub(crate) fn unless_held_as_another(
        mut self,
        id: &str,
        allocated: Option<&BTreeMap<String, BTreeSet<String>>>,
    ) -> Self {
        let Some(allocated) = allocated.filter(|ids| !ids.contains_key(id)) else {
            return self;
        };
        let names: Vec<&str> = self.also.iter().map(String::as_str).chain([id]).collect();
        let held = names.iter().find_map(|name| held_as(name, allocated));
        if let Some(other) = held {
            self.unhealthy = Some(format!("a container holds it as {other:?}"));
        }
        self
    }
}

/// The id under which a container holds a device: its own, or that of a replica that an earlier
/// revision had, a number after it.
fn held_as<'a>(id: &str, allocated: &'a BTreeMap<String, BTreeSet<String>>) -> Option<&'a String> {
    let from = allocated.range(id.to_owned()..);
    let mut near = from
        .map(|(held, _)| held)
        .take_while(|held| held.starts_with(id));
    let is_replica = |rest: &str| {
        let number = rest.strip_prefix('.');
        number
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    };
    near.find(|held| {
        held.strip_prefix(id)
            .is_some_and(|rest| rest.is_empty() || is_replica(rest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_held_under_another_id_is_not_given_out() {
        let check = |held: &str, expected: &str| {
            let found = Found {
                also: vec!["serial".to_owned(), "slot".to_owned()],
                ..Found::default()
            };
            let held = [(held.to_owned(), BTreeSet::new())].into();
            let told = found.unless_held_as_another("path", Some(&held)).unhealthy;
            assert_eq!(told.unwrap_or_default(), expected);
        };
        check("path", "");
        check("other", "");
        check("slot", r#"a container holds it as "slot""#);
        check("path.1", r#"a container holds it as "path.1""#);
        check("serial.17", r#"a container holds it as "serial.17""#);
        for another in ["path.", "path.b", "path1", "pat", "path-1"] {
            check(another, "");
        }
        let unknown = Found::default().unless_held_as_another("path", None);
        assert_eq!(unknown.unhealthy, None);
    }
}
