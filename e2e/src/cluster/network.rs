//! The bridge on the host and each node's cable to it.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context, Result, bail};

use super::layout::{
    BRIDGE, CONTROLLER_MANAGER_PORT, ETCD_PEER_PORT, ETCD_PORT, HOST_ADDRESS, Place, SCHEDULER_PORT,
};
use crate::command::{output, run, system};

/// Makes the bridge with the host's address.
pub fn create_bridge() -> Result<()> {
    ip(&["link", "add", BRIDGE, "type", "bridge"])?;
    ip(&[
        "address",
        "add",
        &format!("{HOST_ADDRESS}/24"),
        "dev",
        BRIDGE,
    ])?;
    ip(&["link", "set", BRIDGE, "up"])
}

/// Lays a cable from the bridge into the network namespace of process `pid`, where it is `eth0`.
pub fn connect(node: Place, pid: i32) -> Result<()> {
    let link = node.link();
    let pid = pid.to_string();
    ip(&[
        "link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &pid,
    ])?;
    ip(&["link", "set", &link, "master", BRIDGE, "up"])
}

/// Removes the cable of `node`, if it is there.
pub fn disconnect(node: Place) -> Result<()> {
    remove(&node.link())
}

/// Removes the bridge, if it is there.
pub fn remove_bridge() -> Result<()> {
    remove(BRIDGE)
}

/// Refuses a machine where our addresses already lead elsewhere.
pub fn check_addresses_are_free() -> Result<()> {
    let routes = run(system("ip").args(["-4", "route", "show"]))?;
    if let Some(route) = conflicting_route(&routes) {
        bail!("the cluster's network 10.200.0.0/24 is in use on this machine: {route}");
    }
    Ok(())
}

/// Refuses a machine where another program listens on a port that the control plane needs.
pub fn check_ports_are_free() -> Result<()> {
    for port in [
        ETCD_PORT,
        ETCD_PEER_PORT,
        CONTROLLER_MANAGER_PORT,
        SCHEDULER_PORT,
    ] {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| {
            format!("port {port} on 127.0.0.1 is needed for the cluster's control plane")
        })?;
    }
    Ok(())
}

/// A route to our very network, but not over our bridge.
fn conflicting_route(routes: &str) -> Option<&str> {
    routes.lines().map(str::trim).find(|route| {
        let target = route.split_whitespace().next().unwrap_or_default();
        (target.starts_with("10.200.0.")
            || target.starts_with("10.200.0.0/")
            || target == "10.200.0.0/16")
            && !route.contains(&format!("dev {BRIDGE}"))
    })
}

fn remove(link: &str) -> Result<()> {
    if !exists(link)? {
        return Ok(());
    }
    let said = output(system("ip").args(["link", "delete", link]))?;
    // It goes by itself with the namespace at its other end, perhaps just now.
    if !said.success && exists(link)? {
        bail!("failed to delete link {link:?}: {}", said.stderr.trim());
    }
    Ok(())
}

fn exists(link: &str) -> Result<bool> {
    Ok(output(system("ip").args(["link", "show", "dev", link]))?.success)
}

fn ip(arguments: &[&str]) -> Result<()> {
    run(system("ip").args(arguments)).context("failed to set up the nodes' network")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_foreign_routes_to_our_network_conflict() {
        let check = |route, expected| assert_eq!(conflicting_route(route), expected, "{route}");
        check("10.200.0.0/24 dev dpo0 proto kernel", None);
        check("default via 10.1.0.1 dev eth0\n10.2.0.0/24 dev eth0", None);
        check("10.200.0.0/24 dev tun0", Some("10.200.0.0/24 dev tun0"));
        check("10.200.0.0/16 dev tun0", Some("10.200.0.0/16 dev tun0"));
    }
}
