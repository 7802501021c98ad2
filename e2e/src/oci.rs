//! Container images without a builder: an archive that is an OCI layout and what `docker load`
//! reads at once.
//!
//! The same input gives the same bytes: no clock, no user, no order of a directory gets in.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::json;
use sha2::{Digest, Sha256};

/// An image FROM scratch with one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its full name, `localhost/name:tag`.
    pub reference: String,
    /// What the image holds. Parent directories are made where they are not listed.
    pub files: Vec<Entry>,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// `uid` or `uid:gid`.
    pub user: String,
    /// Environment variables, `NAME=value`.
    pub environment: Vec<String>,
    /// Labels, such as `org.opencontainers.image.version`.
    pub labels: BTreeMap<String, String>,
}

/// One path of an image; paths are relative to its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A directory with its permission bits.
    Directory {
        /// Path in the image.
        path: String,
        /// Permission bits.
        mode: u32,
    },
    /// A regular file, taken from this machine.
    File {
        /// Path in the image.
        path: String,
        /// Where its content is.
        source: PathBuf,
        /// Permission bits.
        mode: u32,
    },
    /// A symbolic link.
    Link {
        /// Path in the image.
        path: String,
        /// Where it points.
        target: String,
    },
}

/// The architecture of this machine in the words of images.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Writes `image` to the file `target`, which appears complete or not at all.
pub fn write(image: &Image, target: &Path) -> Result<()> {
    let directory = target.parent().context("an archive needs a directory")?;
    fs::create_dir_all(directory)
        .with_context(|| format!("failed to create {:?}", directory.display()))?;
    let mut file = tempfile::NamedTempFile::new_in(directory)
        .with_context(|| format!("failed to create a file in {:?}", directory.display()))?;
    file.write_all(&archive(image)?)
        .with_context(|| format!("failed to write {:?}", target.display()))?;
    // A temporary file is for its owner only; an archive is for everybody.
    fs::set_permissions(
        file.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )?;
    file.persist(target)
        .with_context(|| format!("failed to write {:?}", target.display()))?;
    Ok(())
}

/// The bytes of the archive of `image`.
pub fn archive(image: &Image) -> Result<Vec<u8>> {
    let (repository, tag) = split_reference(&image.reference)?;
    let layer = layer(&image.files)?;
    let layer_digest = hex_digest(&layer);
    let configuration = serde_json::to_vec(&configuration(image, &layer_digest))?;
    let configuration_digest = hex_digest(&configuration);
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": format!("sha256:{configuration_digest}"),
            "size": configuration.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": format!("sha256:{layer_digest}"),
            "size": layer.len(),
        }],
    }))?;
    let manifest_digest = hex_digest(&manifest);
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": format!("sha256:{manifest_digest}"),
            "size": manifest.len(),
            "platform": {"architecture": architecture(), "os": "linux"},
            "annotations": {
                // containerd reads the first, skopeo and podman the second.
                "io.containerd.image.name": format!("{repository}:{tag}"),
                "org.opencontainers.image.ref.name": tag,
            },
        }],
    }))?;
    let blob = |digest: &str| format!("blobs/sha256/{digest}");
    // What `docker save` writes, beside the layout.
    let docker = serde_json::to_vec(&json!([{
        "Config": blob(&configuration_digest),
        "RepoTags": [format!("{repository}:{tag}")],
        "Layers": [blob(&layer_digest)],
    }]))?;
    let mut archive = tar::Builder::new(Vec::new());
    append_directory(&mut archive, "blobs", 0o755)?;
    append_directory(&mut archive, "blobs/sha256", 0o755)?;
    append_file(
        &mut archive,
        "oci-layout",
        br#"{"imageLayoutVersion":"1.0.0"}"#,
        0o644,
    )?;
    append_file(&mut archive, "index.json", &index, 0o644)?;
    append_file(&mut archive, "manifest.json", &docker, 0o644)?;
    append_file(
        &mut archive,
        &blob(&configuration_digest),
        &configuration,
        0o644,
    )?;
    append_file(&mut archive, &blob(&manifest_digest), &manifest, 0o644)?;
    append_file(&mut archive, &blob(&layer_digest), &layer, 0o644)?;
    Ok(archive.into_inner()?)
}

fn configuration(image: &Image, layer_digest: &str) -> serde_json::Value {
    json!({
        // No clock gets in, and some readers want a time.
        "created": "1970-01-01T00:00:00Z",
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "User": image.user,
            "Env": image.environment,
            "Entrypoint": image.entrypoint,
            "WorkingDir": "/",
            "Labels": image.labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
        "history": [{"created_by": "device-plugin-operator"}],
    })
}

fn split_reference(reference: &str) -> Result<(&str, &str)> {
    match reference.rsplit_once(':') {
        Some((repository, tag))
            if !repository.is_empty() && !tag.is_empty() && !tag.contains('/') =>
        {
            Ok((repository, tag))
        }
        _ => bail!("image reference {reference:?} has no tag"),
    }
}

fn layer(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut directories = BTreeSet::new();
    for entry in entries {
        let (Entry::Directory { path, .. } | Entry::File { path, .. } | Entry::Link { path, .. }) =
            entry;
        let mut parents: Vec<_> = Path::new(path).ancestors().skip(1).collect();
        parents.reverse();
        for parent in parents.iter().filter_map(|parent| parent.to_str()) {
            if !parent.is_empty() && directories.insert(parent.to_owned()) {
                append_directory(&mut archive, parent, 0o755)?;
            }
        }
        match entry {
            Entry::Directory { path, mode } => {
                directories.insert(path.clone());
                append_directory(&mut archive, path, *mode)?;
            }
            Entry::File { path, source, mode } => {
                let content = fs::read(source)
                    .with_context(|| format!("failed to read {:?}", source.display()))?;
                append_file(&mut archive, path, &content, *mode)?;
            }
            Entry::Link { path, target } => {
                let mut header = header(tar::EntryType::Symlink, 0, 0o777);
                archive.append_link(&mut header, path, target)?;
            }
        }
    }
    Ok(archive.into_inner()?)
}

