//! Which of the free devices a container should get. The kubelet asks before it chooses, and takes an
//! error for the pod's end: there is none, whatever it asks.
//!
//! What is available tells more than who holds what: it is what the kubelet knows at this moment.

use std::collections::{BTreeMap, BTreeSet};

use crds::node::Health;
use crds::resource::{PreferredAllocation, Resource};

use crate::advertised::Sharing;
use crate::inventory::Inventory;

/// What the kubelet asks for one container.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Ids to choose from.
    pub available: &'a [String],
    /// Ids that are chosen already.
    pub must_include: &'a [String],
    /// How many ids the container gets, those included.
    pub size: i32,
}

/// A device that has free ids.
struct Candidate<'a> {
    /// Its free ids that the container can get.
    ids: Vec<&'a str>,
    /// Whether the container has it already.
    is_chosen: bool,
    /// Ids of it that are held, by this container or others.
    load: usize,
    numa_node: Option<u32>,
    /// Its PCI device, of which it may be one function; else itself.
    board: &'a str,
}

/// Candidates at one place.
struct Group<'a> {
    members: Vec<Candidate<'a>>,
    room: usize,
    load: usize,
    rank: Rank,
}

/// Which groups come first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Rank {
    /// The container has something of it already.
    Chosen,
    Other,
    /// No place at all.
    Nowhere,
}

/// Whether the kubelet should ask: because the user wants it, or because only so a container gets
/// different devices.
pub fn is_offered(resource: &Resource) -> bool {
    resource.preferred_allocation != PreferredAllocation::None
        || Sharing::new(resource).is_one_per_container()
}

/// The ids that a container should get: as many as it asks for, as far as there are so many; those
/// that must be among them, as far as they are available; each one once. What is asked again is
/// answered the same, in whatever order it is asked.
pub fn preferred(
    policy: PreferredAllocation,
    inventory: &Inventory,
    request: Request<'_>,
) -> Vec<String> {
    let size = usize::try_from(request.size).unwrap_or(0);
    let mut free: BTreeSet<&str> = request.available.iter().map(String::as_str).collect();
    let wanted: BTreeSet<&str> = request.must_include.iter().map(String::as_str).collect();
    let mut chosen: Vec<&str> = wanted.into_iter().filter(|id| free.remove(id)).collect();
    chosen.truncate(size);

    let candidates = candidates(inventory, &free, &chosen);
    let want = size - chosen.len();
    let picked = match policy {
        PreferredAllocation::Packed => packed(candidates, want),
        PreferredAllocation::NumaAligned => aligned(candidates, want),
        PreferredAllocation::Spread | PreferredAllocation::None => spread(candidates, want),
    };
    for id in &picked {
        free.remove(id);
    }
    chosen.extend(picked);
    // What else there is: devices that we hold for unusable, and others of one device. The kubelet
    // would take any of them, and so may we.
    let rest = free.into_iter().take(size - chosen.len());
    chosen.extend(rest.collect::<Vec<_>>());
    chosen.into_iter().map(str::to_owned).collect()
}

/// The usable devices with the ids that the container can get of each.
fn candidates<'a>(
    inventory: &'a Inventory,
    free: &BTreeSet<&'a str>,
    chosen: &[&'a str],
) -> Vec<Candidate<'a>> {
    let sharing = inventory.sharing;
    let chosen: BTreeSet<&'a str> = chosen.iter().map(|&id| sharing.device(id)).collect();
    // Those that are chosen have a place, too.
    let mut by_device: BTreeMap<&str, Vec<&str>> =
        chosen.iter().map(|&name| (name, Vec::new())).collect();
    for id in free {
        by_device.entry(sharing.device(id)).or_default().push(id);
    }
    let candidate = |(name, mut ids): (&'a str, Vec<&'a str>)| {
        let device = inventory.devices.get(name)?;
        if device.health != Health::Healthy {
            return None;
        }
        let is_chosen = chosen.contains(name);
        let load = sharing.replicas().saturating_sub(ids.len());
        if sharing.is_one_per_container() {
            ids.truncate(usize::from(!is_chosen));
        }
        let address = device.hardware.pci_address.as_deref();
        let board = address.and_then(|address| address.rsplit_once('.'));
        Some(Candidate {
            ids,
            is_chosen,
            load,
            // One that is near to several is counted with the first.
            numa_node: device.hardware.numa_nodes.first().copied(),
            board: board.map_or(name, |(board, _function)| board),
        })
    };
    by_device.into_iter().filter_map(candidate).collect()
}

