//! The chart, rendered by the helm that users have and checked against the schemas of Kubernetes
//! and against what we promise about rights and security.

#![expect(
    clippy::indexing_slicing,
    reason = "a member that a JSON or YAML value lacks is null"
)]

mod matrix;
mod promises;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::generate::values;
use crate::tools;
use crate::workspace::{cache, chart, output};

/// Versions of Kubernetes whose schemas the rendered objects are checked with: the oldest that the
/// chart accepts, and the newest.
const KUBERNETES: [&str; 2] = ["1.33", "1.37"];

/// Lints the chart, renders the accepted values, checks what comes out, and sees the others refused.
pub fn check() -> anyhow::Result<()> {
    let helm = tools::helm()?;
    output(Command::new(&helm).args(["lint", "--strict"]).arg(chart()))?;
    values_and_schema_agree()?;
    definitions_are_announced()?;
    let directory = cache()?.join(format!("rendered-{}", std::process::id()));
    std::fs::create_dir_all(&directory).with_context(|| format!("failed to make {directory:?}"))?;
    let checked = accepted(&helm, &directory);
    std::fs::remove_dir_all(&directory)
        .with_context(|| format!("failed to remove {directory:?}"))?;
    checked?;
    refused(&helm)
}

fn accepted(helm: &Path, directory: &Path) -> anyhow::Result<()> {
    let mut files = Vec::new();
    let mut used = BTreeSet::new();
    for (index, case) in matrix::ACCEPTED.iter().enumerate() {
        let text = render(helm, case.settings)?;
        let objects = objects(&text).with_context(|| format!("with {:?}", case.settings))?;
        promises::check(&objects).with_context(|| format!("with {:?}", case.settings))?;
        let text = without_schemas(&text);
        for word in case.contains {
            ensure!(
                text.contains(word),
                "{:?} does not render {word:?}",
                case.settings
            );
        }
        for word in case.lacks {
            ensure!(!text.contains(word), "{:?} renders {word:?}", case.settings);
        }
        used.extend(case.settings.iter().map(|setting| matrix::path(setting)));
        let known: Vec<String> = objects
            .iter()
            .filter(|object| promises::has_schema(object))
            .map(ToString::to_string)
            .collect();
        let file = directory.join(format!("{index}.yaml"));
        std::fs::write(&file, known.join("\n---\n"))?;
        files.push(file);
    }
    for value in values::all()? {
        let covered = used
            .iter()
            .any(|path| *path == value.path || path.starts_with(&format!("{}.", value.path)));
        ensure!(covered, "no case of the render tests sets {:?}", value.path);
    }
    validate(&files)
}

/// Values that must be refused, and by what words.
fn refused(helm: &Path) -> anyhow::Result<()> {
    for (setting, word) in matrix::REFUSED {
        match render(helm, &[setting]) {
            Ok(_) => bail!("the chart accepts {setting:?}"),
            Err(error) => {
                let message = format!("{error:#}");
                ensure!(
                    message.contains(word),
                    "the refusal of {setting:?} does not name {word:?}: {message}"
                );
            }
        }
    }
    Ok(())
}

fn validate(files: &[PathBuf]) -> anyhow::Result<()> {
    let program = tools::python_programs()?.join("kubernetes-validate");
    for version in KUBERNETES {
        output(
            Command::new(&program)
                .args(["--strict", "--quiet", "-k", version])
                .args(files),
        )?;
    }
    Ok(())
}

fn render(helm: &Path, settings: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(helm);
    command
        .arg("template")
        .arg(chart())
        .args(["--namespace", "device-plugin-system"]);
    if !settings
        .iter()
        .any(|setting| setting.starts_with("--name-template"))
    {
        command.args(["--name-template", "release"]);
    }
    for setting in settings {
        match setting.strip_prefix("--") {
            Some(_) => command.args(setting.split(' ')),
            None => command.args(["--set", setting]),
        };
    }
    output(&mut command)
}

/// The text without what is inside definitions, which has words of its own.
fn without_schemas(text: &str) -> String {
    let documents = text
        .split("\n---\n")
        .map(|document| match document.split_once("\nspec:") {
            Some((head, _)) if head.contains("kind: CustomResourceDefinition") => head,
            _ => document,
        });
    documents.collect::<Vec<_>>().join("\n---\n")
}

/// The objects of a rendered text.
fn objects(text: &str) -> anyhow::Result<Vec<Value>> {
    let mut objects = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let object = Value::deserialize(document).context("helm rendered what is no YAML")?;
        if !object.is_null() {
            objects.push(object);
        }
    }
    Ok(objects)
}

/// Every value has a place in the schema, and every place in the schema a value.
fn values_and_schema_agree() -> anyhow::Result<()> {
    let path = chart().join("values.schema.json");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("failed to read {path:?}"))?;
    let schema: Value = serde_json::from_str(&text)?;
    let mut in_schema = BTreeSet::new();
    leaves(&schema, "", &mut in_schema);
    for extra in ["global", "enabled"] {
        ensure!(in_schema.remove(extra), "the schema has no {extra:?}");
    }
    let mut in_values = BTreeSet::new();
    for value in values::all()? {
        // What is documented as one value may have members in the schema.
        let members = format!("{}.", value.path);
        in_schema.retain(|path| !path.starts_with(&members));
        in_schema.remove(&value.path);
        in_values.insert(value.path);
    }
    ensure!(
        in_schema.is_empty(),
        "in the schema and not in values.yaml: {in_schema:?}"
    );
    // The other direction is what `helm lint` has refused already.
    ensure!(in_values.len() > 20, "only {in_values:?} were found");
    Ok(())
}

fn leaves(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    match schema["properties"].as_object() {
        Some(members) => {
            for (name, member) in members {
                let path = format!("{path}.{name}");
                leaves(member, path.trim_start_matches('.'), found);
            }
        }
        None => {
            found.insert(path.to_owned());
        }
    }
}

/// The annotation that catalogues of charts read names the definitions that there are.
fn definitions_are_announced() -> anyhow::Result<()> {
    let text = std::fs::read_to_string(chart().join("Chart.yaml"))?;
    let chart: Value = serde_yaml::from_str(&text)?;
    let announced = chart["annotations"]["artifacthub.io/crds"]
        .as_str()
        .context("Chart.yaml announces no definitions")?;
    let announced: Vec<Value> = serde_yaml::from_str(announced)?;
    let announced: Vec<_> = announced
        .iter()
        .map(|one| (one["kind"].as_str(), one["name"].as_str()))
        .collect();
    let definitions = crds::manifests::definitions();
    let present: Vec<_> = definitions
        .iter()
        .map(|one| {
            (
                Some(one.spec.names.kind.as_str()),
                one.metadata.name.as_deref(),
            )
        })
        .collect();
    ensure!(
        announced == present,
        "Chart.yaml announces {announced:?}, there are {present:?}"
    );
    Ok(())
}
