//! The checking pass over one segment: proves its records and finds out what can be copied as it is.

use super::super::blocks::{Stop, for_blocks, line_of, shorter};
use super::super::field::{LastId, shown};
use super::super::record::{Record, Records, Wanted};
use super::*;

/// Bytes to write, in output order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// As they are.
    Copy(u64, u64),
    /// Record by record; those of one id, and sorted by token if `sort`.
    Records { runs: Vec<(u64, u64)>, sort: bool },
}

impl Step {
    /// The bytes it takes, as `[start, end)`.
    pub(super) fn spans(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let (copied, runs) = match self {
            Self::Copy(start, end) => (Some((*start, *end)), &[][..]),
            Self::Records { runs, .. } => (None, &runs[..]),
        };
        copied.into_iter().chain(runs.iter().copied())
    }
}

/// One segment, proven.
pub(super) struct Survey<'a> {
    pub(super) source: usize,
    pub(super) table: Option<&'a Table<'a>>,
    pub(super) file: Option<File>,
    pub(super) rows: u64,
    pub(super) sorted: bool,
    pub(super) steps: Vec<Step>,
}

type Sender<'a> = mpsc::SyncSender<Result<Survey<'a>, MergeError>>;

/// Surveys all parts in order, up to the first error; returns which of the planned ids have rows.
pub(super) fn survey_all<'a>(
    parts: &[Part<'_>],
    tables: &'a Tables<'a>,
    planned: &[i64],
    done: &Sender<'a>,
) -> Vec<bool> {
    let mut seen = vec![false; planned.len()];
    for part in parts {
        let survey = survey(part, tables, planned, &mut seen);
        let stop = survey.is_err();
        // The writer hangs up when it cannot write.
        if done.send(survey).is_err() || stop {
            break;
        }
    }
    seen
}

fn survey<'a>(
    part: &Part<'_>,
    tables: &'a Tables<'a>,
    planned: &[i64],
    seen: &mut [bool],
) -> Result<Survey<'a>, MergeError> {
    let table = tables.tables[part.source].as_ref();
    let mut survey =
        Survey { source: part.source, table, file: None, rows: 0, sorted: false, steps: Vec::new() };
    if let Some(table) = table.filter(|_| !part.segment.spans.is_empty()) {
        let file = table.open()?;
        let mut walk = Walk {
            table,
            file: &file,
            segment: part.segment,
            planned,
            seen,
            runs: Vec::new(),
            rows: 0,
            last: LastId::default(),
            last_token: Token::Other,
        };
        for span in &part.segment.spans {
            walk.span(*span)?;
        }
        walk.check_rows()?;
        survey.rows = walk.rows;
        (survey.steps, survey.sorted) = steps(walk.runs);
        survey.file = Some(file);
    } else if part.segment.rows > 0 {
        return Err(MergeError::RowCount {
            file: table.map_or_else(PathBuf::new, |table| table.path.into()),
            line: 0,
            byte: 0,
            ids: part.segment.ids,
            found: 0,
            expected: part.segment.rows,
        });
    }
    Ok(survey)
}

/// Records of one id that follow each other without a gap.
#[derive(Debug)]
struct Run {
    id: i64,
    start: u64,
    end: u64,
    /// Its tokens ascend, also from the run before if that has the same id.
    in_order: bool,
    /// The run before it in the file has the same id.
    follows: bool,
    /// Some record cannot be copied as it is.
    edit: bool,
}

struct Walk<'a> {
    table: &'a Table<'a>,
    file: &'a File,
    segment: &'a Segment,
    planned: &'a [i64],
    seen: &'a mut [bool],
    runs: Vec<Run>,
    rows: u64,
    last: LastId,
    last_token: Token,
}

