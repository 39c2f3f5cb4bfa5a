//! One pass over the input: which data_ids there are, how many records each has, where they lie and a digest of
//! their content.
//!
//! Two threads take blocks from one cursor. Where a block's last record ends is known only to somebody who knows
//! whether its first byte is inside quotes; the cursor decides that by counting quotes, which is right unless a
//! quote stands in the middle of an unquoted field. A worker that meets such a quote, or anything else it cannot
//! vouch for, gives up, and the file is read again by [`exact`], in order and without guessing. So every error and
//! every odd file is judged by the exact rules alone.

use super::blocks::{BLOCK, Stop, for_blocks, line_of, read_full};
use super::field::{LastId, integer, shown};
use super::record::{ABSENT, Header, Record, Records, Wanted, find_near, whole};
use crate::types::{IdRows, InputIndex};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::hash::BuildHasherDefault;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use thiserror::Error;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Why an input cannot be planned. Bytes count from 0, lines from 1.
#[derive(Debug, Error)]
pub enum ScanError {
    #[error("cannot open the input {}; check the path and its permissions", file.display())]
    Open { file: PathBuf, source: io::Error },
    #[error("cannot read the input {}; check the disk it lies on", file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error("the input {} is empty; it needs a header line and records with a data_id", file.display())]
    Empty { file: PathBuf },
    #[error("the header of the input {} does not end (line 1, byte 0): a quote is never closed, or it is no CSV file", file.display())]
    HeaderCut { file: PathBuf },
    #[error("the input {} has no data_id column (line 1); its columns are: {}", file.display(), columns.join(", "))]
    NoIdColumn { file: PathBuf, columns: Vec<String> },
    #[error("the input {} has no records under its header; there is nothing to plan", file.display())]
    NoRows { file: PathBuf },
    #[error(
        "data_id {value:?} is not an integer (in {}, line {line}, byte {byte}); correct or remove this record",
        file.display()
    )]
    BadId { file: PathBuf, line: u64, byte: u64, value: String },
    #[error(
        "the last record is cut off (in {}, line {line}, byte {byte}): {reason}; the file was not written to its end",
        file.display()
    )]
    CutOff { file: PathBuf, line: u64, byte: u64, reason: String },
    #[error(
        "a record has {fields} fields and no data_id, which is field {needed} (in {}, line {line}, byte {byte}); correct \
         or remove it",
        file.display()
    )]
    ShortRecord { file: PathBuf, line: u64, byte: u64, fields: usize, needed: usize },
}

/// Reads the table at `path` once and returns its distinct data_ids with the number, place and CRC-32 of their
/// records. Where a span is given, the CRC is that of exactly its bytes.
///
/// # Errors
/// The first thing in the file, in file order, that a plan cannot be built on.
pub fn scan_input(path: &Path) -> Result<InputIndex, ScanError> {
    scan_in_blocks(path, BLOCK)
}

fn scan_in_blocks(path: &Path, block: usize) -> Result<InputIndex, ScanError> {
    let file = File::open(path).map_err(|source| ScanError::Open { file: path.into(), source })?;
    let table = Table::open(&file, path)?;
    let body = table.header.body;
    let (totals, end) = speculative(&table, block).unwrap_or_else(|GaveUp| (Totals::default(), body));
    // Behind a whole fast scan there is at most a last record without its newline.
    let (totals, bytes) = exact(&table, totals, end)?;
    if totals.ids.is_empty() {
        return Err(ScanError::NoRows { file: path.into() });
    }
    Ok(totals.index(table.header.fields.clone(), bytes))
}

/// The opened input and what its header says.
struct Table<'a> {
    file: &'a File,
    path: &'a Path,
    header: Header,
    column: usize,
}

impl<'a> Table<'a> {
    fn open(file: &'a File, path: &'a Path) -> Result<Self, ScanError> {
        let header = Header::read(file).map_err(|source| ScanError::Read { file: path.into(), source })?;
        let header = header.ok_or_else(|| ScanError::Empty { file: path.into() })?;
        if header.torn {
            return Err(ScanError::HeaderCut { file: path.into() });
        }
        let Some(column) = header.column("data_id") else {
            return Err(ScanError::NoIdColumn { file: path.into(), columns: header.fields });
        };
        Ok(Self { file, path, header, column })
    }

    fn wanted(&self) -> Wanted {
        Wanted { id: self.column, token: ABSENT }
    }
}

