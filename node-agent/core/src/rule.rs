//! Which paths under `/dev` a resource matches, and which directories can hold such paths.

use crds::discovery::{PathDiscovery, SimulatedDiscovery};
use crds::resource::Resource;
use globset::{Glob, GlobBuilder, GlobMatcher};

/// A resource's discovery, its patterns compiled.
#[derive(Clone, Debug)]
pub struct Rule {
    resource: String,
    matches: Matches,
}

/// What a rule finds devices by.
#[derive(Clone, Debug)]
pub(crate) enum Matches {
    /// Paths of device nodes.
    Paths(Patterns),
    /// Nothing that exists.
    Simulated(SimulatedDiscovery),
}

/// The compiled patterns of one resource.
#[derive(Clone, Debug)]
pub(crate) struct Patterns {
    globs: Vec<GlobMatcher>,
    excludes: Vec<GlobMatcher>,
    ways: Vec<Vec<Segment>>,
}

/// One step of the way from `/` to what a glob matches.
#[derive(Clone, Debug)]
enum Segment {
    /// One directory or file name.
    Name(GlobMatcher),
    /// Any number of names.
    Any,
}

/// Why a resource's discovery cannot be acted on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RuleError {
    /// The pattern's syntax is wrong.
    #[error("failed to read glob {glob:?}")]
    ReadGlob {
        /// The pattern.
        glob: String,
        /// What is wrong with it.
        source: globset::Error,
    },
    /// A later version's discovery, or none.
    #[error("resource {resource:?} names no kind of discovery that this agent knows")]
    NameDiscovery {
        /// The resource.
        resource: String,
    },
}

impl Rule {
    /// Compiles a resource's discovery.
    ///
    /// # Errors
    /// When a pattern's syntax is wrong, or there is no kind of discovery.
    pub fn new(resource: &Resource) -> Result<Self, RuleError> {
        let discovery = &resource.discovery;
        let matches = match (&discovery.paths, &discovery.simulated) {
            (Some(paths), _) => Matches::Paths(Patterns::new(paths)?),
            (None, Some(simulated)) => Matches::Simulated(simulated.clone()),
            (None, None) => {
                return Err(RuleError::NameDiscovery {
                    resource: resource.name.clone(),
                });
            }
        };
        Ok(Self {
            resource: resource.name.clone(),
            matches,
        })
    }

    /// Name of the resource.
    pub fn resource(&self) -> &str {
        &self.resource
    }

    /// Whether a path, such as `/dev/ttyUSB0`, is a candidate: whoever walks `/dev` looks at no
    /// other.
    pub fn matches(&self, path: &str) -> bool {
        self.precedence(path).is_some()
    }

    /// Whether a directory, such as `/dev/serial`, can hold candidates at any depth. Links to
    /// directories are not meant: they are not followed.
    pub fn may_hold_matches(&self, directory: &str) -> bool {
        match &self.matches {
            Matches::Paths(patterns) => {
                let names: Vec<&str> = directory.split('/').filter(|n| !n.is_empty()).collect();
                patterns.ways.iter().any(|way| leads_through(way, &names))
            }
            Matches::Simulated(_) => false,
        }
    }

    /// The position of the first glob that matches a path.
    pub(crate) fn precedence(&self, path: &str) -> Option<usize> {
        match &self.matches {
            Matches::Paths(patterns) if patterns.excludes.iter().any(|e| e.is_match(path)) => None,
            Matches::Paths(patterns) => patterns.globs.iter().position(|g| g.is_match(path)),
            Matches::Simulated(_) => None,
        }
    }

    /// What the rule finds devices by.
    pub(crate) fn by(&self) -> &Matches {
        &self.matches
    }
}

impl Patterns {
    fn new(paths: &PathDiscovery) -> Result<Self, RuleError> {
        let all = |globs: &[String]| -> Result<Vec<GlobMatcher>, RuleError> {
            globs.iter().map(|glob| compiled(glob)).collect()
        };
        let ways: Result<_, _> = paths.globs.iter().map(|glob| way(glob)).collect();
        Ok(Self {
            globs: all(&paths.globs)?,
            excludes: all(&paths.exclude)?,
            ways: ways?,
        })
    }
}

fn compiled(glob: &str) -> Result<GlobMatcher, RuleError> {
    let built: Result<Glob, globset::Error> =
        GlobBuilder::new(glob).literal_separator(true).build();
    built
        .map(|glob| glob.compile_matcher())
        .map_err(|source| RuleError::ReadGlob {
            glob: glob.to_owned(),
            source,
        })
}

