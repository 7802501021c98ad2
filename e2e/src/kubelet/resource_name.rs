//! Which names a kubelet takes for an extended resource.

/// The kubelet's rule: not native, not `requests.…`, and valid as the name of a quota, which begins
/// with `requests.`.
pub fn is_extended_resource_name(name: &str) -> bool {
    if name.contains("kubernetes.io/") || name.starts_with("requests.") {
        return false;
    }
    let Some((domain, rest)) = name.split_once('/') else {
        return false;
    };
    is_subdomain(domain) && domain.len() + "requests.".len() <= 253 && is_name_part(rest)
}

fn is_subdomain(domain: &str) -> bool {
    domain.split('.').all(|label| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !label.is_empty()
            && label.chars().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    })
}

fn is_name_part(part: &str) -> bool {
    let is_end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    part.len() <= 63
        && is_end(part.chars().next())
        && is_end(part.chars().next_back())
        && part
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_and_refused_as_by_a_kubelet() {
        let longest = format!("{}/{}", "a".repeat(244), "b".repeat(63));
        for name in ["ex.com/UPPER_ok.1", "a/b", "vendor.example/gpu-1", &longest] {
            assert!(is_extended_resource_name(name), "{name}");
        }
        let long_domain = format!("{}/b", "a".repeat(245));
        let long_name = format!("a/{}", "b".repeat(64));
        for name in [
            "foo",
            "",
            "/",
            "a/",
            "/b",
            "kubernetes.io/x",
            "a.kubernetes.io/x",
            "requests.a/x",
            "a/b/c",
            "A.b/c",
            "a..b/c",
            "-a/c",
            "a/-c",
            "a/b c",
            &long_domain,
            &long_name,
        ] {
            assert!(!is_extended_resource_name(name), "{name}");
        }
    }
}
