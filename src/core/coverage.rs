//! Which ids of an attempt's output are accepted. Coverage is about ids; rows are taken by byte range, never
//! re-encoded.

use crate::types::{ExitOutcome, Segment, ShardFacts};

/// How an attempt ended, as far as its output's worth depends on it.
#[derive(Debug, Clone, Copy)]
pub struct AttemptEnd<'a> {
    pub outcome: &'a ExitOutcome,
    /// It had been told to stop before it ended: exit 0 then proves nothing.
    pub told_to_stop: bool,
    /// A line in which the worker admits an error it went on after.
    pub swallowed_error: Option<&'a str>,
}

/// What the attempt left behind.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// Planned ids the attempt was asked for, ascending, not empty.
    pub ids: &'a [i64],
    /// Its result file; `None` when it wrote none.
    pub file: Option<&'a ShardFacts>,
    /// The worker's own final copy of all rows stands beside the file and is the same.
    pub full_copy: bool,
    /// Name of a result file for other ids than asked, if that is what it wrote instead.
    pub stray_file: Option<&'a str>,
}

/// The verdict on one attempt's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// Accepted ids and where their rows are; at most one segment, a prefix of the ids asked for.
    pub accepted: Option<Segment>,
    /// Nothing after the accepted ids can be missing.
    pub proven_end: bool,
    /// The way in which the output breaks the worker's contract.
    pub breach: Option<String>,
}

impl Judgement {
    fn refuse(breach: impl Into<String>) -> Self {
        Self { accepted: None, proven_end: false, breach: Some(breach.into()) }
    }

    fn nothing() -> Self {
        Self { accepted: None, proven_end: false, breach: None }
    }
}

/// Judges an attempt once its whole process tree is gone.
///
/// With a proven end every id asked for is accepted. Otherwise all ids but the last one seen are, since only the
/// one being written can be incomplete; a torn record whose id is whole and new proves the one before it.
pub fn judge(end: AttemptEnd, evidence: Evidence) -> Judgement {
    if let Some(line) = end.swallowed_error {
        return Judgement::refuse(format!(
            "the worker went on after an error, so its rows are not trusted: {line}"
        ));
    }
    let clean_exit = *end.outcome == ExitOutcome::Code(0) && !end.told_to_stop;
    let proven = clean_exit || evidence.full_copy;
    let Some(file) = evidence.file else {
        return match (clean_exit, evidence.stray_file) {
            (true, Some(stray)) => {
                Judgement::refuse(format!("it wrote {stray}, not the file it was asked for"))
            }
            (true, None) => accept_all(evidence.ids, Vec::new(), 0),
            (false, _) => Judgement::nothing(),
        };
    };
    if file.header.is_none() {
        return if proven {
            Judgement::refuse("the result file has no header")
        } else {
            Judgement::nothing()
        };
    }
    if let Some(bad) = &file.malformed {
        return Judgement::refuse(format!("line {} (byte {}): {}", bad.line, bad.byte, bad.reason));
    }
    match foreign_id(file, evidence.ids) {
        Some((id, byte)) => Judgement::refuse(format!("byte {byte}: data_id {id} was not asked for")),
        None if proven => accept_proven(file, evidence.ids),
        None => accept_prefix(file, evidence.ids),
    }
}

fn foreign_id(file: &ShardFacts, ids: &[i64]) -> Option<(i64, u64)> {
    let tail = file.tail.iter().filter_map(|tail| Some((tail.closed_id?, tail.start)));
    file.runs.iter().map(|run| (run.id, run.start)).chain(tail).find(|(id, _)| ids.binary_search(id).is_err())
}

fn accept_all(ids: &[i64], spans: Vec<(u64, u64)>, rows: u64) -> Judgement {
    let (Some(first), Some(last)) = (ids.first(), ids.last()) else { return Judgement::nothing() };
    let accepted = Some(Segment { ids: (*first, *last), spans, rows });
    Judgement { accepted, proven_end: true, breach: None }
}

fn accept_proven(file: &ShardFacts, ids: &[i64]) -> Judgement {
    let rows: u64 = file.runs.iter().map(|run| run.rows).sum();
    match file.tail {
        // At a clean end a last record without its newline is whole.
        Some(tail) => match tail.whole_id {
            Some(id) if ids.binary_search(&id).is_ok() => {
                accept_all(ids, vec![(file.body, file.len)], rows + 1)
            }
            Some(id) => Judgement::refuse(format!("byte {}: data_id {id} was not asked for", tail.start)),
            None => Judgement::refuse(format!("byte {}: the last record is torn", tail.start)),
        },
        None if rows == 0 => accept_all(ids, Vec::new(), 0),
        None => accept_all(ids, vec![(file.body, file.len)], rows),
    }
}

