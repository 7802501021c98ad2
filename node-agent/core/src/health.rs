//! What the probes of a device make of its health. Thresholds apply to probes only: a device node
//! that appears or vanishes is judged by the inventory, at once.

use crds::health::HealthCheck;

/// Longest text of an attribute that is shown to people.
const SHOWN_MAX: usize = 64;

/// How a probe or a hook ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Ended {
    /// Well.
    Passed,
    /// Not well; why.
    Failed(String),
    /// It could not be run, which says nothing of the device; why.
    NotRun(String),
}

/// How many probes in a row change a judgement.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Thresholds {
    /// Failures, before a Healthy device is Unhealthy.
    pub failure: u32,
    /// Successes, before an Unhealthy device is Healthy.
    pub success: u32,
}

impl Thresholds {
    /// Those of a health check.
    pub fn of(check: &HealthCheck) -> Self {
        let at_least_one = |number: i32| u32::try_from(number).unwrap_or(1).max(1);
        Self {
            failure: at_least_one(check.failure_threshold),
            success: at_least_one(check.success_threshold),
        }
    }
}

/// What the probes of one device have shown so far. A device that was never probed is Healthy: it
/// exists, and a list without it would cost the pods that need it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Judgement {
    /// What the last probe that failed said, while the device is Unhealthy.
    unhealthy: Option<String>,
    /// Probes in a row that speak against the judgement.
    against: u32,
}

impl Judgement {
    /// Why the device is Unhealthy.
    pub fn unhealthy(&self) -> Option<&str> {
        self.unhealthy.as_deref()
    }

    /// Whether the last probes failed, whatever came of it.
    pub fn is_doubtful(&self) -> bool {
        self.unhealthy.is_some() || self.against > 0
    }

    /// The judgement after one more probe.
    pub fn after(&self, probe: &Ended, thresholds: Thresholds) -> Self {
        let against = self.against.saturating_add(1);
        match (probe, &self.unhealthy) {
            (Ended::NotRun(_), _) => self.clone(),
            (Ended::Passed, None) => Self::default(),
            (Ended::Passed, Some(_)) if against >= thresholds.success => Self::default(),
            (Ended::Passed, Some(_)) => Self {
                against,
                ..self.clone()
            },
            (Ended::Failed(_), None) if against < thresholds.failure => Self {
                unhealthy: None,
                against,
            },
            (Ended::Failed(why), _) => Self {
                unhealthy: Some(why.clone()),
                against: 0,
            },
        }
    }
}

/// What an attribute in sysfs says of a device. `text` is what was read, or why it could not be.
pub fn attribute_probe(attribute: &str, allowed: &[String], text: Result<&str, &str>) -> Ended {
    match text.map(str::trim) {
        Ok(text) if allowed.iter().any(|one| one.trim() == text) => Ended::Passed,
        Ok(text) => {
            let shown: String = text.chars().take(SHOWN_MAX).collect();
            Ended::Failed(format!(
                "attribute {attribute:?} is {shown:?}, not one of {allowed:?}"
            ))
        }
        Err(error) => Ended::Failed(format!("failed to read attribute {attribute:?}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(thresholds: Thresholds, probes: &str) -> String {
        let mut judgement = Judgement::default();
        let letters = probes.chars().map(|letter| {
            let probe = match letter {
                '+' => Ended::Passed,
                '-' => Ended::Failed("no answer".to_owned()),
                _ => Ended::NotRun("no runner".to_owned()),
            };
            judgement = judgement.after(&probe, thresholds);
            if judgement.unhealthy().is_none() {
                'H'
            } else {
                'u'
            }
        });
        letters.collect()
    }

    #[test]
    fn thresholds_hold_both_ways() {
        let check = |failure, success, probes: &str, expected: &str| {
            let thresholds = Thresholds { failure, success };
            assert_eq!(judged(thresholds, probes), expected, "{probes:?}");
        };
        check(1, 1, "+-+-", "HuHu");
        check(2, 2, "--++", "HuuH");
        check(2, 2, "-+-+-+", "HHHHHH");
        check(2, 2, "--+-+-", "Huuuuu");
        check(3, 1, "---+", "HHuH");
        check(1, 3, "-+++", "uuuH");
        check(2, 2, "-?-?-", "HHuuu");
        check(2, 2, "--+?+", "HuuuH");
        check(1, 1, "????", "HHHH");
    }

    #[test]
    fn the_reason_is_that_of_the_last_failure() {
        let thresholds = Thresholds {
            failure: 1,
            success: 2,
        };
        let probes = [
            Ended::Failed("first".to_owned()),
            Ended::Passed,
            Ended::Failed("second".to_owned()),
        ];
        let mut judgement = Judgement::default();
        for probe in &probes {
            judgement = judgement.after(probe, thresholds);
        }
        assert_eq!(judgement.unhealthy(), Some("second"));
        assert!(judgement.is_doubtful());
        assert!(!Judgement::default().is_doubtful());
    }

    #[test]
    fn an_attribute_is_compared_without_white_space_around_it() {
        let allowed = ["live".to_owned(), "on ".to_owned()];
        let probe = |text| attribute_probe("state", &allowed, text);
        assert_eq!(probe(Ok("live\n")), Ended::Passed);
        assert_eq!(probe(Ok("on")), Ended::Passed);
        assert_eq!(
            probe(Ok("dead\n")),
            Ended::Failed(r#"attribute "state" is "dead", not one of ["live", "on "]"#.to_owned())
        );
        assert_eq!(
            probe(Err("no such file")),
            Ended::Failed(r#"failed to read attribute "state": no such file"#.to_owned())
        );
    }
}
