//! Words for users: lists of nodes that stay short, and times that do not move.

use std::fmt;

use k8s_openapi::jiff::Timestamp;

/// Most names in one message; a list of thousands would tell less.
const NAMES_MAX: usize = 10;

/// Names in a sentence: at most ten, quoted, and how many more there are.
pub struct Names<'a>(pub &'a [&'a str]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.0.iter().take(NAMES_MAX).enumerate() {
            let separator = if index > 0 { ", " } else { "" };
            write!(f, "{separator}{name:?}")?;
        }
        match self.0.len().saturating_sub(NAMES_MAX) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// A time of day in a message, always in UTC and whole seconds: a message that counts seconds would
/// be a write per second.
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A number with its noun.
pub fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// A text that fits a field of the API, cut between characters.
pub fn cut(text: &str, most: usize) -> String {
    let mut cut: String = text.chars().take(most).collect();
    if cut.len() < text.len() {
        cut.pop();
        cut.push('…');
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_name_ten_and_count_the_rest() {
        let names: Vec<_> = (0..12).map(|_| "n").collect();
        let text = Names(&names).to_string();
        assert_eq!(text.matches("\"n\"").count(), 10);
        assert!(text.ends_with(" and 2 more"), "{text}");
        assert_eq!(Names(&["a", "b"]).to_string(), "\"a\", \"b\"");
    }

    #[test]
    fn a_cut_text_says_so_and_keeps_whole_characters() {
        assert_eq!(cut("ÄÖÜ", 2), "Ä…");
        assert_eq!(cut("ÄÖÜ", 3), "ÄÖÜ");
    }
}
