//! Small durable files.

use crate::ports::StoreError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Wraps an I/O error with what was being done to which path.
pub fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_path_buf();
    move |source| StoreError::Io { doing, path, source }
}

/// Replaces a JSON document; file and folder are on disk when this returns.
pub fn write_json<T: Serialize>(path: &Path, document: &T) -> Result<(), StoreError> {
    write_text(path, serde_json::to_vec_pretty(document))
}

/// The same on one line, for documents that may hold a million entries.
pub fn write_json_compact<T: Serialize>(path: &Path, document: &T) -> Result<(), StoreError> {
    write_text(path, serde_json::to_vec(document))
}

fn write_text(path: &Path, text: serde_json::Result<Vec<u8>>) -> Result<(), StoreError> {
    let text = text.map_err(|source| StoreError::Garbage { path: path.to_path_buf(), source })?;
    write_durably(path, &text).map_err(io_error("write", path))
}

fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = atomic_write_file::AtomicWriteFile::open(path)?;
    file.write_all(content)?;
    file.write_all(b"\n")?;
    file.commit()
}

/// Reads a JSON document; `None` when there is none.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("read", path)(error)),
    };
    let garbage = |source| StoreError::Garbage { path: PathBuf::from(path), source };
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(garbage)?;
    let version = value.get("version").and_then(serde_json::Value::as_u64).unwrap_or(0);
    if version > u64::from(crate::types::state::VERSION) {
        return Err(StoreError::Newer { path: path.to_path_buf(), found: version as u32 });
    }
    serde_json::from_value(value).map(Some).map_err(garbage)
}

/// Makes a folder's names durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    std::fs::File::open(dir)?.sync_all()
}

/// Length and CRC-32 of a file's content.
pub fn fingerprint(path: &Path) -> io::Result<(u64, u32)> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut len = 0;
    loop {
        match io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok((len, hasher.finalize())),
            n => {
                hasher.update(&buffer[..n]);
                len += n as u64;
            }
        }
    }
}
