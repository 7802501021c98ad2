//! The CustomResourceDefinitions: as they are, and as templates of the chart.

use std::path::PathBuf;

use anyhow::{Context, ensure};

use super::File;

/// Both forms of each.
pub fn files() -> anyhow::Result<Vec<File>> {
    let mut files = Vec::new();
    let definitions =
        crds::manifests::files().context("failed to write the definitions as YAML")?;
    for (name, text) in definitions {
        let template = PathBuf::from("charts/device-plugin-operator/templates");
        files.push((template.join(format!("crd-{name}")), template_of(&text)?));
        files.push((PathBuf::from("crds/manifests").join(name), text));
    }
    Ok(files)
}

/// A definition as a template: installed if `crds.enabled`, kept on uninstall if `crds.keep`.
fn template_of(definition: &str) -> anyhow::Result<String> {
    ensure!(
        !definition.contains("{{"),
        "a definition holds {:?}, which helm would expand",
        "{{"
    );
    let (before, after) = definition
        .split_once("metadata:\n  name: ")
        .context("a definition without metadata.name")?;
    Ok(format!(
        "\
{{{{- if .Values.crds.enabled }}}}
{before}metadata:
  {{{{- if .Values.crds.keep }}}}
  annotations:
    helm.sh/resource-policy: keep
  {{{{- end }}}}
  labels:
    {{{{- include \"dpo.labels\" . | nindent 4 }}}}
  name: {after}{{{{- end }}}}
"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_helm_would_expand_is_refused() {
        let spoilt = template_of("metadata:\n  name: a\ndescription: '{{ .Values }}'\n");
        assert!(spoilt.is_err_and(|error| error.to_string().contains("{{")));
    }

    #[test]
    fn template_keeps_every_line_of_the_definition() -> anyhow::Result<()> {
        for (name, text) in crds::manifests::files()? {
            let template = template_of(&text)?;
            let mut definition = text.lines().peekable();
            let added = template
                .lines()
                .filter(|line| definition.next_if_eq(line).is_none());
            let added: Vec<&str> = added.filter(|line| !line.contains("{{")).collect();
            let expected = [
                "  annotations:",
                "    helm.sh/resource-policy: keep",
                "  labels:",
            ];
            assert_eq!(added, expected, "{name}");
            assert_eq!(definition.next(), None, "{name}");
        }
        Ok(())
    }
}
