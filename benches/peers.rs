//! Us beside the tools that would do the same work, on the same inputs, turn by turn in one run.
//!
//!     cargo bench --bench peers                       everything at full size: some minutes, 1.5 GB of temporary files
//!     cargo bench --bench peers -- plan --quick       one section, small inputs
//!
//! Sections: `plan` (read an input), `merge` (write the result), `launch` (start workers that do nothing). Nothing is
//! asserted about time: machines differ, ratios taken in turn on one machine hardly do. A ratio is the median over the
//! rounds of their time divided by ours in the same round, so above 1 means that we are faster. A peer that is not
//! installed is named and left out. Exit status 1: one of our own commands failed or gave a wrong result.
//! PEERS_BINARY=PATH puts another build of ours in its place.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::Instant;

const OURS: &str = env!("CARGO_BIN_EXE_auto-scheduler");
const MEMORY_AIM: &str = "<= 64 MiB";

/// What one run of a contestant yields: seconds, one per label, or why there are none.
type Seconds = Result<Vec<f64>, String>;

/// What a contestant's ratio is taken to: another one, by its place in the race.
#[derive(Clone, Copy)]
enum Against {
    Nobody,
    /// Its time divided by that one's.
    Time(usize),
    /// Its MB/s divided by that one's.
    Rate(usize),
}

type Section = fn(&Settings) -> Result<(), String>;

struct Contestant<'a> {
    ours: bool,
    against: Against,
    labels: &'static [&'static str],
    /// What the ratio should be.
    aim: &'static str,
    megabytes: f64,
    run: Box<dyn FnMut() -> Seconds + 'a>,
}

struct Settings {
    quick: bool,
    rounds: usize,
    folder: PathBuf,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| words.iter().any(|w| w == word);
    let names: Vec<&String> = words.iter().filter(|w| !w.starts_with('-')).collect();
    if !has("--bench") && names.is_empty() {
        println!("run me with: cargo bench --bench peers [-- plan merge launch --quick]");
        return ExitCode::SUCCESS;
    }
    let quick = has("--quick");
    let temporary = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
    let settings =
        Settings { quick, rounds: if quick { 3 } else { 5 }, folder: temporary.path().to_path_buf() };
    let sections: [(&str, Section); 3] = [("plan", plan), ("merge", merge), ("launch", launch)];
    let mut failed = false;
    for (name, section) in sections {
        if names.is_empty() || names.iter().any(|n| name.contains(n.as_str())) {
            if let Err(problem) = section(&settings) {
                println!("  FAILED: {problem}");
                failed = true;
            }
            println!();
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

// --- plan: how fast an input is read ---------------------------------------------------------------------------------

const POLARS_SCAN: &str = r#"
import sys, time
import polars as pl
began = time.perf_counter()
ids = pl.scan_csv(sys.argv[1]).group_by("data_id").len().collect(engine="streaming")
print(time.perf_counter() - began, ids.height)
"#;

#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Plain,
    Quoted,
    Crlf,
    Shuffled,
}

fn plan(settings: &Settings) -> Result<(), String> {
    let (rows, ids) = if settings.quick { (400_000, 400) } else { (8_000_000, 8_000) };
    let plain = settings.folder.join("plain.csv");
    let megabytes = write_input(&plain, rows, ids, Shape::Plain)?;
    println!("plan: {rows} token rows of {ids} data_ids, {megabytes:.0} MB, in the page cache");
    let mut contestants = vec![ours_plan(&plain, ids, megabytes)];
    if has_polars() {
        contestants.push(polars_plan(&plain, megabytes));
    }
    let mut wc = Command::new("wc");
    wc.arg("-l").arg(&plain);
    contestants.push(simple("wc -l (lines only)", ">= 0.2", megabytes, wc));
    let mut problem = race(settings.rounds, contestants);
    print_peak_memory(&mut plan_command(&plain));

    for (shape, name, labels, aim) in [
        (Shape::Quoted, "every field quoted", &["plan, every field quoted"], ">= 0.5"),
        (Shape::Crlf, "CRLF line ends", &["plan, CRLF line ends"], ">= 0.5"),
        (Shape::Shuffled, "rows in random order", &["plan, rows in random order"], ">= 0.5"),
    ] {
        let path = settings.folder.join("variant.csv");
        let size = write_input(&path, rows, ids, shape)?;
        println!("  {name}, {size:.0} MB; our ratio is MB/s here to MB/s on the plain file");
        let on_plain = Contestant { labels: &["plan, plain"], ..ours_plan(&plain, ids, megabytes) };
        let on_variant = Contestant { labels, aim, against: Against::Rate(0), ..ours_plan(&path, ids, size) };
        let mut contestants = vec![on_plain, on_variant];
        if has_polars() {
            contestants.push(Contestant { aim: "", against: Against::Time(1), ..polars_plan(&path, size) });
        }
        problem = race(settings.rounds, contestants).or(problem);
    }
    problem.map_or(Ok(()), Err)
}

fn plan_command(input: &Path) -> Command {
    let mut command = ours(&["plan", "--num-workers", "8", "--gpus", "sim:8"]);
    command.arg("--input-path").arg(input);
    command.arg("--output-path").arg(input.with_extension("out"));
    command
}

fn ours_plan(input: &Path, ids: u64, megabytes: f64) -> Contestant<'_> {
    let run = move || {
        let (seconds, output) = timed(&mut plan_command(input))?;
        let said = String::from_utf8_lossy(&output.stdout).replace([',', '_'], "");
        if !said.split(|c: char| !c.is_ascii_digit()).any(|number| number == ids.to_string()) {
            return Err(format!("plan does not speak of {ids} ids: {said:?}"));
        }
        Ok(vec![seconds])
    };
    let labels = &["auto-scheduler plan"];
    Contestant { ours: true, against: Against::Nobody, labels, aim: "", megabytes, run: Box::new(run) }
}

fn polars_plan(input: &Path, megabytes: f64) -> Contestant<'_> {
    let run = move || python(POLARS_SCAN, &[input.to_path_buf()], 1);
    Contestant {
        ours: false,
        against: Against::Time(0),
        labels: &["polars, streaming", "  with Python's start and import"],
        aim: ">= 4",
        megabytes,
        run: Box::new(run),
    }
}