fn append_directory(archive: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32) -> Result<()> {
    let mut header = header(tar::EntryType::Directory, 0, mode);
    Ok(archive.append_data(&mut header, format!("{path}/"), std::io::empty())?)
}

fn append_file(
    archive: &mut tar::Builder<Vec<u8>>,
    path: &str,
    content: &[u8],
    mode: u32,
) -> Result<()> {
    let mut header = header(tar::EntryType::Regular, content.len() as u64, mode);
    Ok(archive.append_data(&mut header, path, content)?)
}

fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// The digest of a file in the words of registries, `sha256:…`.
pub fn file_digest(path: &Path) -> Result<String> {
    let mut file =
        File::open(path).with_context(|| format!("failed to open {:?}", path.display()))?;
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut bytes)?;
    Ok(format!("sha256:{}", hex_digest(&bytes)))
}

fn hex_digest(bytes: &[u8]) -> String {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn example(source: &Path) -> Image {
        Image {
            reference: "localhost/example:1".to_owned(),
            files: vec![
                Entry::File {
                    path: "usr/bin/tool".to_owned(),
                    source: source.to_path_buf(),
                    mode: 0o755,
                },
                Entry::Link {
                    path: "usr/bin/alias".to_owned(),
                    target: "tool".to_owned(),
                },
                Entry::Directory {
                    path: "tmp".to_owned(),
                    mode: 0o1777,
                },
            ],
            entrypoint: vec!["/usr/bin/tool".to_owned()],
            user: "65532:65532".to_owned(),
            environment: Vec::new(),
            labels: BTreeMap::new(),
        }
    }

    fn unpack(bytes: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(bytes).entries()? {
            let mut entry = entry?;
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            files.insert(entry.path()?.display().to_string(), content);
        }
        Ok(files)
    }

    /// The blob that `descriptor` names, of the size and digest that it states.
    fn blob<'files>(
        files: &'files BTreeMap<String, Vec<u8>>,
        descriptor: &serde_json::Value,
    ) -> Result<&'files Vec<u8>> {
        let digest = descriptor
            .pointer("/digest")
            .and_then(|digest| digest.as_str()?.strip_prefix("sha256:"))
            .context("a descriptor has a digest")?;
        let content = files
            .get(&format!("blobs/sha256/{digest}"))
            .context("the blob is there")?;
        assert_eq!(hex_digest(content), digest);
        assert_eq!(descriptor.pointer("/size"), Some(&json!(content.len())));
        Ok(content)
    }

    #[test]
    fn descriptors_lead_from_the_index_to_every_file() -> Result<()> {
        let scratch = tempfile::NamedTempFile::new()?;
        fs::write(scratch.path(), "content")?;
        let files = unpack(&archive(&example(scratch.path()))?)?;
        let parse = |bytes: &Vec<u8>| serde_json::from_slice::<serde_json::Value>(bytes);
        let index = parse(files.get("index.json").context("index")?)?;
        let descriptor = index.pointer("/manifests/0").context("one manifest")?;
        assert_eq!(
            descriptor.pointer("/annotations/io.containerd.image.name"),
            Some(&json!("localhost/example:1"))
        );
        let manifest = parse(blob(&files, descriptor)?)?;
        let configuration = blob(&files, manifest.pointer("/config").context("config")?)?;
        let configuration = parse(configuration)?;
        assert_eq!(
            configuration.pointer("/config/User"),
            Some(&json!("65532:65532"))
        );
        let layer_descriptor = manifest.pointer("/layers/0").context("layer")?;
        let layer = unpack(blob(&files, layer_descriptor)?)?;
        let paths: Vec<_> = layer.keys().map(String::as_str).collect();
        assert_eq!(
            paths,
            ["tmp/", "usr/", "usr/bin/", "usr/bin/alias", "usr/bin/tool"]
        );
        assert_eq!(
            layer.get("usr/bin/tool").map(Vec::as_slice),
            Some(&b"content"[..])
        );
        let docker = parse(files.get("manifest.json").context("docker")?)?;
        let layer_path = docker.pointer("/0/Layers/0").and_then(|path| path.as_str());
        assert!(files.contains_key(layer_path.context("a layer for docker")?));
        assert_eq!(
            configuration.pointer("/rootfs/diff_ids/0"),
            layer_descriptor.pointer("/digest")
        );
        Ok(())
    }

    #[test]
    fn equal_images_have_equal_bytes() -> Result<()> {
        let [one, other] = [
            tempfile::NamedTempFile::new()?,
            tempfile::NamedTempFile::new()?,
        ];
        assert_eq!(
            archive(&example(one.path()))?,
            archive(&example(other.path()))?
        );
        Ok(())
    }

    #[test]
    fn a_reference_needs_a_tag() {
        for reference in ["example", "localhost:5000/example", ":1", "example:"] {
            assert!(split_reference(reference).is_err(), "{reference:?}");
        }
        assert_eq!(
            split_reference("localhost:5000/a:1").ok(),
            Some(("localhost:5000/a", "1"))
        );
    }
}