/// The steps of a glob. From the first one that is not plainly between two slashes (an alternative
/// may hold slashes: `/dev/{a/b,c}`) everything below may match.
fn way(glob: &str) -> Result<Vec<Segment>, RuleError> {
    let mut way = Vec::new();
    for name in glob.split('/').filter(|name| !name.is_empty()) {
        let closed =
            |open: char, close: char| name.matches(open).count() == name.matches(close).count();
        if name == "**" || !closed('{', '}') || !closed('[', ']') || name.ends_with('\\') {
            way.push(Segment::Any);
            break;
        }
        way.push(Segment::Name(compiled(name)?));
    }
    Ok(way)
}

fn leads_through(way: &[Segment], names: &[&str]) -> bool {
    match (way.split_first(), names.split_first()) {
        (Some((Segment::Any, _)), _) | (Some(_), None) => true,
        (None, _) => false,
        (Some((Segment::Name(matcher), rest)), Some((name, deeper))) => {
            matcher.is_match(name) && leads_through(rest, deeper)
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crds::discovery::Discovery;

    pub(crate) fn rule(globs: &[&str], exclude: &[&str]) -> Rule {
        let owned = |globs: &[&str]| globs.iter().map(|g| (*g).to_owned()).collect();
        let paths = PathDiscovery {
            globs: owned(globs),
            exclude: owned(exclude),
        };
        Rule::new(&resource(Discovery {
            paths: Some(paths),
            simulated: None,
        }))
        .unwrap()
    }

    pub(crate) fn resource(discovery: Discovery) -> Resource {
        Resource {
            name: "example.com/serial".to_owned(),
            discovery,
            container: None,
            health_check: None,
        }
    }

    #[test]
    fn globs_match_whole_paths() {
        let check = |glob: &str, path: &str, expected: bool| {
            assert_eq!(
                rule(&[glob], &[]).matches(path),
                expected,
                "{glob:?} {path:?}"
            );
        };
        check("/dev/ttyUSB*", "/dev/ttyUSB0", true);
        check("/dev/ttyUSB*", "/dev/ttyUSB0/x", false);
        check("/dev/*", "/dev/serial/x", false);
        check("/dev/**", "/dev/serial/by-id/x", true);
        check("/dev/**/card?", "/dev/dri/card0", true);
        check("/dev/{kvm,net/tun}", "/dev/net/tun", true);
        check("/dev/tty[0-9]", "/dev/tty5", true);
        check("/dev/tty[0-9]", "/dev/ttyS", false);
    }

    #[test]
    fn excludes_win() {
        let rule = rule(&["/dev/ttyUSB*"], &["/dev/ttyUSB1"]);
        assert!(rule.matches("/dev/ttyUSB0") && !rule.matches("/dev/ttyUSB1"));
    }

    #[test]
    fn only_directories_on_a_way_are_looked_into() {
        let check = |glob: &str, directory: &str, expected: bool| {
            let found = rule(&[glob], &[]).may_hold_matches(directory);
            assert_eq!(found, expected, "{glob:?} {directory:?}");
        };
        check("/dev/fuse", "/dev", true);
        check("/dev/fuse", "/dev/fuse", false);
        check("/dev/serial/by-*/x", "/dev/serial", true);
        check("/dev/serial/by-*/x", "/dev/serial/by-id", true);
        check("/dev/serial/by-*/x", "/dev/serial/other", false);
        check("/dev/serial/by-*/x", "/dev/bus", false);
        check("/dev/{a/b,c}", "/dev/a", true);
        check("/dev/**", "/dev/bus/usb/001", true);
        check("/dev/bus/**/x", "/dev/bus/usb/001", true);
        check("/dev/bus/**/x", "/dev/net", false);
    }

    #[test]
    fn a_wrong_glob_is_named() {
        let paths = PathDiscovery {
            globs: vec!["/dev/[".to_owned()],
            exclude: Vec::new(),
        };
        let error = Rule::new(&resource(Discovery {
            paths: Some(paths),
            simulated: None,
        }));
        assert_eq!(
            error.unwrap_err().to_string(),
            r#"failed to read glob "/dev/[""#
        );
        let error = Rule::new(&resource(Discovery {
            paths: None,
            simulated: None,
        }));
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("example.com/serial")
        );
    }
}
