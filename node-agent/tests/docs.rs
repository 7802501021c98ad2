//! docs/metrics.md has every metric of the agent, with its help, and no other.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;

use node_agent::metrics::METRICS;

#[test]
fn every_metric_is_explained() -> Result<(), Box<dyn Error>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let page = std::fs::read_to_string(path)?;
    let section = page
        .split("\n## ")
        .find(|section| section.starts_with("Agent\n"))
        .ok_or("no section about the agent")?;
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let explained: BTreeMap<&str, &str> = rows
        .filter_map(|row| {
            let (name, rest) = row.split_once("` |")?;
            Some((name, rest.trim_end_matches('|').rsplit('|').next()?.trim()))
        })
        .collect();
    let known: BTreeMap<&str, &str> = METRICS.iter().copied().collect();
    assert_eq!(
        explained, known,
        "left: what docs/metrics.md says; right: what the code registers"
    );
    Ok(())
}
