//! etcd, API server, controller manager and scheduler: their command lines and their order.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::layout::{
    API_PORT, CONTROLLER_MANAGER_PORT, ETCD_PEER_PORT, ETCD_PORT, HOST_ADDRESS, Layout,
    SCHEDULER_PORT,
};
use super::process::Process;
use super::wait;
use crate::command::run;
use crate::parts::Binaries;
use crate::parts::catalogue::Program;

/// Names of the processes, in the order of starting.
pub const PROCESSES: [&str; 4] = ["etcd", "apiserver", "controller-manager", "scheduler"];

/// Ready after 2.5 s on two idle cores; twenty times that when tests compile beside it.
const API_DEADLINE: Duration = Duration::from_secs(60);

/// The default ServiceAccount appears after 8 s; without it no pod can be made.
const ACCOUNT_DEADLINE: Duration = Duration::from_secs(90);

/// What tests count: who asked for what. Bodies would slow the API server and are not looked at.
const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
";

/// Starts the control plane and returns once the API server answers; its controllers follow.
pub fn start(layout: &Layout, binaries: &Binaries) -> Result<()> {
    for user in ["admin", "controller-manager", "scheduler"] {
        write_kubeconfig(layout, user)?;
    }
    fs::write(layout.audit_policy(), AUDIT_POLICY).context("failed to write the audit policy")?;
    fs::create_dir_all(layout.etcd()).context("failed to create etcd's directory")?;
    let mut etcd = Command::new(binaries.path(Program::Etcd)?);
    etcd.args(etcd_arguments(layout));
    Process::start(layout, "etcd", &etcd)?;
    start_api_server(layout, binaries)?;
    // Started earlier, the controller manager exits: it may not yet read its own configuration.
    let mut manager = Command::new(binaries.path(Program::ControllerManager)?);
    manager.args(controller_manager_arguments(layout));
    Process::start(layout, "controller-manager", &manager)?;
    let mut scheduler = Command::new(binaries.path(Program::Scheduler)?);
    scheduler.args(scheduler_arguments(layout));
    Process::start(layout, "scheduler", &scheduler)?;
    Ok(())
}

/// Starts the API server, unless it runs, and waits until it says that it is ready.
pub fn start_api_server(layout: &Layout, binaries: &Binaries) -> Result<()> {
    let running = Process::find(layout, "apiserver")?.filter(Process::is_running);
    let process = match running {
        Some(process) => process,
        None => {
            let mut server = Command::new(binaries.path(Program::ApiServer)?);
            server.args(api_server_arguments(layout));
            Process::start(layout, "apiserver", &server)?
        }
    };
    let etcd = Process::expect(layout, "etcd")?;
    wait::until(
        "readiness of the API server",
        API_DEADLINE,
        &[&process, &etcd],
        || api_server_is_ready(layout, binaries).map(|ready| ready.then_some(())),
    )
}

/// Whether the API server says that it is ready.
pub fn api_server_is_ready(layout: &Layout, binaries: &Binaries) -> Result<bool> {
    let answer = run(kubectl(layout, binaries)?.args(["get", "--raw", "/readyz"]))?;
    Ok(answer.trim() == "ok")
}

/// Waits until pods can be made.
pub fn wait_for_default_account(layout: &Layout, binaries: &Binaries) -> Result<()> {
    let processes = PROCESSES
        .iter()
        .map(|name| Process::expect(layout, name))
        .collect::<Result<Vec<_>>>()?;
    let watched: Vec<_> = processes.iter().collect();
    wait::until(
        "the default ServiceAccount",
        ACCOUNT_DEADLINE,
        &watched,
        || {
            run(kubectl(layout, binaries)?.args([
                "get",
                "serviceaccount/default",
                "--namespace=default",
                "--output=name",
            ]))
            .map(Some)
        },
    )?;
    Ok(())
}

/// kubectl as the cluster's admin.
pub fn kubectl(layout: &Layout, binaries: &Binaries) -> Result<Command> {
    let mut command = Command::new(binaries.path(Program::Kubectl)?);
    command.env("KUBECONFIG", layout.kubeconfig("admin"));
    Ok(command)
}

/// Writes the kubeconfig of `user`, whose certificate has the same name.
pub fn write_kubeconfig(layout: &Layout, user: &str) -> Result<()> {
    let certificates = layout.certificates();
    let text = format!(
        "\
apiVersion: v1
kind: Config
clusters:
  - name: local
    cluster: {{server: 'https://{HOST_ADDRESS}:{API_PORT}', certificate-authority: {authority}}}
users:
  - name: {user}
    user: {{client-certificate: {certificate}, client-key: {key}}}
contexts:
  - name: local
    context: {{cluster: local, user: {user}}}
current-context: local
",
        authority = layout.authority().display(),
        certificate = certificates.join(format!("{user}.crt")).display(),
        key = certificates.join(format!("{user}.key")).display(),
    );
    let path = layout.kubeconfig(user);
    fs::write(&path, text).with_context(|| format!("failed to write {:?}", path.display()))
}

