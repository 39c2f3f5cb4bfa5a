//! Shows workers' output as it grows, each line behind its range. It reads the attempts' logs, so a slow terminal
//! slows nobody down.

use crate::types::RangeId;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

const TICK: Duration = Duration::from_millis(100);
/// Shown per range and tick; whoever prints more is skipped ahead, the log has it all.
const MOST: u64 = 256 * 1024;
/// A longer line is shown in parts.
const LINE: usize = 4096;

enum Order {
    Follow(RangeId, PathBuf),
    Finish(RangeId),
    Close,
}

/// A handle to the thread that prints; without one (`quiet`) nothing is shown.
#[derive(Clone, Debug, Default)]
pub struct Console {
    orders: Option<Sender<Order>>,
}

impl Console {
    pub fn quiet() -> Self {
        Self::default()
    }

    /// Starts printing to `sink`. After `close`, the receiver ends once everything is printed; whoever waits for that
    /// should not do so for ever, since a terminal may stand still.
    pub fn start(sink: impl Write + Send + 'static) -> io::Result<(Self, Receiver<()>)> {
        let (orders, inbox) = mpsc::channel();
        let (printing, printed) = mpsc::channel();
        std::thread::Builder::new().name("console".into()).spawn(move || {
            // Dropped with the thread.
            let _printing: Sender<()> = printing;
            let mut followed: BTreeMap<RangeId, Follow> = BTreeMap::new();
            let mut sink = sink;
            loop {
                match inbox.recv_timeout(TICK) {
                    Ok(Order::Follow(range, path)) => {
                        followed.insert(range, Follow::new(path));
                    }
                    Ok(Order::Finish(range)) => {
                        if let Some(mut follow) = followed.remove(&range) {
                            follow.show(range, &mut sink);
                            follow.flush(range, &mut sink);
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => {
                        for (range, follow) in &mut followed {
                            follow.show(*range, &mut sink);
                        }
                    }
                    Ok(Order::Close) | Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })?;
        Ok((Self { orders: Some(orders) }, printed))
    }

    pub fn follow(&self, range: RangeId, log: PathBuf) {
        self.send(Order::Follow(range, log));
    }

    /// Shows what is still unread and stops following.
    pub fn finish(&self, range: RangeId) {
        self.send(Order::Finish(range));
    }

    pub fn close(&self) {
        self.send(Order::Close);
    }

    fn send(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // A console that is gone shows nothing; the logs are complete all the same.
            let _ = orders.send(order);
        }
    }
}

struct Follow {
    path: PathBuf,
    at: u64,
    partial: Vec<u8>,
}

impl Follow {
    fn new(path: PathBuf) -> Self {
        Self { path, at: 0, partial: Vec::new() }
    }

    fn show(&mut self, range: RangeId, sink: &mut impl Write) {
        let Ok(file) = File::open(&self.path) else { return };
        let len = file.metadata().map_or(0, |meta| meta.len());
        if len < self.at {
            // The log was cut to its cap.
            self.at = len;
        }
        if len - self.at > MOST {
            let skipped = len - self.at - MOST;
            self.flush(range, sink);
            line(range, format!("[{skipped} bytes not shown, see {}]", self.path.display()).as_bytes(), sink);
            self.at += skipped;
        }
        let mut chunk = vec![0; (len - self.at) as usize];
        let Ok(n) = file.read_at(&mut chunk, self.at) else { return };
        self.at += n as u64;
        for byte in &chunk[..n] {
            match byte {
                b'\n' | b'\r' => self.flush(range, sink),
                _ => {
                    self.partial.push(*byte);
                    if self.partial.len() == LINE {
                        self.flush(range, sink);
                    }
                }
            }
        }
    }

    fn flush(&mut self, range: RangeId, sink: &mut impl Write) {
        if !self.partial.is_empty() {
            line(range, &self.partial, sink);
            self.partial.clear();
        }
    }
}

/// One line, with control characters made harmless to a terminal.
fn line(range: RangeId, text: &[u8], sink: &mut impl Write) {
    let shown: String = String::from_utf8_lossy(text)
        .chars()
        .map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c })
        .collect();
    let _ = writeln!(sink, "[Worker {}-{}] {shown}", range.low, range.high);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_prefixed_and_nothing_is_lost_at_the_end() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let log = dir.path().join("log");
        std::fs::write(&log, b"one\ntwo\rbar 10%\r\xff\x1b[2J\nlast without end")?;
        let sink = Sink::default();
        let (console, printed) = Console::start(sink.clone())?;
        console.follow(RangeId::new(0, 8), log);
        console.finish(RangeId::new(0, 8));
        console.close();
        assert_eq!(printed.recv(), Err(mpsc::RecvError));
        let text = String::from_utf8_lossy(&sink.0.lock().expect("not poisoned")).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "[Worker 0-8] one");
        assert_eq!(lines[3], "[Worker 0-8] \u{fffd}\u{fffd}[2J");
        assert_eq!(lines[4], "[Worker 0-8] last without end");
        Ok(())
    }
}