/// A row's content depends on its number alone, so every shape holds the same rows.
fn write_input(path: &Path, rows: u64, ids: u64, shape: Shape) -> Result<f64, String> {
    let mut order: Vec<u32> = (0..u32::try_from(rows).expect("row numbers fit")).collect();
    if shape == Shape::Shuffled {
        for i in (1..order.len()).rev() {
            order.swap(i, (scramble(i as u64) % (i as u64 + 1)) as usize);
        }
    }
    let write = || -> std::io::Result<u64> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        let end = if shape == Shape::Crlf { "\r\n" } else { "\n" };
        let quote = if shape == Shape::Quoted { "\"" } else { "" };
        let separator = format!("{quote},{quote}");
        let names = ["row_id", "data_id", "token_id", "token_type", "real_token", "SLM_predictions"];
        write!(file, "{quote}{}{quote}{end}", names.join(&separator))?;
        for row in order {
            let row = u64::from(row);
            let (sample, token) = (row / (rows / ids), row % (rows / ids));
            let kind = if token < 64 { 0 } else { 1 + u8::from(token > 800) };
            let (real, guess) = (scramble(row) % 152_000, scramble(row / 2) % 152_000);
            let fields = [row, sample + sample / 10, token, u64::from(kind), real, guess];
            for (i, field) in fields.iter().enumerate() {
                write!(file, "{}{field}", if i == 0 { quote } else { &separator })?;
            }
            write!(file, "{quote}{end}")?;
        }
        file.into_inner().map_err(|e| e.into_error())?.sync_all()?;
        Ok(fs::metadata(path)?.len())
    };
    write().map(|bytes| bytes as f64 / 1e6).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

