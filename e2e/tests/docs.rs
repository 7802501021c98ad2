//! docs/conformance.md has every behaviour, as the code has it, and names tests that exist.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use e2e::conformance::BEHAVIOURS;

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The rows of the page's table, as they are.
fn rows() -> Result<Vec<String>, Box<dyn Error>> {
    let page = fs::read_to_string(checkout().join("docs/conformance.md"))?;
    let table = page.rsplit("## The behaviours").next().unwrap_or_default();
    let rows = table.lines().filter(|line| {
        let number = line
            .strip_prefix("| ")
            .and_then(|row| row.split(' ').next());
        number.is_some_and(|number| number.parse::<u8>().is_ok())
    });
    Ok(rows.map(str::to_owned).collect())
}

#[test]
fn every_behaviour_has_its_row() -> Result<(), Box<dyn Error>> {
    let rows = rows()?;
    let numbers: Vec<String> = rows
        .iter()
        .filter_map(|row| Some(row.split(" | ").next()?.trim_start_matches("| ").to_owned()))
        .collect();
    let expected: Vec<String> = (1..=81).map(|number: u8| number.to_string()).collect();
    assert_eq!(numbers, expected);
    for one in BEHAVIOURS {
        let row = format!(
            "| {} | {} | {} | {} | `{}` | {} |",
            one.number, one.level, one.stimulus, one.expectation, one.name, one.source
        );
        assert!(rows.contains(&row), "docs/conformance.md lacks:\n{row}");
    }
    Ok(())
}

#[test]
fn every_story_that_is_named_exists() -> Result<(), Box<dyn Error>> {
    let stories = fs::read_to_string(checkout().join("e2e/tests/cluster/stories.rs"))?;
    let checks: Vec<&str> = BEHAVIOURS.iter().map(|one| one.name).collect();
    for row in rows()? {
        let shown_by = row.split(" | ").nth(4).unwrap_or_default();
        for name in shown_by.split('`').skip(1).step_by(2) {
            assert!(
                checks.contains(&name) || stories.contains(&format!("\"{name}\"")),
                "docs/conformance.md names {name:?}, which is neither a check nor a story"
            );
        }
    }
    Ok(())
}