/// On as few NUMA nodes as possible, there on as few boards, there of as few devices.
fn packed(candidates: Vec<Candidate<'_>>, want: usize) -> Vec<&str> {
    let mut picked = Vec::with_capacity(want.min(candidates.len()));
    for (node, want) in filled(grouped(candidates, |one| one.numa_node), want) {
        for (board, want) in filled(grouped(node.members, |one| one.board), want) {
            let devices = board.members.into_iter().map(|one| Group::of(vec![one]));
            for (device, want) in filled(devices.collect(), want) {
                let ids = device.members.into_iter().flat_map(|one| one.ids);
                picked.extend(ids.take(want));
            }
        }
    }
    picked
}

/// From one NUMA node if one has enough; there those that the fewest hold.
fn aligned(candidates: Vec<Candidate<'_>>, want: usize) -> Vec<&str> {
    let mut groups = grouped(candidates, |one| one.numa_node);
    for group in &mut groups {
        let is_nowhere = group.members.iter().all(|one| one.numa_node.is_none());
        if is_nowhere && group.rank == Rank::Other {
            group.rank = Rank::Nowhere;
        }
    }
    let filled = filled(groups, want);
    let picked = filled
        .into_iter()
        .flat_map(|(node, want)| spread(node.members, want));
    picked.collect()
}

/// Those that the fewest hold; among equals by turns from each NUMA node, and there from each board.
fn spread<'a>(candidates: Vec<Candidate<'a>>, want: usize) -> Vec<&'a str> {
    struct Pick<'a> {
        load: usize,
        numa_node: Option<u32>,
        board: &'a str,
        turn: usize,
        id: &'a str,
    }
    let picks = |one: Candidate<'a>| {
        let numbered = one.ids.into_iter().enumerate();
        numbered.map(move |(number, id)| Pick {
            load: one.load + number,
            numa_node: one.numa_node,
            board: one.board,
            turn: 0,
            id,
        })
    };
    let mut picks: Vec<Pick<'_>> = candidates.into_iter().flat_map(picks).collect();
    picks.sort_by_key(|one| (one.load, one.numa_node, one.board, one.id));
    number_turns(
        &mut picks,
        |a, b| (a.load, a.numa_node, a.board) == (b.load, b.numa_node, b.board),
        |one, turn| one.turn = turn,
    );
    picks.sort_by_key(|one| (one.load, one.numa_node, one.turn, one.board));
    number_turns(
        &mut picks,
        |a, b| (a.load, a.numa_node) == (b.load, b.numa_node),
        |one, turn| one.turn = turn,
    );
    picks.sort_by_key(|one| (one.load, one.turn, one.numa_node));
    picks.into_iter().take(want).map(|one| one.id).collect()
}

/// Numbers neighbours that are alike from 0 on.
fn number_turns<T>(all: &mut [T], alike: impl Fn(&T, &T) -> bool, number: impl Fn(&mut T, usize)) {
    for run in all.chunk_by_mut(alike) {
        for (turn, one) in run.iter_mut().enumerate() {
            number(one, turn);
        }
    }
}

fn grouped<'a, K: Ord>(
    candidates: Vec<Candidate<'a>>,
    key: impl Fn(&Candidate<'a>) -> K,
) -> Vec<Group<'a>> {
    let mut groups: BTreeMap<K, Vec<Candidate<'a>>> = BTreeMap::new();
    for candidate in candidates {
        groups.entry(key(&candidate)).or_default().push(candidate);
    }
    groups.into_values().map(Group::of).collect()
}

impl<'a> Group<'a> {
    fn of(members: Vec<Candidate<'a>>) -> Self {
        let is_chosen = members.iter().any(|one| one.is_chosen);
        Self {
            room: members.iter().map(|one| one.ids.len()).sum(),
            load: members.iter().map(|one| one.load).sum(),
            rank: if is_chosen { Rank::Chosen } else { Rank::Other },
            members,
        }
    }
}

