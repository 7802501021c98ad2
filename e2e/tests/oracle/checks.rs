//! The statements, and what several of them need.

mod admission;
mod instances;
mod lists;
mod registration;
mod restart;
mod starting;

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, anyhow, bail};
use e2e::kubelet::{Ask, DeviceManager};
use e2e::oracle::RealDeviceManager;

use crate::plugin::{Plugin, Script, device};
use crate::wait::counts_become;

/// Where a check ends.
pub type Outcome<'life> = Pin<Box<dyn Future<Output = Result<()>> + 'life>>;

/// A check gets a kubelet that was started in a directory of its own.
#[derive(Clone, Copy)]
pub enum Check {
    /// Of every kubelet.
    OfAll(for<'life> fn(&'life mut dyn DeviceManager) -> Outcome<'life>),
    /// Of what the played kubelet does not do.
    OfTheReal(for<'life> fn(&'life mut RealDeviceManager) -> Outcome<'life>),
}

macro_rules! checks {
    ($kind:ident: $($module:ident::$check:ident),* $(,)?) => {
        [$((stringify!($check), Check::$kind(|kubelet| Box::pin($module::$check(kubelet))))),*]
    };
}

/// All checks by name.
pub fn all() -> Vec<(&'static str, Check)> {
    let of_all = checks![OfAll:
        registration::another_version_is_refused,
        registration::what_is_no_extended_resource_is_refused,
        registration::unusual_names_are_taken,
        registration::options_are_asked_within_the_call,
        registration::failed_options_refuse_the_registration,
        registration::options_within_the_call_are_ignored,
        registration::socket_without_a_listener_is_refused,
        registration::resource_is_unknown_until_its_first_list,
        registration::endpoint_is_taken_below_the_plugin_directory,
        lists::each_message_replaces_the_list,
        lists::whatever_is_not_healthy_is_unhealthy,
        lists::empty_list_is_nothing_of_nothing,
        lists::equal_devices_are_one,
        lists::device_of_two_minds_counts_twice,
        lists::empty_id_is_a_device,
        lists::message_above_four_mebibytes_ends_the_stream,
        lists::ended_stream_takes_the_devices_and_is_not_asked_for_again,
        lists::broken_stream_takes_the_devices_and_is_not_asked_for_again,
        instances::devices_stay_until_the_newer_instance_sends_its_own,
        instances::newest_registration_allocates,
        instances::last_message_wins_whoever_sent_it,
        instances::end_of_the_older_instance,
        instances::end_of_the_newer_instance,
        instances::stream_of_the_forgotten_keeps_feeding,
        instances::failed_registration_beside_a_plugin,
        instances::path_that_is_held,
        instances::refused_path_is_a_phantom_until_the_kubelet_restarts,
        instances::killed_plugin_comes_back_at_its_path,
        admission::call_holds_one_container,
        admission::container_gets_what_the_plugin_said,
        admission::error_of_the_plugin_is_the_pods_message,
        admission::devices_of_a_refused_pod_are_free,
        admission::answer_without_containers_refuses_the_pod_and_keeps_the_devices,
        admission::more_than_there_is_free_is_refused,
        admission::resource_without_healthy_devices_is_refused,
        admission::unhealthy_devices_are_not_given,
        admission::ended_pods_devices_are_free,
        admission::preference_is_asked_for_and_followed,
        admission::preference_is_asked_for_without_a_choice,
        admission::wrong_preferences_do_no_harm,
        admission::failed_preference_refuses_the_pod,
        starting::start_is_announced_before_every_start,
        starting::error_keeps_the_container_from_starting,
        starting::announcement_has_thirty_seconds,
        starting::restarted_container_is_not_allocated_again,
        starting::without_the_plugin_the_cached_answer_is_used,
        starting::without_the_plugin_no_announced_start,
        restart::sockets_go_and_everything_else_stays,
        restart::old_socket_refuses_until_the_kubelet_is_back,
        restart::resource_is_empty_until_its_plugin_is_back,
        restart::containers_keep_their_devices,
        restart::start_is_not_announced_until_the_plugin_is_back,
    ];
    let of_the_real = checks![OfTheReal:
        lists::plugin_gone_for_five_minutes_is_forgotten,
        lists::vanished_device_is_healthy_in_the_pods_status,
        admission::later_containers_use_the_devices_of_init_containers,
        admission::sidecars_keep_the_devices_of_init_containers,
        admission::devices_are_aligned_with_numa_nodes,
        admission::device_that_vanishes_within_the_call,
        starting::after_five_minutes_no_container_starts,
        restart::pods_that_run_are_admitted_without_their_plugin,
        restart::pods_of_a_rebooted_machine_need_their_plugin,
        restart::init_container_is_not_running,
        restart::broken_checkpoint_gives_devices_twice,
    ];
    of_all.into_iter().chain(of_the_real).collect()
}