/// SplitMix64's mixing step.
fn scramble(n: u64) -> u64 {
    let z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

// --- merge: how fast the pieces become one file ------------------------------------------------------------------------

const PIECES: u64 = 8;

/// Writes ROWS rows of about 430 bytes for each of its data_ids, as fast as Python can.
const MERGE_WORKER: &str = r#"
import sys
given = dict(zip(sys.argv[2:], sys.argv[3:]))
low, high, folder = int(given["--low"]), int(given["--high"]), given["--output_path"]
text = 'The number is "seven", so the next step, as before, is to add.'.replace('"', '""')
tail = f',1234, seven,4321,<< eight>>,"{text}\nThen << eight>>.","{text} << seven>>. 因此答案是七。","{" ".join([text] * 3)}"\n'
with open(f"{folder}/generation_results_data_{low}_to_{high}_real.csv", "w") as file:
    file.write("data_id,token_id,real_token,real_text,pred_small_token,pred_small_text,small_diverge_text,reference_diverge_text,common_context\n")
    for data_id in range(low, high):
        file.write("".join([f"{data_id},{token}{tail}" for token in range(int(sys.argv[1]))]))
"#;

const POLARS_MERGE: &str = r#"
import os, sys, time
import polars as pl
out, pieces = sys.argv[1], sys.argv[2:]
began = time.perf_counter()
pl.concat([pl.read_csv(piece) for piece in pieces]).sort(["data_id", "token_id"]).write_csv(out)
written = time.perf_counter() - began
file = os.open(out, os.O_RDONLY)
os.fsync(file)
print(time.perf_counter() - began, written)
"#;

fn merge(settings: &Settings) -> Result<(), String> {
    let (ids, rows_per_id) = if settings.quick { (200, 100) } else { (2_000, 205) };
    let out = settings.folder.join("merge");
    let made = make_pieces(settings, &out, ids, rows_per_id);
    let pieces = made.as_ref().map_or_else(|(_, pieces)| pieces.clone(), Clone::clone);
    let bytes: u64 = pieces.iter().filter_map(|p| fs::metadata(p).ok()).map(|m| m.len()).sum();
    let megabytes = bytes as f64 / 1e6;
    println!("merge: {} pieces, {} rows, {megabytes:.0} MB", pieces.len(), ids * rows_per_id);
    let header = pieces.first().map_or(0, |p| first_line_length(p));
    let expected = bytes - header * (pieces.len() as u64 - 1);
    let mut contestants = vec![ours_merge(&out, &made, expected, megabytes)];

    contestants.push(cat_merge(settings.folder.join("copy.csv"), &pieces, megabytes));
    if has_polars() {
        contestants.push(polars_merge(settings.folder.join("sorted.csv"), &pieces, megabytes));
    }
    let problem = race(settings.rounds, contestants);
    if made.is_ok() {
        let _ = fs::remove_file(out.join(MERGED));
        print_peak_memory(ours(&["merge"]).arg(&out));
    }
    problem.map_or(Ok(()), Err)
}

const MERGED: &str = "generation_results_data_all_real_merged.csv";

/// A folder as a finished run leaves it. If there is no such run, the pieces alone, so that the peers have their turn.
fn make_pieces(
    settings: &Settings,
    out: &Path,
    ids: u64,
    rows_per_id: u64,
) -> Result<Vec<PathBuf>, (String, Vec<PathBuf>)> {
    let nothing = |e: String| (e, Vec::new());
    let worker = settings.folder.join("merge_worker.py");
    fs::write(&worker, MERGE_WORKER).map_err(|e| nothing(e.to_string()))?;
    let input = settings.folder.join("merge_input.csv");
    write_ids(&input, ids).map_err(nothing)?;
    let quoted = shlex::try_quote(worker.to_str().expect("UTF-8")).expect("no NUL").into_owned();
    let run = timed(
        run_command(&input, out, PIECES, 2).arg("--worker").arg(format!("python3 {quoted} {rows_per_id}")),
    );
    let name = |k: u64| {
        let (low, high) = (k * ids / PIECES, (k + 1) * ids / PIECES);
        (low, high, format!("generation_results_data_{low}_to_{high}_real.csv"))
    };
    let pieces: Vec<PathBuf> = (0..PIECES).map(|k| out.join(name(k).2)).collect();
    let problem = match run {
        Err(problem) => problem,
        Ok(_) if pieces.iter().all(|p| p.exists()) => return Ok(pieces),
        Ok(_) => "run exited 0 and left no result files".to_string(),
    };
    let folder = settings.folder.join("pieces");
    fs::create_dir_all(&folder).map_err(|e| nothing(e.to_string()))?;
    for k in 0..PIECES {
        let (low, high, _) = name(k);
        let mut command = Command::new("python3");
        command.arg(&worker).arg(rows_per_id.to_string()).arg("--output_path").arg(&folder);
        command.args(["--low", &low.to_string(), "--high", &high.to_string()]);
        timed(&mut command).map_err(nothing)?;
    }
    Err((problem, (0..PIECES).map(|k| folder.join(name(k).2)).collect()))
}

fn ours_merge<'a>(
    out: &'a Path,
    made: &'a Result<Vec<PathBuf>, (String, Vec<PathBuf>)>,
    expected: u64,
    megabytes: f64,
) -> Contestant<'a> {
    let run = move || {
        made.as_ref().map_err(|(problem, _)| problem.clone())?;
        let merged = out.join(MERGED);
        let _ = fs::remove_file(&merged);
        sync_all();
        let (seconds, _) = timed(ours(&["merge"]).arg(out))?;
        match fs::metadata(&merged) {
            Ok(found) if found.len() == expected => Ok(vec![seconds]),
            Ok(found) => Err(format!("the merged file has {} bytes, not {expected}", found.len())),
            Err(e) => Err(format!("no merged file: {e}")),
        }
    };
    Contestant {
        ours: true,
        against: Against::Nobody,
        labels: &["auto-scheduler merge"],
        aim: "",
        megabytes,
        run: Box::new(run),
    }
}

