//! Which resource of an agent gives out a device that several of them match: the first in the config,
//! unless a container holds the device through another one.
//!
//! Resources look one after the other, and the kubelet hears of each by itself. So who gives out a
//! device asks here at that moment, and what was given is remembered until the kubelet's own list
//! shows it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::discovery::{Discovered, Found, Numbers, Refusal};

/// How long what was given out counts as held although the kubelet does not list it yet. It lists a
/// pod within seconds; a tenth of this could miss it on a busy node, ten times as much would keep a
/// device that no container got from the resource that it belongs to.
const GIVEN_SECONDS: i64 = 60;

/// A device node that is no device: every overlay file system may hold it any number of times.
const NO_DEVICE: Numbers = (0, 0);

/// What the resources of an agent want, in the order of the config.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    wishes: BTreeMap<usize, Wish>,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Wish {
    resource: String,
    nodes: Nodes,
    /// Ids that containers hold; nothing while that is not known.
    held: Option<BTreeSet<String>>,
    given: BTreeMap<String, Timestamp>,
}

/// Device nodes and the ids that they belong to, found by either: a container is answered as fast on
/// a node of ten thousand devices.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Nodes {
    /// In the order of the numbers, each once.
    by_numbers: Vec<(Numbers, Box<str>)>,
    /// Places in `by_numbers`, in the order of the ids.
    by_id: Vec<usize>,
}

impl Claims {
    /// Notes what a resource found, and what of it containers hold. Tells whether that can change
    /// what another resource may give out.
    pub fn note(
        &mut self,
        place: usize,
        resource: &str,
        found: &BTreeMap<String, Found>,
        held: Option<&BTreeSet<String>>,
    ) -> bool {
        let before = self.wishes.remove(&place).unwrap_or_default();
        let nodes = found.iter().flat_map(|(id, found)| {
            let numbers = found.numbers.iter().filter(|one| **one != NO_DEVICE);
            numbers.map(|numbers| (*numbers, id.as_str()))
        });
        let is_known = |id: &String| found.contains_key(id);
        let wish = Wish {
            resource: resource.to_owned(),
            nodes: nodes.collect(),
            held: held.map(|held| held.iter().filter(|id| is_known(id)).cloned().collect()),
            given: before.given.clone(),
        };
        let is_shared = |numbers: &Numbers| {
            let mut others = self.wishes.values();
            others.any(|other| other.nodes.id(*numbers).is_some())
        };
        let changed = (&before.nodes, &before.held) != (&wish.nodes, &wish.held);
        let news = changed
            && before
                .nodes
                .all()
                .chain(wish.nodes.all())
                .any(|numbers| is_shared(&numbers));
        self.wishes.insert(place, wish);
        news
    }

    /// All device nodes that a resource wants.
    pub fn wanted(&self) -> BTreeSet<Numbers> {
        let all = self.wishes.values().flat_map(|wish| wish.nodes.all());
        all.collect()
    }

    /// What a resource found, without the devices that others give out: another resource, or another
    /// config, whose name `foreign` has by the device's numbers.
    pub fn judged(
        &self,
        place: usize,
        mut seen: Discovered,
        foreign: &BTreeMap<Numbers, String>,
        now: Timestamp,
    ) -> Discovered {
        let reason = |found: &Found| {
            let mut own = found.numbers.iter();
            own.find_map(|one| match foreign.get(one) {
                Some(owner) => Some(owner.clone()),
                None => self.other(place, *one, now),
            })
        };
        let taken = seen
            .devices
            .iter()
            .filter_map(|(id, found)| Some((id.clone(), reason(found)?)));
        for (id, reason) in taken.collect::<Vec<_>>() {
            let found = seen.devices.remove(&id);
            let path = found.and_then(|found| found.paths.into_iter().next());
            seen.refusals.push(Refusal {
                path: path.unwrap_or_default(),
                reason: reason.clone(),
            });
            seen.unusable.insert(id, reason);
        }
        seen.refusals.sort();
        seen
    }

    /// Notes that a resource gives out devices; refuses if one of them belongs to another.
    ///
    /// # Errors
    /// Who has the device, as a sentence for the pod's user.
    pub fn give(&mut self, place: usize, ids: &[String], now: Timestamp) -> Result<(), String> {
        let Some(wish) = self.wishes.get(&place) else {
            return Ok(());
        };
        for id in ids {
            let reason = wish
                .nodes
                .of(id)
                .find_map(|numbers| self.other(place, numbers, now));
            if let Some(reason) = reason {
                return Err(format!(
                    "device {id:?} of resource {:?} {reason}",
                    wish.resource
                ));
            }
        }
        if let Some(wish) = self.wishes.get_mut(&place) {
            wish.given.retain(|_, at| is_recent(*at, now));
            let given = ids.iter().filter(|id| wish.nodes.of(id).next().is_some());
            wish.given.extend(given.map(|id| (id.clone(), now)));
        }
        Ok(())
    }

