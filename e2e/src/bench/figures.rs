//! Figures of repeated measurements, and the table that compares those of several subjects.

use std::fmt::Write;
use std::time::Duration;

/// Measurements of one thing, in one unit.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Takes one more.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Takes a time, in milliseconds.
    pub fn push_millis(&mut self, time: Duration) {
        self.push(time.as_secs_f64() * 1_000.0);
    }

    /// Takes a time, in microseconds.
    pub fn push_micros(&mut self, time: Duration) {
        self.push(time.as_secs_f64() * 1_000_000.0);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The smallest value that at least `share` of all are not above; nothing without samples.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        // A rank is at least 1 and at most the number of samples, both far below 2^52.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a rank is a small whole number"
        )]
        let rank = (sorted.len() as f64 * share).ceil().max(1.0) as usize;
        sorted.get(rank - 1).copied()
    }

    /// The middle one.
    pub fn median(&self) -> Option<f64> {
        self.quantile(0.5)
    }
}

/// One line of the table.
#[derive(Debug)]
pub struct Line {
    /// What was measured, with its unit.
    pub what: String,
    /// What we want to reach.
    pub goal: &'static str,
    /// A figure for each subject, in their order; nothing where it could not be measured.
    pub figures: Vec<Option<f64>>,
}

/// The lines under each other: the first subject's figures, and those of the others with what the
/// first one's are of theirs.
pub fn table(subjects: &[&str], lines: &[Line]) -> String {
    let mut rows = vec![header(subjects)];
    rows.extend(lines.iter().map(row));
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a String cannot fail.
            let _never = write!(text, "| {cell:width$} ");
        }
        text.push_str("|\n");
    }
    text
}

fn header(subjects: &[&str]) -> Vec<String> {
    let mut header = vec!["figure".to_owned(), "goal".to_owned()];
    for (index, subject) in subjects.iter().enumerate() {
        header.push((*subject).to_owned());
        if index > 0 {
            header.push("ratio".to_owned());
        }
    }
    header
}

fn row(line: &Line) -> Vec<String> {
    let ours = line.figures.first().copied().flatten();
    let mut row = vec![line.what.clone(), line.goal.to_owned()];
    for (index, figure) in line.figures.iter().enumerate() {
        row.push(figure.map_or_else(|| "-".to_owned(), shown));
        if index > 0 {
            let ratio = ours.zip(*figure).filter(|(_, theirs)| *theirs > 0.0);
            row.push(ratio.map_or_else(|| "-".to_owned(), |(ours, theirs)| shown(ours / theirs)));
        }
    }
    row
}

/// Three digits that mean something.
fn shown(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let mut samples = Samples::default();
        assert_eq!(samples.median(), None);
        for value in [5.0, 1.0, 4.0, 2.0, 3.0] {
            samples.push(value);
        }
        let quantiles = [0.0, 0.5, 0.8, 0.81, 1.0].map(|share| samples.quantile(share));
        assert_eq!(
            quantiles,
            [Some(1.0), Some(3.0), Some(4.0), Some(5.0), Some(5.0)]
        );
    }

    #[test]
    fn a_table_compares_with_the_first_subject() {
        let line = |what: &str, figures: &[Option<f64>]| Line {
            what: what.to_owned(),
            goal: "1",
            figures: figures.to_vec(),
        };
        let lines = [
            line("start, ms", &[Some(2.0), Some(4.0)]),
            line("x", &[None, Some(123.4)]),
        ];
        let expected = "\
            | figure    | goal | ours | peer | ratio |\n\
            | start, ms | 1    | 2.00 | 4.00 | 0.500 |\n\
            | x         | 1    | -    | 123  | -     |\n";
        assert_eq!(table(&["ours", "peer"], &lines), expected);
    }
}
