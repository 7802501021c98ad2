//! A small cluster in which stories are played.

use std::time::Duration;

use operator_core::ledger::Phase;
use operator_sim::behaviour::Behaviour;
use operator_sim::fault::Fault;
use operator_sim::host::{Host, Kubelet};
use operator_sim::random::{Random, ms, secs};
use operator_sim::run::{finish, short};
use operator_sim::script::Script;
use operator_sim::seed::spec;
use operator_sim::world::World;
use serde_json::{Value, json};

/// The config.
pub const FUSE: &str = "fuse";
/// Its only resource.
pub const RESOURCE: &str = "example.com/fuse";

/// The phases of a change that goes well.
pub const PHASES: [Phase; 6] = [
    Phase::Staging,
    Phase::Staged,
    Phase::Switching,
    Phase::Verifying,
    Phase::Soaking,
    Phase::Committing,
];

/// A cluster.
pub struct Stage {
    pub world: World,
}

impl Stage {
    /// So many nodes that serve the first revision, and one operator.
    pub fn new(nodes: usize) -> Self {
        Self::with(
            nodes,
            Kubelet::ByResource,
            &json!({ "gate": { "soakSeconds": 20 } }),
        )
    }

    pub fn with(nodes: usize, kubelet: Kubelet, rollout: &Value) -> Self {
        let mut stage = Self::empty(nodes, kubelet);
        stage.world.add_config(FUSE, spec(&[RESOURCE], rollout), 1);
        stage.run(secs(60));
        assert_eq!(stage.world.unfinished_but_quiet(), None, "the installation");
        stage.world.laws.switches.clear();
        stage.world.laws.node_writes.clear();
        stage
    }

    /// Nodes without a config.
    pub fn empty(nodes: usize, kubelet: Kubelet) -> Self {
        let settings = World::settings(secs(10));
        let mut world = World::new(Random::new(7), settings, Script::default());
        world.story.kept = true;
        for number in 1..=nodes {
            let offset = ms(u64::try_from(number).unwrap() * 1700);
            world.add_host(Host::new(
                &format!("n{number}"),
                kubelet,
                0b1111_1111,
                offset,
            ));
        }
        world.add_operator();
        Self { world }
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        self.world.run(self.world.now + time);
        self.assert_lawful();
    }

    fn assert_lawful(&self) {
        if let Some(broken) = &self.world.broken {
            panic!("{broken}\n{}", self.story());
        }
    }

    pub fn story(&self) -> String {
        let lines: Vec<_> = short(&self.world.story.lines)
            .into_iter()
            .map(ToString::to_string)
            .collect();
        lines.join("\n")
    }

    pub fn fault(&mut self, fault: Fault) {
        self.world.fault(&fault);
        self.run(Duration::ZERO);
    }

    /// The config gets another agent image.
    pub fn edit(&mut self, tag: u32) {
        self.fault(Fault::Edit(FUSE.to_owned(), tag));
    }

    /// Agents of an image behave like this, on a node or everywhere.
    pub fn behave(&mut self, node: &str, tag: u32, behaviour: Behaviour) {
        let key = (node.to_owned(), tag);
        self.world.script.behaviours.insert(key, behaviour);
    }

    /// Lets time pass until something is so.
    pub fn until(&mut self, what: &str, within: Duration, is_so: impl Fn(&World) -> bool) {
        let end = self.world.now + within;
        while !is_so(&self.world) {
            assert!(
                self.world.now < end,
                "{what} has not come within {within:?}:\n{}",
                self.story()
            );
            self.run(ms(5));
        }
    }

    /// Lets time pass until a claim is in a phase; its node.
    pub fn until_phase(&mut self, phase: Phase) -> String {
        self.until(phase.as_str(), secs(900), |world| {
            world.claims().iter().any(|claim| claim.phase == phase)
        });
        let claims = self.world.claims();
        let claim = claims.into_iter().find(|claim| claim.phase == phase);
        claim.unwrap().node
    }

    /// Lets the cluster come to its end, which must be one.
    pub fn end(&mut self) {
        let now = self.world.now;
        finish(&mut self.world, now);
        self.assert_lawful();
    }

    /// The images that serve, node by node.
    pub fn serving(&self) -> Vec<u32> {
        let world = &self.world;
        let of_host = |host: &Host| {
            let stream = host.live(RESOURCE).next();
            let agent = stream.and_then(|stream| world.agents.get(&stream.agent));
            let is_listed = host.list(RESOURCE) != 0;
            let agent = agent.filter(|_| is_listed);
            agent.map_or(0, |agent| world.script.tags[&agent.revision])
        };
        world.hosts.iter().map(of_host).collect()
    }

    /// How often nodes were switched.
    pub fn switches(&self) -> Vec<u32> {
        let names = self
            .world
            .hosts
            .iter()
            .map(|host| format!("{FUSE}.{}", host.name));
        let switches = &self.world.laws.switches;
        names
            .map(|name| switches.get(&name).copied().unwrap_or_default())
            .collect()
    }

    /// The reason of a condition.
    pub fn reason(&self, condition: &str) -> String {
        let status = self
            .world
            .api
            .configs
            .get(FUSE)
            .unwrap()
            .status
            .clone()
            .unwrap();
        let of_type = status
            .conditions
            .into_iter()
            .find(|one| one.type_ == condition);
        of_type
            .map(|one| format!("{}/{}", one.status, one.reason))
            .unwrap_or_default()
    }

    /// Why an image failed.
    pub fn failed(&self, tag: u32) -> Option<String> {
        let revisions = self.world.api.revisions.objects.values();
        let mut of_tag =
            revisions.filter(|one| self.world.script.tags.get(&one.revision) == Some(&tag));
        of_tag.next()?.failed.clone()
    }

    /// Whether the story has a line with these words.
    pub fn told(&self, words: &str) -> bool {
        self.world
            .story
            .lines
            .iter()
            .any(|line| line.what.contains(words))
    }
}