/// How many ids to take of which group so that they are few: the tightest that has enough, else the
/// roomiest and then of others; of equals the one that is used most.
fn filled(mut groups: Vec<Group<'_>>, mut want: usize) -> Vec<(Group<'_>, usize)> {
    // The last one of equals is taken, and should be the first by name.
    groups.reverse();
    groups.sort_by_key(|group| (std::cmp::Reverse(group.rank), group.room, group.load));
    let mut filled = Vec::new();
    while let Some(last) = groups.last().filter(|_| want > 0) {
        let (rank, roomiest) = (last.rank, last.room);
        let room = if roomiest < want {
            roomiest
        } else {
            let enough = |group: &Group<'_>| group.rank > rank || group.room < want;
            let first = groups.partition_point(enough);
            groups.get(first).map_or(roomiest, |group| group.room)
        };
        let end = groups.partition_point(|group| group.rank > rank || group.room <= room);
        let group = groups.remove(end.saturating_sub(1));
        let taken = group.room.min(want);
        want -= taken;
        filled.push((group, taken));
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advertised::tests::{inventory, sharing};
    use PreferredAllocation::{None as Kubelets, NumaAligned, Packed, Spread};

    type Devices<'a> = &'a [(&'a str, &'a [u32], &'a str)];

    const ALL: [PreferredAllocation; 4] = [Kubelets, Packed, Spread, NumaAligned];

    fn owned(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    fn ask(
        policy: PreferredAllocation,
        inventory: &Inventory,
        available: &[&str],
        must_include: &[&str],
        size: i32,
    ) -> Vec<String> {
        let (available, must_include) = (owned(available), owned(must_include));
        let request = Request {
            available: &available,
            must_include: &must_include,
            size,
        };
        let mut answer = preferred(policy, inventory, request);
        let turned = Request {
            available: &available.iter().rev().cloned().collect::<Vec<_>>(),
            ..request
        };
        assert_eq!(preferred(policy, inventory, turned), answer);
        answer.sort();
        answer
    }

    /// Two boards of two functions on node 0, two single cards on node 1, one that is nowhere.
    const CARDS: Devices<'_> = &[
        ("a0", &[0], "0000:01:00.0"),
        ("a1", &[0], "0000:01:00.1"),
        ("b0", &[0], "0000:02:00.0"),
        ("b1", &[0], "0000:02:00.1"),
        ("c", &[1], "0000:81:00.0"),
        ("d", &[1], ""),
        ("e", &[], ""),
    ];
    const NAMES: [&str; 7] = ["a0", "a1", "b0", "b1", "c", "d", "e"];

    #[test]
    fn devices_of_their_own() {
        let cards = inventory(sharing(1, false), CARDS, &[]);
        let check = |policy, available: &[&str], must: &[&str], size: i32, expected: &[&str]| {
            let answer = ask(policy, &cards, available, must, size);
            assert_eq!(answer, expected, "{policy:?} {available:?} {must:?}");
        };
        check(Packed, &NAMES, &[], 1, &["e"]);
        check(Packed, &NAMES, &[], 2, &["c", "d"]);
        check(Packed, &NAMES, &[], 3, &["a0", "a1", "b0"]);
        check(Packed, &NAMES, &["b1"], 2, &["b0", "b1"]);
        check(Packed, &NAMES, &["a0"], 3, &["a0", "a1", "b0"]);
        check(Packed, &["a0", "b0", "b1", "c"], &[], 2, &["b0", "b1"]);
        check(
            Packed,
            &["a0", "b0", "b1", "e"],
            &["a0"],
            3,
            &["a0", "b0", "b1"],
        );
        check(Packed, &NAMES, &[], 5, &["a0", "a1", "b0", "b1", "e"]);
        check(Spread, &NAMES, &[], 3, &["a0", "c", "e"]);
        check(Spread, &NAMES, &[], 5, &["a0", "b0", "c", "d", "e"]);
        check(Spread, &NAMES, &["a1"], 2, &["a1", "e"]);
        check(NumaAligned, &NAMES, &[], 1, &["c"]);
        check(NumaAligned, &NAMES, &[], 2, &["c", "d"]);
        check(NumaAligned, &NAMES, &[], 3, &["a0", "a1", "b0"]);
        check(NumaAligned, &NAMES, &["d"], 3, &["a0", "c", "d"]);
        check(NumaAligned, &["c", "d", "e"], &[], 3, &["c", "d", "e"]);
        check(NumaAligned, &["e", "c"], &[], 1, &["c"]);
    }

    #[test]
    fn devices_that_are_shared() {
        let devices: Devices<'_> = &[("a", &[0], ""), ("b", &[0], ""), ("c", &[1], "")];
        let check =
            |several, policy, available: &[&str], must: &[&str], size, expected: &[&str]| {
                let shared = inventory(sharing(3, several), devices, &[]);
                let answer = ask(policy, &shared, available, must, size);
                assert_eq!(answer, expected, "{policy:?} {available:?} {must:?}");
            };
        let some = ["a.0", "a.1", "a.2", "b.1", "b.2", "c.2"];
        check(true, Packed, &some, &[], 1, &["c.2"]);
        check(true, Packed, &some, &[], 2, &["b.1", "b.2"]);
        check(true, Packed, &some, &[], 3, &["a.0", "a.1", "a.2"]);
        check(true, Packed, &some, &["b.1"], 3, &["a.0", "b.1", "b.2"]);
        check(true, Spread, &some, &[], 2, &["a.0", "a.1"]);
        check(true, Spread, &some, &[], 3, &["a.0", "a.1", "b.1"]);
        check(true, NumaAligned, &some, &[], 2, &["a.0", "a.1"]);
        // Each container at most once.
        check(false, Packed, &some, &[], 1, &["c.2"]);
        check(false, Packed, &some, &[], 2, &["a.0", "b.1"]);
        check(false, Spread, &some, &[], 2, &["a.0", "b.1"]);
        check(false, Spread, &some, &["a.1"], 2, &["a.1", "b.1"]);
        check(false, NumaAligned, &some, &["a.1"], 2, &["a.1", "b.1"]);
        check(false, Kubelets, &some, &[], 3, &["a.0", "b.1", "c.2"]);
        // There are no four different ones; Allocate says so.
        check(false, Spread, &some, &[], 4, &["a.0", "a.1", "b.1", "c.2"]);
    }

    #[test]
    fn already_used_devices_are_packed_first() {
        let devices: Devices<'_> = &[("a", &[], ""), ("b", &[], ""), ("c", &[], "")];
        let shared = inventory(sharing(3, false), devices, &[]);
        let some = ["a.0", "a.1", "a.2", "b.1", "b.2", "c.2"];
        assert_eq!(ask(Packed, &shared, &some, &[], 2), ["b.1", "c.2"]);
        assert_eq!(ask(Spread, &shared, &some, &[], 2), ["a.0", "b.1"]);
    }

    /// 56 and 57: whatever is asked, the answer has as many different available ids as it can.
    #[test]
    fn nothing_that_is_asked_is_an_error() {
        let cards = inventory(sharing(1, false), CARDS, &[]);
        let shared = inventory(sharing(2, false), CARDS, &[]);
        let odd = ["a0", "nobody", "", "a0", "c.0", "c.1", "c.9", "ü", "d.0"];
        for policy in ALL {
            for inventory in [&cards, &shared, &Inventory::default()] {
                for available in [&odd[..], &NAMES[..], &[]] {
                    for must in [&[][..], &["nobody"], &["absent"], &["c.1", "a0"], &odd] {
                        for size in [i32::MIN, -1, 0, 1, 2, 4, 9, i32::MAX] {
                            let answer = ask(policy, inventory, available, must, size);
                            let distinct: BTreeSet<&String> = answer.iter().collect();
                            let all: BTreeSet<&&str> = available.iter().collect();
                            let size = usize::try_from(size).unwrap_or(0);
                            assert_eq!(distinct.len(), answer.len());
                            assert_eq!(answer.len(), size.min(all.len()));
                            assert!(answer.iter().all(|id| all.contains(&id.as_str())));
                            let must = must.iter().filter(|id| all.contains(id));
                            let must: BTreeSet<&&str> = must.collect();
                            let kept = must
                                .iter()
                                .filter(|id| answer.contains(&(**id).to_string()));
                            assert_eq!(kept.count(), must.len().min(size));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn unusable_devices_come_last() {
        let one = inventory(sharing(1, false), &[("b", &[], "")], &["a"]);
        for policy in ALL {
            assert_eq!(ask(policy, &one, &["0", "a", "b"], &[], 1), ["b"]);
        }
    }

    /// 58. What would be quadratic takes minutes here, and the test's own limit.
    #[test]
    fn many_ids_are_no_work() {
        let names: Vec<String> = (0..100_000).map(|n| format!("device-{n:06}")).collect();
        let addresses: Vec<String> = (0..100_000).map(|n| format!("{n:06}:00:00.0")).collect();
        let nodes: Vec<[u32; 1]> = (0..100_000).map(|n| [n / 2]).collect();
        let devices: Vec<(&str, &[u32], &str)> = names
            .iter()
            .zip(&nodes)
            .zip(&addresses)
            .map(|((name, node), address)| (name.as_str(), node.as_slice(), address.as_str()))
            .collect();
        let many = inventory(sharing(1, false), &devices, &[]);
        for policy in ALL {
            for size in [1, 50_000, 100_000] {
                let request = Request {
                    available: &names,
                    must_include: &names[..1],
                    size,
                };
                let count = preferred(policy, &many, request).len();
                assert_eq!(i32::try_from(count), Ok(size));
            }
        }
    }

    #[test]
    fn the_kubelet_asks_where_it_matters() {
        let check = |replicas: i32, several: bool, policy, expected: bool| {
            let mut resource = crate::rule::tests::resource(crds::discovery::Discovery::default());
            resource.replicas = replicas;
            resource.allow_multiple_replicas_per_container = several;
            resource.preferred_allocation = policy;
            assert_eq!(is_offered(&resource), expected, "{resource:?}");
        };
        check(1, false, Kubelets, false);
        check(1, false, Packed, true);
        check(2, true, Kubelets, false);
        check(2, false, Kubelets, true);
        check(2, true, NumaAligned, true);
    }
}
