//! Messages on a stream: four bytes of length, most significant first, and that much JSON.

use std::io::{self, Read};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest message. A request with every member at its limit is below a third of it; what claims to
/// be longer is not read.
const LENGTH_MAX: usize = 256 << 10;
/// Length of a length.
const HEAD: usize = 4;

/// Why a message cannot be sent or understood.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// It would be too long.
    #[error("a message of {0} bytes is longer than {LENGTH_MAX}")]
    Length(usize),
    /// It is no JSON of the expected form.
    #[error("failed to read or write a message as JSON")]
    Json(#[from] serde_json::Error),
}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// A message with its length.
///
/// # Errors
/// When it is too long.
pub fn framed(message: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let body = serde_json::to_vec(message)?;
    let length = body_length(body.len())?;
    let mut frame = Vec::with_capacity(HEAD + body.len());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// The length that a head announces.
fn announced(head: [u8; HEAD]) -> Result<usize, FrameError> {
    let length = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
    body_length(length)?;
    Ok(length)
}

/// The next message.
///
/// # Errors
/// When the stream ends or fails before its end, or it is none.
pub fn received<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<T> {
    let mut head = [0; HEAD];
    stream.read_exact(&mut head)?;
    let mut body = vec![0; announced(head)?];
    stream.read_exact(&mut body)?;
    Ok(understood(&body)?)
}

/// The next message, of a stream that can be waited for.
///
/// # Errors
/// As [`received`].
pub async fn next<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let mut head = [0; HEAD];
    stream.read_exact(&mut head).await?;
    let mut body = vec![0; announced(head)?];
    stream.read_exact(&mut body).await?;
    Ok(understood(&body)?)
}

fn understood<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    Ok(serde_json::from_slice(body)?)
}

fn body_length(length: usize) -> Result<u32, FrameError> {
    match u32::try_from(length) {
        Ok(fitting) if length <= LENGTH_MAX => Ok(fitting),
        _ => Err(FrameError::Length(length)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_as_it_was() {
        let frame = framed(&"reset").unwrap();
        assert_eq!(received::<String>(&mut frame.as_slice()).unwrap(), "reset");
        assert!(received::<u32>(&mut frame.as_slice()).is_err());
        for short in 0..frame.len() {
            assert!(received::<String>(&mut &frame[..short]).is_err(), "{short}");
        }
    }

    #[test]
    fn what_is_too_long_is_neither_sent_nor_read() {
        assert!(framed(&"x".repeat(LENGTH_MAX)).is_err());
        assert!(announced([0xff; HEAD]).is_err());
        assert!(announced(u32::try_from(LENGTH_MAX + 1).unwrap().to_be_bytes()).is_err());
        assert!(announced(u32::try_from(LENGTH_MAX).unwrap().to_be_bytes()).is_ok());
    }
}
