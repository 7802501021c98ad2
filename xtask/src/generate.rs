//! Files that are generated from the crates and kept in the tree.

use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::workspace::root;

/// Path in the tree and text of each generated file.
fn files() -> anyhow::Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    for (name, text) in
        crds::manifests::files().context("failed to write the definitions as YAML")?
    {
        files.push((
            PathBuf::from("charts/device-plugin-operator/templates").join(format!("crd-{name}")),
            template(&text)?,
        ));
        files.push((PathBuf::from("crds/manifests").join(name), text));
    }
    Ok(files)
}

/// A definition as a template of the chart: installed if `crds.enabled`, kept if `crds.keep`.
fn template(definition: &str) -> anyhow::Result<String> {
    // Go templates have nothing to say in our texts; a brace pair in one would change its meaning.
    anyhow::ensure!(
        !definition.contains("{{"),
        "a definition holds {{{{, which helm would expand"
    );
    let name = "metadata:\n  name: ";
    let (before, after) = definition
        .split_once(name)
        .context("a definition without metadata.name")?;
    let keep = "metadata:\n  {{- if .Values.crds.keep }}\n  annotations:\n    helm.sh/resource-policy: keep\n  {{- end }}\n  labels:\n    {{- include \"dpo.labels\" . | nindent 4 }}\n  name: ";
    Ok(format!(
        "{{{{- if .Values.crds.enabled }}}}\n{before}{keep}{after}{{{{- end }}}}\n"
    ))
}

/// Writes them.
pub fn write() -> anyhow::Result<()> {
    for (path, text) in files()? {
        std::fs::write(root().join(&path), text)
            .with_context(|| format!("failed to write {path:?}"))?;
    }
    Ok(())
}

/// Fails and names each that is not as it would be written.
pub fn compare() -> anyhow::Result<()> {
    let stale: Vec<String> = files()?
        .into_iter()
        .filter(|(path, text)| {
            std::fs::read_to_string(root().join(path)).ok().as_deref() != Some(text)
        })
        .map(|(path, _)| path.display().to_string())
        .collect();
    if !stale.is_empty() {
        bail!(
            "not as generated: {}; `cargo xtask gen` writes them",
            stale.join(", ")
        );
    }
    Ok(())
}
