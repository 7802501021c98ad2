//! Random numbers from the kernel.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// A random number.
pub fn number() -> io::Result<u64> {
    let mut bytes = [0; 8];
    let read = getrandom(&mut bytes, GetRandomFlags::empty())?;
    // The kernel gives up to 256 bytes at once or none.
    if read == bytes.len() {
        Ok(u64::from_ne_bytes(bytes))
    } else {
        Err(io::Error::from(io::ErrorKind::UnexpectedEof))
    }
}

/// A random number from 0 to 1. Without randomness agents may try in step, which is no failure.
pub fn jitter() -> f64 {
    let whole = number().unwrap_or(0) >> 32;
    f64::from(u32::try_from(whole).unwrap_or(0)) / f64::from(u32::MAX)
}
