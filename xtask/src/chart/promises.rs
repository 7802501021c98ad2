//! What holds for every rendering: rights are listed one by one, no secret can be read, pods are
//! restricted, selectors meet what they select, a policy denies what it does not allow, and a hook
//! leaves nothing behind.

#![expect(
    clippy::indexing_slicing,
    reason = "a member that a JSON or YAML value lacks is null"
)]

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

/// Whether the checker of schemas knows the kind of an object. Our definitions are checked by the
/// API server itself in the cluster tests.
pub fn has_schema(object: &Value) -> bool {
    !matches!(
        object["kind"].as_str(),
        Some("CustomResourceDefinition" | "PodMonitor")
    )
}

/// Checks all objects of one rendering.
pub fn check(objects: &[Value]) -> anyhow::Result<()> {
    for object in objects {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        check_one(object, objects)
            .with_context(|| format!("{} {name:?}", object["kind"].as_str().unwrap_or_default()))?;
    }
    Ok(())
}

fn check_one(object: &Value, all: &[Value]) -> anyhow::Result<()> {
    ensure!(
        object["metadata"]["labels"]["app.kubernetes.io/instance"].is_string(),
        "it has no label of its release"
    );
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    ensure!(
        name.len() <= 63 && !name.ends_with('-'),
        "its name is no DNS label"
    );
    match object["kind"].as_str().unwrap_or_default() {
        "ClusterRole" | "Role" => rights_are_few(object)?,
        "ClusterRoleBinding" | "RoleBinding" => binding_binds(object, all)?,
        "Deployment" => {
            pod_is_restricted(&object["spec"]["template"])?;
            ensure!(
                object["spec"]["strategy"]["type"] == "Recreate" || object["spec"]["replicas"] != 1,
                "the only operator would run twice for a while"
            );
        }
        "PodDisruptionBudget" => {
            selects_the_operator(&object["spec"]["selector"]["matchLabels"], all)?;
        }
        "ValidatingAdmissionPolicy" => policy_is_narrow(object, all)?,
        "ValidatingAdmissionPolicyBinding" => {
            ensure!(
                object["spec"]["validationActions"] == json!(["Deny"])
                    && is_there(
                        all,
                        "ValidatingAdmissionPolicy",
                        &object["spec"]["policyName"]
                    ),
                "it denies nothing: {}",
                object["spec"]
            );
            let parameters = &object["spec"]["paramRef"];
            ensure!(
                parameters.is_null() || parameters["parameterNotFoundAction"] == "Deny",
                "it lets everything pass without its parameters: {parameters}"
            );
        }
        "Job" => pod_is_restricted(&object["spec"]["template"])?,
        "Service" => selects_the_operator(&object["spec"]["selector"], all)?,
        "PodMonitor" | "NetworkPolicy" if !name.ends_with("-agent") => {
            let selector = match object["kind"].as_str() {
                Some("PodMonitor") => &object["spec"]["selector"],
                _ => &object["spec"]["podSelector"],
            };
            selects_the_operator(&selector["matchLabels"], all)?;
        }
        "PodMonitor"
        | "NetworkPolicy"
        | "ServiceAccount"
        | "CustomResourceDefinition"
        | "ConfigMap" => {}
        other => bail!("the render tests know nothing of kind {other:?}"),
    }
    hook_leaves_nothing(object)
}

fn is_there(all: &[Value], kind: &str, name: &Value) -> bool {
    all.iter()
        .any(|object| object["kind"] == kind && object["metadata"]["name"] == *name)
}