    /// Why a device node is not the resource's, as a clause; nothing if it is.
    fn other(&self, place: usize, numbers: Numbers, now: Timestamp) -> Option<String> {
        let wishes = || {
            let all = self.wishes.iter();
            all.filter_map(move |(place, wish)| Some((*place, wish, wish.nodes.id(numbers)?)))
        };
        let holder = wishes().find(|(_, wish, id)| wish.holds(id, now));
        let unknown = wishes().skip(1).find(|(_, wish, _)| wish.held.is_none());
        match (holder, unknown, wishes().next()) {
            (Some((owner, wish, id)), _, _) if owner != place => Some(format!(
                "is held by a container through resource {:?} as {id:?}",
                wish.resource
            )),
            (Some(_), _, _) => None,
            (None, Some(_), _) => {
                let (_, other, _) = wishes().find(|(other, _, _)| *other != place)?;
                Some(format!(
                    "is also matched by resource {:?}: it is not known yet through which of them a \
                     container holds it",
                    other.resource
                ))
            }
            (None, None, Some((owner, wish, _))) if owner != place => Some(format!(
                "belongs to resource {:?}, which matches it as well and comes first",
                wish.resource
            )),
            (None, None, _) => None,
        }
    }
}

impl Wish {
    fn holds(&self, id: &str, now: Timestamp) -> bool {
        let listed = self.held.as_ref().is_some_and(|held| held.contains(id));
        listed || self.given.get(id).is_some_and(|at| is_recent(*at, now))
    }
}

impl Nodes {
    fn all(&self) -> impl Iterator<Item = Numbers> {
        self.by_numbers.iter().map(|(numbers, _)| *numbers)
    }

    /// Whose device node it is.
    fn id(&self, numbers: Numbers) -> Option<&str> {
        let place = self
            .by_numbers
            .binary_search_by_key(&numbers, |(own, _)| *own);
        self.by_numbers.get(place.ok()?).map(|(_, id)| &**id)
    }

    /// The device nodes of an id.
    fn of(&self, id: &str) -> impl Iterator<Item = Numbers> {
        let node = |place: &usize| self.by_numbers.get(*place);
        let first = self
            .by_id
            .partition_point(|place| node(place).is_some_and(|(_, own)| &**own < id));
        let from = self.by_id.iter().skip(first).filter_map(node);
        from.take_while(move |(_, own)| &**own == id)
            .map(|(numbers, _)| *numbers)
    }
}

impl<'a> FromIterator<(Numbers, &'a str)> for Nodes {
    fn from_iter<I: IntoIterator<Item = (Numbers, &'a str)>>(nodes: I) -> Self {
        let nodes: BTreeMap<Numbers, &str> = nodes.into_iter().collect();
        let by_numbers: Vec<(Numbers, Box<str>)> = nodes
            .into_iter()
            .map(|(numbers, id)| (numbers, id.into()))
            .collect();
        let mut by_id: Vec<usize> = (0..by_numbers.len()).collect();
        let id = |place: &usize| by_numbers.get(*place).map(|(_, id)| id);
        by_id.sort_by(|one, other| id(one).cmp(&id(other)));
        Self { by_numbers, by_id }
    }
}

