//! Names of everything in the output folder.

use super::{Attempt, RangeId};
use std::path::{Path, PathBuf};

pub const MERGED: &str = "generation_results_data_all_real_merged.csv";
pub const PARTIAL: &str = "generation_results_data_all_real_merged.partial.csv";

/// Paths below one output folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pub out: PathBuf,
}

impl Layout {
    pub fn new(out: impl Into<PathBuf>) -> Self {
        Self { out: out.into() }
    }

    pub fn at(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.out.join(relative)
    }

    pub fn plan(&self) -> PathBuf {
        self.at("plan.json")
    }

    pub fn summary(&self) -> PathBuf {
        self.at("merge_summary.json")
    }

    /// What a live scheduler is doing, rewritten as it changes; only `status` reads it.
    pub fn live(&self) -> PathBuf {
        self.at("live.json")
    }

    pub fn scheduler_lock(&self) -> PathBuf {
        self.at("locks/scheduler.lock")
    }

    pub fn alive_lock(&self) -> PathBuf {
        self.at("locks/alive.lock")
    }

    pub fn range_lock(&self, range: RangeId) -> PathBuf {
        self.at(format!("locks/{range}.lock"))
    }

    pub fn range_state(&self, range: RangeId) -> PathBuf {
        self.at(range.state_file())
    }

    /// Relative to the output folder, as it is written into documents.
    pub fn attempt_dir(range: RangeId, attempt: Attempt) -> PathBuf {
        PathBuf::from(format!("attempts/{range}.{attempt}"))
    }

    pub fn exit_record(&self, range: RangeId, attempt: Attempt) -> PathBuf {
        self.at(format!("attempts/{range}.{attempt}.exit.json"))
    }

    /// Relative to the output folder.
    pub fn log(range: RangeId, attempt: Attempt) -> PathBuf {
        PathBuf::from(format!("logs/worker_{range}.attempt{attempt}.log"))
    }
}

/// Range and attempt in the name of a log, an attempt folder or an exit record.
pub fn parse_attempt_name(name: &str) -> Option<(RangeId, Attempt)> {
    let (range, number) = if let Some(rest) = name.strip_prefix("worker_") {
        rest.strip_suffix(".log")?.split_once(".attempt")?
    } else {
        name.strip_suffix(".exit.json").unwrap_or(name).split_once('.')?
    };
    Some((RangeId::parse(range)?, Attempt(number.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempt_names_are_read_back() {
        let (range, attempt) = (RangeId::new(-4, 12), Attempt(7));
        let layout = Layout::new("x");
        let names = [
            Layout::log(range, attempt),
            Layout::attempt_dir(range, attempt),
            layout.exit_record(range, attempt),
        ];
        for path in names {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
            assert_eq!(parse_attempt_name(&name), Some((range, attempt)), "{name}");
        }
        assert_eq!(parse_attempt_name("worker_0_4.log"), None);
    }
}
