//! Runs the README: every block of commands, in order, in a folder that looks like a fresh copy of this repository.
//!
//! A block is one ```sh script and has to end with exit status 0, or with N where its info string says `exit=N`. A block
//! marked `gpu` needs GPUs that a test machine lacks: each of its commands has to be understood, planned, and refused
//! for nothing but the missing driver.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Commands that are shown and not run here, word for word, and why.
const NOT_RUN: [(&str, &str); 3] = [
    ("cargo test --locked", "this test is part of it"),
    (
        "cargo install --path . --locked",
        "it writes to the home folder; that the program builds, cargo test shows",
    ),
    (
        "cargo bench --bench peers",
        "it takes minutes and gigabytes, and measures tools that may not be installed",
    ),
];
const LIMIT: Duration = Duration::from_secs(180);
const MERGED: &str = "generation_results_data_all_real_merged.csv";

/// In place of cargo: `cargo run --release --` means the program under test, anything else is a mistake here.
const CARGO: &str =
    "#!/bin/sh\n[ \"$1 $2 $3\" = 'run --release --' ] || exit 99\nshift 3\nexec auto-scheduler \"$@\"\n";

#[derive(Debug, PartialEq, Eq)]
struct Block {
    info: String,
    script: String,
    /// Of the fence, from 1.
    line: usize,
}

fn blocks(document: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let mut open = false;
    for (index, line) in document.lines().enumerate() {
        match (line.strip_prefix("```"), open) {
            (Some(info), false) => {
                found.push(Block { info: info.into(), script: String::new(), line: index + 1 });
                open = true;
            }
            (Some(_), true) => open = false,
            (None, true) => {
                if let Some(block) = found.last_mut() {
                    block.script.push_str(line);
                    block.script.push('\n');
                }
            }
            (None, false) => {}
        }
    }
    found
}

