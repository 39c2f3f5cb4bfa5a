//! Workers' result files: judged where they lie, put together, merged.

use super::files::{fingerprint, io_error, sync_dir};
use crate::core::plan;
use crate::ports::{Findings, Outputs, StoreError};
use crate::table::merge::{MergeError, MergeReport, MergeSource, merge};
use crate::table::shard::read_shard;
use crate::types::layout::{Layout, MERGED, PARTIAL};
use crate::types::state::{GivenUp, MergeSummary, MergedPart, RangeState, RangeStatus, VERSION};
use crate::types::{Attempt, Piece, RangeId, Segment, ShardFacts};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone)]
pub struct FolderOutputs {
    layout: Layout,
}

impl FolderOutputs {
    pub fn new(layout: Layout) -> Self {
        Self { layout }
    }

    fn facts(&self, path: &Path) -> Result<Option<ShardFacts>, StoreError> {
        match fs::symlink_metadata(path) {
            // A link or a FIFO is nothing a worker was asked to write.
            Ok(found) if !found.is_file() => Ok(None),
            Ok(_) => read_shard(path).map(Some).map_err(|error| StoreError::Data(error.to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("read", path)(error)),
        }
    }

    /// Every accepted piece with rows, as the merge takes them.
    fn sources<'a>(&self, pieces: impl Iterator<Item = &'a Piece>) -> Vec<MergeSource> {
        pieces
            .map(|piece| MergeSource { path: self.layout.at(&piece.file), segments: piece.segments.clone() })
            .collect()
    }

    /// Writes rows to `target` in one piece or not at all.
    fn write_rows(
        &self,
        sources: &[MergeSource],
        ids: &[i64],
        target: &Path,
    ) -> Result<Option<MergeReport>, StoreError> {
        let mut file = atomic_write_file::AtomicWriteFile::open(target).map_err(io_error("write", target))?;
        let report = merge(sources, ids, file.as_file_mut()).map_err(|error| refused(error, target))?;
        if report.header.is_none() {
            return Ok(None);
        }
        file.commit().map_err(io_error("write", target))?;
        Ok(Some(report))
    }

    fn written_piece(&self, name: String, report: &MergeReport, ids: &[i64]) -> Result<Piece, StoreError> {
        let path = self.layout.at(&name);
        let facts =
            self.facts(&path)?.ok_or_else(|| StoreError::Data(format!("{} is gone", path.display())))?;
        let whole = (ids.first().copied().unwrap_or(0), ids.last().copied().unwrap_or(0));
        let segment = Segment { ids: whole, spans: vec![(facts.body, facts.len)], rows: report.rows };
        Ok(Piece {
            attempt: Attempt(0),
            file: name.into(),
            len: report.bytes,
            crc: report.crc,
            segments: vec![segment],
        })
    }

    /// `covered` are the `ids` that some range accepts.
    fn summary(
        &self,
        ranges: &[RangeState],
        ids: &[i64],
        covered: &[i64],
        sources: Vec<(String, u64)>,
        report: Option<MergeReport>,
    ) -> MergeSummary {
        let given_up: Vec<GivenUp> = ranges
            .iter()
            .filter(|state| state.status != RangeStatus::Complete)
            .map(|state| GivenUp {
                range: state.range(),
                missing_ids: plan::ids_left(ids, state),
                reason: why_not_complete(state),
                log: match state.attempts {
                    Attempt(0) => String::new(),
                    attempt => Layout::log(state.range(), attempt).display().to_string(),
                },
            })
            .collect();
        let complete = given_up.is_empty();
        let (rows, bytes, crc) = report.as_ref().map_or((0, 0, 0), |r| (r.rows, r.bytes, r.crc));
        MergeSummary {
            total_files_merged: sources.len() as u64,
            total_rows: rows,
            merge_timestamp: jiff::Timestamp::now().to_string(),
            individual_files: sources.into_iter().map(|(file, rows)| MergedPart { file, rows }).collect(),
            version: VERSION,
            complete,
            merged_file: report.as_ref().map(|_| if complete { MERGED } else { PARTIAL }.to_owned()),
            merged_bytes: bytes,
            merged_crc32: crc,
            planned_ids: ids.len() as u64,
            ids_without_rows: report
                .as_ref()
                .map_or_else(|| covered.to_vec(), |r| r.ids_without_rows.clone()),
            given_up,
            quoted_fields: report.as_ref().map_or(0, |r| r.quoted_lone_cr),
            sorted_segments: report.as_ref().map_or(0, |r| r.sorted_segments),
        }
    }

    /// A complete result replaces a partial one; a partial one moves an older complete one out of the way.
    fn clear_stale(&self, complete: bool, wrote: bool) -> io::Result<()> {
        let (merged, partial) = (self.layout.at(MERGED), self.layout.at(PARTIAL));
        if complete {
            remove_if_there(&partial)?;
            if !wrote {
                remove_if_there(&merged)?;
            }
        } else if merged.exists() {
            fs::rename(&merged, self.layout.at(format!("{MERGED}.old")))?;
        }
        sync_dir(&self.layout.out)
    }
}

fn why_not_complete(state: &RangeState) -> String {
    match (&state.open, &state.last_failure) {
        (Some(_), _) => "its worker is still running".into(),
        (None, Some(last)) => last.message.clone(),
        (None, None) => "not started yet".into(),
    }
}

/// The disk's trouble is to be tried again; everything else is in the data.
fn refused(error: MergeError, target: &Path) -> StoreError {
    match error {
        MergeError::Write { source, .. } => io_error("write", target)(source),
        MergeError::Read { file, source } => io_error("read", &file)(source),
        other => StoreError::Data(describe(&other)),
    }
}

fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    text
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A piece that is a whole file of this range: nothing before, between or behind its rows.
fn is_whole_file(piece: &Piece, facts: &ShardFacts) -> bool {
    let spans: Vec<(u64, u64)> = piece.segments.iter().flat_map(|s| s.spans.iter().copied()).collect();
    facts.len == piece.len
        && facts.crc == piece.crc
        && facts.tail.is_none()
        && spans == [(facts.body, facts.len)]
}

impl Outputs for FolderOutputs {
    fn examine(&self, range: RangeId, attempt: Attempt, gap: RangeId) -> Result<Findings, StoreError> {
        let dir = Layout::attempt_dir(range, attempt);
        let file = dir.join(gap.result_file());
        let Some(facts) = self.facts(&self.layout.at(&file))? else {
            let entries = fs::read_dir(self.layout.at(&dir)).into_iter().flatten().flatten();
            let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            let stray = names.find(|n| n.starts_with("generation_results_data_") && n.ends_with("_real.csv"));
            return Ok(Findings { file: None, full_copy: false, stray_file: stray });
        };
        // What is accepted must outlive a power cut, and workers do not all sync.
        let synced = File::open(self.layout.at(&file))
            .and_then(|f| f.sync_all())
            .and_then(|()| sync_dir(&self.layout.at(&dir)))
            .and_then(|()| sync_dir(&self.layout.at("attempts")));
        synced.map_err(io_error("sync", &self.layout.at(&file)))?;
        let full = self.facts(&self.layout.at(dir.join(gap.full_result_file())))?;
        let full_copy = full.is_some_and(|full| {
            full.header.is_some() && full.tail.is_none() && (full.len, full.crc) == (facts.len, facts.crc)
        });
        Ok(Findings { file: Some((file, facts)), full_copy, stray_file: None })
    }

    fn assemble(&self, range: RangeId, pieces: &[Piece], ids: &[i64]) -> Result<Piece, StoreError> {
        let name = range.result_file();
        let target = self.layout.at(&name);
        let with_rows: Vec<&Piece> =
            pieces.iter().filter(|piece| piece.segments.iter().any(|s| s.rows > 0)).collect();
        let whole = (ids.first().copied().unwrap_or(0), ids.last().copied().unwrap_or(0));
        if let [piece] = with_rows[..] {
            let source = self.layout.at(&piece.file);
            // The file may have been moved already, by a scheduler that died before it could write so.
            let moved = !source.exists();
            let facts = self.facts(if moved { &target } else { &source })?;
            if let Some(facts) = facts.filter(|facts| is_whole_file(piece, facts)) {
                if !moved {
                    fs::rename(&source, &target).map_err(io_error("move", &source))?;
                    sync_dir(&self.layout.out).map_err(io_error("sync", &self.layout.out))?;
                }
                let rows = piece.segments.iter().map(|segment| segment.rows).sum();
                let segment = Segment { ids: whole, spans: vec![(facts.body, facts.len)], rows };
                return Ok(Piece { file: name.into(), segments: vec![segment], ..piece.clone() });
            }
        }
        match self.write_rows(&self.sources(pieces.iter()), ids, &target)? {
            Some(report) => self.written_piece(name, &report, ids),
            None => {
                let segment = Segment { ids: whole, spans: Vec::new(), rows: 0 };
                let (file, attempt) =
                    (PathBuf::new(), pieces.last().map_or(Attempt(0), |piece| piece.attempt));
                Ok(Piece { attempt, file, len: 0, crc: 0, segments: vec![segment] })
            }
        }
    }

    fn is_as_accepted(&self, piece: &Piece) -> bool {
        let path = self.layout.at(&piece.file);
        piece.file.as_os_str().is_empty()
            || fingerprint(&path).is_ok_and(|found| found == (piece.len, piece.crc))
    }

    fn discard(&self, range: RangeId, pieces: &[Piece]) {
        for piece in pieces.iter().filter(|piece| piece.file.starts_with("attempts")) {
            let path = self.layout.at(&piece.file);
            let full = path.to_string_lossy().replace("_real.csv", "_real_full.csv");
            for path in [path, PathBuf::from(full)] {
                if let Err(error) = remove_if_there(&path) {
                    tracing::warn!(%range, path = %path.display(), %error, "cannot remove a replaced result file");
                }
            }
        }
    }

    fn merge(&self, ranges: &[RangeState], ids: &[i64]) -> Result<MergeSummary, StoreError> {
        let complete = ranges.iter().all(|state| state.status == RangeStatus::Complete);
        let covered: Vec<i64> =
            ids.iter().copied().filter(|id| ranges.iter().any(|state| state.accepts(*id))).collect();
        let pieces: Vec<&Piece> = ranges.iter().flat_map(|state| &state.pieces).collect();
        if let Some(changed) = pieces.iter().find(|piece| !self.is_as_accepted(piece)) {
            let path = self.layout.at(&changed.file);
            let what = "is gone or was changed since its rows were accepted; delete it, and the same run does them again";
            return Err(StoreError::Data(format!("{} {what}", path.display())));
        }
        let sources = self.sources(pieces.iter().copied());
        let target = self.layout.at(if complete { MERGED } else { PARTIAL });
        let report = self.write_rows(&sources, &covered, &target)?;
        let parts = report.iter().flat_map(|report| {
            let files = pieces.iter().map(|piece| piece.file.display().to_string());
            files.zip(report.sources.iter().map(|source| source.rows)).filter(|(file, _)| !file.is_empty())
        });
        let parts = parts.collect();
        let wrote = report.is_some();
        let summary = self.summary(ranges, ids, &covered, parts, report);
        self.clear_stale(complete, wrote).map_err(io_error("tidy", &self.layout.out))?;
        super::files::write_json(&self.layout.summary(), &summary)?;
        Ok(summary)
    }
}
