//! What one worker's result file holds, before anything is decided about it.

use super::blocks::{for_blocks, line_of};
use super::field::{LastId, integer, shown};
use super::record::{ABSENT, Header, Record, Records, Wanted};
use crate::types::{IdRun, Malformed, ShardFacts, Tail};
use crc32fast::Hasher;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a result file cannot be judged. What is wrong inside of it is no error but a fact.
#[derive(Debug, Error)]
pub enum ShardError {
    #[error("cannot open the result file {}; check its permissions", file.display())]
    Open { file: PathBuf, source: io::Error },
    #[error("cannot read the result file {}; check the disk it lies on", file.display())]
    Read { file: PathBuf, source: io::Error },
}

/// Reads the result file at `path` once, from its first to its last byte. Memory: two blocks and 32 bytes per run.
///
/// # Errors
/// Only where the file cannot be opened or read.
pub fn read_shard(path: &Path) -> Result<ShardFacts, ShardError> {
    let file = File::open(path).map_err(|source| ShardError::Open { file: path.into(), source })?;
    facts(&file).map_err(|source| ShardError::Read { file: path.into(), source })
}

fn facts(file: &File) -> io::Result<ShardFacts> {
    let mut facts = ShardFacts::default();
    let header = Header::read(file)?.filter(|header| header.ended);
    let mut reader = header.as_ref().and_then(Reader::new);
    let mut crc = Hasher::new();
    facts.len = for_blocks::<io::Error>(file, (0, u64::MAX), |offset, block| {
        crc.update(block);
        if let Some(reader) = reader.as_mut().filter(|reader| reader.fault.is_none()) {
            reader.take(offset, block);
        }
        Ok(true)
    })?;
    facts.crc = crc.finalize();
    let Some(header) = header else { return Ok(facts) };
    facts.body = header.body;
    facts.malformed = match &mut reader {
        None => {
            let columns = header.fields.join(", ");
            Some(Malformed {
                byte: 0,
                line: 1,
                reason: format!("the header has no data_id column, only: {columns}"),
            })
        }
        Some(reader) => {
            facts.runs = std::mem::take(&mut reader.runs);
            facts.tail = reader.tail();
            let fault = reader.fault.take();
            fault.map(|(byte, reason)| Malformed { byte, line: line_of(file, byte), reason })
        }
    };
    facts.header = Some(header.fields);
    Ok(facts)
}

/// Collects runs and the first fault.
struct Reader {
    records: Records,
    body: u64,
    fields: usize,
    column: usize,
    last: LastId,
    runs: Vec<IdRun>,
    fault: Option<(u64, String)>,
}

impl Reader {
    fn new(header: &Header) -> Option<Self> {
        let column = header.column("data_id")?;
        Some(Self {
            records: Records::new(header.body, Wanted { id: column, token: ABSENT }, header.crlf),
            body: header.body,
            fields: header.fields.len(),
            column,
            last: LastId::default(),
            runs: Vec::new(),
            fault: None,
        })
    }

    fn take(&mut self, offset: u64, block: &[u8]) {
        let skipped =
            usize::try_from(self.body.saturating_sub(offset)).unwrap_or(usize::MAX).min(block.len());
        let Self { records, fields, last, runs, .. } = self;
        let fed = records.feed(&block[skipped..], |record| {
            let id = id_of(&record, *fields, last).map_err(|reason| (record.start, reason))?;
            match runs.last_mut() {
                Some(run) if run.id == id => {
                    run.end = record.end;
                    run.rows += 1;
                }
                _ => runs.push(IdRun { id, start: record.start, end: record.end, rows: 1 }),
            }
            Ok(())
        });
        self.fault = fed.err();
    }

    fn tail(&self) -> Option<Tail> {
        if self.fault.is_some() {
            return None;
        }
        let rest = self.records.rest()?;
        let id = integer(rest.id);
        let whole = rest.fields == self.fields && !rest.in_quotes;
        let closed = rest.fields > self.column + 1;
        Some(Tail { start: rest.start, closed_id: id.filter(|_| closed), whole_id: id.filter(|_| whole) })
    }
}

fn id_of(record: &Record<'_>, fields: usize, last: &mut LastId) -> Result<i64, String> {
    if record.fields != fields {
        return Err(format!("{} fields where the header has {fields}", record.fields));
    }
    last.read(record.id).ok_or_else(|| format!("data_id {:?} is not an integer", shown(record.id)))
}

/// Counts the records of a file while it is being written; feed it what was appended since the last time.
pub struct RowCounter {
    records: Records,
    /// Bytes of the byte order mark seen so far, until it is clear whether there is one.
    mark: Option<usize>,
    ended: u64,
}

impl Default for RowCounter {
    fn default() -> Self {
        Self::new()
    }
}

impl RowCounter {
    /// For a file that is read from its first byte.
    pub fn new() -> Self {
        Self { records: Records::from_header(), mark: Some(0), ended: 0 }
    }

    /// Takes the file's next bytes, wherever they are cut.
    pub fn update(&mut self, bytes: &[u8]) {
        const MARK: &[u8] = b"\xef\xbb\xbf";
        let mut bytes = bytes;
        while let (Some(seen), Some((first, rest))) = (self.mark, bytes.split_first()) {
            if MARK.get(seen) == Some(first) {
                bytes = rest;
                self.mark = Some(seen + 1).filter(|seen| *seen < MARK.len());
            } else {
                self.mark = None;
                self.count(&MARK[..seen]);
            }
        }
        self.count(bytes);
    }

    fn count(&mut self, bytes: &[u8]) {
        let ended = &mut self.ended;
        let counted = self.records.feed(bytes, |_| {
            *ended += 1;
            Ok::<(), std::convert::Infallible>(())
        });
        let Ok(()) = counted;
    }

    /// Records that have ended so far, the header not counted.
    pub fn rows(&self) -> u64 {
        self.ended.saturating_sub(1)
    }
}

#[cfg(test)]
mod tests;
