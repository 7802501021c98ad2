//! Waiting for a state of the cluster, with a deadline and an eye on the processes that must bring
//! it about.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::process::Process;

/// Pause between two looks: small beside the seconds that components need, large beside the cost of
/// a look.
const PAUSE: Duration = Duration::from_millis(100);

/// Looks until `look` yields something. What it says meanwhile becomes part of the message when the
/// deadline has passed.
///
/// A process of `watched` that has ended ends the wait at once.
pub fn until<T>(
    what: &str,
    deadline: Duration,
    watched: &[&Process],
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let begun = Instant::now();
    loop {
        let seen = look();
        if let Ok(Some(found)) = seen {
            return Ok(found);
        }
        for process in watched {
            process
                .check()
                .with_context(|| format!("while waiting for {what}"))?;
        }
        if begun.elapsed() > deadline {
            let waited = format!("{what} did not happen within {} s", deadline.as_secs());
            match seen {
                Err(error) => return Err(error.context(waited)),
                Ok(_) => bail!(waited),
            }
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_names_what_was_waited_for_and_the_last_obstacle() {
        let error = until::<()>("the moon", Duration::ZERO, &[], || bail!("still day"));
        let text = error
            .err()
            .map(|error| format!("{error:#}"))
            .unwrap_or_default();
        assert_eq!(text, "the moon did not happen within 0 s: still day");
    }

    #[test]
    fn an_obstacle_is_no_end() -> Result<()> {
        let mut looks = 0;
        let found = until("the third look", Duration::from_secs(5), &[], || {
            looks += 1;
            match looks {
                1 => bail!("not yet"),
                2 => Ok(None),
                look => Ok(Some(look)),
            }
        })?;
        assert_eq!(found, 3);
        Ok(())
    }
}
