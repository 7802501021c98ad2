//! Which names a kubelet takes for an extended resource. The API server refuses others by the schema;
//! an agent that was given one all the same does not bother the kubelet with it.

/// What is wrong with a resource's name, and what would be right; nothing if nothing is.
pub fn problem(name: &str) -> Option<String> {
    let told = |what: &str| Some(format!("resource name {name:?} {what}"));
    let Some((domain, rest)) = name.split_once('/').filter(|(_, rest)| !rest.contains('/')) else {
        return told(
            "must be a domain and a name with one slash between, such as example.com/fpga",
        );
    };
    if name.contains("kubernetes.io/") {
        return told("must not be under kubernetes.io, which Kubernetes reserves");
    }
    if name.starts_with("requests.") {
        return told("must not start with \"requests.\", which Kubernetes reserves for quotas");
    }
    if domain.len() > DOMAIN_MAX || !domain.split('.').all(is_label) {
        return told(
            "must have a lower-case DNS subdomain of at most 244 characters before the slash",
        );
    }
    if rest.len() > NAME_MAX || !is_name(rest) {
        return told(
            "must have 1 to 63 letters, digits, -, _ and . after the slash, and a letter or digit \
             at both ends",
        );
    }
    None
}

/// 253, of which the name of a quota needs 9 for `requests.`.
const DOMAIN_MAX: usize = 244;

/// As for a label of Kubernetes.
const NAME_MAX: usize = 63;

fn is_label(label: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !label.is_empty() && label.chars().all(is_inner) && !is_open(label)
}

fn is_name(name: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.chars().all(is_inner) && !is_open(name)
}

/// Whether something begins or ends with a sign.
fn is_open(text: &str) -> bool {
    let is_sign = |c: char| !c.is_ascii_alphanumeric();
    text.starts_with(is_sign) || text.ends_with(is_sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_kubelets_take_have_no_problem() {
        let longest = format!("{}/{}", "a".repeat(244), "b".repeat(63));
        for name in ["ex.com/UPPER_ok.1", "a/b", "vendor.example/gpu-1", &longest] {
            assert_eq!(problem(name), None, "{name}");
        }
    }

    #[test]
    fn other_names_are_told_with_what_would_be_right() {
        let long_domain = format!("{}/x", "d".repeat(245));
        let long_name = format!("example.com/{}", "n".repeat(64));
        for (name, told) in [
            ("foo", "one slash"),
            ("a/b/c", "one slash"),
            ("kubernetes.io/x", "kubernetes.io"),
            ("a.kubernetes.io/x", "kubernetes.io"),
            ("requests.a/x", "requests."),
            ("A.b/c", "lower-case"),
            ("a..b/c", "lower-case"),
            ("/c", "lower-case"),
            (&long_domain, "244"),
            ("a/", "1 to 63"),
            ("a/-b", "1 to 63"),
            (&long_name, "1 to 63"),
        ] {
            let problem = problem(name).unwrap_or_default();
            assert!(
                problem.contains(told) && problem.contains(name),
                "{name}: {problem}"
            );
        }
    }
}
