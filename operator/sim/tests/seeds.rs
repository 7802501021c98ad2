//! Seeds, the more the better: `cargo run --profile sim -p operator-sim -- --seeds 0..20000`.

use operator_sim::run::{Options, command, run, short, shrink};

/// Enough to meet every kind of fault, few enough for every run of the tests.
const SEEDS: u64 = 300;

#[test]
fn no_seed_breaks_a_law() {
    for seed in 0..SEEDS {
        let options = Options {
            seed,
            ..Options::default()
        };
        if run(&options).broken.is_none() {
            continue;
        }
        let mut least = shrink(&options);
        least.story = true;
        let outcome = run(&least);
        let lines: Vec<_> = short(&outcome.story)
            .into_iter()
            .map(ToString::to_string)
            .collect();
        panic!("{}\n{}", lines.join("\n"), command(&least));
    }
}

#[test]
fn the_same_seed_tells_the_same_story() {
    for seed in 0..20 {
        let options = Options {
            seed,
            story: true,
            ..Options::default()
        };
        assert_eq!(run(&options).story, run(&options).story, "seed {seed}");
    }
}
