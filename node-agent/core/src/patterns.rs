//! Patterns of paths and of values.

use std::collections::BTreeMap;

use crds::discovery::{PathDiscovery, UdevDiscovery};
use globset::{Glob, GlobBuilder, GlobMatcher};

use crate::rule::RuleError;
use crate::sight::Sight;

/// The compiled patterns of one resource.
#[derive(Clone, Debug)]
pub(crate) struct Patterns {
    globs: Vec<GlobMatcher>,
    excludes: Vec<GlobMatcher>,
    ways: Vec<Vec<Segment>>,
}

/// The compiled patterns of a resource that is found by what the kernel and udev say.
#[derive(Clone, Debug)]
pub(crate) struct UdevPatterns {
    subsystem: String,
    properties: BTreeMap<String, GlobMatcher>,
    attributes: BTreeMap<String, GlobMatcher>,
}

/// One step of the way from `/` to what a glob matches.
#[derive(Clone, Debug)]
enum Segment {
    /// One directory or file name.
    Name(GlobMatcher),
    /// Any number of names.
    Any,
}

impl UdevPatterns {
    /// Compiles the patterns.
    pub(crate) fn new(udev: &UdevDiscovery) -> Result<Self, RuleError> {
        if let Some(name) = udev.attributes.keys().find(|name| !is_attribute(name)) {
            return Err(RuleError::NameAttribute { name: name.clone() });
        }
        let all = |field: &'static str, values: &BTreeMap<String, String>| {
            let compiled = values.iter().map(|(name, pattern)| {
                let matcher = value_pattern(pattern).map_err(|source| RuleError::ReadPattern {
                    field,
                    name: name.clone(),
                    pattern: pattern.clone(),
                    source,
                })?;
                Ok((name.clone(), matcher))
            });
            compiled.collect::<Result<BTreeMap<_, _>, RuleError>>()
        };
        Ok(Self {
            subsystem: udev.subsystem.clone(),
            properties: all("property", &udev.properties)?,
            attributes: all("attribute", &udev.attributes)?,
        })
    }

    /// The subsystem.
    pub(crate) fn subsystem(&self) -> &str {
        &self.subsystem
    }

    /// Names of the attributes that have to be read.
    pub(crate) fn attributes(&self) -> Vec<&str> {
        self.attributes.keys().map(String::as_str).collect()
    }

    /// Whether properties have to be read.
    pub(crate) fn asks_properties(&self) -> bool {
        !self.properties.is_empty()
    }

    /// Whether a device has all that is asked for.
    pub(crate) fn accepts(&self, sight: &Sight) -> bool {
        let fit = |patterns: &BTreeMap<String, GlobMatcher>, values: &BTreeMap<String, String>| {
            patterns.iter().all(|(name, pattern)| {
                values
                    .get(name)
                    .is_some_and(|value| pattern.is_match(value))
            })
        };
        fit(&self.properties, &sight.properties) && fit(&self.attributes, &sight.attributes)
    }
}

/// Whether an attribute's name leads to a file of the device, or of one above it, and nowhere else.
fn is_attribute(name: &str) -> bool {
    let name = name.strip_prefix("../").unwrap_or(name);
    let plain = |segment: &str| !matches!(segment, "" | "." | "..") && !segment.contains('\0');
    name.len() <= 256 && name.split('/').all(plain)
}

fn value_pattern(pattern: &str) -> Result<GlobMatcher, globset::Error> {
    Ok(GlobBuilder::new(pattern).build()?.compile_matcher())
}

impl Patterns {
    /// Compiles the patterns.
    pub(crate) fn new(paths: &PathDiscovery) -> Result<Self, RuleError> {
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

    /// The position of the first glob that matches a path.
    pub(crate) fn precedence(&self, path: &str) -> Option<usize> {
        if self.excludes.iter().any(|exclude| exclude.is_match(path)) {
            return None;
        }
        self.globs.iter().position(|glob| glob.is_match(path))
    }

    /// Whether a directory can hold matches at any depth.
    pub(crate) fn lead_through(&self, directory: &str) -> bool {
        let names: Vec<&str> = directory.split('/').filter(|n| !n.is_empty()).collect();
        self.ways.iter().any(|way| leads_through(way, &names))
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
