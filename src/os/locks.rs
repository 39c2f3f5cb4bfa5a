//! Advisory file locks (flock): the kernel frees them with the last holder, so a held lock means alive.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Probes hold a lock shared for an instant; whoever takes it for good outlasts them.
const INSIST: Duration = Duration::from_secs(1);

/// A lock held until dropped.
#[derive(Debug)]
pub struct FileLock(File);

impl FileLock {
    /// Takes the lock for good; `None` when somebody else holds it for longer than probes do.
    ///
    /// # Errors
    /// The lock file cannot be opened or created.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        let file = open(path)?;
        let deadline = Instant::now() + INSIST;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(Self(file))),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(10));
                }
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// Replaces the lock file's content, which tells people and later schedulers who holds it.
    pub fn describe(&mut self, text: &str) -> io::Result<()> {
        self.0.set_len(0)?;
        self.0.rewind()?;
        self.0.write_all(text.as_bytes())
    }
}

/// Whether somebody holds the lock right now. A lock file that does not exist is free.
pub fn is_held(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// What the holder wrote into the lock file.
pub fn description(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(64 * 1024).read_to_string(&mut text).ok()?;
    (!text.is_empty()).then_some(text)
}

/// Existing files are opened without O_CREAT: in a sticky world-writable folder the kernel refuses it for files of
/// other users (fs.protected_regular).
fn open(path: &Path) -> io::Result<File> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut options = OpenOptions::new();
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o666);
            options.read(true).write(true).create(true).truncate(false).open(path)
        }
        // A lock file of another user: enough to lock it, not to describe us in it.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => File::open(path),
        other => other,
    }
}

/// Where GPU locks live: `wanted`, else a folder that every user of this host shares. Creates nothing.
pub fn host_lock_dir(wanted: Option<&Path>) -> PathBuf {
    let writable = |dir: &Path| rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok();
    let shared = Path::new("/run/lock/auto-scheduler");
    match wanted {
        Some(dir) => dir.to_path_buf(),
        None if shared.is_dir() || shared.parent().is_some_and(writable) => shared.to_path_buf(),
        None => std::env::temp_dir().join("auto-scheduler-locks"),
    }
}

/// Makes the folder of the GPU locks where it is missing: open to all, and sticky.
///
/// # Errors
/// It cannot be created.
pub fn make_lock_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(dir)?;
    let sticky = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    std::fs::set_permissions(dir, sticky)
}

/// The lock file of one GPU.
pub fn gpu_lock(dir: &Path, uuid: &str) -> PathBuf {
    let safe: String =
        uuid.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
    dir.join(format!("{safe}.lock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_until_dropped_and_tells_who() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("x.lock");
        assert!(!is_held(&path)?);
        let mut lock = FileLock::take(&path)?.expect("free");
        lock.describe("first, longer text")?;
        lock.describe("second")?;
        assert!(is_held(&path)?);
        assert_eq!(description(&path).as_deref(), Some("second"));
        assert!(FileLock::take(&path)?.is_none());
        drop(lock);
        assert!(!is_held(&path)?);
        Ok(())
    }

    #[test]
    fn taking_outlasts_a_probe() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("x.lock");
        drop(FileLock::take(&path)?);
        let probe = File::open(&path)?;
        probe.try_lock_shared()?;
        let taker = {
            let path = path.clone();
            thread::spawn(move || FileLock::take(&path).map(|lock| lock.is_some()))
        };
        // The taker retries for a second; the probe ends well within it.
        drop(probe);
        assert!(taker.join().expect("no panic")?);
        Ok(())
    }
}