impl Walk<'_> {
    fn span(&mut self, span: (u64, u64)) -> Result<(), MergeError> {
        let table = self.table;
        let mut records = Records::new(span.0, Wanted { id: table.id, token: table.token }, table.crlf);
        let walked = for_blocks::<Stop<MergeError>>(self.file, span, |_, bytes| {
            records.feed(bytes, |record| self.take(&record)).map_err(Stop::Bad)?;
            Ok(true)
        });
        let end = walked.map_err(|stop| match stop {
            Stop::Io(source) => table.read_error(source),
            Stop::Bad(error) => error,
        })?;
        if end < span.1 {
            return Err(table.read_error(shorter()));
        }
        match records.rest() {
            None => Ok(()),
            // Only the end of the file can stand for a newline.
            Some(rest) if rest.in_quotes || span.1 < table.len => Err(MergeError::Torn {
                file: table.path.into(),
                line: line_of(self.file, rest.start),
                byte: rest.start,
                end: span.1,
            }),
            Some(rest) => self.take(&rest),
        }
    }

    fn take(&mut self, record: &Record<'_>) -> Result<(), MergeError> {
        if record.fields != self.table.fields {
            return Err(MergeError::FieldCount {
                file: self.table.path.into(),
                line: line_of(self.file, record.start),
                byte: record.start,
                found: record.fields,
                expected: self.table.fields,
            });
        }
        let id = self.last.read(record.id).ok_or_else(|| MergeError::BadId {
            file: self.table.path.into(),
            line: line_of(self.file, record.start),
            byte: record.start,
            value: shown(record.id),
        })?;
        let token = Token::read(record.token);
        let edit = record.lone_cr || !record.ended;
        self.rows += 1;
        let same_id = match self.runs.last_mut() {
            Some(run) if run.id == id => {
                if run.end == record.start {
                    run.end = record.end;
                    run.in_order &= self.last_token <= token;
                    run.edit |= edit;
                    self.last_token = token;
                    return Ok(());
                }
                true
            }
            _ => false,
        };
        if !same_id {
            self.check_id(id, record.start)?;
        }
        let in_order = !same_id || self.last_token <= token;
        self.runs.push(Run { id, start: record.start, end: record.end, in_order, follows: same_id, edit });
        self.last_token = token;
        Ok(())
    }

    fn check_id(&mut self, id: i64, byte: u64) -> Result<(), MergeError> {
        let ids = self.segment.ids;
        let file = || self.table.path.to_path_buf();
        if id < ids.0 || id > ids.1 {
            return Err(MergeError::ForeignId {
                file: file(),
                line: line_of(self.file, byte),
                byte,
                id,
                ids,
            });
        }
        match self.planned.binary_search(&id) {
            Ok(place) => self.seen[place] = true,
            Err(_) => {
                return Err(MergeError::UnplannedId {
                    file: file(),
                    line: line_of(self.file, byte),
                    byte,
                    id,
                });
            }
        }
        Ok(())
    }

    fn check_rows(&self) -> Result<(), MergeError> {
        if self.rows == self.segment.rows {
            return Ok(());
        }
        let byte = self.segment.spans.iter().map(|span| span.0).min().unwrap_or(0);
        Err(MergeError::RowCount {
            file: self.table.path.into(),
            line: line_of(self.file, byte),
            byte,
            ids: self.segment.ids,
            found: self.rows,
            expected: self.segment.rows,
        })
    }
}

/// Orders the runs; true if that changes the order of rows.
fn steps(mut runs: Vec<Run>) -> (Vec<Step>, bool) {
    let mut sorted = !runs.is_sorted_by_key(|run| run.id);
    if sorted {
        runs.sort_by_key(|run| run.id);
    }
    let mut steps: Vec<Step> = Vec::new();
    for group in runs.chunk_by(|left, right| left.id == right.id) {
        // The order of two runs with others between them was never looked at.
        let in_order = group[1..].iter().all(|run| run.follows) && group.iter().all(|run| run.in_order);
        if !in_order {
            sorted = true;
            steps.push(Step::Records {
                runs: group.iter().map(|run| (run.start, run.end)).collect(),
                sort: true,
            });
            continue;
        }
        for run in group {
            match steps.last_mut() {
                _ if run.edit => steps.push(Step::Records { runs: vec![(run.start, run.end)], sort: false }),
                Some(Step::Copy(_, end)) if *end == run.start => *end = run.end,
                _ => steps.push(Step::Copy(run.start, run.end)),
            }
        }
    }
    (steps, sorted)
}
