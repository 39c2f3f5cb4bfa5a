//! Restart policy: what an attempt's end is called, whom it is charged to, and how long to wait.

use super::coverage::{AttemptEnd, Judgement};
use crate::types::state::Counters;
use crate::types::{ExitOutcome, FailureClass};
use std::time::Duration;

/// Uncharged worker failures that count as one charged one, so that nothing is retried for ever.
const UNCHARGED_PER_CHARGE: u32 = 10;

/// What `--max-failures`, `--backoff-base` and `--backoff-cap` say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestartPolicy {
    pub max_failures: u32,
    pub backoff_base: Duration,
    pub backoff_cap: Duration,
}

/// Names an attempt's failure; `None` when everything asked for was accepted. Sources of the exit codes:
/// sysexits.h (64 EX_USAGE, 75 EX_TEMPFAIL, 78 EX_CONFIG), argparse (2), the shell (126, 127).
pub fn classify(
    end: AttemptEnd,
    judgement: &Judgement,
    stop_requested: bool,
) -> Option<(FailureClass, String)> {
    if judgement.proven_end {
        return None;
    }
    let described = match &judgement.breach {
        Some(breach) => format!("{}; {breach}", end.outcome),
        None => end.outcome.to_string(),
    };
    let class = match end.outcome {
        ExitOutcome::GpuBusy { .. } => FailureClass::GpuBusy,
        ExitOutcome::Environment { .. } => FailureClass::Environment,
        _ if stop_requested || end.told_to_stop => FailureClass::Stopped,
        _ if end.swallowed_error.is_some() => FailureClass::RejectedOutput,
        ExitOutcome::Code(0) => FailureClass::ContractBreach,
        ExitOutcome::Code(75) => FailureClass::TryAgain,
        ExitOutcome::Code(2 | 64 | 78 | 125 | 126 | 127) => FailureClass::Configuration,
        ExitOutcome::Code(_) | ExitOutcome::Signal(_) | ExitOutcome::Unknown => FailureClass::Crash,
    };
    Some((class, described))
}

/// Counts one ended attempt. Progress is an accepted id above the highest the range ever had; rows seen and lost
/// again are none.
pub fn count(before: Counters, class: Option<FailureClass>, highest_accepted: Option<i64>) -> Counters {
    let mut after = before;
    if highest_accepted > before.highest_accepted {
        after.highest_accepted = highest_accepted;
        after.charged_in_a_row = 0;
        after.uncharged = 0;
        return after;
    }
    match class {
        Some(
            FailureClass::Crash
            | FailureClass::ContractBreach
            | FailureClass::RejectedOutput
            | FailureClass::Configuration,
        ) => {
            after.charged_in_a_row += 1;
            after.uncharged = 0;
        }
        Some(FailureClass::TryAgain) => {
            after.uncharged += 1;
            if after.uncharged == UNCHARGED_PER_CHARGE {
                after.charged_in_a_row += 1;
                after.uncharged = 0;
            }
        }
        Some(FailureClass::GpuBusy | FailureClass::Environment | FailureClass::Stopped) | None => {}
    }
    after
}

/// Full jitter: a random share (`jitter`, 0 to 1000 permille) of the capped exponential delay. Source: M. Brooker,
/// "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
pub fn backoff(policy: &RestartPolicy, counters: &Counters, jitter: u16) -> Duration {
    let doublings = counters.charged_in_a_row.max(counters.uncharged).saturating_sub(1).min(20);
    let ceiling = policy.backoff_base.saturating_mul(1 << doublings).min(policy.backoff_cap);
    ceiling * u32::from(jitter.min(1000)) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class_of(outcome: ExitOutcome, told: bool, swallowed: Option<&str>) -> Option<FailureClass> {
        let end = AttemptEnd { outcome: &outcome, told_to_stop: told, swallowed_error: swallowed };
        let judgement = Judgement { accepted: None, proven_end: false, breach: None };
        classify(end, &judgement, false).map(|(class, _)| class)
    }

    #[test]
    fn every_end_has_its_class() {
        use FailureClass::*;
        let table = [
            (ExitOutcome::Code(0), false, None, ContractBreach),
            (ExitOutcome::Code(0), true, None, Stopped),
            (ExitOutcome::Code(1), false, None, Crash),
            (ExitOutcome::Code(1), true, None, Stopped),
            (ExitOutcome::Signal(9), false, None, Crash),
            (ExitOutcome::Unknown, false, None, Crash),
            (ExitOutcome::Code(0), false, Some("Error during batch generation"), RejectedOutput),
            (ExitOutcome::Code(75), false, None, TryAgain),
            (ExitOutcome::Code(2), false, None, Configuration),
            (ExitOutcome::Code(64), false, None, Configuration),
            (ExitOutcome::Code(78), false, None, Configuration),
            (ExitOutcome::Code(127), false, None, Configuration),
            (ExitOutcome::GpuBusy { gpu: "sim-0".into() }, false, None, GpuBusy),
            (ExitOutcome::Environment { message: "disk full".into() }, false, None, Environment),
        ];
        for (outcome, told, swallowed, expected) in table {
            assert_eq!(class_of(outcome.clone(), told, swallowed), Some(expected), "{outcome:?}");
        }
    }

    #[test]
    fn a_proven_end_is_no_failure_whatever_the_status() {
        let outcome = ExitOutcome::Signal(11);
        let end = AttemptEnd { outcome: &outcome, told_to_stop: true, swallowed_error: None };
        let judgement = Judgement { accepted: None, proven_end: true, breach: None };
        assert_eq!(classify(end, &judgement, false), None);
    }

    #[test]
    fn only_an_id_above_the_highest_is_progress() {
        let start = Counters { charged_in_a_row: 2, highest_accepted: Some(5), ..Counters::default() };
        assert_eq!(count(start, Some(FailureClass::Crash), Some(5)).charged_in_a_row, 3);
        let ahead = count(start, Some(FailureClass::Crash), Some(6));
        assert_eq!((ahead.charged_in_a_row, ahead.highest_accepted), (0, Some(6)));
    }

    #[test]
    fn ten_uncharged_worker_failures_are_one_charged() {
        let mut counters = Counters::default();
        for _ in 0..10 {
            counters = count(counters, Some(FailureClass::TryAgain), None);
        }
        assert_eq!((counters.charged_in_a_row, counters.uncharged), (1, 0));
        for class in [FailureClass::GpuBusy, FailureClass::Environment, FailureClass::Stopped] {
            assert_eq!(count(counters, Some(class), None), counters);
        }
    }

    #[test]
    fn backoff_doubles_up_to_its_cap_and_is_jittered_in_full() {
        let policy = RestartPolicy {
            max_failures: 3,
            backoff_base: Duration::from_secs(5),
            backoff_cap: Duration::from_secs(300),
        };
        let delay = |charged, jitter| {
            backoff(&policy, &Counters { charged_in_a_row: charged, ..Counters::default() }, jitter)
                .as_millis()
        };
        assert_eq!(
            (delay(0, 1000), delay(1, 1000), delay(2, 1000), delay(3, 500)),
            (5000, 5000, 10_000, 10_000)
        );
        assert_eq!((delay(30, 1000), delay(30, 0)), (300_000, 0));
    }
}
