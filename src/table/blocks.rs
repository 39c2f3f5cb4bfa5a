//! Reading a file in large blocks, without mmap: a file that shrinks under us is then an error and not a SIGBUS.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

/// Bytes per read. Large enough that a system call costs nothing beside the copy, small enough for the L2 cache.
pub(crate) const BLOCK: usize = 1 << 20;

/// Fills `buf` from byte `at` as far as the file reaches; returns how many bytes there were.
pub(crate) fn read_full(file: &File, buf: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match file.read_at(&mut buf[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Reads exactly `[at, at + buf.len())`.
pub(crate) fn read_exact(file: &File, buf: &mut [u8], at: u64) -> io::Result<()> {
    if read_full(file, buf, at)? < buf.len() {
        return Err(shorter());
    }
    Ok(())
}

/// The file ended before a byte that it had a moment ago.
pub(crate) fn shorter() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "the file is shorter than it was")
}

/// Why a walk over blocks ended early: the file could not be read, or what it holds is bad.
pub(crate) enum Stop<E> {
    Io(io::Error),
    Bad(E),
}

impl<E> From<io::Error> for Stop<E> {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Calls `each(offset, bytes)` for the blocks of `[from, to)`, or up to the end of the file where that comes
/// first; returns the byte after the last one read. `each` ends the walk early with `Ok(false)`.
pub(crate) fn for_blocks<E: From<io::Error>>(
    file: &File,
    (from, to): (u64, u64),
    mut each: impl FnMut(u64, &[u8]) -> Result<bool, E>,
) -> Result<u64, E> {
    let mut buf = vec![0; usize::try_from(to.saturating_sub(from)).unwrap_or(BLOCK).min(BLOCK)];
    let mut at = from;
    while at < to {
        let want = usize::try_from(to - at).unwrap_or(BLOCK).min(buf.len());
        let got = read_full(file, &mut buf[..want], at)?;
        let go_on = each(at, &buf[..got])?;
        at += got as u64;
        if got < want || !go_on {
            break;
        }
    }
    Ok(at)
}

/// The 1-based line that byte `at` lies in. Counted only when an error needs it; 0 where the file cannot be read
/// any more, because the error at hand matters more than that one.
pub(crate) fn line_of(file: &File, at: u64) -> u64 {
    let mut line = 1;
    let counted = for_blocks::<io::Error>(file, (0, at), |_, bytes| {
        line += memchr::memchr_iter(b'\n', bytes).count() as u64;
        Ok(true)
    });
    if counted.is_ok() { line } else { 0 }
}