/// Lines, those that end in a backslash joined with the next.
fn commands(script: &str) -> Vec<String> {
    let joined = script.replace("\\\n", " ");
    joined.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// A folder with the examples, the program and nothing else; whatever still runs in it is ended with it.
struct Copy {
    folder: PathBuf,
    _temporary: tempfile::TempDir,
}

impl Copy {
    fn new() -> std::io::Result<Self> {
        let temporary = tempfile::tempdir()?;
        let folder = temporary.path().canonicalize()?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR"));
        let input = source.join("examples/data/prediction_comparison.csv");
        for name in ["bin", "tmp", "examples/data", "output/playground"] {
            fs::create_dir_all(folder.join(name))?;
        }
        fs::copy(source.join("examples/scripted_worker.py"), folder.join("examples/scripted_worker.py"))?;
        fs::copy(&input, folder.join("examples/data/prediction_comparison.csv"))?;
        fs::copy(&input, folder.join("output/playground/prediction_comparison.csv"))?;
        symlink(env!("CARGO_BIN_EXE_auto-scheduler"), folder.join("bin/auto-scheduler"))?;
        fs::write(folder.join("bin/cargo"), CARGO)?;
        fs::set_permissions(folder.join("bin/cargo"), fs::Permissions::from_mode(0o755))?;
        Ok(Self { folder, _temporary: temporary })
    }

    /// Runs a script to its end and returns how it ended and all it printed.
    fn run(&self, script: &str) -> Result<(ExitStatus, String), String> {
        // A file, since a process in the background may keep a pipe open.
        let path = self.folder.join("said");
        let said = File::create(&path).map_err(|error| error.to_string())?;
        let mut paths = vec![self.folder.join("bin")];
        paths.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let mut shell = Command::new("bash");
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("AUTO_SCHEDULER_") || text == "CUDA_VISIBLE_DEVICES" {
                shell.env_remove(&name);
            }
        }
        shell
            .args(["-euo", "pipefail", "-c", &format!("{script}\nwait\n")])
            .current_dir(&self.folder)
            .env("PATH", std::env::join_paths(paths).map_err(|error| error.to_string())?)
            .env("TMPDIR", self.folder.join("tmp"))
            .env("AUTO_SCHEDULER_NVML_LIB", self.folder.join("no-driver-here"))
            .stdin(Stdio::null())
            .stdout(said.try_clone().map_err(|error| error.to_string())?)
            .stderr(said)
            .process_group(0);
        let mut child = shell.spawn().map_err(|error| format!("cannot start bash: {error}"))?;
        let began = Instant::now();
        let status = loop {
            match child.try_wait().map_err(|error| error.to_string())? {
                Some(status) => break status,
                None if began.elapsed() > LIMIT => {
                    // The guard below ends what it started; the shell itself is our child.
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(format!("still running after {LIMIT:?}:\n{}", read(&path)));
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        Ok((status, read(&path)))
    }

    /// Processes that work in this folder.
    fn processes(&self) -> Vec<i32> {
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&self.folder))
        })
        .collect()
    }

    fn expect_status(&self, script: &str, wanted: i32) -> Result<String, String> {
        let (status, said) = self.run(script)?;
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.processes().is_empty() {
            if Instant::now() > deadline {
                return Err(format!("left processes behind: {:?}\n{said}", self.processes()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if status.code() == Some(wanted) {
            return Ok(said);
        }
        Err(format!("ended with {status}, not {wanted}:\n{script}\n{said}"))
    }

    fn run_block(&self, block: &Block) -> Result<(), String> {
        let words: Vec<&str> = block.info.split_whitespace().collect();
        match words[..] {
            ["sh"] if NOT_RUN.iter().any(|(command, _)| commands(&block.script) == [*command]) => Ok(()),
            ["sh"] => self.expect_status(&block.script, 0).map(drop),
            ["sh", "gpu"] => {
                commands(&block.script).iter().try_for_each(|command| self.run_without_gpus(command))
            }
            ["sh", exit] => {
                let code = exit.strip_prefix("exit=").and_then(|code| code.parse().ok());
                let code = code.ok_or_else(|| format!("nobody knows what {exit} means"))?;
                self.expect_status(&block.script, code).map(drop)
            }
            _ => Err(format!("a block of {:?} is not run by anything; commands are marked sh", block.info)),
        }
    }

    fn run_without_gpus(&self, command: &str) -> Result<(), String> {
        let missing = "no NVIDIA driver on this machine";
        let said_so = |said: String| {
            if said.contains(missing) {
                Ok(())
            } else {
                Err(format!("{command} did not say {missing:?}:\n{said}"))
            }
        };
        let rest = command.strip_prefix("auto-scheduler ").ok_or_else(|| format!("not ours: {command}"))?;
        // This machine's GPU locks are not a test's to make.
        let command = format!("auto-scheduler {rest} --lock-dir tmp/locks");
        match rest.split(' ').next().unwrap_or_default() {
            "gpus" => self.expect_status(&command, 3).and_then(said_so),
            "plan" => self.expect_status(&command, 0).map(drop),
            flag if flag.starts_with("--") => {
                self.expect_status(&format!("auto-scheduler plan {rest} --lock-dir tmp/locks"), 0)
                    .and_then(said_so)?;
                self.expect_status(&command, 3).and_then(said_so)
            }
            other => Err(format!("{other} is not known to need GPUs")),
        }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        for pid in self.processes() {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

fn readme() -> String {
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"))
}

#[test]
fn every_readme_command_runs() {
    let copy = Copy::new().expect("a copy of the examples");
    for block in blocks(&readme()) {
        if let Err(problem) = copy.run_block(&block) {
            panic!("README.md, line {}: {problem}", block.line);
        }
    }
    // Crashes, kills and other cuts leave no trace in the result.
    let result = |name: &str| fs::read(copy.folder.join("output").join(name).join(MERGED)).ok();
    let undisturbed = result("first").expect("the first command leaves a merged file");
    for name in ["killed", "crash", "hidden", "long"] {
        assert!(result(name).as_ref() == Some(&undisturbed), "output/{name} is not what output/first is");
    }
    for name in ["stopped", "poison"] {
        assert!(result(name).is_none(), "output/{name} has a merged file although samples are missing");
    }
}

const POISONED: &str = "auto-scheduler --input_path examples/data/prediction_comparison.csv --output_path output/x \
    --num_workers 4 --gpus sim:8 --quiet --max-failures 1 --worker 'python3 examples/scripted_worker.py --crash-at 40'";

#[test]
fn what_is_missing_is_listed() {
    let copy = Copy::new().expect("a copy of the examples");
    let said = copy.expect_status(POISONED, 4).expect("exit status 4");
    assert!(!said.contains("60 of 60 accounted for"), "{said}");
    let text = read(&copy.folder.join("output/x/merge_summary.json"));
    let summary: serde_json::Value = serde_json::from_str(&text).expect("a document");
    let missing = summary["given_up"][0]["missing_ids"].as_array().cloned().unwrap_or_default();
    assert!(missing.iter().any(|id| id == 40), "{missing:?}");
}

#[test]
fn a_folder_of_the_old_program_is_left_as_it_was() {
    let copy = Copy::new().expect("a copy of the examples");
    let folder = copy.folder.join("output/x");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("generation_results_data_0_to_8_real.csv"), "data_id\n1\n").expect("a file");
    copy.expect_status(POISONED, 3).expect("refused");
    let names: Vec<_> =
        fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["generation_results_data_0_to_8_real.csv"]);
}

#[test]
fn the_set_up_is_two_commands() {
    let shown: Vec<String> = blocks(&readme()).iter().flat_map(|block| commands(&block.script)).collect();
    assert!(shown[0].starts_with("cargo run --release -- --input_path examples/"), "{}", shown[0]);
    assert_eq!(shown[1], "cargo test --locked");
    for (command, why) in NOT_RUN {
        assert!(shown.iter().any(|line| line == command), "{command} is not in the README any more ({why})");
    }
}

#[test]
fn a_wrong_readme_is_noticed() {
    let copy = Copy::new().expect("a copy of the examples");
    let run = |info: &str, script: &str| {
        copy.run_block(&Block { info: info.into(), script: format!("{script}\n"), line: 1 })
    };
    for (info, script) in [
        ("sh", "auto-scheduler run --no-such-flag"),
        ("sh", "false\ntrue"),
        ("sh", "cargo test"),
        ("sh exit=4", "true"),
        ("sh later", "true"),
        ("console", "true"),
        ("", "true"),
        ("sh gpu", "auto-scheduler --input_path nowhere.csv --num_workers 2"),
        (
            "sh gpu",
            "auto-scheduler --input_path examples/data/prediction_comparison.csv --num_workers 2 --nonsense",
        ),
    ] {
        assert!(run(info, script).is_err(), "{info}: {script}");
    }
    assert_eq!(run("sh exit=3", "exit 3"), Ok(()));
    let left_behind = "(cd examples && exec setsid sleep 60 > /dev/null 2>&1) & disown";
    assert!(run("sh", left_behind).is_err(), "a process left behind");
    let found = blocks("a\n```sh gpu\nb \\\n  c\nd\n```\ne\n");
    assert_eq!(found, [Block { info: "sh gpu".into(), script: "b \\\n  c\nd\n".into(), line: 2 }]);
    assert_eq!(commands(&found[0].script), ["b c", "d"]);
}
