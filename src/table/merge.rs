//! One file out of many: the rows of all planned ids, sorted by data_id and token_id, with the proof that each id
//! comes whole from exactly one piece.
//!
//! A scanning thread surveys segment after segment ([`survey`]): it checks every record and finds out which bytes
//! can be copied as they are. The calling thread writes what was surveyed ([`emit`]). Nothing may be kept of the
//! output unless `merge` returned `Ok`.

use super::field::Token;
use super::record::Header;
use crate::types::Segment;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use thiserror::Error;

/// One result file and what was accepted of it.
#[derive(Debug, Clone)]
pub struct MergeSource {
    /// Not opened where the segments have no spans.
    pub path: PathBuf,
    pub segments: Vec<Segment>,
}

/// What one source gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceReport {
    pub rows: u64,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergeReport {
    /// `None` if there was no row anywhere; then nothing was written.
    pub header: Option<Vec<String>>,
    pub rows: u64,
    /// Length in bytes and CRC-32 of all that was written.
    pub bytes: u64,
    pub crc: u32,
    /// In the order of the sources given.
    pub sources: Vec<SourceReport>,
    /// Planned ids, ascending, that yielded no row.
    pub ids_without_rows: Vec<i64>,
    /// Records in which a field had to be quoted because it holds a lone `\r`.
    pub quoted_lone_cr: u64,
    /// Segments whose rows were not in order yet.
    pub sorted_segments: u64,
}

/// Why there is no complete merged file. Bytes count from 0, lines from 1.
#[derive(Debug, Error)]
pub enum MergeError {
    #[error("cannot open the result file {}; it was there when its rows were accepted", file.display())]
    Open { file: PathBuf, source: io::Error },
    #[error("cannot read the result file {}; check the disk it lies on", file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error("cannot write the merged file; check the space on its disk")]
    Write { source: io::Error },
    #[error("the planned ids are not ascending: {left} stands before {right}")]
    PlanOrder { left: i64, right: i64 },
    #[error("{count} planned ids are covered by no result, first {ids:?}; run their ranges again")]
    Missing { ids: Vec<i64>, count: usize },
    #[error(
        "the ids {}..={} of {} and {}..={} of {} overlap; only one of the files may be used for them",
        left_ids.0, left_ids.1, left.display(), right_ids.0, right_ids.1, right.display()
    )]
    Overlap { left: PathBuf, left_ids: (i64, i64), right: PathBuf, right_ids: (i64, i64) },
    #[error("the segment {}..={} of {} has its ids the wrong way round", ids.0, ids.1, file.display())]
    Inverted { file: PathBuf, ids: (i64, i64) },
    #[error("{} has no whole header (line 1, byte 0) although rows of it were accepted; run its range again", file.display())]
    NoHeader { file: PathBuf },
    #[error("the header of {} has no data_id column (line 1, byte 0); run its range again", file.display())]
    NoIdColumn { file: PathBuf },
    #[error(
        "the headers of {} and {} differ in field {field}: {left:?} and {right:?}; results of different workers cannot be merged",
        first.display(), other.display()
    )]
    HeaderDiffers { first: PathBuf, other: PathBuf, field: usize, left: String, right: String },
    #[error(
        "the bytes {}..{} accepted of {} do not lie between its header (to byte {body}) and its end (byte {len}); the file \
         was changed, run its range again",
        span.0, span.1, file.display()
    )]
    OutOfFile { file: PathBuf, span: (u64, u64), body: u64, len: u64 },
    #[error(
        "the bytes {}..{} and {}..{} accepted of {} overlap, so rows would be doubled; run its range again",
        left.0, left.1, right.0, right.1, file.display()
    )]
    SpansOverlap { file: PathBuf, left: (u64, u64), right: (u64, u64) },
    #[error(
        "byte {byte} of {} (line {line}) is inside a record, although accepted rows begin there; run its range again",
        file.display()
    )]
    NotAtRecord { file: PathBuf, line: u64, byte: u64 },
    #[error(
        "the accepted record at byte {byte} of {} (line {line}) is cut off at byte {end}; run its range again",
        file.display()
    )]
    Torn { file: PathBuf, line: u64, byte: u64, end: u64 },
    #[error(
        "the record at byte {byte} of {} (line {line}) has {found} fields where the header has {expected}; run its range again",
        file.display()
    )]
    FieldCount { file: PathBuf, line: u64, byte: u64, found: usize, expected: usize },
    #[error(
        "data_id {value:?} is not an integer (in {}, line {line}, byte {byte}); run its range again",
        file.display()
    )]
    BadId { file: PathBuf, line: u64, byte: u64, value: String },
    #[error(
        "data_id {id} is outside of {}..={} (in {}, line {line}, byte {byte}); run its range again",
        ids.0, ids.1, file.display()
    )]
    ForeignId { file: PathBuf, line: u64, byte: u64, id: i64, ids: (i64, i64) },
    #[error("data_id {id} was never planned (in {}, line {line}, byte {byte}); run its range again", file.display())]
    UnplannedId { file: PathBuf, line: u64, byte: u64, id: i64 },
    #[error(
        "{} has {found} rows of the ids {}..={} where {expected} were accepted (from byte {byte}, line {line}); run its \
         range again",
        file.display(), ids.0, ids.1
    )]
    RowCount { file: PathBuf, line: u64, byte: u64, ids: (i64, i64), found: u64, expected: u64 },
}

