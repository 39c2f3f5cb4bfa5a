//! The documents of one output folder.

use super::files::{io_error, read_json, write_json};
use super::locks::FileLock;
use crate::ports::{StateStore, StoreError};
use crate::types::layout::{Layout, parse_attempt_name};
use crate::types::state::{ExitRecord, Live, RangeState};
use crate::types::{Attempt, RangeId};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};

/// How much of a log's end is searched for its last line.
const LOG_TAIL: u64 = 64 * 1024;

#[derive(Debug, Clone)]
pub struct FolderStore {
    layout: Layout,
}

impl FolderStore {
    pub fn new(layout: Layout) -> Self {
        Self { layout }
    }

    /// Attempt numbers that any trace of them still holds: names of logs, attempt folders and exit records.
    fn used_numbers(&self) -> Result<BTreeMap<RangeId, Attempt>, StoreError> {
        let mut highest = BTreeMap::new();
        for folder in ["attempts", "logs"] {
            for name in names_in(&self.layout.at(folder))? {
                if let Some((range, attempt)) = parse_attempt_name(&name) {
                    let known = highest.entry(range).or_insert(attempt);
                    *known = attempt.max(*known);
                }
            }
        }
        Ok(highest)
    }
}

fn names_in(dir: &std::path::Path) -> Result<Vec<String>, StoreError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("read", dir)(error)),
    };
    let names = entries.map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()));
    names.collect::<io::Result<_>>().map_err(io_error("read", dir))
}

impl StateStore for FolderStore {
    fn save(&self, state: &RangeState) -> Result<(), StoreError> {
        let range = state.range();
        let path = self.layout.range_lock(range);
        let lock = FileLock::take(&path).map_err(io_error("lock", &path))?;
        let _lock = lock.ok_or(StoreError::Held(range))?;
        write_json(&self.layout.range_state(range), state)
    }

    fn load_all(&self) -> Result<Vec<RangeState>, StoreError> {
        let used = self.used_numbers()?;
        let mut states = Vec::new();
        for name in names_in(&self.layout.out)? {
            let middle = name.strip_prefix("worker_args_").and_then(|rest| rest.strip_suffix(".json"));
            let Some(range) = middle.and_then(RangeId::parse) else { continue };
            if let Some(mut state) = read_json::<RangeState>(&self.layout.at(&name))? {
                state.attempts = state.attempts.max(used.get(&range).copied().unwrap_or_default());
                states.push(state);
            }
        }
        states.sort_by_key(RangeState::range);
        Ok(states)
    }

    fn save_live(&self, live: &Live) -> Result<(), StoreError> {
        let path = self.layout.live();
        let temporary = path.with_extension("json.tmp");
        let text = serde_json::to_vec_pretty(live)
            .map_err(|source| StoreError::Garbage { path: path.clone(), source })?;
        fs::write(&temporary, text)
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(io_error("write", &path))
    }

    fn exit_record(&self, range: RangeId, attempt: Attempt) -> Result<Option<ExitRecord>, StoreError> {
        read_json(&self.layout.exit_record(range, attempt))
    }

    fn last_output(&self, range: RangeId, attempt: Attempt) -> Option<String> {
        let mut file = File::open(self.layout.at(Layout::log(range, attempt))).ok()?;
        let len = file.seek(SeekFrom::End(0)).ok()?;
        file.seek(SeekFrom::Start(len.saturating_sub(LOG_TAIL))).ok()?;
        let mut tail = Vec::new();
        file.take(LOG_TAIL).read_to_end(&mut tail).ok()?;
        let text = String::from_utf8_lossy(&tail);
        let last = text.rsplit(['\n', '\r']).map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        let shown: String = last.chars().filter(|c| !c.is_control()).take(300).collect();
        Some(shown.trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::state::RangeStatus;

    #[test]
    fn attempt_numbers_outlive_a_lost_state() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        for folder in ["attempts", "logs", "locks"] {
            fs::create_dir(dir.path().join(folder))?;
        }
        let store = FolderStore::new(Layout::new(dir.path()));
        let range = RangeId::new(0, 8);
        store.save(&RangeState { status: RangeStatus::Pending, ..RangeState::new(range) })?;
        fs::write(dir.path().join("attempts/0_8.2.exit.json"), "x")?;
        fs::write(dir.path().join("logs/worker_0_8.attempt3.log"), "one\n\nlast words \x1b\r\n")?;
        let states = store.load_all()?;
        assert_eq!(states[0].attempts, Attempt(3));
        assert_eq!(store.last_output(range, Attempt(3)).as_deref(), Some("last words"));
        assert_eq!(store.last_output(range, Attempt(2)), None);
        Ok(())
    }

    #[test]
    fn a_newer_document_is_refused() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("worker_args_0_8.json"), "{\"version\": 99}")?;
        let store = FolderStore::new(Layout::new(dir.path()));
        assert!(matches!(store.load_all(), Err(StoreError::Newer { found: 99, .. })));
        Ok(())
    }
}
