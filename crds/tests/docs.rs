//! docs/operations.md explains every condition and reason, and no other.

#![expect(clippy::panic, reason = "a test that meets the unexpected fails")]

use std::collections::BTreeSet;
use std::error::Error;
use std::path::PathBuf;

use crds::conditions::{ConfigCondition, ConfigReason, NodeCondition, NodeReason};

/// The words in the first column of the table below a heading.
fn table(page: &str, heading: &str) -> BTreeSet<String> {
    let section = page
        .split("\n## ")
        .find(|section| section.lines().next() == Some(heading))
        .unwrap_or_else(|| panic!("no heading {heading:?}"));
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let words = rows.map(|row| row.split('`').nth(1).unwrap_or_default().to_owned());
    words.collect()
}

fn compare<Word: Copy + std::fmt::Display>(page: &str, heading: &str, all: &[Word]) {
    let known: BTreeSet<String> = all.iter().map(ToString::to_string).collect();
    let explained = table(page, heading);
    assert_eq!(
        explained, known,
        "left: what the section {heading:?} explains; right: what the code can say"
    );
}

#[test]
fn every_condition_and_reason_is_explained() -> Result<(), Box<dyn Error>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let page = std::fs::read_to_string(path)?;
    compare(&page, "Conditions of a config", ConfigCondition::ALL);
    compare(&page, "Reasons on a config", ConfigReason::ALL);
    compare(&page, "Conditions of a node object", NodeCondition::ALL);
    compare(&page, "Reasons on a node object", NodeReason::ALL);
    Ok(())
}
