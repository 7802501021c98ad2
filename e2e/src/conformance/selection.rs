//! Which behaviours are wanted: `1,5,17-20`.

use std::collections::BTreeSet;
use std::str::FromStr;

use anyhow::{Result, bail};

/// Numbers of behaviours.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Selection(BTreeSet<u8>);

impl Selection {
    /// Whether a behaviour is among them.
    pub fn contains(&self, number: u8) -> bool {
        self.0.contains(&number)
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<u8> for Selection {
    fn from_iter<T: IntoIterator<Item = u8>>(numbers: T) -> Self {
        Self(numbers.into_iter().collect())
    }
}

impl FromStr for Selection {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut numbers = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (first.trim().parse::<u8>(), last.trim().parse::<u8>()) {
                (Ok(first), Ok(last)) if first <= last => numbers.extend(first..=last),
                _ => bail!("{part:?} is neither a number nor a range such as 17-20"),
            }
        }
        Ok(Self(numbers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ranges_are_understood() {
        let numbers = |text: &str| text.parse::<Selection>().unwrap().0;
        assert_eq!(numbers("5"), BTreeSet::from([5]));
        assert_eq!(numbers("1, 17-19,3"), BTreeSet::from([1, 3, 17, 18, 19]));
        for wrong in ["", "x", "3-", "9-7", "1,,2", "300"] {
            assert!(wrong.parse::<Selection>().is_err(), "{wrong}");
        }
    }
}
