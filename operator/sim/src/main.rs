//! Runs seeds of the simulation and tells the stories of those that break a law.

#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a tool for people: it prints, uses all cores, and tells how fast it was"
)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use operator_sim::bug::Bug;
use operator_sim::run::{Options, command, run, short, shrink};

/// Runs seeds of the simulation.
#[derive(Debug, Parser)]
struct Flags {
    /// Run this seed only.
    #[arg(long)]
    seed: Option<u64>,
    /// Run these seeds on all cores: first..last, the last one left out.
    #[arg(long, default_value = "0..1000")]
    seeds: String,
    /// Tell the whole story of the seed, whatever comes of it.
    #[arg(long)]
    story: bool,
    /// Leave out these faults of the seed.
    #[arg(long, value_delimiter = ',')]
    without: Vec<usize>,
    /// Put this fault into operator or agents; seeds that find it are what is wanted then.
    #[arg(long)]
    bug: Option<Bug>,
    /// Stop after so many seeds that break a law.
    #[arg(long, default_value_t = 5)]
    failures: u64,
    /// Only name the seeds that break a law, with the law.
    #[arg(long)]
    brief: bool,
}

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    let options = |seed| Options {
        seed,
        without: flags.without.iter().copied().collect::<BTreeSet<_>>(),
        bug: flags.bug,
        story: flags.story,
        crash: None,
    };
    if let Some(seed) = flags.seed {
        let outcome = run(&options(seed));
        for line in &outcome.story {
            println!("{line}");
        }
        println!("{} plans, {} events", outcome.plans, outcome.events);
        anyhow::ensure!(outcome.broken.is_none(), "seed {seed} breaks a law");
        return Ok(());
    }
    let (first, last) = flags
        .seeds
        .split_once("..")
        .context("seeds are first..last")?;
    let (first, last) = (first.parse::<u64>()?, last.parse::<u64>()?);
    let (next, failed, plans) = (AtomicU64::new(first), AtomicU64::new(0), AtomicU64::new(0));
    let started = Instant::now();
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..cores {
            scope.spawn(|| {
                while failed.load(Ordering::Relaxed) < flags.failures {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= last {
                        return;
                    }
                    let outcome = run(&options(seed));
                    plans.fetch_add(outcome.plans, Ordering::Relaxed);
                    if let Some(broken) = outcome.broken {
                        failed.fetch_add(1, Ordering::Relaxed);
                        match flags.brief {
                            true => println!("seed {seed}: {broken}"),
                            false => tell(&options(seed)),
                        }
                    }
                }
            });
        }
    });
    let done = next.load(Ordering::Relaxed).min(last) - first;
    let seconds = started.elapsed().as_secs_f64();
    let rate = f64::from(u32::try_from(done)?) / seconds;
    let failed = failed.into_inner();
    let plans = plans.into_inner() / done.max(1);
    println!(
        "{done} seeds in {seconds:.1} s: {rate:.0} a second, {plans} plans each, {failed} broke a law"
    );
    anyhow::ensure!(
        failed == 0 || flags.bug.is_some(),
        "{failed} seeds broke a law"
    );
    anyhow::ensure!(failed > 0 || flags.bug.is_none(), "the bug was not found");
    Ok(())
}

fn tell(options: &Options) {
    let mut least = shrink(options);
    least.story = true;
    let outcome = run(&least);
    let mut text = format!("\nseed {} breaks a law:\n", options.seed);
    for line in short(&outcome.story) {
        text.push_str(&format!("{line}\n"));
    }
    println!("{text}again: {}\n", command(&least));
}
