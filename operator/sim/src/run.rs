//! Running seeds, and telling what was found in the fewest words.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::bug::Bug;
use crate::fault::Fault;
use crate::laws::Broken;
use crate::operator::CrashPoint;
use crate::random::secs;
use crate::seed::{Setup, setup};
use crate::story::Line;
use crate::world::World;

/// How long a cluster may take to come to its end after the last fault. The longest that a single
/// claim may wait is its stage of ten minutes.
const END_WITHIN: Duration = secs(2400);

/// How often it is looked whether the end has come.
const LOOK: Duration = secs(20);

/// What is run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// Faults that are left out, by their number.
    pub without: BTreeSet<usize>,
    /// A fault of the operator or the agents.
    pub bug: Option<Bug>,
    /// Whether the story is kept.
    pub story: bool,
    /// When an operator dies.
    pub crash: Option<CrashPoint>,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The law that was broken.
    pub broken: Option<Broken>,
    /// What happened.
    pub story: Vec<Line>,
    /// How many faults the seed has.
    pub faults: usize,
    /// How many plans were made.
    pub plans: u64,
    /// How many events happened.
    pub events: u64,
}

/// Runs a seed.
pub fn run(options: &Options) -> Outcome {
    let Setup { mut world, faults } = setup(options.seed);
    world.bug = options.bug;
    world.story.kept = options.story;
    world.script.crash = options.crash;
    let number = faults.len();
    let kept = faults.into_iter().enumerate();
    let kept = kept.filter(|(number, _)| !options.without.contains(number));
    let kept: Vec<_> = kept.map(|(_, fault)| fault).collect();
    let last = play(&mut world, kept);
    finish(&mut world, last);
    Outcome {
        broken: world.broken.clone(),
        story: std::mem::take(&mut world.story.lines),
        faults: number,
        plans: world.plans,
        events: world.events,
    }
}

/// Lets the faults happen; when the last of them has.
pub fn play(world: &mut World, faults: Vec<(Duration, Fault)>) -> Duration {
    let mut last = secs(60);
    for (at, fault) in faults {
        last = last.max(at + secs(30));
        world.plan_fault(at, fault);
    }
    world.run(last);
    last
}

/// Lets time pass until the end has come, and breaks a law if it does not.
pub fn finish(world: &mut World, from: Duration) {
    let mut at = from;
    while world.broken.is_none() {
        at += LOOK;
        world.run(at);
        let Some(why) = world.unfinished() else {
            return;
        };
        if at > from + END_WITHIN {
            world.break_law("end", &why);
        }
    }
}

/// Leaves out every fault of a seed that is not needed to break a law.
pub fn shrink(options: &Options) -> Options {
    let mut least = options.clone();
    least.story = false;
    let faults = run(&least).faults;
    for number in 0..faults {
        let mut fewer = least.clone();
        fewer.without.insert(number);
        if run(&fewer).broken.is_some() {
            least = fewer;
        }
    }
    least
}

/// The command that runs it again.
pub fn command(options: &Options) -> String {
    let mut command = format!(
        "cargo run --profile sim -p operator-sim -- --seed {} --story",
        options.seed
    );
    if !options.without.is_empty() {
        let without: Vec<_> = options.without.iter().map(ToString::to_string).collect();
        command.push_str(&format!(" --without {}", without.join(",")));
    }
    if let Some(bug) = options.bug {
        let name = clap::ValueEnum::to_possible_value(&bug);
        let name = name.map(|name| name.get_name().to_owned());
        command.push_str(&format!(" --bug {}", name.unwrap_or_default()));
    }
    command
}