/// Merges the segments of all `sources` into `out`: the header once, then every row, sorted by data_id and token_id,
/// ties in file order (without a token_id column: file order). Every id of `planned` (ascending) must lie in exactly
/// one segment. Rows keep their bytes, except that a field with a lone `\r` is quoted.
///
/// # Errors
/// The first violation of that; what was written until then is of no use.
pub fn merge(
    sources: &[MergeSource],
    planned: &[i64],
    out: &mut dyn Write,
) -> Result<MergeReport, MergeError> {
    let parts = check::cover(sources, planned)?;
    let tables = check::open_all(sources)?;
    let mut report = MergeReport {
        header: None,
        rows: 0,
        bytes: 0,
        crc: 0,
        sources: vec![SourceReport { rows: 0 }; sources.len()],
        ids_without_rows: Vec::new(),
        quoted_lone_cr: 0,
        sorted_segments: 0,
    };
    let mut sink = emit::Sink::new(out);
    if let Some(first) = &tables.first {
        sink.write_header(first, tables.crlf)?;
        report.header = Some(first.fields.clone());
    }
    let seen = std::thread::scope(|scope| {
        // One segment is surveyed while the one before it is written; more would only cost memory.
        let (done, surveys) = mpsc::sync_channel(0);
        let (parts, tables) = (&parts, &tables);
        let scanner = scope.spawn(move || survey::survey_all(parts, tables, planned, &done));
        for survey in surveys {
            let survey: survey::Survey<'_> = survey?;
            report.rows += survey.rows;
            report.sources[survey.source].rows += survey.rows;
            report.sorted_segments += u64::from(survey.sorted);
            report.quoted_lone_cr += emit::emit(&survey, &mut sink)?;
        }
        match scanner.join() {
            Ok(seen) => Ok(seen),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    let unseen = planned.iter().zip(&seen).filter(|(_, seen)| !**seen);
    report.ids_without_rows = unseen.map(|(id, _)| *id).collect();
    (report.bytes, report.crc) = sink.finish()?;
    Ok(report)
}

/// One segment and the place of its source.
#[derive(Debug, Clone, Copy)]
struct Part<'a> {
    source: usize,
    segment: &'a Segment,
}

/// A source with rows.
struct Table<'a> {
    path: &'a Path,
    fields: usize,
    crlf: bool,
    id: usize,
    token: usize,
    len: u64,
}

impl Table<'_> {
    fn open(&self) -> Result<File, MergeError> {
        open(self.path)
    }

    fn read_error(&self, source: io::Error) -> MergeError {
        MergeError::Read { file: self.path.into(), source }
    }
}

fn open(path: &Path) -> Result<File, MergeError> {
    File::open(path).map_err(|source| MergeError::Open { file: path.into(), source })
}

/// All sources as opened; `None` for one without spans.
struct Tables<'a> {
    tables: Vec<Option<Table<'a>>>,
    /// The header that all share.
    first: Option<Header>,
    /// At least one of them ends its lines in `\r\n`; then the output's header does, so that none of its rows is
    /// read with a `\r` too much.
    crlf: bool,
}

mod check;
mod emit;
mod survey;

#[cfg(test)]
mod tests;
