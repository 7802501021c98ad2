//! Rewriting the parts' module files after a version was changed by hand.
//!
//! `k8s.io/kubernetes` requires its staging modules at `v0.0.0` and replaces them by local
//! directories, which importers do not inherit. Each is replaced by its published tag here:
//! `v0.X.Y` goes with `v1.X.Y`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::build::go;
use super::catalogue::{DEVICE_MANAGERS, PARTS, Part, required_version};
use crate::command::run;
use crate::progress::Progress;

const KUBERNETES_MODULE: &str = "k8s.io/kubernetes";

/// One part for each directory of module files.
fn parts() -> Vec<&'static Part> {
    let mut parts: Vec<_> = PARTS.iter().collect();
    for part in &DEVICE_MANAGERS {
        if parts.iter().all(|known| known.directory != part.directory) {
            parts.push(part);
        }
    }
    parts
}

/// Brings the `go.mod` and `go.sum` of every part below `directory` in line with the versions that
/// they require.
pub fn module_files(directory: &Path, progress: &Progress) -> Result<()> {
    let parts = parts();
    let steps = progress.steps(parts.len());
    for part in parts {
        let module = directory.join(part.directory);
        let file = module.join("go.mod");
        let old = fs::read_to_string(&file)
            .with_context(|| format!("failed to read {:?}", file.display()))?;
        let version = required_version(&old, part.module)
            .with_context(|| format!("{:?} requires no {:?}", file.display(), part.module))?;
        steps.step(format_args!("{} {version}", part.name));
        if part.module == KUBERNETES_MODULE {
            let upstream = upstream_module_file(version)?;
            let new = with_staging_replaces(&old, &upstream, version)?;
            fs::write(&file, new)
                .with_context(|| format!("failed to write {:?}", file.display()))?;
        }
        run(go()?.current_dir(&module).args(["mod", "tidy"]))?;
    }
    Ok(())
}

fn upstream_module_file(version: &str) -> Result<String> {
    let answer = run(go()?.args([
        "mod",
        "download",
        "-json",
        &format!("{KUBERNETES_MODULE}@{version}"),
    ]))?;
    let answer: serde_json::Value =
        serde_json::from_str(&answer).context("`go mod download -json` printed no JSON")?;
    let file = answer
        .get("GoMod")
        .and_then(serde_json::Value::as_str)
        .context("`go mod download -json` names no GoMod")?;
    fs::read_to_string(file).with_context(|| format!("failed to read {file:?}"))
}

/// The modules that `upstream` replaces by a directory below `staging`.
fn staging_modules(upstream: &str) -> Vec<&str> {
    upstream
        .lines()
        .filter_map(|line| line.split_once(" => ./staging/"))
        .map(|(module, _)| module.trim().trim_start_matches("replace "))
        .collect()
}

/// `go_mod` with exactly one replace for each staging module of `upstream`.
fn with_staging_replaces(go_mod: &str, upstream: &str, version: &str) -> Result<String> {
    let modules = staging_modules(upstream);
    ensure!(
        !modules.is_empty(),
        "the module file of {version:?} replaces no staging module"
    );
    let tag = version
        .strip_prefix("v1.")
        .map(|rest| format!("v0.{rest}"))
        .with_context(|| format!("{version:?} is not a version of Kubernetes"))?;
    let mut text = without_replaces(go_mod).trim_end().to_owned();
    text.push_str("\n\nreplace (\n");
    for module in modules {
        text.push_str(&format!("\t{module} => {module} {tag}\n"));
    }
    text.push_str(")\n");
    Ok(text)
}

fn without_replaces(go_mod: &str) -> String {
    let mut inside = false;
    let mut text = String::new();
    for line in go_mod.lines() {
        let starts = line.trim() == "replace (";
        if starts || inside {
            inside = line.trim() != ")";
            continue;
        }
        if !line.trim_start().starts_with("replace ") {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPSTREAM: &str = "module k8s.io/kubernetes\n\nrequire k8s.io/api v0.0.0\n\nreplace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n\tk8s.io/kubelet => ./staging/src/k8s.io/kubelet\n\texample.com/other => example.com/other v1.0.0\n)\nreplace k8s.io/kms => ./staging/src/k8s.io/kms\n";

    #[test]
    fn only_staging_modules_are_read() {
        assert_eq!(
            staging_modules(UPSTREAM),
            ["k8s.io/api", "k8s.io/kubelet", "k8s.io/kms"]
        );
    }

    #[test]
    fn replaces_follow_the_version_and_nothing_else_changes() -> Result<()> {
        let old = "module local/kubernetes\n\ntool k8s.io/kubernetes/cmd/kubelet\n\nrequire k8s.io/kubernetes v1.37.2\n\nreplace (\n\tk8s.io/gone => k8s.io/gone v0.37.1\n\tk8s.io/api => k8s.io/api v0.37.1\n)\n";
        let new = with_staging_replaces(old, UPSTREAM, "v1.37.2")?;
        assert_eq!(
            new,
            "module local/kubernetes\n\ntool k8s.io/kubernetes/cmd/kubelet\n\nrequire k8s.io/kubernetes v1.37.2\n\nreplace (\n\tk8s.io/api => k8s.io/api v0.37.2\n\tk8s.io/kubelet => k8s.io/kubelet v0.37.2\n\tk8s.io/kms => k8s.io/kms v0.37.2\n)\n"
        );
        assert_eq!(with_staging_replaces(&new, UPSTREAM, "v1.37.2")?, new);
        Ok(())
    }

    #[test]
    fn a_module_without_staging_is_refused() {
        assert!(with_staging_replaces("module x\n", "module y\n", "v1.37.1").is_err());
        assert!(with_staging_replaces("module x\n", UPSTREAM, "v2.0.0").is_err());
    }

    #[test]
    fn committed_replaces_match_the_committed_versions() {
        let parts = parts().into_iter();
        for part in parts.filter(|part| part.module == KUBERNETES_MODULE) {
            let tag = part.version().replacen("v1.", "v0.", 1);
            let replaces: Vec<_> = part
                .go_mod
                .lines()
                .filter_map(|line| line.split_once(" => "))
                .collect();
            assert!(replaces.len() >= 30, "{}: {}", part.name, replaces.len());
            for (module, replacement) in replaces {
                assert_eq!(
                    replacement,
                    format!("{} {tag}", module.trim()),
                    "{}",
                    part.name
                );
            }
        }
    }
}
