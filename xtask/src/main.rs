//! What cargo alone cannot say: generation, checks, tests, images, the local cluster and the demo.

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (name, text) in crds::manifests::files()? {
        std::fs::write(root.join("crds/manifests").join(&name), text).context(name)?;
    }
    Ok(())
}
