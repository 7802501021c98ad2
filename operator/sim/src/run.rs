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

/// The part of a story that a person wants to read first: not how everything was installed, and
/// not every sentence of every status.
pub fn short(story: &[Line]) -> Vec<&Line> {
    let lines = story.iter();
    lines
        .filter(|line| line.at >= secs(60) && !line.is_minor)
        .collect()
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

impl Outcome {
    /// The law that was broken, without what differs from run to run.
    fn law(&self) -> Option<String> {
        let what = self.broken.as_ref().map(|broken| broken.what.as_str());
        what.map(|what| {
            what.chars()
                .filter(|one| !one.is_numeric())
                .take(40)
                .collect()
        })
    }
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
    let mut last = String::new();
    let names: Vec<_> = world.api.configs.objects.keys().cloned().collect();
    // Whatever waited for the API server has happened by then.
    let down = world.script.api_down.iter().map(|(_, until)| *until).max();
    let from = from.max(down.unwrap_or_default() + secs(30));
    for name in names {
        world.plan_fault(from, Fault::Pause(name, false));
    }
    while world.broken.is_none() {
        at += LOOK;
        world.run(at);
        let Some(why) = world.unfinished() else {
            return;
        };
        // That somebody still writes hides what the writing does not lead to.
        if last.is_empty() || !why.ends_with("(I14)") {
            last = why;
        }
        if at > from + END_WITHIN {
            world.break_law("end", &last);
        }
    }
}

/// Leaves out every fault of a seed that is not needed to break a law.
pub fn shrink(options: &Options) -> Options {
    let mut least = options.clone();
    least.story = false;
    let first = run(&least);
    let (faults, law) = (first.faults, first.law());
    for number in 0..faults {
        let mut fewer = least.clone();
        fewer.without.insert(number);
        if run(&fewer).law() == law {
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