fn cat_merge(out: PathBuf, pieces: &[PathBuf], megabytes: f64) -> Contestant<'_> {
    let run = move || {
        let _ = fs::remove_file(&out);
        sync_all();
        let script = "out=$1; shift; cat \"$@\" > \"$out\" && sync \"$out\"";
        let (seconds, _) = timed(Command::new("sh").args(["-c", script, "sh"]).arg(&out).args(pieces))?;
        Ok(vec![seconds])
    };
    Contestant {
        ours: false,
        against: Against::Time(0),
        labels: &["cat and sync"],
        aim: ">= 0.5",
        megabytes,
        run: Box::new(run),
    }
}

fn polars_merge(out: PathBuf, pieces: &[PathBuf], megabytes: f64) -> Contestant<'_> {
    let words: Vec<PathBuf> = std::iter::once(&out).chain(pieces).cloned().collect();
    let run = move || {
        let _ = fs::remove_file(&out);
        sync_all();
        python(POLARS_MERGE, &words, 2)
    };
    let labels =
        &["polars read, sort, write, fsync", "  without fsync", "  with fsync, Python's start and import"];
    Contestant { ours: false, against: Against::Time(0), labels, aim: ">= 2", megabytes, run: Box::new(run) }
}

fn first_line_length(path: &Path) -> u64 {
    let content = fs::read(path).unwrap_or_default();
    content.iter().position(|&b| b == b'\n').map_or(0, |at| at as u64 + 1)
}

/// What an earlier contestant left unwritten must not be written on the next one's time.
fn sync_all() {
    let _ = Command::new("sync").status();
}

// --- launch: what it costs to start a worker -------------------------------------------------------------------------