/// The records of one id in one stretch of the file.
#[derive(Debug, Clone, Copy)]
struct Found {
    id: i64,
    rows: u64,
    start: u64,
    end: u64,
    /// Length of its records together; `end - start` only if nothing else lies between.
    bytes: u64,
    digest: Digest,
}

/// What records hold, in their order: `d = d * FACTOR + xxh3(record)`, so that the digests of two stretches make the
/// digest of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Digest(u64);

impl Digest {
    /// Any odd number spreads; this one is 2^64 over the golden ratio.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

    #[inline]
    fn push(&mut self, record: &[u8]) {
        self.push_hash(xxh3_64(record));
    }

    #[inline]
    fn push_hash(&mut self, hash: u64) {
        self.0 = self.0.wrapping_mul(Self::FACTOR).wrapping_add(hash);
    }

    /// Adds the digest of the `records` that follow.
    fn append(&mut self, next: Self, mut records: u64) {
        let (mut power, mut square) = (1u64, Self::FACTOR);
        while records > 0 {
            if records & 1 == 1 {
                power = power.wrapping_mul(square);
            }
            square = square.wrapping_mul(square);
            records >>= 1;
        }
        self.0 = self.0.wrapping_mul(power).wrapping_add(next.0);
    }
}

/// Spreads ids, which are mostly consecutive; the standard hasher costs more than the rest of a record.
#[derive(Default)]
struct IdHasher(u64);

impl std::hash::Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_i64(i64::from(*byte));
        }
    }

    fn write_i64(&mut self, id: i64) {
        self.0 = (self.0.rotate_left(5) ^ id.cast_unsigned()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 32;
    }
}

/// What was found of each id, in the order of first appearance.
#[derive(Default)]
struct Totals {
    ids: Vec<Found>,
    places: HashMap<i64, usize, BuildHasherDefault<IdHasher>>,
    last: usize,
    /// By the low bits of an id, where it probably is in `ids`: cheaper than the map, and ids are mostly dense.
    guesses: Vec<u32>,
}

const GUESSES: usize = 1 << 13;

impl Totals {
    fn entry(&mut self, id: i64, start: u64) -> &mut Found {
        if self.ids.get(self.last).is_none_or(|found| found.id != id) {
            let slot = id.cast_unsigned() as usize % GUESSES;
            self.guesses.resize(GUESSES, 0);
            let guess = self.guesses[slot] as usize;
            if self.ids.get(guess).is_none_or(|found| found.id != id) {
                self.last = self.place(id, start);
                self.guesses[slot] = u32::try_from(self.last).unwrap_or(0);
            } else {
                self.last = guess;
            }
        }
        &mut self.ids[self.last]
    }

    fn place(&mut self, id: i64, start: u64) -> usize {
        let ids = &mut self.ids;
        *self.places.entry(id).or_insert_with(|| {
            ids.push(Found { id, rows: 0, start, end: start, bytes: 0, digest: Digest::default() });
            ids.len() - 1
        })
    }

    /// Adds adjacent records of one id, which lie in `[start, end)`.
    fn add_run(&mut self, id: i64, rows: u64, digest: Digest, (start, end): (u64, u64)) {
        let found = self.entry(id, start);
        found.digest.append(digest, rows);
        found.rows += rows;
        found.bytes += end - start;
        found.end = end;
    }

    /// Adds what was found in the stretch of the file that follows this one.
    fn append(&mut self, next: &[Found]) {
        for part in next {
            let found = self.entry(part.id, part.start);
            found.digest.append(part.digest, part.rows);
            found.rows += part.rows;
            found.bytes += part.bytes;
            found.end = part.end;
        }
    }

    fn clear(&mut self) {
        self.ids.clear();
        self.places.clear();
        self.last = 0;
    }

    fn index(mut self, header: Vec<String>, bytes: u64) -> InputIndex {
        drop(self.places);
        self.ids.sort_unstable_by_key(|found| found.id);
        let rows = self.ids.iter().map(|found| found.rows).sum();
        let ids = self.ids.iter().map(|found| IdRows {
            id: found.id,
            rows: found.rows,
            span: (found.end - found.start == found.bytes).then_some((found.start, found.end)),
            digest: found.digest.0,
        });
        InputIndex { header, ids: ids.collect(), rows, bytes }
    }
}

mod exact;
mod parallel;

use exact::exact;
use parallel::{GaveUp, speculative};

#[cfg(test)]
mod tests;
