//! What the API server's audit log says about writes.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// Verbs that change something, or ask for it.
const WRITES: &[&str] = &["create", "update", "patch", "delete", "deletecollection"];

/// The length of the log now: where a later look begins.
pub fn mark(log: &Path) -> Result<usize> {
    Ok(std::fs::metadata(log)
        .with_context(|| format!("failed to read {log:?}"))?
        .len()
        .try_into()?)
}

/// Writes since `mark` by users whose name contains `user`, counted by verb and object.
///
/// Tokens and leases are the machinery of being connected and elected, not changes of state.
pub fn writes_since(log: &Path, mark: usize, user: &str) -> Result<BTreeMap<String, usize>> {
    let text = std::fs::read(log).with_context(|| format!("failed to read {log:?}"))?;
    let mut counted = BTreeMap::new();
    for line in text
        .get(mark..)
        .unwrap_or_default()
        .split(|byte| *byte == b'\n')
    {
        let Ok(event) = serde_json::from_slice::<Value>(line) else {
            continue;
        };
        let field = |pointer: &str| {
            event
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let written = WRITES.contains(&field("/verb")) && field("/stage") == "ResponseComplete";
        if written
            && field("/user/username").contains(user)
            && field("/objectRef/subresource") != "token"
            && field("/objectRef/resource") != "leases"
        {
            let what = format!(
                "{} {}/{} {}",
                field("/verb"),
                field("/objectRef/resource"),
                field("/objectRef/subresource"),
                field("/objectRef/name"),
            );
            *counted.entry(what).or_default() += 1;
        }
    }
    Ok(counted)
}
