//! Devices by the paths of their device nodes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crds::discovery::IdFrom;

use crate::discovery::{Discovered, Found, Hardware, Look, Numbers, Refusal, Verdict, usable};
use crate::identity::path_device_id;
use crate::names::Naming;
use crate::rule::Rule;

/// A device node under all names that the rule matches.
struct Named<'a> {
    node: &'a str,
    numbers: Numbers,
    /// The best name: that of the earliest glob, then the smallest path. A user who lists
    /// `/dev/serial/by-id/*` before `/dev/ttyUSB*` gets the names that survive a replug.
    best: (usize, &'a str),
    /// Each once, in no order.
    all: Vec<&'a str>,
}

/// The devices among candidates.
pub(crate) fn by_path(rule: &Rule, look: &Look) -> Discovered {
    let mut seen = Discovered {
        unknown: look.unknown.clone(),
        ..Discovered::default()
    };
    let mut nodes: BTreeMap<&str, Named<'_>> = BTreeMap::new();
    for candidate in &look.candidates {
        let path = candidate.path.as_str();
        let Some(precedence) = rule.precedence(path) else {
            continue;
        };
        match usable(path, &candidate.target) {
            Verdict::Usable(node, numbers) => {
                let name = (precedence, path);
                let named = nodes.entry(node).or_insert_with(|| Named {
                    node,
                    numbers,
                    best: name,
                    all: vec![node],
                });
                named.best = named.best.min(name);
                if !named.all.contains(&path) {
                    named.all.push(path);
                }
            }
            Verdict::Refused(reason) => {
                seen.unusable
                    .insert(path_device_id(rule.resource(), path), reason.clone());
                seen.refusals.push(Refusal {
                    path: path.to_owned(),
                    reason,
                });
            }
            Verdict::NoDevice(reason) => {
                seen.unusable
                    .insert(path_device_id(rule.resource(), path), reason);
            }
            Verdict::Unknown(reason) => {
                seen.unknown.paths.insert(path.to_owned(), reason);
            }
        }
    }
    insert(rule, look, nodes.into_values(), &mut seen);
    seen
}

fn insert<'a>(
    rule: &Rule,
    look: &Look,
    nodes: impl Iterator<Item = Named<'a>>,
    seen: &mut Discovered,
) {
    let nodes: Vec<Named<'_>> = nodes.collect();
    let mut naming = Naming::new(rule.resource(), rule.id_from());
    for named in &nodes {
        let sight = look.behind.get(&named.numbers);
        naming.add(sight.map(AsRef::as_ref), named.best.1);
    }
    for (named, name) in nodes.into_iter().zip(naming.names()) {
        let path = named.best.1.to_owned();
        if let Some(reason) = name.remark {
            seen.remarks.push(Refusal {
                path: path.clone(),
                reason,
            });
        }
        // The id of the best name is the device's own where ids are made from paths: on a node of ten
        // thousand devices it is not worked out twice.
        let is_own = |path: &str| rule.id_from() == IdFrom::DevicePath && path == named.best.1;
        let others = named.all.iter().filter(|path| !is_own(path));
        let others = others.map(|path| path_device_id(rule.resource(), path));
        let mut also: Vec<String> = name.also.into_iter().chain(others).collect();
        also.retain(|id| *id != name.id);
        also.sort_unstable();
        also.dedup();
        let sight = look.behind.get(&named.numbers);
        let known = sight.map(|sight| sight.hardware()).unwrap_or_default();
        let hardware = Hardware {
            nodes: vec![named.node.to_owned()],
            ..known
        };
        match seen.devices.entry(name.id) {
            Entry::Vacant(free) => {
                free.insert(Found {
                    paths: vec![path],
                    numbers: vec![named.numbers],
                    also,
                    hardware,
                    unhealthy: None,
                });
            }
            Entry::Occupied(taken) => seen.refusals.push(Refusal {
                path,
                reason: format!("has the same id as another device: {:?}", taken.key()),
            }),
        }
    }
}