/// A policy refuses when it cannot be evaluated, so it must match little; and one without a binding
/// does nothing.
fn policy_is_narrow(policy: &Value, all: &[Value]) -> anyhow::Result<()> {
    let (name, spec) = (&policy["metadata"]["name"], &policy["spec"]);
    ensure!(
        spec["failurePolicy"] == "Fail",
        "it lets pass what it cannot judge"
    );
    ensure!(
        is_there(all, "ValidatingAdmissionPolicyBinding", name),
        "nothing binds it"
    );
    let rules = spec["matchConstraints"]["resourceRules"].as_array();
    for rule in rules.context("it matches everything")? {
        let matched = [words(&rule["apiGroups"]), words(&rule["resources"])].concat();
        ensure!(
            !matched.iter().any(|word| word.contains('*')),
            "it matches too much: {rule}"
        );
    }
    // About our own kinds everybody is judged, nobody by name.
    if !spec["paramKind"].is_null() {
        let rules = &spec["matchConstraints"]["resourceRules"];
        ensure!(
            rules[0]["apiGroups"] == json!(["deviceplugins.dev"]) && rules[1].is_null(),
            "a policy with parameters matches more than ours: {rules}"
        );
        return Ok(());
    }
    let conditions = spec["matchConditions"].as_array().into_iter().flatten();
    let accounts = conditions.filter_map(|condition| {
        let expression = condition["expression"].as_str()?;
        let (_, account) = expression.split_once("system:serviceaccount:device-plugin-system:")?;
        account.strip_suffix('"')
    });
    let accounts: Vec<_> = accounts.collect();
    let [account] = accounts.as_slice() else {
        bail!("it names not one account of ours, but {accounts:?}");
    };
    ensure!(
        is_there(all, "ServiceAccount", &json!(account)),
        "there is no account {account:?}"
    );
    Ok(())
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

fn rights_are_few(role: &Value) -> anyhow::Result<()> {
    let name = role["metadata"]["name"].as_str().unwrap_or_default();
    let rules = role["rules"].as_array().context("it has no rules")?;
    for rule in rules {
        let (groups, resources, verbs) = (
            words(&rule["apiGroups"]),
            words(&rule["resources"]),
            words(&rule["verbs"]),
        );
        for word in groups.iter().chain(&resources).chain(&verbs) {
            ensure!(!word.contains('*'), "a wildcard in {rule}");
        }
        ensure!(
            !resources.is_empty() && !verbs.is_empty(),
            "an empty list in {rule}"
        );
        for never in [
            "secrets",
            "pods/exec",
            "serviceaccounts/token",
            "clusterroles",
            "roles",
        ] {
            ensure!(!resources.contains(&never), "{never:?} in {rule}");
        }
        for never in ["escalate", "bind", "impersonate"] {
            ensure!(!verbs.contains(&never), "{never:?} in {rule}");
        }
        // In the whole cluster: our own kinds, and nodes, which have no namespace.
        let own = groups == ["deviceplugins.dev"];
        let nodes = groups == [""] && resources == ["nodes"] && verbs == ["list", "watch", "patch"];
        ensure!(
            role["kind"] == "Role" || own || nodes,
            "{rule} is granted for the whole cluster"
        );
    }
    if name.ends_with("-agent") {
        let expected = json!([
            {"apiGroups": ["deviceplugins.dev"], "resources": ["devicepluginnodes"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": ["deviceplugins.dev"], "resources": ["devicepluginnodes/status"], "verbs": ["patch"]},
        ]);
        ensure!(
            role["rules"] == expected,
            "an agent may do more than it should: {rules:?}"
        );
    }
    Ok(())
}

fn binding_binds(binding: &Value, all: &[Value]) -> anyhow::Result<()> {
    let there = |kind: &Value, name: &Value| is_there(all, kind.as_str().unwrap_or_default(), name);
    let role = &binding["roleRef"];
    ensure!(
        there(&role["kind"], &role["name"]),
        "it binds {role}, which is not there"
    );
    for subject in binding["subjects"].as_array().into_iter().flatten() {
        ensure!(
            there(&subject["kind"], &subject["name"])
                && subject["namespace"] == "device-plugin-system",
            "it is for {subject}, which is not there"
        );
    }
    Ok(())
}

/// The restricted Pod Security Standard, and a root file system that cannot be written.
fn pod_is_restricted(template: &Value) -> anyhow::Result<()> {
    let spec = &template["spec"];
    let security = &spec["securityContext"];
    ensure!(
        security["runAsNonRoot"] == true && security["seccompProfile"]["type"] == "RuntimeDefault",
        "the pod is not restricted: {security}"
    );
    for shared in ["hostNetwork", "hostPID", "hostIPC", "volumes"] {
        ensure!(spec[shared].is_null(), "the pod has {shared:?}");
    }
    for container in spec["containers"].as_array().into_iter().flatten() {
        let expected = json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        });
        ensure!(
            container["securityContext"] == expected,
            "a container is not restricted: {}",
            container["securityContext"]
        );
    }
    Ok(())
}

fn selects_the_operator(selector: &Value, all: &[Value]) -> anyhow::Result<()> {
    let deployment = all
        .iter()
        .find(|object| object["kind"] == "Deployment")
        .context("there is no Deployment")?;
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    let selector = selector.as_object().context("it selects nothing")?;
    ensure!(!selector.is_empty(), "it selects everything");
    for (key, value) in selector {
        ensure!(
            labels[key] == *value,
            "{key}={value} is no label of the operator's pod"
        );
    }
    let ports = &deployment["spec"]["template"]["spec"]["containers"][0]["ports"];
    ensure!(
        ports[0]["name"] == "http" && ports[0]["containerPort"] == crds::names::HTTP_PORT,
        "the operator's port is {ports}"
    );
    Ok(())
}

fn hook_leaves_nothing(object: &Value) -> anyhow::Result<()> {
    let annotations = &object["metadata"]["annotations"];
    let Some(hook) = annotations["helm.sh/hook"].as_str() else {
        return Ok(());
    };
    let policy = annotations["helm.sh/hook-delete-policy"]
        .as_str()
        .unwrap_or_default();
    for ending in ["before-hook-creation", "hook-succeeded", "hook-failed"] {
        ensure!(policy.contains(ending), "hook {hook:?} stays: {policy:?}");
    }
    ensure!(
        object["kind"] != "Job" || annotations["helm.sh/hook-output-log-policy"] == "hook-failed",
        "helm would hide why the hook failed"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(kind: &str, rule: Value) -> Value {
        json!({
            "kind": kind,
            "metadata": {"name": "a", "labels": {"app.kubernetes.io/instance": "a"}},
            "rules": [rule],
        })
    }

    fn refusal(object: Value) -> String {
        check(&[object])
            .err()
            .map(|error| format!("{error:#}"))
            .unwrap_or_default()
    }

    #[test]
    fn wide_rights_are_refused() {
        for (kind, rule, words) in [
            (
                "Role",
                json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["*"]}),
                "wildcard",
            ),
            (
                "Role",
                json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}),
                "secrets",
            ),
            (
                "ClusterRole",
                json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}),
                "whole cluster",
            ),
        ] {
            let refusal = refusal(role(kind, rule));
            assert!(refusal.contains(words), "{refusal:?}");
        }
    }

    #[test]
    fn policy_that_lets_pass_is_refused() {
        let policy = json!({
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": "a", "labels": {"app.kubernetes.io/instance": "a"}},
            "spec": {"failurePolicy": "Fail"},
        });
        assert!(refusal(policy.clone()).contains("nothing binds it"));
        let mut careless = policy;
        careless["spec"]["failurePolicy"] = json!("Ignore");
        assert!(refusal(careless).contains("lets pass"));
    }

    #[test]
    fn unrestricted_pod_is_refused() {
        let job = json!({
            "kind": "Job",
            "metadata": {"name": "a", "labels": {"app.kubernetes.io/instance": "a"}},
            "spec": {"template": {"spec": {"containers": [{}]}}},
        });
        assert!(refusal(job).contains("not restricted"));
    }
}
