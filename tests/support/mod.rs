//! Runs the program as a user does: a folder of its own per test, small inputs, the scripted worker, and at the end of
//! every test the check that no process of it is left.
#![allow(dead_code, reason = "every test program uses a part of it")]

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// For conditions that hold within milliseconds unless something is broken.
const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);
/// In the environment of everything a test starts, so that what is left can be found.
const MARK: &str = "END_TO_END_TEST";
pub const MERGED: &str = "generation_results_data_all_real_merged.csv";
pub const PARTIAL: &str = "generation_results_data_all_real_merged.partial.csv";

/// Waits until `look` finds something.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < DEADLINE, "waited in vain until {what}");
        thread::sleep(POLL);
    }
}

/// Waits until `holds`.
pub fn until_true(what: &str, mut holds: impl FnMut() -> bool) {
    until(what, || holds().then_some(()));
}

/// Whether a process lives; a zombie does not.
pub fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

pub fn send(pid: i32, signal: Signal) {
    let pid = Pid::from_raw(pid).expect("a pid is positive");
    kill_process(pid, signal).expect("the process is there to be signalled");
}

/// The path of the scripted worker.
pub fn script() -> String {
    format!("{}/examples/scripted_worker.py", env!("CARGO_MANIFEST_DIR"))
}

/// One test's folder and everything that runs in it.
pub struct Bench {
    dir: TempDir,
    runs: Cell<u32>,
}

impl Bench {
    /// With `input.csv` holding these ids, one row each; the scripted worker writes two rows per id.
    pub fn new(ids: impl IntoIterator<Item = i64>) -> Self {
        let bench = Self { dir: tempfile::tempdir().expect("a temporary folder"), runs: Cell::new(0) };
        fs::create_dir(bench.path("t")).expect("a folder for TMPDIR");
        bench.write_input(ids);
        bench.behave("");
        let switch = format!("exec python3 {} $(cat {}) \"$@\"\n", script(), bench.path("flags").display());
        fs::write(bench.path("worker.sh"), switch).expect("a worker that can be switched");
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn text_path(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("a file in the test's folder");
    }

    pub fn write_input(&self, ids: impl IntoIterator<Item = i64>) {
        let rows: String = ids.into_iter().map(|id| format!("{id},\"text of {id},\nand more\"\n")).collect();
        self.write("input.csv", &format!("data_id,text\n{rows}"));
    }

    /// The scripted worker with these flags, as `--worker` takes it.
    pub fn scripted(&self, flags: &str) -> String {
        format!("python3 {} {flags}", script())
    }

    /// A worker whose command stays the same while `behave` changes its flags.
    pub fn switched(&self) -> String {
        format!("sh {}", self.text_path("worker.sh"))
    }

    /// Flags of every `switched` worker started from now on.
    pub fn behave(&self, flags: &str) {
        self.write("flags.new", flags);
        fs::rename(self.path("flags.new"), self.path("flags")).expect("flags can be replaced");
    }

    /// Flags of a run that restarts without delay; more may follow.
    pub fn flags(&self, num_workers: u32, worker: &str) -> Vec<String> {
        let (input, out) = (self.text_path("input.csv"), self.text_path("out"));
        let workers = num_workers.to_string();
        let flags =
            ["--input-path", &input, "--output-path", &out, "--num-workers", &workers, "--gpus", "sim:8"];
        let restart = ["--backoff-base", "10ms", "--grace", "20s", "--worker", worker];
        flags.iter().chain(&restart).map(|word| (*word).to_owned()).collect()
    }

    /// The program with its environment and output arranged for a test.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env(MARK, self.dir.path()).env("TMPDIR", self.path("t")).env_remove("CUDA_VISIBLE_DEVICES");
        command.stdin(Stdio::null());
        command
    }

    pub fn start(&self, args: &[String]) -> Run {
        let mut command = self.command(env!("CARGO_BIN_EXE_auto-scheduler"));
        command.args(args);
        self.spawn(command)
    }

    /// Starts what `command` prepared.
    pub fn spawn(&self, mut command: Command) -> Run {
        let number = self.runs.replace(self.runs.get() + 1);
        let (stdout, stderr) =
            (self.path(&format!("run{number}.out")), self.path(&format!("run{number}.err")));
        command.stdout(File::create(&stdout).expect("a file for stdout"));
        command.stderr(File::create(&stderr).expect("a file for stderr"));
        Run { child: command.spawn().expect("the program starts"), stdout, stderr }
    }

    /// A run from its start to its end.
    pub fn finish(&self, args: &[String]) -> Ended {
        self.start(args).wait()
    }