fn accept_prefix(file: &ShardFacts, ids: &[i64]) -> Judgement {
    if file.runs.windows(2).any(|pair| pair[1].id <= pair[0].id) {
        return Judgement::refuse("ids are not ascending, so without a clean end no id is known to be whole");
    }
    let next = file.tail.and_then(|tail| tail.closed_id);
    let last_is_whole = match (file.runs.last(), next) {
        (Some(last), Some(next)) if next < last.id => {
            return Judgement::refuse(
                "ids are not ascending, so without a clean end no id is known to be whole",
            );
        }
        (Some(last), Some(next)) => next > last.id,
        _ => false,
    };
    let whole = if last_is_whole { &file.runs[..] } else { &file.runs[..file.runs.len().saturating_sub(1)] };
    let (Some(last), Some(first)) = (whole.last(), ids.first()) else { return Judgement::nothing() };
    let rows = whole.iter().map(|run| run.rows).sum();
    let segment = Segment { ids: (*first, last.id), spans: vec![(file.body, last.end)], rows };
    Judgement { accepted: Some(segment), proven_end: false, breach: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{IdRun, Malformed, Tail};

    const IDS: [i64; 4] = [1, 2, 5, 9];

    fn file(ids: &[i64], tail: Option<Tail>) -> ShardFacts {
        let runs: Vec<IdRun> = ids
            .iter()
            .enumerate()
            .map(|(i, id)| IdRun { id: *id, start: 10 + 10 * i as u64, end: 20 + 10 * i as u64, rows: 2 })
            .collect();
        let end = runs.last().map_or(10, |run| run.end);
        let len = if tail.is_some() { end + 3 } else { end };
        ShardFacts {
            header: Some(vec!["data_id".into()]),
            body: 10,
            runs,
            tail,
            malformed: None,
            len,
            crc: 7,
        }
    }

    fn tail(closed: Option<i64>, whole: Option<i64>) -> Option<Tail> {
        Some(Tail { start: 50, closed_id: closed, whole_id: whole })
    }

    fn judged(outcome: ExitOutcome, told: bool, file: Option<&ShardFacts>, full: bool) -> Judgement {
        judge(
            AttemptEnd { outcome: &outcome, told_to_stop: told, swallowed_error: None },
            Evidence { ids: &IDS, file, full_copy: full, stray_file: None },
        )
    }

    fn ids_of(judgement: &Judgement) -> Option<(i64, i64)> {
        judgement.accepted.as_ref().map(|segment| segment.ids)
    }

    #[test]
    fn a_clean_exit_accepts_every_id_asked_for() {
        let verdict = judged(ExitOutcome::Code(0), false, Some(&file(&[1, 5], None)), false);
        assert_eq!(verdict.accepted, Some(Segment { ids: (1, 9), spans: vec![(10, 30)], rows: 4 }));
        assert!(verdict.proven_end);
    }

    #[test]
    fn exit_0_after_a_stop_accepts_all_but_the_last_id() {
        let verdict = judged(ExitOutcome::Code(0), true, Some(&file(&[1, 2, 5, 9], None)), false);
        assert_eq!(verdict.accepted, Some(Segment { ids: (1, 5), spans: vec![(10, 40)], rows: 6 }));
        assert!(!verdict.proven_end);
    }

    #[test]
    fn a_crash_accepts_all_but_the_last_id_and_nothing_of_a_single_one() {
        assert_eq!(
            ids_of(&judged(ExitOutcome::Signal(9), false, Some(&file(&[2, 5], None)), false)),
            Some((1, 2))
        );
        assert_eq!(ids_of(&judged(ExitOutcome::Code(1), false, Some(&file(&[9], None)), false)), None);
        assert_eq!(ids_of(&judged(ExitOutcome::Unknown, false, Some(&file(&[], None)), false)), None);
        assert_eq!(ids_of(&judged(ExitOutcome::Code(1), false, None, false)), None);
    }

    #[test]
    fn a_torn_record_with_a_new_whole_id_proves_the_id_before() {
        let seen = |closed| {
            ids_of(&judged(ExitOutcome::Signal(9), false, Some(&file(&[1, 2], tail(closed, None))), false))
        };
        assert_eq!(seen(Some(5)), Some((1, 2)));
        assert_eq!(seen(Some(2)), Some((1, 1)));
        assert_eq!(seen(None), Some((1, 1)));
    }

    #[test]
    fn a_full_copy_proves_the_end_whatever_the_exit_status() {
        let verdict = judged(ExitOutcome::Signal(11), true, Some(&file(&[1, 9], None)), true);
        assert_eq!(ids_of(&verdict), Some((1, 9)));
    }

    #[test]
    fn a_last_record_without_newline_is_whole_only_at_a_clean_exit() {
        let whole = file(&[1, 2], tail(Some(5), Some(5)));
        let clean = judged(ExitOutcome::Code(0), false, Some(&whole), false);
        assert_eq!(clean.accepted, Some(Segment { ids: (1, 9), spans: vec![(10, 33)], rows: 5 }));
        assert_eq!(ids_of(&judged(ExitOutcome::Code(1), false, Some(&whole), false)), Some((1, 2)));
        let torn = judged(ExitOutcome::Code(0), false, Some(&file(&[1], tail(Some(5), None))), false);
        assert!(torn.accepted.is_none() && torn.breach.is_some());
    }

    #[test]
    fn no_file_is_a_result_only_after_a_clean_exit() {
        let none = judged(ExitOutcome::Code(0), false, None, false);
        assert_eq!(none.accepted, Some(Segment { ids: (1, 9), spans: vec![], rows: 0 }));
        assert_eq!(ids_of(&judged(ExitOutcome::Code(0), true, None, false)), None);
    }

    #[test]
    fn a_file_for_other_ids_is_a_breach() {
        let outcome = ExitOutcome::Code(0);
        let verdict = judge(
            AttemptEnd { outcome: &outcome, told_to_stop: false, swallowed_error: None },
            Evidence {
                ids: &IDS,
                file: None,
                full_copy: false,
                stray_file: Some("generation_results_data_0_to_4_real.csv"),
            },
        );
        assert!(verdict.accepted.is_none() && verdict.breach.is_some());
    }

    #[test]
    fn foreign_ids_malformed_records_and_swallowed_errors_accept_nothing() {
        for ids in [&[1, 3][..], &[0, 1], &[1, 10]] {
            let verdict = judged(ExitOutcome::Code(0), false, Some(&file(ids, None)), false);
            assert!(verdict.accepted.is_none() && verdict.breach.is_some(), "{ids:?}");
        }
        let torn = file(&[1], tail(Some(7), None));
        assert!(judged(ExitOutcome::Signal(9), false, Some(&torn), false).breach.is_some());
        let mut bad = file(&[1, 2], None);
        bad.malformed = Some(Malformed { byte: 30, line: 4, reason: "7 fields".into() });
        assert!(judged(ExitOutcome::Code(0), false, Some(&bad), false).breach.is_some());
        let outcome = ExitOutcome::Code(0);
        let swallowed = judge(
            AttemptEnd {
                outcome: &outcome,
                told_to_stop: false,
                swallowed_error: Some("Error during batch generation"),
            },
            Evidence { ids: &IDS, file: Some(&file(&[1, 2], None)), full_copy: true, stray_file: None },
        );
        assert!(swallowed.accepted.is_none() && swallowed.breach.is_some());
    }

    #[test]
    fn ids_that_come_back_need_a_clean_end() {
        let back = file(&[1, 2, 1], None);
        assert_eq!(ids_of(&judged(ExitOutcome::Code(0), false, Some(&back), false)), Some((1, 9)));
        assert_eq!(ids_of(&judged(ExitOutcome::Code(1), false, Some(&back), false)), None);
        let tail_back = file(&[1, 5], tail(Some(2), None));
        assert_eq!(ids_of(&judged(ExitOutcome::Signal(9), false, Some(&tail_back), false)), None);
    }

    #[test]
    fn a_file_without_header_is_no_result() {
        let empty = ShardFacts::default();
        assert!(judged(ExitOutcome::Code(0), false, Some(&empty), false).breach.is_some());
        assert_eq!(judged(ExitOutcome::Signal(9), false, Some(&empty), false), Judgement::nothing());
    }
}
