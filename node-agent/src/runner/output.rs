//! What a program printed, as much of it as a message can hold.

use std::collections::VecDeque;

use crate::runner::MESSAGE_MAX;

/// The end of an output, whatever its length.
#[derive(Debug, Default)]
pub struct Tail {
    bytes: VecDeque<u8>,
}

impl Tail {
    /// Takes more output in, and lets go of what no message will hold.
    pub fn push(&mut self, more: &[u8]) {
        self.bytes.extend(more);
        // A character has up to four bytes.
        let spare = self.bytes.len().saturating_sub(4 * MESSAGE_MAX);
        self.bytes.drain(..spare);
    }

    /// The output on one line.
    pub fn line(&self) -> String {
        let (front, back) = self.bytes.as_slices();
        line(&String::from_utf8_lossy(&[front, back].concat()))
    }
}

/// How an action ended, and what it printed.
pub fn message(ending: &str, output: &str) -> String {
    let text = match (ending, output) {
        (ending, "") => ending.to_owned(),
        ("", output) => output.to_owned(),
        (ending, output) => format!("{ending}: {output}"),
    };
    let spare = text.chars().count().saturating_sub(MESSAGE_MAX);
    if spare == 0 {
        return text;
    }
    // How it ended is told first, and the cause last: what is between them goes.
    let head: String = text.chars().take(ending.chars().count().min(256)).collect();
    let behind = head.chars().count() + spare + 5;
    let end: String = text.chars().skip(behind).collect();
    format!("{head} ... {end}")
}

/// One line without control characters, which a terminal or a log would obey.
fn line(text: &str) -> String {
    let visible = |c: char| {
        if c.is_control() || c == '\u{fffd}' {
            ' '
        } else {
            c
        }
    };
    let text: String = text.chars().map(visible).collect();
    text.split(' ')
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_flood_is_kept() {
        let mut tail = Tail::default();
        for _ in 0..10_000 {
            tail.push(b"out of memory\n");
        }
        tail.push(b"and \x1b[31mthen\0 it failed\n\xff\n");
        assert!(tail.bytes.len() <= 4 * MESSAGE_MAX);
        let message = message("exit code 3", &tail.line());
        assert_eq!(message.chars().count(), MESSAGE_MAX);
        assert!(message.starts_with("exit code 3 ... "), "{message}");
        assert!(
            message.ends_with("out of memory and [31mthen it failed"),
            "{message}"
        );
    }

    #[test]
    fn a_short_message_is_whole() {
        assert_eq!(message("exit code 3", "no card"), "exit code 3: no card");
        assert_eq!(message("exit code 3", ""), "exit code 3");
        assert_eq!(message("", "done"), "done");
        assert_eq!(message("", &"ä".repeat(5000)).chars().count(), MESSAGE_MAX);
    }
}
