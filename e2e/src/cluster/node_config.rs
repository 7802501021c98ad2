//! Texts that a node's programs read: kubelet, containerd, CNI, and the script that makes its
//! namespaces a machine.

use std::path::Path;

use super::layout::{
    API_PORT, HEALTHZ_PORT, HOST_ADDRESS, Layout, POD_NETWORK, Place, SERVICE_ADDRESS, TEST_DEVICES,
};

/// Where containerd listens, as seen on the node. It is the usual place: `/run` is the node's own.
pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// The file that marks a mount namespace as a node of ours; it is in no other namespace.
pub const MARK: &str = "/run/dpo-node";

/// Name of the image that holds a pod's namespaces open.
pub const PAUSE_IMAGE: &str = "localhost/pause:1";

/// Devices that every node has in [`TEST_DEVICES`]: name and numbers of `/dev/fuse`, `/dev/null`,
/// `/dev/zero`, `/dev/net/tun`.
const COMMON_DEVICES: [(&str, u32, u32); 4] = [
    ("fuse", 10, 229),
    ("null", 1, 3),
    ("zero", 1, 5),
    ("tun", 10, 200),
];

/// The kubelet's configuration.
pub fn kubelet(layout: &Layout, node: Place) -> String {
    let certificates = layout.certificates();
    let name = node.name();
    format!(
        "\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /{cgroup}
containerRuntimeEndpoint: unix://{CONTAINERD_SOCKET}
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: {authority}}}
authorization: {{mode: Webhook}}
tlsCertFile: {certificate}
tlsPrivateKeyFile: {key}
# Reached from the host; the node's address is on a bridge of this machine only.
healthzBindAddress: 0.0.0.0
healthzPort: {HEALTHZ_PORT}
failSwapOn: false
makeIPTablesUtilChains: false
oomScoreAdj: 0
resolvConf: \"\"
readOnlyPort: 0
enforceNodeAllocatable: []
evictionHard: {{memory.available: 100Mi, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%}}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
# Changes of devices are visible in 1 s instead of 10.
nodeStatusUpdateFrequency: 1s
serializeImagePulls: false
maxPods: 60
volumePluginDir: /var/lib/kubelet/volume-plugins
",
        cgroup = node.cgroup(),
        authority = layout.authority().display(),
        certificate = certificates.join(format!("{name}.crt")).display(),
        key = certificates.join(format!("{name}.key")).display(),
    )
}

/// The kubelet's command line.
pub fn kubelet_arguments(layout: &Layout, node: Place) -> Vec<String> {
    vec![
        format!(
            "--config={}",
            layout.node(node).join("kubelet.yaml").display()
        ),
        format!("--kubeconfig={}", layout.kubeconfig(&node.name()).display()),
        format!("--hostname-override={}", node.name()),
        format!("--node-ip={}", node.address()),
        "--root-dir=/var/lib/kubelet".to_owned(),
        "--cert-dir=/var/lib/kubelet/pki".to_owned(),
    ]
}

