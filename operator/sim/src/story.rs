//! What happened, in lines that a person reads.

use std::fmt;
use std::time::Duration;

/// The lines, kept only while somebody wants to read them.
#[derive(Clone, Debug, Default)]
pub struct Story {
    /// Whether lines are kept.
    pub kept: bool,
    /// The lines.
    pub lines: Vec<Line>,
}

/// Something that happened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Line {
    /// When.
    pub at: Duration,
    /// Where: a node, a process, or the cluster.
    pub place: String,
    /// What.
    pub what: String,
    /// Whether it matters only to who reads everything.
    pub is_minor: bool,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.at.as_millis();
        let (seconds, millis) = (millis / 1000, millis % 1000);
        let (minutes, seconds) = (seconds / 60, seconds % 60);
        let (place, what) = (&self.place, &self.what);
        write!(f, "{minutes:3}:{seconds:02}.{millis:03}  {place:<9} {what}")
    }
}

/// Adds a line to a world's story. Its text is made only where the story is kept.
macro_rules! tell {
    ($world:expr, $place:expr, $($what:tt)+) => {
        if $world.story.kept {
            let line = crate::story::Line {
                at: $world.now,
                place: $place.to_string(),
                what: format!($($what)+),
                is_minor: false,
            };
            $world.story.lines.push(line);
        }
    };
}
pub(crate) use tell;
