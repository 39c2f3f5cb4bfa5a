//! A worker's output, kept on disk within a cap: the head and the newest part stay, the middle is cut.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const SIGNS: [&[u8]; 2] = [b"Error during batch generation", b"Error processing data item"];
/// Enough to find a sign that two chunks share, and to quote the line it stands in.
const CARRY: usize = 512;

/// An append-only log that never grows beyond its cap.
#[derive(Debug)]
pub struct CappedLog {
    file: File,
    cap: u64,
    len: u64,
    /// Bytes written in all, and bytes cut from the middle.
    pub output_bytes: u64,
    pub cut_bytes: u64,
    carry: Vec<u8>,
    /// First line in which a worker admits an error that it goes on after.
    pub swallowed_error: Option<String>,
}

impl CappedLog {
    /// Creates the log; it must not exist, since every attempt has its own.
    pub fn create(path: &Path, cap: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        let cap = cap.max(4096);
        Ok(Self {
            file,
            cap,
            len: 0,
            output_bytes: 0,
            cut_bytes: 0,
            carry: Vec::new(),
            swallowed_error: None,
        })
    }

    /// Appends one chunk of any bytes.
    pub fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.output_bytes += chunk.len() as u64;
        self.look_for_signs(chunk);
        for part in chunk.chunks((self.cap / 8) as usize) {
            if self.len + part.len() as u64 > self.cap {
                self.cut_middle()?;
            }
            self.file.write_all_at(part, self.len)?;
            self.len += part.len() as u64;
        }
        Ok(())
    }

    /// Keeps the first half of the cap and the last quarter, moved up behind a marker. Costs at most as many bytes
    /// as were written since the last cut.
    fn cut_middle(&mut self) -> io::Result<()> {
        let head = self.cap / 2;
        let keep = self.cap / 4;
        let from = self.len - keep;
        let mut buffer = vec![0; 64 * 1024];
        let marker = b"\n[... the middle of this log was cut to stay within its cap ...]\n";
        let mut to = head;
        self.file.write_all_at(marker, to)?;
        to += marker.len() as u64;
        if from <= to {
            return Ok(());
        }
        let mut at = from;
        while at < self.len {
            let n = ((self.len - at) as usize).min(buffer.len());
            self.file.read_exact_at(&mut buffer[..n], at)?;
            self.file.write_all_at(&buffer[..n], to)?;
            at += n as u64;
            to += n as u64;
        }
        self.file.set_len(to)?;
        self.cut_bytes += self.len - to;
        self.len = to;
        Ok(())
    }

    fn look_for_signs(&mut self, chunk: &[u8]) {
        if self.swallowed_error.is_some() {
            return;
        }
        self.carry.extend_from_slice(chunk);
        let found = SIGNS.iter().filter_map(|sign| memchr::memmem::find(&self.carry, sign)).min();
        if let Some(at) = found {
            let line = &self.carry[at..];
            let end =
                line.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(line.len()).min(200);
            self.swallowed_error = Some(String::from_utf8_lossy(&line[..end]).into_owned());
            self.carry = Vec::new();
        } else {
            let excess = self.carry.len().saturating_sub(CARRY);
            self.carry.drain(..excess);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_and_tail_stay_within_the_cap() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("log");
        let mut log = CappedLog::create(&path, 10_000)?;
        for i in 0..5000 {
            log.write(format!("line {i}\n").as_bytes())?;
            assert!(std::fs::metadata(&path)?.len() <= 10_000);
        }
        let text = std::fs::read_to_string(&path)?;
        assert!(text.starts_with("line 0\nline 1\n"));
        assert!(text.ends_with("line 4998\nline 4999\n"));
        assert_eq!(text.matches("was cut").count(), 1);
        assert!(log.cut_bytes > 0 && log.output_bytes > 40_000);
        Ok(())
    }

    #[test]
    fn one_chunk_larger_than_the_cap_is_taken() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("log");
        let mut log = CappedLog::create(&path, 8192)?;
        log.write(&vec![b'x'; 1 << 20])?;
        assert!(std::fs::metadata(&path)?.len() <= 8192);
        Ok(())
    }

    #[test]
    fn an_admitted_error_is_found_across_chunks() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        for cut in 0..40 {
            let mut log = CappedLog::create(&dir.path().join(format!("log{cut}")), 1 << 20)?;
            let text = b"fine\nError during batch generation: out of luck\nfine again\n";
            log.write(&text[..cut])?;
            log.write(&text[cut..])?;
            let line = log.swallowed_error.unwrap_or_default();
            assert!(line.starts_with("Error during batch generation"), "cut {cut}: {line}");
        }
        Ok(())
    }
}
