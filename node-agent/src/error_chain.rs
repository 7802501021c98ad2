//! An error with all its causes, in one line.

use std::error::Error;

/// The texts of an error and its causes. Many libraries repeat the cause in their own text; it is then
/// told once.
pub fn chained(error: &(dyn Error + 'static)) -> String {
    let mut told = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !told.contains(&text) {
            told = format!("{told}: {text}");
        }
        next = cause.source();
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        source: Option<Box<Link>>,
    }

    fn chain(texts: &[&'static str]) -> Link {
        let (text, causes) = texts.split_first().unwrap();
        let source = (!causes.is_empty()).then(|| Box::new(chain(causes)));
        Link { text, source }
    }

    #[test]
    fn causes_are_told_once() {
        let check =
            |texts: &[&'static str], expected: &str| assert_eq!(chained(&chain(texts)), expected);
        check(&["a"], "a");
        check(&["failed to x", "no y", "z"], "failed to x: no y: z");
        check(
            &["failed to x", "no y: z", "z", "z"],
            "failed to x: no y: z",
        );
    }
}
