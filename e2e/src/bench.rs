//! The agent beside other plugins, each with a kubelet and devices of its own, in one run: only
//! figures of one run can be compared, because machines drift.

mod api;
mod cost;
mod figures;
mod kubelet;
mod measure;
mod subject;

pub use figures::table;
pub use measure::{Amounts, Measured};
pub use subject::Subject;

use anyhow::{Context, Result};

use figures::{Line, Samples};

/// Measures all subjects in turn, so many times, and returns the table. `tell` hears of the progress.
///
/// # Errors
/// When a subject does not work at all.
pub async fn run(
    subjects: &[Subject],
    rounds: usize,
    amounts: Amounts,
    tell: impl Fn(&str),
) -> Result<String> {
    let mut measured = vec![Measured::default(); subjects.len()];
    for round in 1..=rounds {
        for (subject, measured) in subjects.iter().zip(&mut measured) {
            tell(&format!("round {round} of {rounds}: {}", subject.name()));
            let outcome = measured.round(subject, amounts).await;
            outcome.with_context(|| format!("failed to measure {:?}", subject.name()))?;
        }
    }
    let names: Vec<&str> = subjects.iter().map(Subject::name).collect();
    Ok(table(&names, &lines(&measured)))
}

/// How a line gets its figure from samples.
type Figure = fn(&Samples) -> Option<f64>;

/// Where a line gets its samples from.
type Pick = fn(&Measured) -> &Samples;

fn lines(measured: &[Measured]) -> Vec<Line> {
    let median: Figure = Samples::median;
    let p99: Figure = |samples| samples.quantile(0.99);
    let worst: Figure = |samples| samples.quantile(1.0);
    let all: [(&str, &'static str, Pick, Figure); 28] = [
        ("exec -> Register p50, ms", "2.5", |m| &m.start, median),
        ("exec -> Register p99, ms", "4.0", |m| &m.start, p99),
        ("resident, MB", "10 (8)", |m| &m.resident, median),
        ("private dirty, MB", "3.5 (2.5)", |m| &m.dirty, median),
        ("threads", "3", |m| &m.threads, worst),
        ("idle, ms of CPU per s", "0.1", |m| &m.idle_cpu, median),
        ("idle, wakeups per s", "1", |m| &m.wakeups, median),
        ("Allocate p50, us", "1.1 x stub", |m| &m.allocate, median),
        ("Allocate p99, us", "", |m| &m.allocate, p99),
        ("Allocate, us of CPU", "24", |m| &m.allocate_cpu, median),
        ("16 callers, calls per s", "", |m| &m.throughput, median),
        ("16 callers, us of CPU", "", |m| &m.crowded_cpu, median),
        ("device gone -> list p50, ms", "1", |m| &m.gone, median),
        ("device gone -> list p99, ms", "5", |m| &m.gone, p99),
        ("device back -> list p50, ms", "1", |m| &m.back, median),
        ("device back -> list p99, ms", "", |m| &m.back, p99),
        (
            "kubelet.sock -> Register p50, ms",
            "0.9",
            |m| &m.again,
            median,
        ),
        ("kubelet.sock -> Register p99, ms", "", |m| &m.again, p99),
        (
            "kubelet.sock -> Register worst, ms",
            "20",
            |m| &m.again,
            worst,
        ),
        ("surplus registrations, worst", "0", |m| &m.surplus, worst),
        (
            "resident after restarts, MB",
            "",
            |m| &m.resident_later,
            median,
        ),
        ("descriptors more", "0", |m| &m.descriptors_more, worst),
        ("threads more", "0", |m| &m.threads_more, worst),
        ("10,000: resident, MB", "14", |m| &m.resident_many, median),
        (
            "10,000: exec -> list p50, ms",
            "20",
            |m| &m.first_list_many,
            median,
        ),
        (
            "10,000: exec -> list worst, ms",
            "",
            |m| &m.first_list_many,
            worst,
        ),
        (
            "10,000: gone -> list p50, ms",
            "15",
            |m| &m.gone_many,
            median,
        ),
        (
            "10,000: gone -> list worst, ms",
            "",
            |m| &m.gone_many,
            worst,
        ),
    ];
    let line = |(what, goal, pick, figure): &(&str, &'static str, Pick, Figure)| Line {
        what: (*what).to_owned(),
        goal,
        figures: measured.iter().map(|one| figure(pick(one))).collect(),
    };
    all.iter().map(line).collect()
}