/// containerd's configuration.
pub fn containerd(layout: &Layout, node: Place) -> String {
    let own = layout.node(node);
    let own = own.display();
    format!(
        "\
version = 3
root = \"{own}/containerd\"
state = \"/run/containerd\"
disabled_plugins = [\"io.containerd.nri.v1.nri\"]
[grpc]
  address = \"{CONTAINERD_SOCKET}\"
[plugins.\"io.containerd.internal.v1.opt\"]
  path = \"{own}/containerd/opt\"
[plugins.\"io.containerd.cri.v1.images\".pinned_images]
  sandbox = \"{PAUSE_IMAGE}\"
[plugins.\"io.containerd.cri.v1.runtime\"]
  disable_apparmor = true
  # Without CAP_SYS_RESOURCE, as in some containers, every sandbox would fail.
  restrict_oom_score_adj = true
  enable_cdi = true
  cdi_spec_dirs = [\"/etc/cdi\", \"/var/run/cdi\"]
  [plugins.\"io.containerd.cri.v1.runtime\".cni]
    bin_dirs = [\"/usr/lib/cni\"]
    conf_dir = \"{own}/cni\"
  [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc]
    runtime_type = \"io.containerd.runc.v2\"
    [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc.options]
      SystemdCgroup = false
"
    )
}

/// The pods' network.
pub fn network(node: Place) -> String {
    let network = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "pods0",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": node.pod_network()}]],
                    "routes": [{"dst": "0.0.0.0/0"}]
                }
            },
            {"type": "portmap", "capabilities": {"portMappings": true}}
        ]
    });
    format!("{network:#}\n")
}

/// What turns fresh mount, network and UTS namespaces into the node. Run once in them, before
/// anything else is there.
///
/// `/run`, `/var/lib`, `/var/log`, `/dev` and what is written to `/etc` are the node's own: no
/// directory has to be made on the host, nothing leaks to it, and two nodes never meet in a lock
/// file, a socket or a device.
pub fn setup_script(
    layout: &Layout,
    node: Place,
    all: &[Place],
    programs: &[(&Path, &str)],
) -> String {
    let own = layout.node(node).display().to_string();
    let state = layout.root().display().to_string();
    let name = node.name();
    let mut script = format!(
        "\
set -eux
cd /
umask 022
mkdir -p {own}/run {own}/var-lib{state_below} {own}/log/pods {own}/etc {own}/etc-work {own}/dev {own}/bin {own}/cni
mkdir -p {own}/run/cdi {own}/run/udev {own}/run/netns {own}/run/device-plugin-agent {own}/run/lock
echo {own} > {own}{MARK}
# First of all, and not with mount(8): it keeps files of its own there.
busybox mount -o bind {own}/run /run
",
        state_below = state.trim_start_matches("/var/lib"),
    );
    for (source, target) in programs {
        script.push_str(&format!(
            "touch {own}/bin/{target}\nmount --bind '{}' {own}/bin/{target}\n",
            source.display()
        ));
    }
    script.push_str(&devices(&own, &name));
    script.push_str(&format!(
        "\
mkdir -p {own}/var-lib/kubelet {own}/var-lib/cni {own}/var-lib/device-plugin-agent
mount --bind {own}/boot_id /proc/sys/kernel/random/boot_id
cp {own}/machine-id {own}/etc/machine-id
mount -t overlay -o lowerdir=/etc,upperdir={own}/etc,workdir={own}/etc-work overlay /etc
mkdir -p /etc/cdi
mount --bind {own}/log /var/log
# The state keeps its path, with everything bound into it so far.
mount --rbind {state} {own}/var-lib{state_below}
mount --rbind {own}/var-lib /var/lib
# Or mounts that pods propagate fail.
mount --make-rshared /
",
        state_below = state.trim_start_matches("/var/lib"),
    ));
    script.push_str(&addresses(node, all));
    script
}

/// A `/dev` of the node's own with what the host's holds, and the devices of the tests.
fn devices(own: &str, name: &str) -> String {
    let mut script = format!(
        "\
mount -t tmpfs -o mode=755,nosuid dev {own}/dev
cp -ax /dev/. {own}/dev/
mkdir -p {own}/dev/pts {own}/dev/shm {own}/dev/net {own}/dev{below}
mount --rbind /dev/pts {own}/dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev shm {own}/dev/shm
[ -e {own}/dev/fuse ] || mknod -m 666 {own}/dev/fuse c 10 229
[ -e {own}/dev/net/tun ] || mknod -m 666 {own}/dev/net/tun c 10 200
",
        below = TEST_DEVICES.trim_start_matches("/dev"),
    );
    let own_device = format!("only-{name}");
    for (device, major, minor) in COMMON_DEVICES
        .into_iter()
        .chain([(own_device.as_str(), 1, 3)])
    {
        script.push_str(&format!(
            "mknod -m 666 {own}{TEST_DEVICES}/{device} c {major} {minor}\n"
        ));
    }
    script.push_str(&format!("mount --rbind {own}/dev /dev\n"));
    script
}

/// No kube-proxy and no DNS: the API server's Service address is all that pods need.
fn addresses(node: Place, all: &[Place]) -> String {
    let mut script = format!(
        "\
hostname {name}
ip link set lo up
ip address add {address}/24 dev eth0
ip link set eth0 up
ip route add default via {HOST_ADDRESS}
echo 1 > /proc/sys/net/ipv4/ip_forward
iptables -t nat -A OUTPUT -d {SERVICE_ADDRESS} -p tcp --dport 443 -j DNAT --to {HOST_ADDRESS}:{API_PORT}
iptables -t nat -A PREROUTING -d {SERVICE_ADDRESS} -p tcp --dport 443 -j DNAT --to {HOST_ADDRESS}:{API_PORT}
iptables -t nat -A POSTROUTING -s {pods} ! -d {POD_NETWORK} -j MASQUERADE
",
        name = node.name(),
        address = node.address(),
        pods = node.pod_network(),
    );
    // Straight over the bridge: the host forwards nothing, and its own settings stay as they are.
    for other in all.iter().filter(|other| **other != node) {
        script.push_str(&format!(
            "ip route add {} via {}\n",
            other.pod_network(),
            other.address()
        ));
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second() -> Option<Place> {
        Place::first(2).nth(1)
    }

    #[test]
    fn the_kubelet_reads_what_belongs_to_its_node() -> anyhow::Result<()> {
        let text = second().map(|node| kubelet(&Layout::default(), node));
        let value: serde_yaml::Value = serde_yaml::from_str(&text.unwrap_or_default())?;
        let string = |key: &str| value.get(key).and_then(|value| value.as_str());
        assert_eq!(string("cgroupRoot"), Some("/dpo-n2"));
        assert_eq!(
            string("tlsCertFile"),
            Some("/var/lib/dpo-cluster/certificates/n2.crt")
        );
        assert_eq!(
            string("containerRuntimeEndpoint"),
            Some("unix:///run/containerd/containerd.sock")
        );
        assert_eq!(string("resolvConf"), Some(""));
        assert_eq!(
            value.get("failCgroupV1").and_then(|value| value.as_bool()),
            Some(false)
        );
        Ok(())
    }

    #[test]
    fn containerd_keeps_layers_and_sockets_on_its_node() {
        let text = second().map(|node| containerd(&Layout::default(), node));
        let text = text.unwrap_or_default();
        for line in [
            "root = \"/var/lib/dpo-cluster/n2/containerd\"",
            "  address = \"/run/containerd/containerd.sock\"",
            "    conf_dir = \"/var/lib/dpo-cluster/n2/cni\"",
            "  sandbox = \"localhost/pause:1\"",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
    }

    #[test]
    fn pods_get_addresses_of_their_node() -> anyhow::Result<()> {
        let text = second().map(network).unwrap_or_default();
        let value: serde_json::Value = serde_json::from_str(&text)?;
        assert_eq!(
            value.pointer("/plugins/0/ipam/ranges/0/0/subnet"),
            Some(&serde_json::json!("10.201.2.0/24"))
        );
        Ok(())
    }

    #[test]
    fn a_node_becomes_private_before_it_may_share() {
        let nodes: Vec<_> = Place::first(2).collect();
        let programs = [(Path::new("/cache/kubelet"), "kubelet")];
        let scripts: Vec<_> = nodes
            .iter()
            .map(|node| setup_script(&Layout::default(), *node, &nodes, &programs))
            .collect();
        for (script, own) in scripts.iter().zip(["n1", "n2"]) {
            let own = format!("/var/lib/dpo-cluster/{own}");
            let place = |line: &str| {
                let found = script.lines().position(|other| other == line);
                assert!(found.is_some(), "{line}\n{script}");
                found
            };
            let shared = place("mount --make-rshared /");
            let mut before = None;
            for line in [
                format!("busybox mount -o bind {own}/run /run"),
                format!("mount --bind {own}/log /var/log"),
            ] {
                let at = place(&line);
                assert!(before < at && at < shared, "{script}");
                before = at;
            }
            assert!(place(&format!("mount --rbind {own}/var-lib /var/lib")) < shared);
            assert!(place(&format!("mount --rbind {own}/dev /dev")) < shared);
        }
        let routes: Vec<_> = scripts
            .iter()
            .flat_map(|script| script.lines())
            .filter(|line| line.starts_with("ip route add 10.201."))
            .collect();
        assert_eq!(
            routes,
            [
                "ip route add 10.201.2.0/24 via 10.200.0.12",
                "ip route add 10.201.1.0/24 via 10.200.0.11",
            ]
        );
    }
}