fn launch(settings: &Settings) -> Result<(), String> {
    let workers: u64 = if settings.quick { 40 } else { 400 };
    println!("launch: {workers} workers that do nothing, four at a time");
    let input = settings.folder.join("launch_input.csv");
    write_ids(&input, workers)?;
    let out = settings.folder.join("launch");
    let run = || {
        let _ = fs::remove_dir_all(&out);
        let (seconds, _) = timed(run_command(&input, &out, workers, 4).args(["--worker", "/bin/true"]))?;
        let logs = fs::read_dir(out.join("logs")).map_or(0, Iterator::count) as u64;
        if logs != workers {
            return Err(format!("{logs} workers were started, not {workers}"));
        }
        Ok(vec![seconds])
    };
    let mut contestants = vec![Contestant {
        ours: true,
        against: Against::Nobody,
        labels: &["auto-scheduler run"],
        aim: "",
        megabytes: 0.0,
        run: Box::new(run),
    }];
    let numbers: Vec<String> = (1..=workers).map(|n| n.to_string()).collect();
    let log = settings.folder.join("joblog");
    if is_installed("parallel") {
        let mut command = Command::new("parallel");
        command.args(["--will-cite", "-j4", "--joblog"]).arg(&log).args(["true", ":::"]).args(&numbers);
        contestants.push(simple("GNU parallel --joblog", ">= 0.33", 0.0, command));
    }
    let mut command = Command::new("sh");
    command.args(["-c", &format!("seq {workers} | xargs -P4 -n1 /bin/true")]);
    contestants.push(simple("xargs -P4 (keeps no record)", "", 0.0, command));
    let problem = race(settings.rounds, contestants);
    let _ = fs::remove_dir_all(&out);
    print_peak_memory(run_command(&input, &out, workers, 4).args(["--worker", "/bin/true"]));
    problem.map_or(Ok(()), Err)
}

fn run_command(input: &Path, out: &Path, workers: u64, parallel: u64) -> Command {
    let mut command = ours(&["run", "--quiet", "--gpus-per-worker", "1"]);
    command.arg("--input-path").arg(input).arg("--output-path").arg(out);
    command.args(["--num-workers", &workers.to_string(), "--max-parallel-workers", &parallel.to_string()]);
    command.args(["--gpus", &format!("sim:{parallel}")]);
    command
}

fn write_ids(path: &Path, ids: u64) -> Result<(), String> {
    let mut text = "row_id,data_id,token_id,token_type,real_token,SLM_predictions\n".to_string();
    for id in 0..ids {
        text += &format!("{},{id},0,0,1,2\n{},{id},1,1,2,3\n", 2 * id, 2 * id + 1);
    }
    fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

// --- running and printing ----------------------------------------------------------------------------------------------

fn ours(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("PEERS_BINARY").unwrap_or_else(|| OURS.into()));
    command.args(words);
    for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("AUTO_SCHEDULER_")) {
        command.env_remove(name);
    }
    command
}

fn timed(command: &mut Command) -> Result<(f64, Output), String> {
    let began = Instant::now();
    let output =
        command.stdin(Stdio::null()).output().map_err(|e| format!("cannot start {command:?}: {e}"))?;
    let seconds = began.elapsed().as_secs_f64();
    if output.status.success() {
        return Ok((seconds, output));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = said.lines().rev().take(5).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    Err(format!("{:?} ended with {}: {}", command.get_program(), output.status, last.join(" | ")))
}

fn simple<'a>(
    label: &'static str,
    aim: &'static str,
    megabytes: f64,
    mut command: Command,
) -> Contestant<'a> {
    let run = move || timed(&mut command).map(|(seconds, _)| vec![seconds]);
    Contestant {
        ours: false,
        against: Against::Time(0),
        labels: Box::leak(Box::new([label])),
        aim,
        megabytes,
        run: Box::new(run),
    }
}

/// The `inner` seconds that the script printed first, then the whole process.
fn python(script: &str, words: &[PathBuf], inner: usize) -> Seconds {
    let (whole, output) = timed(Command::new("python3").arg("-c").arg(script).args(words))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let mut seconds: Vec<f64> = said.split_whitespace().take(inner).filter_map(|s| s.parse().ok()).collect();
    seconds.push(whole);
    Ok(seconds)
}

fn is_installed(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
    let found = found.is_ok_and(|o| o.status.success());
    if !found {
        println!("  {program} is not installed: left out");
    }
    found
}