    /// A subcommand from its start to its end.
    pub fn call(&self, words: &[&str]) -> Ended {
        self.finish(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    /// A subcommand that takes the output folder.
    pub fn on_out(&self, subcommand: &str, more: &[&str]) -> Ended {
        let out = self.text_path("out");
        self.call(&[&[subcommand, &out], more].concat())
    }

    /// What one worker writes that is given every id at once.
    pub fn expected(&self, input: &Path, flags: &str) -> Vec<u8> {
        let dir = self.path("expected");
        let (low, high) = ("-1000000", "1000000");
        let mut command = self.command("python3");
        command.arg(script()).args(flags.split_whitespace()).arg("--input_path").arg(input);
        command.arg("--output_path").arg(&dir).args(["--low", low, "--high", high]);
        self.spawn(command).wait().code(0);
        fs::read(dir.join(format!("generation_results_data_{low}_to_{high}_real.csv"))).expect("rows")
    }

    pub fn out(&self, name: &str) -> PathBuf {
        self.path("out").join(name)
    }

    /// Asserts that the merged file is byte for byte what one worker alone would have written.
    pub fn assert_merged(&self) {
        let expected = self.expected(&self.path("input.csv"), "");
        let merged = fs::read(self.out(MERGED)).expect("a merged file");
        assert!(merged == expected, "the merged file differs from what one worker writes");
    }

    pub fn json(&self, name: &str) -> Value {
        let text = fs::read(self.out(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Names in a folder below the output folder, sorted.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.out(folder)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Name and text of every worker's log.
    pub fn logs(&self) -> BTreeMap<String, String> {
        let read = |name: String| {
            let text = fs::read(self.out("logs").join(&name)).unwrap_or_default();
            (name, String::from_utf8_lossy(&text).into_owned())
        };
        self.names("logs").into_iter().map(read).collect()
    }

    pub fn log(&self, range: &str, attempt: u32) -> String {
        fs::read_to_string(self.out(&format!("logs/worker_{range}.attempt{attempt}.log"))).unwrap_or_default()
    }

    /// Waits until workers have printed a text so many times altogether.
    pub fn until_printed(&self, text: &str, times: usize) {
        let seen = || self.logs().values().map(|log| log.matches(text).count()).sum::<usize>();
        until_true(&format!("workers printed {text:?} {times} times"), || seen() >= times);
    }

    /// The pid of the shim that holds a range.
    pub fn shim(&self, range: &str) -> i32 {
        let path = self.out(&format!("locks/{range}.lock"));
        let pid = |text: String| serde_json::from_str::<Value>(&text).ok()?["pid"].as_i64();
        let found = until("a shim says who it is", || pid(fs::read_to_string(&path).ok()?));
        i32::try_from(found).expect("a pid")
    }

    /// Pids of a role (`worker` or `grandchild`) that scripted workers wrote with `--pid-file` to `pids`.
    pub fn pids(&self, role: &str) -> Vec<i32> {
        let text = fs::read_to_string(self.path("pids")).unwrap_or_default();
        let own =
            text.lines().filter_map(|line| line.strip_prefix(role)?.split_whitespace().next()?.parse().ok());
        own.collect()
    }

    /// Living processes of this test: by their environment, their command line, or the pid file.
    pub fn left_over(&self) -> Vec<i32> {
        let listed = [self.pids("worker"), self.pids("grandchild")].concat();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| is_alive(*pid) && (self.carries_our_name(*pid) || listed.contains(pid))).collect()
    }

    fn carries_our_name(&self, pid: i32) -> bool {
        let name = self.dir.path().as_os_str().as_encoded_bytes();
        ["environ", "cmdline"].iter().any(|file| {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            bytes.windows(name.len()).any(|window| window == name)
        })
    }
}

impl Drop for Bench {
    /// Nothing may be left running, nor lying in TMPDIR.
    fn drop(&mut self) {
        let left = self.left_over();
        let describe = |pid: &i32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            format!("{pid}: {}", String::from_utf8_lossy(&words).replace('\0', " "))
        };
        let described: Vec<String> = left.iter().map(describe).collect();
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(10) {
            let victims = self.left_over();
            if victims.is_empty() {
                break;
            }
            for pid in victims.into_iter().filter_map(Pid::from_raw) {
                // It may have ended by itself meanwhile.
                let _ = kill_process(pid, Signal::KILL);
            }
            thread::sleep(POLL);
        }
        if !thread::panicking() {
            assert!(described.is_empty(), "processes are left: {described:#?}");
            let lying: Vec<_> = fs::read_dir(self.path("t")).into_iter().flatten().flatten().collect();
            assert!(lying.is_empty(), "folders are left in TMPDIR: {lying:?}");
        }
    }
}

/// The program while it runs.
pub struct Run {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Run {
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    pub fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    pub fn until_said(&self, text: &str) {
        until_true(&format!("the program said {text:?}"), || self.stderr().contains(text));
    }

    pub fn wait(mut self) -> Ended {
        let status =
            until(&format!("{:?} ended", self.stderr), || self.child.try_wait().expect("our own child"));
        let stdout = String::from_utf8_lossy(&fs::read(&self.stdout).unwrap_or_default()).into_owned();
        Ended { code: status.code(), signal: status.signal(), stdout, stderr: self.stderr() }
    }
}

/// The program after its end.
#[derive(Debug)]
pub struct Ended {
    code: Option<i32>,
    signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Asserts the exit status.
    pub fn code(self, expected: i32) -> Self {
        let Self { code, signal, stdout, stderr } = &self;
        assert!(
            *code == Some(expected),
            "exit {code:?}, signal {signal:?}, not {expected}\n{stdout}\n{stderr}"
        );
        self
    }

    /// Asserts that standard error says all of these.
    pub fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.stderr.contains(text), "{text:?} is not in\n{}", self.stderr);
        }
        self
    }

    /// Asserts a refusal before starting: exit 3, what and where, and a hint.
    pub fn refused(self, texts: &[&str]) -> Self {
        let ended = self.code(3).says(texts).says(&["error: ", "\nhint: "]);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        ended
    }
}