fn is_recent(at: Timestamp, now: Timestamp) -> bool {
    now.duration_since(at).as_secs() < GIVEN_SECONDS
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARD: Numbers = (226, 0);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn found(id: &str, numbers: &[Numbers]) -> BTreeMap<String, Found> {
        let found = Found {
            paths: vec!["/dev/card".to_owned()],
            numbers: numbers.to_vec(),
            ..Found::default()
        };
        [(id.to_owned(), found)].into()
    }

    fn held(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    /// Two resources that match the same card, `a` first.
    fn both(of_a: Option<&[&str]>, of_b: Option<&[&str]>) -> Claims {
        let mut claims = Claims::default();
        claims.note(1, "b", &found("b-id", &[CARD]), of_b.map(held).as_ref());
        claims.note(0, "a", &found("a-id", &[CARD]), of_a.map(held).as_ref());
        claims
    }

    /// Why the resource at a place does not advertise the card; empty if it does.
    fn told(claims: &Claims, place: usize, second: i64) -> String {
        let id = if place == 0 { "a-id" } else { "b-id" };
        let seen = Discovered {
            devices: found(id, &[CARD]),
            ..Discovered::default()
        };
        let judged = claims.judged(place, seen, &BTreeMap::new(), at(second));
        assert_eq!(judged.devices.is_empty(), judged.unusable.contains_key(id));
        judged
            .refusals
            .first()
            .map(|one| one.reason.clone())
            .unwrap_or_default()
    }

    #[test]
    fn nodes_are_found_by_numbers_and_by_id() {
        let given = [((8, 3), "b"), ((8, 1), "c"), ((8, 2), "a"), ((8, 0), "b")];
        let nodes: Nodes = given.into_iter().collect();
        let of = |id: &str| nodes.of(id).collect::<Vec<_>>();
        assert_eq!(of("b"), [(8, 0), (8, 3)]);
        assert_eq!((of("a"), of("c")), (vec![(8, 2)], vec![(8, 1)]));
        assert_eq!((of(""), of("bb"), of("d")), (vec![], vec![], vec![]));
        assert_eq!(nodes.id((8, 2)), Some("a"));
        assert_eq!(nodes.id((8, 4)), None);
    }

    #[test]
    fn one_alone_has_what_it_found() {
        let mut claims = Claims::default();
        claims.note(1, "b", &found("b-id", &[CARD]), None);
        assert_eq!(told(&claims, 1, 0), "");
        claims.note(0, "a", &found("a-id", &[(1, 3)]), None);
        assert_eq!(told(&claims, 1, 0), "");
    }

    #[test]
    fn the_first_gets_it_whoever_looked_first() {
        let claims = both(Some(&[]), Some(&[]));
        assert_eq!(told(&claims, 0, 0), "");
        let expected = r#"belongs to resource "a", which matches it as well and comes first"#;
        assert_eq!(told(&claims, 1, 0), expected);
    }

    #[test]
    fn a_container_keeps_it_where_it_is() {
        let claims = both(Some(&[]), Some(&["b-id"]));
        let expected = r#"is held by a container through resource "b" as "b-id""#;
        assert_eq!(
            (told(&claims, 0, 0), told(&claims, 1, 0)),
            (expected.to_owned(), String::new())
        );
        for unknown in [both(None, None), both(Some(&[]), None)] {
            for place in [0, 1] {
                assert!(told(&unknown, place, 0).contains("not known yet"));
            }
        }
        // The first resource need not wait to hear that it holds its own.
        assert_eq!(told(&both(None, Some(&[])), 0, 0), "");
    }

    #[test]
    fn what_was_given_counts_until_the_kubelet_tells() {
        let mut claims = Claims::default();
        claims.note(1, "b", &found("b-id", &[CARD]), Some(&held(&[])));
        assert_eq!(claims.give(1, &["b-id".to_owned()], at(100)), Ok(()));
        claims.note(0, "a", &found("a-id", &[CARD]), Some(&held(&[])));
        assert!(told(&claims, 0, 100).contains("is held by a container"));
        let refused = claims.give(0, &["a-id".to_owned()], at(101)).unwrap_err();
        assert!(
            refused.starts_with(r#"device "a-id" of resource "a" is held"#),
            "{refused}"
        );
        assert_eq!(told(&claims, 0, 159), told(&claims, 0, 100));
        assert_eq!(
            (
                told(&claims, 0, 160).as_str(),
                claims.give(0, &["a-id".to_owned()], at(160))
            ),
            ("", Ok(()))
        );
        let refused = claims.give(1, &["b-id".to_owned()], at(161)).unwrap_err();
        assert!(refused.contains(r#"through resource "a""#), "{refused}");
    }

    #[test]
    fn others_are_told_of_what_they_share_only() {
        let mut claims = Claims::default();
        let none = held(&[]);
        assert!(!claims.note(0, "a", &found("a-id", &[CARD]), Some(&none)));
        assert!(!claims.note(1, "b", &found("b-id", &[(1, 3)]), Some(&none)));
        assert!(claims.note(1, "b", &found("b-id", &[(1, 3), CARD]), Some(&none)));
        assert!(
            !claims.note(1, "b", &found("b-id", &[(1, 3), CARD]), Some(&none)),
            "no news"
        );
        assert!(claims.note(1, "b", &found("b-id", &[CARD]), Some(&held(&["b-id"]))));
        assert!(
            claims.note(1, "b", &BTreeMap::new(), Some(&none)),
            "given up"
        );
        assert_eq!(claims.wanted(), [CARD].into());
    }

    #[test]
    fn another_configs_device_is_refused() {
        let claims = both(Some(&[]), Some(&[]));
        let seen = Discovered {
            devices: found("a-id", &[(1, 5), CARD]),
            ..Discovered::default()
        };
        let foreign = [(CARD, "is claimed by config \"x\"".to_owned())].into();
        let judged = claims.judged(0, seen, &foreign, at(0));
        assert_eq!(judged.unusable["a-id"], "is claimed by config \"x\"");
        assert_eq!(judged.refusals[0].path, "/dev/card");
    }

    #[test]
    fn a_node_that_is_no_device_belongs_to_all() {
        let mut claims = Claims::default();
        for place in [0, 1] {
            claims.note(place, "r", &found("id", &[NO_DEVICE]), None);
        }
        assert!(claims.wanted().is_empty());
    }
}
