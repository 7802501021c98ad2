//! What the product promises, on a real cluster: etcd, kube-apiserver, controller manager,
//! scheduler, and two nodes with a kubelet of 1.37 and one of 1.36.
//!
//! The stories run one after the other on one cluster, in the order of this file: the chart is
//! installed by the first and uninstalled by the last. `KEEP_CLUSTER=1` leaves the cluster running.

#![expect(clippy::print_stderr, reason = "a test harness talks to a terminal")]
#![expect(
    clippy::indexing_slicing,
    reason = "a story that finds no field fails, as it should"
)]

mod api;
mod audit;
mod on_node;
mod scene;
mod stories;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::scene::Scene;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // The stories share a cluster and tell one tale.
    arguments.test_threads = Some(1);
    let scene: Arc<OnceLock<Result<Mutex<Scene>, String>>> = Arc::default();
    let trials = stories::ALL
        .iter()
        .map(|(name, story)| {
            let scene = Arc::clone(&scene);
            Trial::test(*name, move || {
                let built = scene.get_or_init(|| {
                    Scene::build()
                        .map(Mutex::new)
                        .map_err(|error| format!("{error:#}"))
                });
                let scene = built
                    .as_ref()
                    .map_err(|error| Failed::from(format!("no cluster: {error}")))?;
                let scene = scene
                    .lock()
                    .map_err(|_| Failed::from("an earlier story panicked"))?;
                let begun = std::time::Instant::now();
                let told = story(&scene).map_err(|error| Failed::from(format!("{error:#}")));
                eprintln!("      {name}: {:.1} s", begun.elapsed().as_secs_f64());
                told
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let used = scene.get().is_some();
    if used
        && std::env::var_os("KEEP_CLUSTER").is_none()
        && let Err(error) = stories::tear_down()
    {
        eprintln!("the cluster left something behind: {error:#}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}