fn has_polars() -> bool {
    let found =
        Command::new("python3").args(["-c", "import polars"]).output().is_ok_and(|o| o.status.success());
    if !found {
        println!("  polars is not installed for python3: left out");
    }
    found
}

/// One round to warm up, then `rounds` in which everyone has a turn. Returns what went wrong with one of ours.
fn race(rounds: usize, mut contestants: Vec<Contestant>) -> Option<String> {
    let mut times: Vec<Result<Vec<Vec<f64>>, String>> = contestants.iter().map(|_| Ok(Vec::new())).collect();
    for round in 0..=rounds {
        for (contestant, times) in contestants.iter_mut().zip(&mut times) {
            let Ok(kept) = times else { continue };
            match (contestant.run)() {
                Ok(seconds) if round > 0 => kept.push(seconds),
                Ok(_) => {}
                Err(problem) => *times = Err(problem),
            }
        }
    }
    println!("  {:<42} {:>9} {:>9} {:>7} {:>7}  aim", "", "best", "median", "MB/s", "ratio");
    for (contestant, kept) in contestants.iter().zip(&times) {
        match kept {
            Ok(kept) => {
                for (line, label) in contestant.labels.iter().enumerate() {
                    let series: Vec<f64> = kept.iter().filter_map(|s| s.get(line).copied()).collect();
                    let ratio = compare(contestant, &series, &contestants, &times);
                    let aim = if line == 0 { contestant.aim } else { "" };
                    print_line(label, &series, contestant.megabytes, ratio, aim);
                }
            }
            Err(problem) => println!("  {:<42} failed: {problem}", contestant.labels[0]),
        }
    }
    let ours = contestants.iter().zip(times).filter(|(contestant, _)| contestant.ours);
    ours.filter_map(|(_, times)| times.err()).next()
}

fn compare(
    contestant: &Contestant,
    series: &[f64],
    contestants: &[Contestant],
    times: &[Result<Vec<Vec<f64>>, String>],
) -> Option<f64> {
    let (base, size) = match contestant.against {
        Against::Nobody => return None,
        Against::Time(base) => (base, None),
        Against::Rate(base) => (base, Some(contestant.megabytes / contestants[base].megabytes)),
    };
    let base = times[base].as_ref().ok()?.iter().map(|seconds| seconds[0]);
    let ratios = base.zip(series).map(|(base, this)| size.map_or(this / base, |size| size * base / this));
    Some(median(&ratios.collect::<Vec<f64>>()))
}

fn print_line(label: &str, series: &[f64], megabytes: f64, ratio: Option<f64>, aim: &str) {
    let (best, middle) = (series.iter().copied().fold(f64::MAX, f64::min), median(series));
    let rate = if megabytes > 0.0 { format!("{:.0}", megabytes / middle) } else { String::new() };
    let ratio = ratio.map_or(String::new(), |r| format!("{r:.2}"));
    println!("  {label:<42} {best:>7.3} s {middle:>7.3} s {rate:>7} {ratio:>7}  {aim}");
}

fn median(series: &[f64]) -> f64 {
    let mut sorted = series.to_vec();
    sorted.sort_by(f64::total_cmp);
    if sorted.is_empty() {
        f64::NAN
    } else {
        (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
    }
}

/// The high-water mark of one command (of its largest process, as the kernel reports it on exit).
fn print_peak_memory(command: &mut Command) {
    let mut measured = Command::new("/usr/bin/time");
    measured.args(["-f", "peak %M"]).arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    for (name, _) in command.get_envs() {
        measured.env_remove(name);
    }
    let Ok(output) = measured.output() else {
        println!("  peak memory: /usr/bin/time is not installed");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let kib = said.lines().rev().find_map(|l| l.strip_prefix("peak ")?.parse::<f64>().ok());
    match kib {
        Some(kib) if output.status.success() => {
            println!("  {:<42} {:>7.1} MiB {:>25}{MEMORY_AIM}", "our peak memory", kib / 1024.0, "");
        }
        _ => println!("  our peak memory: the command failed with {}", output.status),
    }
}