/// The resource of most checks.
const RESOURCE: &str = "oracle.example.com/device";

/// The minor version that a kubelet behaves as.
fn minor(kubelet: &dyn DeviceManager) -> Result<u32> {
    let version = kubelet.version();
    let (_, rest) = version.split_once("1.").context("no version")?;
    let minor = rest.split('.').next().unwrap_or_default();
    minor
        .parse()
        .with_context(|| format!("no version: {version:?}"))
}

/// A socket's name that was not used before.
fn fresh() -> String {
    static USED: AtomicUsize = AtomicUsize::new(0);
    format!("plugin-{}.sock", USED.fetch_add(1, Ordering::Relaxed))
}

/// A plugin that was taken on for a resource, and whose list has arrived. It has one device more at
/// first, so that its list is told from one of the same size that was there before.
async fn served(
    kubelet: &mut dyn DeviceManager,
    resource: &str,
    mut script: Script,
) -> Result<Plugin> {
    let devices = script.devices.clone();
    let capacity = devices.len();
    let healthy = devices.iter().filter(|device| device.health == "Healthy");
    let allocatable = healthy.count();
    script.devices.push(device("marker", "Unhealthy"));
    let plugin = Plugin::serve(kubelet.plugin_dir(), &fresh(), script)?;
    taken(plugin.register(resource).await?)?;
    counts_become(kubelet, resource, capacity + 1, allocatable).await?;
    plugin.send(&devices);
    counts_become(kubelet, resource, capacity, allocatable).await?;
    Ok(plugin)
}

/// An answer that should not be a refusal.
fn taken<T>(answer: Result<T, String>) -> Result<T> {
    answer.map_err(|told| anyhow!("refused: {told}"))
}

/// A refusal that should hold these words.
fn refused<T>(answer: Result<T, String>, words: &[&str]) -> Result<()> {
    let Err(told) = answer else {
        bail!("taken, and should be refused with {words:?}");
    };
    for word in words {
        if !told.contains(word) {
            bail!("{word:?} is not in {told:?}");
        }
    }
    Ok(())
}

/// Lets the kubelet take on another plugin: what happened before that has arrived.
async fn settled(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let resource = format!("oracle.example.com/{}", fresh());
    served(kubelet, &resource, Script::default())
        .await
        .map(drop)
}

/// So many devices for the only container of a pod.
fn ask(pod: &str, count: usize) -> Ask {
    Ask {
        pod: pod.to_owned(),
        container: "main".to_owned(),
        resource: RESOURCE.to_owned(),
        count,
    }
}

/// Ids as text, in order.
fn ids(held: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut ids: Vec<String> = held.into_iter().collect();
    ids.sort();
    ids
}

/// Fails unless two things are the same.
macro_rules! same {
    ($seen:expr, $wanted:expr) => {{
        let (seen, wanted) = (&$seen, &$wanted);
        anyhow::ensure!(
            seen == wanted,
            "{} is {seen:?} and not {wanted:?}",
            stringify!($seen)
        );
    }};
}
use same;
