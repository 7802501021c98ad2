//! The stories, in the order in which they run.

mod absence;
mod allowlist;
mod change;
mod chaos;
mod devices;
mod faults;
mod fences;
mod handover;
mod hooks;
mod install;
mod kubelets;
mod refusals;
mod removal;
mod rivals;

use anyhow::Result;

use crate::scene::Scene;

pub use chaos::OTHER_IMAGE;
pub use removal::tear_down;

/// A story: what a user does and sees.
pub type Story = fn(&Scene) -> Result<()>;

/// All stories, in order.
pub const ALL: &[(&str, Story)] = &[
    (
        "operator_without_its_crds_says_so_and_recovers",
        install::operator_without_its_crds_says_so_and_recovers,
    ),
    (
        "applied_config_puts_a_device_into_a_pod",
        install::applied_config_puts_a_device_into_a_pod,
    ),
    ("columns_tell_the_story", install::columns_tell_the_story),
    (
        "every_field_is_explained",
        install::every_field_is_explained,
    ),
    (
        "every_example_is_accepted",
        install::every_example_is_accepted,
    ),
    (
        "converged_cluster_is_not_written_to",
        install::converged_cluster_is_not_written_to,
    ),
    (
        "restarted_kubelet_has_its_devices_back",
        faults::restarted_kubelet_has_its_devices_back,
    ),
    (
        "killed_agent_has_its_devices_back",
        faults::killed_agent_has_its_devices_back,
    ),
    (
        "kubelet_and_agent_that_end_together_have_devices_back",
        kubelets::kubelet_and_agent_that_end_together_have_devices_back,
    ),
    (
        "restarted_operator_touches_nothing",
        faults::restarted_operator_touches_nothing,
    ),
    (
        "lost_objects_are_made_again_as_they_were",
        faults::lost_objects_are_made_again_as_they_were,
    ),
    (
        "pod_deleted_while_its_kubelet_is_down_leaves_its_device",
        kubelets::pod_deleted_while_its_kubelet_is_down_leaves_its_device,
    ),
    (
        "sidecar_has_the_device_of_an_init_container",
        kubelets::sidecar_has_the_device_of_an_init_container,
    ),
    (
        "agents_that_cannot_start_again_are_told_at_once",
        absence::agents_that_cannot_start_again_are_told_at_once,
    ),
    (
        "illness_of_a_held_device_is_in_its_pods_status",
        kubelets::illness_of_a_held_device_is_in_its_pods_status,
    ),
    (
        "device_that_vanishes_and_returns_is_told",
        devices::device_that_vanishes_and_returns_is_told,
    ),
    (
        "device_that_appears_is_advertised",
        devices::device_that_appears_is_advertised,
    ),
    (
        "simulated_devices_reach_a_container",
        devices::simulated_devices_reach_a_container,
    ),
    (
        "dangerous_devices_are_refused",
        devices::dangerous_devices_are_refused,
    ),
    (
        "real_devices_are_opened_in_containers",
        devices::real_devices_are_opened_in_containers,
    ),
    (
        "hooks_prepare_reset_and_release_devices",
        hooks::hooks_prepare_reset_and_release_devices,
    ),
    (
        "malformed_configs_are_refused_by_field_and_value",
        refusals::malformed_configs_are_refused_by_field_and_value,
    ),
    (
        "configs_that_can_do_nothing_say_so",
        refusals::configs_that_can_do_nothing_say_so,
    ),
    (
        "foreign_plugin_keeps_its_resource",
        refusals::foreign_plugin_keeps_its_resource,
    ),
    (
        "second_config_of_a_resource_waits_and_says_so",
        refusals::second_config_of_a_resource_waits_and_says_so,
    ),
    (
        "container_waits_for_its_agent_and_starts_by_itself",
        absence::container_waits_for_its_agent_and_starts_by_itself,
    ),
    (
        "key_of_a_resource_that_is_gone_stays_at_zero",
        absence::key_of_a_resource_that_is_gone_stays_at_zero,
    ),
    (
        "reboot_ends_pods_that_held_devices_and_brings_the_resource_back",
        kubelets::reboot_ends_pods_that_held_devices_and_brings_the_resource_back,
    ),
    (
        "removed_resource_waits_and_touches_no_node",
        change::removed_resource_waits_and_touches_no_node,
    ),
    (
        "nodes_come_and_go_with_their_labels",
        change::nodes_come_and_go_with_their_labels,
    ),
    ("pools_select_nodes", change::pools_select_nodes),
    (
        "changed_config_reaches_every_node_under_running_pods",
        handover::changed_config_reaches_every_node_under_running_pods,
    ),
    (
        "revision_with_fewer_devices_never_switches",
        handover::revision_with_fewer_devices_never_switches,
    ),
    (
        "revision_that_the_kubelet_does_not_list_is_rolled_back",
        handover::revision_that_the_kubelet_does_not_list_is_rolled_back,
    ),
    ("hand_overs_are_measured", handover::hand_overs_are_measured),
    (
        "end_of_an_older_instance_takes_nothing_away",
        rivals::end_of_an_older_instance_takes_nothing_away,
    ),
    (
        "plugin_that_takes_a_resource_over_is_healed_or_named",
        rivals::plugin_that_takes_a_resource_over_is_healed_or_named,
    ),
    (
        "phantom_is_served_over_and_named",
        rivals::phantom_is_served_over_and_named,
    ),
    (
        "config_changed_every_second_loses_nothing",
        chaos::config_changed_every_second_loses_nothing,
    ),
    (
        "garbage_and_deleted_objects_stop_no_change",
        chaos::garbage_and_deleted_objects_stop_no_change,
    ),
    (
        "killed_processes_lose_no_device",
        chaos::killed_processes_lose_no_device,
    ),
    (
        "proven_standby_takes_over_when_nobody_is_there_to_bring_it_back",
        chaos::proven_standby_takes_over_when_nobody_is_there_to_bring_it_back,
    ),
    (
        "hand_over_stories_leave_nothing",
        chaos::hand_over_stories_leave_nothing,
    ),
    (
        "agents_token_is_good_for_its_own_status_only",
        fences::agents_token_is_good_for_its_own_status_only,
    ),
    (
        "hand_edited_label_is_refused_and_without_the_policy_repaired",
        fences::hand_edited_label_is_refused_and_without_the_policy_repaired,
    ),
    (
        "configs_ask_only_for_what_the_allowlist_has",
        allowlist::configs_ask_only_for_what_the_allowlist_has,
    ),
    (
        "uninstall_is_refused_while_configs_exist",
        removal::uninstall_is_refused_while_configs_exist,
    ),
    (
        "deleted_config_leaves_nothing",
        removal::deleted_config_leaves_nothing,
    ),
    (
        "uninstalled_chart_leaves_only_the_crds",
        removal::uninstalled_chart_leaves_only_the_crds,
    ),
];
