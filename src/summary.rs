//! What a run says at its end, on standard output.

use crate::types::layout::Layout;
use crate::types::state::{MergeSummary, RangeState, RangeStatus};
use crate::types::words::{duration_words, grouped, size_words};
use std::fmt::Write;
use std::time::Duration;

/// Prints to standard output. A reader that has left (`| head`) is no reason to fail a run that is over.
pub fn print(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn restarts(states: &[RangeState]) -> u32 {
    states.iter().map(|state| state.counters.starts.saturating_sub(1)).sum()
}

/// A run that came to its merge.
pub fn of_run(layout: &Layout, merged: &MergeSummary, states: &[RangeState], elapsed: Duration) -> String {
    let mut text = String::new();
    let complete = states.iter().filter(|state| state.status == RangeStatus::Complete).count();
    let missing: u64 = merged.given_up.iter().map(|range| range.missing_ids.len() as u64).sum();
    let verdict = if merged.complete { "COMPLETE" } else { "INCOMPLETE" };
    let _ = writeln!(text, "\n{verdict} in {}", duration_words(elapsed));
    let _ =
        writeln!(text, "  ranges    {complete} of {} complete, {} restarts", states.len(), restarts(states));
    let accounted = merged.planned_ids - missing;
    let _ =
        writeln!(text, "  samples   {} of {} accounted for", grouped(accounted), grouped(merged.planned_ids));
    if !merged.ids_without_rows.is_empty() {
        let _ = writeln!(
            text,
            "            {} of them yielded no row (listed in merge_summary.json)",
            grouped(merged.ids_without_rows.len() as u64)
        );
    }
    let _ = writeln!(text, "  rows      {}", grouped(merged.total_rows));
    match &merged.merged_file {
        Some(name) => {
            let size = size_words(merged.merged_bytes);
            let _ = writeln!(text, "  merged    {} ({size})", layout.at(name).display());
        }
        None => text
            .push_str("  merged    nothing: NO RANGE WROTE A SINGLE ROW. Check the worker and its input.\n"),
    }
    if merged.quoted_fields > 0 {
        let _ = writeln!(
            text,
            "            {} fields with a bare carriage return were quoted",
            merged.quoted_fields
        );
    }
    for range in &merged.given_up {
        let given_up = states.iter().any(|s| s.range() == range.range && s.status == RangeStatus::GivenUp);
        let label = if given_up { "GIVEN UP" } else { "NOT DONE" };
        let ids: Vec<String> = range.missing_ids.iter().take(8).map(i64::to_string).collect();
        let more = if range.missing_ids.len() > ids.len() { ", ..." } else { "" };
        let _ = writeln!(
            text,
            "  {label}  [{}, {}): {} samples missing: {}{more}\n            {}\n            {}",
            range.range.low,
            range.range.high,
            range.missing_ids.len(),
            ids.join(", "),
            range.reason,
            if range.log.is_empty() { String::new() } else { layout.at(&range.log).display().to_string() }
        );
    }
    if !merged.complete {
        text.push_str("  The same command tries what is missing again.\n");
    }
    text
}

/// A run that was told to stop.
pub fn of_stop(layout: &Layout, states: &[RangeState], elapsed: Duration) -> String {
    let complete = states.iter().filter(|state| state.status == RangeStatus::Complete).count();
    let rows: u64 = states.iter().map(RangeState::accepted_rows).sum();
    format!(
        "\nSTOPPED after {}\n  ranges    {complete} of {} complete\n  rows      {} accepted and kept in {}\n  \
         The same command goes on from here.\n",
        duration_words(elapsed),
        states.len(),
        grouped(rows),
        layout.out.display()
    )
}