fn etcd_arguments(layout: &Layout) -> Vec<String> {
    vec![
        format!("--data-dir={}", layout.etcd().display()),
        // The cluster does not outlive its machine, and a slow disk must not decide how long a test
        // takes.
        "--unsafe-no-fsync".to_owned(),
        format!("--listen-client-urls=http://127.0.0.1:{ETCD_PORT}"),
        format!("--advertise-client-urls=http://127.0.0.1:{ETCD_PORT}"),
        format!("--listen-peer-urls=http://127.0.0.1:{ETCD_PEER_PORT}"),
        format!("--initial-advertise-peer-urls=http://127.0.0.1:{ETCD_PEER_PORT}"),
        format!("--initial-cluster=default=http://127.0.0.1:{ETCD_PEER_PORT}"),
    ]
}

fn api_server_arguments(layout: &Layout) -> Vec<String> {
    let file = |name: &str| layout.certificates().join(name).display().to_string();
    let authority = layout.authority().display().to_string();
    vec![
        format!("--etcd-servers=http://127.0.0.1:{ETCD_PORT}"),
        format!("--bind-address={HOST_ADDRESS}"),
        format!("--secure-port={API_PORT}"),
        format!("--advertise-address={HOST_ADDRESS}"),
        format!("--tls-cert-file={}", file("apiserver.crt")),
        format!("--tls-private-key-file={}", file("apiserver.key")),
        format!("--client-ca-file={authority}"),
        format!(
            "--kubelet-client-certificate={}",
            file("apiserver-kubelet-client.crt")
        ),
        format!(
            "--kubelet-client-key={}",
            file("apiserver-kubelet-client.key")
        ),
        format!("--kubelet-certificate-authority={authority}"),
        "--kubelet-preferred-address-types=InternalIP,Hostname".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", file("tokens.pub")),
        format!("--service-account-signing-key-file={}", file("tokens.key")),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--endpoint-reconciler-type=none".to_owned(),
        "--profiling=false".to_owned(),
        format!("--audit-policy-file={}", layout.audit_policy().display()),
        format!("--audit-log-path={}", layout.audit_log().display()),
        "--audit-log-format=json".to_owned(),
        // Megabytes. A test that counts lines must not meet a rotated file; a day of tests writes
        // less.
        "--audit-log-maxsize=2000".to_owned(),
        "--audit-log-maxbackup=1".to_owned(),
    ]
}

fn controller_manager_arguments(layout: &Layout) -> Vec<String> {
    let certificates = layout.certificates();
    let mut arguments = vec![
        "--use-service-account-credentials=true".to_owned(),
        format!(
            "--service-account-private-key-file={}",
            certificates.join("tokens.key").display()
        ),
        format!("--root-ca-file={}", layout.authority().display()),
        "--allocate-node-cidrs=false".to_owned(),
        // By default it makes a directory below /usr/libexec.
        format!(
            "--flex-volume-plugin-dir={}",
            layout.root().join("volume-plugins").display()
        ),
    ];
    arguments.extend(controller_arguments(
        layout,
        "controller-manager",
        CONTROLLER_MANAGER_PORT,
    ));
    arguments
}

fn scheduler_arguments(layout: &Layout) -> Vec<String> {
    controller_arguments(layout, "scheduler", SCHEDULER_PORT)
}

fn controller_arguments(layout: &Layout, user: &str, port: u16) -> Vec<String> {
    let kubeconfig = layout.kubeconfig(user);
    let mut arguments: Vec<_> = [
        "kubeconfig",
        "authentication-kubeconfig",
        "authorization-kubeconfig",
    ]
    .map(|flag| format!("--{flag}={}", kubeconfig.display()))
    .into();
    arguments.push("--leader-elect=false".to_owned());
    arguments.push("--bind-address=127.0.0.1".to_owned());
    arguments.push(format!("--secure-port={port}"));
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_server_listens_on_the_bridge_only_and_logs_requests() {
        let arguments = api_server_arguments(&Layout::default());
        for expected in [
            "--bind-address=10.200.0.1",
            "--audit-log-format=json",
            "--audit-log-path=/var/lib/dpo-cluster/audit.log",
        ] {
            assert!(
                arguments.iter().any(|argument| argument == expected),
                "{expected}"
            );
        }
    }

    #[test]
    fn controllers_use_their_own_kubeconfig_and_no_election() {
        let arguments = scheduler_arguments(&Layout::default());
        assert!(arguments.contains(&"--leader-elect=false".to_owned()));
        assert!(
            arguments
                .contains(&"--kubeconfig=/var/lib/dpo-cluster/scheduler.kubeconfig".to_owned())
        );
    }
}
