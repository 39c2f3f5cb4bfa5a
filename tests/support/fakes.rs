//! Fakes of the ports, probes in the place of actors, and one journal in which all of them write down what happens,
//! in order and with the virtual time. A test takes lines out of the journal; what it does not take is an error.

use actix::{Actor, Addr, Context, Handler, Message};
use auto_scheduler::messages::{
    AttemptEnded, AttemptStarted, CancelLease, CloseRange, LeaseDelayed, LeaseGranted, MergeEnded,
    RangeClosed, RangeEnded, ReleaseLease, RequestLease, RunAttempt, StopAttempt, TreeGone,
};
use auto_scheduler::ports::{
    AttemptJob, Findings, GpuError, Gpus, Outputs, Processes, Started, StateStore, StoreError, Sweeper,
};
use auto_scheduler::types::layout::Layout;
use auto_scheduler::types::state::{
    ExitRecord, GivenUp, Live, MergeSummary, RangeState, RangeStatus, VERSION,
};
use auto_scheduler::types::{
    Attempt, ExitOutcome, GpuFacts, GpuSnapshot, IdRows, IdRun, Lease, LeaseId, LeasedGpu, Piece, RangeId,
    Segment, ShardFacts,
};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Longer than any timer a test leaves behind on purpose.
const AFTERMATH: Duration = Duration::from_secs(1000);

/// Runs a test on a clock that only moves when nothing else can, exact to the millisecond because it stands still from
/// the runtime's first instant on. Afterwards every watched actor has to be alive and the journal empty.
pub fn on_paused_clock(test: impl AsyncFnOnce(Journal)) {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(true).build().expect("a runtime")
    };
    actix::System::with_tokio_rt(runtime).block_on(async {
        let journal = Journal::new();
        test(journal.clone()).await;
        tokio::time::sleep(AFTERMATH).await;
        assert_eq!(journal.dead(), [""; 0], "actors that panicked or stopped");
        assert_eq!(journal.take(), [""; 0], "nothing else happens");
    });
}

/// What happened, as seen by a fake or a probe.
#[derive(Debug, Clone)]
pub enum Note {
    Saved(Box<RangeState>),
    SaveFailed(RangeId),
    Started(Box<AttemptJob>),
    StartFailed(RangeId, Attempt),
    Gone(RangeId, Attempt),
    ToldToStop { range: RangeId, attempt: Attempt, kill_now: bool },
    Swept(RangeId, Attempt),
    Examined(RangeId, Attempt, RangeId),
    ExamineFailed(RangeId, Attempt),
    Assembled(RangeId, Vec<Piece>, Vec<i64>),
    AssembleFailed(RangeId),
    Discarded(RangeId, Vec<Piece>),
    Merged(Vec<RangeState>, Vec<i64>),
    Told { to: String, message: String },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Saved(state) => {
                write!(f, "saved {} {:?}", state.range(), state.status)?;
                if let Some(open) = &state.open {
                    write!(f, ", open {}", open.number)?;
                }
                for segment in state.pieces.iter().flat_map(|piece| &piece.segments) {
                    write!(f, ", has {} to {}", segment.ids.0, segment.ids.1)?;
                }
                Ok(())
            }
            Self::SaveFailed(range) => write!(f, "could not save {range}"),
            Self::Started(job) => write!(f, "started {}.{}", job.range, job.attempt),
            Self::StartFailed(range, attempt) => write!(f, "could not start {range}.{attempt}"),
            Self::Gone(range, attempt) => write!(f, "gone {range}.{attempt}"),
            Self::ToldToStop { range, attempt, kill_now } => {
                write!(f, "told {range}.{attempt} to {}", if *kill_now { "die" } else { "stop" })
            }
            Self::Swept(range, attempt) => write!(f, "swept {range}.{attempt}"),
            Self::Examined(range, attempt, gap) => write!(f, "examined {range}.{attempt} for {gap}"),
            Self::ExamineFailed(range, attempt) => write!(f, "could not examine {range}.{attempt}"),
            Self::Assembled(range, pieces, ids) => {
                write!(f, "assembled {range} with {ids:?} from {:?}", files(pieces))
            }
            Self::AssembleFailed(range) => write!(f, "could not assemble {range}"),
            Self::Discarded(range, pieces) => write!(f, "discarded {:?} of {range}", files(pieces)),
            Self::Merged(states, ids) => {
                let of: Vec<String> =
                    states.iter().map(|state| format!("{} {:?}", state.range(), state.status)).collect();
                write!(f, "merged {} ids of {}", ids.len(), of.join(", "))
            }
            Self::Told { to, message } => write!(f, "{to} <- {message}"),
        }
    }
}

fn files(pieces: &[Piece]) -> Vec<String> {
    pieces.iter().map(|piece| piece.file.display().to_string()).collect()
}

type IsAlive = Box<dyn Fn() -> bool + Send>;

/// One sequence for all fakes and probes of a test.
#[derive(Clone)]
pub struct Journal {
    began: Instant,
    notes: Arc<Mutex<Vec<(Duration, Note)>>>,
    watched: Arc<Mutex<Vec<(&'static str, IsAlive)>>>,
}

impl Journal {
    fn new() -> Self {
        Self { began: Instant::now(), notes: Arc::default(), watched: Arc::default() }
    }

    pub fn note(&self, note: Note) {
        self.notes.lock().unwrap().push((self.began.elapsed(), note));
    }

    /// A panic in an actor is silent: its mailbox closes and messages to it are lost. So the end of every test looks
    /// whether the mailboxes of the watched ones are still open.
    pub fn watch<A: Actor<Context = Context<A>>>(&self, name: &'static str, actor: A) -> Addr<A> {
        let addr = actor.start();
        self.watch_addr(name, &addr);
        addr
    }

    pub fn watch_addr<A: Actor<Context = Context<A>>>(&self, name: &'static str, addr: &Addr<A>) {
        let addr = addr.clone();
        self.watched.lock().unwrap().push((name, Box::new(move || addr.connected())));
    }

    pub fn dead(&self) -> Vec<&'static str> {
        let watched = self.watched.lock().unwrap();
        watched.iter().filter(|(_, is_alive)| !is_alive()).map(|(name, _)| *name).collect()
    }

    pub fn probe(&self, name: &str) -> Addr<Probe> {
        Probe { name: name.to_owned(), journal: self.clone() }.start()
    }

    /// Lets `since_start` of virtual time pass; everything that can happen until then has happened.
    pub async fn until(&self, since_start: Duration) {
        tokio::time::sleep_until(self.began + since_start).await;
    }

    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Everything since the last time, with the time since the start.
    pub fn take_notes(&self) -> Vec<(Duration, Note)> {
        std::mem::take(&mut self.notes.lock().unwrap())
    }

    pub fn take_timed(&self) -> Vec<(Duration, String)> {
        self.take_notes().into_iter().map(|(at, note)| (at, note.to_string())).collect()
    }

    /// The same after everything that needs no time has happened.
    pub async fn settled(&self) -> Vec<String> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.take()
    }

    pub fn take(&self) -> Vec<String> {
        self.take_timed().into_iter().map(|(_, line)| line).collect()
    }
}

/// Stands where another actor would and writes down every message.
pub struct Probe {
    name: String,
    journal: Journal,
}

impl Actor for Probe {
    type Context = Context<Self>;
}

impl<M: Message<Result = ()> + Told> Handler<M> for Probe {
    type Result = ();

    fn handle(&mut self, message: M, _: &mut Context<Self>) {
        self.journal.note(Note::Told { to: self.name.clone(), message: message.told() });
    }
}

/// A message as the journal shows it.
pub trait Told {
    fn told(&self) -> String;
}

macro_rules! told {
    ($($message:ident: |$m:ident| $text:expr;)*) => {
        $(impl Told for $message {
            fn told(&self) -> String {
                let $m = self;
                format!("{} {}", stringify!($message), $text).trim_end().to_owned()
            }
        })*
    };
}

told! {
    RequestLease: |m| m.range;
    CancelLease: |m| m.range;
    ReleaseLease: |m| m.lease.0;
    LeaseGranted: |m| format!("{} {}", m.range, lease_text(&m.lease));
    LeaseDelayed: |m| format!("{}: {}", m.range, m.reason);
    RunAttempt: |m| format!("{} {}", m.attempt, lease_text(&m.lease));
    StopAttempt: |m| format!("{}{}", m.attempt, if m.kill_now { " now" } else { "" });
    CloseRange: |_m| "";
    AttemptStarted: |m| format!("{}.{} {}", m.range, m.attempt, lease_text(&m.lease));
    TreeGone: |m| format!("{}.{}", m.range, m.attempt);
    AttemptEnded: |m| format!("{}.{} {}", m.range, m.attempt, report_text(m));
    RangeClosed: |m| m.range;
    RangeEnded: |m| format!("{} {:?}", m.range, m.end);
    MergeEnded: |m| match &m.result {
        Ok(summary) => format!("complete: {}", summary.complete),
        Err(error) => format!("error: {error}"),
    };
}

/// `lease 3 of [0, 1]`
fn lease_text(lease: &Lease) -> String {
    let ordinals: Vec<u32> = lease.gpus.iter().map(|gpu| gpu.ordinal).collect();
    format!("lease {} of {ordinals:?}", lease.id.0)
}

fn report_text(ended: &AttemptEnded) -> String {
    let report = &ended.report;
    match &report.failure {
        _ if report.complete => "complete".to_owned(),
        None => format!("{} rows left", report.rows_left),
        Some((class, message)) => format!("{class} ({message}), {} rows left", report.rows_left),
    }
}

/// Holds back whoever passes while it is closed; opened by dropping what `close` gave, so also by a failing test.
#[derive(Clone, Default)]
pub struct Gate(Arc<GateState>);

#[derive(Default)]
struct GateState {
    closed: Mutex<bool>,
    opened: Condvar,
    arrived: tokio::sync::Notify,
}

pub struct Closed(Gate);

impl Gate {
    pub fn close(&self) -> Closed {
        *self.0.closed.lock().unwrap() = true;
        Closed(self.clone())
    }

    fn pass(&self) {
        let mut closed = self.0.closed.lock().unwrap();
        if *closed {
            self.0.arrived.notify_one();
        }
        while *closed {
            closed = self.0.opened.wait(closed).unwrap();
        }
    }
}

impl Closed {
    /// Until somebody stands before the gate. Virtual time does not move meanwhile.
    pub async fn reached(&self) {
        self.0.0.arrived.notified().await;
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        *self.0.0.closed.lock().unwrap() = false;
        self.0.0.opened.notify_all();
    }
}

fn broken(what: &'static str) -> StoreError {
    StoreError::Io { doing: "use", path: PathBuf::from(what), source: std::io::Error::other("disk full") }
}

/// States in memory. Every successful save is in the journal.
pub struct FakeStore {
    journal: Journal,
    states: Mutex<BTreeMap<RangeId, RangeState>>,
    records: Mutex<BTreeMap<(RangeId, Attempt), ExitRecord>>,
    last_lines: Mutex<BTreeMap<(RangeId, Attempt), String>>,
    /// Every `live.json` that was written, the newest last.
    pub lives: Mutex<Vec<Live>>,
    pub refuse_live: AtomicBool,
    saves: AtomicUsize,
    failing_saves: Mutex<BTreeSet<usize>>,
    refused: Mutex<Option<RangeStatus>>,
    /// Before a save takes effect.
    pub gate: Gate,
}

impl FakeStore {
    pub fn new(journal: &Journal) -> Arc<Self> {
        Arc::new(Self {
            journal: journal.clone(),
            states: Mutex::default(),
            records: Mutex::default(),
            last_lines: Mutex::default(),
            lives: Mutex::default(),
            refuse_live: AtomicBool::new(false),
            saves: AtomicUsize::new(0),
            failing_saves: Mutex::default(),
            refused: Mutex::default(),
            gate: Gate::default(),
        })
    }

    /// As if an earlier run had written it.
    pub fn put(&self, state: RangeState) {
        self.states.lock().unwrap().insert(state.range(), state);
    }

    pub fn forget(&self, range: RangeId) {
        self.states.lock().unwrap().remove(&range);
    }

    pub fn state(&self, range: RangeId) -> Option<RangeState> {
        self.states.lock().unwrap().get(&range).cloned()
    }

    /// Makes the n-th save from now on fail.
    pub fn fail_save(&self, nth: usize) {
        self.failing_saves.lock().unwrap().insert(self.saves.load(Ordering::SeqCst) + nth);
    }

    /// Makes every save of such a state fail.
    pub fn refuse(&self, status: RangeStatus) {
        *self.refused.lock().unwrap() = Some(status);
    }

    pub fn record(&self, range: RangeId, attempt: Attempt, outcome: ExitOutcome, told_to_stop: bool) {
        let record = ExitRecord {
            version: VERSION,
            range,
            attempt,
            outcome,
            told_to_stop,
            swallowed_error: None,
            started_at: String::new(),
            ended_at: String::new(),
            output_bytes: 0,
            cut_bytes: 0,
        };
        self.records.lock().unwrap().insert((range, attempt), record);
    }

    pub fn printed(&self, range: RangeId, attempt: Attempt, line: &str) {
        self.last_lines.lock().unwrap().insert((range, attempt), line.to_owned());
    }
}

impl StateStore for FakeStore {
    fn save(&self, state: &RangeState) -> Result<(), StoreError> {
        self.gate.pass();
        let nth = self.saves.fetch_add(1, Ordering::SeqCst) + 1;
        let refused = *self.refused.lock().unwrap() == Some(state.status);
        if refused || self.failing_saves.lock().unwrap().contains(&nth) {
            self.journal.note(Note::SaveFailed(state.range()));
            return Err(broken("the state file"));
        }
        self.put(state.clone());
        self.journal.note(Note::Saved(Box::new(state.clone())));
        Ok(())
    }

    fn load_all(&self) -> Result<Vec<RangeState>, StoreError> {
        Ok(self.states.lock().unwrap().values().cloned().collect())
    }

    fn save_live(&self, live: &Live) -> Result<(), StoreError> {
        if self.refuse_live.load(Ordering::SeqCst) {
            return Err(broken("live.json"));
        }
        self.lives.lock().unwrap().push(live.clone());
        Ok(())
    }

    fn exit_record(&self, range: RangeId, attempt: Attempt) -> Result<Option<ExitRecord>, StoreError> {
        Ok(self.records.lock().unwrap().get(&(range, attempt)).cloned())
    }

    fn last_output(&self, range: RangeId, attempt: Attempt) -> Option<String> {
        self.last_lines.lock().unwrap().get(&(range, attempt)).cloned()
    }
}

/// Result files that exist only as findings.
pub struct FakeOutputs {
    journal: Journal,
    written: Mutex<BTreeMap<(RangeId, Attempt), Vec<i64>>>,
    failing_examinations: AtomicUsize,
    failing_assemblies: AtomicUsize,
    merge_fails: Mutex<Option<String>>,
}

impl FakeOutputs {
    pub fn new(journal: &Journal) -> Arc<Self> {
        Arc::new(Self {
            journal: journal.clone(),
            written: Mutex::default(),
            failing_examinations: AtomicUsize::new(0),
            failing_assemblies: AtomicUsize::new(0),
            merge_fails: Mutex::default(),
        })
    }

    /// The attempt's file has two rows for each of these ids, the last one perhaps not all of them.
    pub fn wrote(&self, range: RangeId, attempt: Attempt, ids: impl IntoIterator<Item = i64>) {
        self.written.lock().unwrap().insert((range, attempt), ids.into_iter().collect());
    }

    pub fn fail_examinations(&self, times: usize) {
        self.failing_examinations.store(times, Ordering::SeqCst);
    }

    pub fn fail_assemblies(&self, times: usize) {
        self.failing_assemblies.store(times, Ordering::SeqCst);
    }

    pub fn fail_merge(&self, message: &str) {
        *self.merge_fails.lock().unwrap() = Some(message.to_owned());
    }
}

/// Counts one failure down, if any is left.
fn fails(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

impl Outputs for FakeOutputs {
    fn examine(&self, range: RangeId, attempt: Attempt, gap: RangeId) -> Result<Findings, StoreError> {
        if fails(&self.failing_examinations) {
            self.journal.note(Note::ExamineFailed(range, attempt));
            return Err(broken("the result file"));
        }
        self.journal.note(Note::Examined(range, attempt, gap));
        let written = self.written.lock().unwrap();
        let file = written.get(&(range, attempt)).map(|ids| {
            (Layout::attempt_dir(range, attempt).join(gap.result_file()), shard(ids.iter().copied()))
        });
        Ok(Findings { file, ..Findings::default() })
    }

    fn assemble(&self, range: RangeId, pieces: &[Piece], ids: &[i64]) -> Result<Piece, StoreError> {
        if fails(&self.failing_assemblies) {
            self.journal.note(Note::AssembleFailed(range));
            return Err(broken("the range's file"));
        }
        self.journal.note(Note::Assembled(range, pieces.to_vec(), ids.to_vec()));
        let rows = pieces.iter().flat_map(|piece| &piece.segments).map(|segment| segment.rows).sum();
        let all = (*ids.first().expect("a range has ids"), *ids.last().expect("a range has ids"));
        let segment = Segment { ids: all, spans: vec![(10, 10 + 10 * rows)], rows };
        let attempt = pieces.last().map_or(Attempt(0), |piece| piece.attempt);
        Ok(Piece { attempt, file: range.result_file().into(), len: 10, crc: 1, segments: vec![segment] })
    }

    fn is_as_accepted(&self, _: &Piece) -> bool {
        true
    }

    fn discard(&self, range: RangeId, pieces: &[Piece]) {
        self.journal.note(Note::Discarded(range, pieces.to_vec()));
    }

    fn merge(&self, ranges: &[RangeState], ids: &[i64]) -> Result<MergeSummary, StoreError> {
        self.journal.note(Note::Merged(ranges.to_vec(), ids.to_vec()));
        match self.merge_fails.lock().unwrap().clone() {
            Some(message) => Err(StoreError::Data(message)),
            None => Ok(summary(ranges, ids)),
        }
    }
}

fn shard(ids: impl IntoIterator<Item = i64>) -> ShardFacts {
    let starts = (10..).step_by(20);
    let runs: Vec<IdRun> = ids
        .into_iter()
        .zip(starts)
        .map(|(id, start)| IdRun { id, start, end: start + 20, rows: 2 })
        .collect();
    let len = runs.last().map_or(10, |run| run.end);
    ShardFacts { header: Some(vec!["data_id".into()]), body: 10, runs, len, crc: 7, ..ShardFacts::default() }
}

pub fn summary(ranges: &[RangeState], ids: &[i64]) -> MergeSummary {
    let given_up: Vec<GivenUp> = ranges
        .iter()
        .filter(|state| state.status != RangeStatus::Complete)
        .map(|state| GivenUp {
            range: state.range(),
            missing_ids: ids
                .iter()
                .copied()
                .filter(|id| state.range().contains(*id) && !state.accepts(*id))
                .collect(),
            reason: state.last_failure.as_ref().map(|last| last.message.clone()).unwrap_or_default(),
            log: String::new(),
        })
        .collect();
    MergeSummary {
        total_files_merged: ranges.len() as u64,
        total_rows: ranges.iter().map(RangeState::accepted_rows).sum(),
        merge_timestamp: String::new(),
        individual_files: Vec::new(),
        version: VERSION,
        complete: given_up.is_empty(),
        merged_file: None,
        merged_bytes: 0,
        merged_crc32: 0,
        planned_ids: ids.len() as u64,
        ids_without_rows: Vec::new(),
        given_up,
        quoted_fields: 0,
        sorted_segments: 0,
    }
}

/// Two rows for each id, as `FakeOutputs` writes them.
pub fn samples(ids: impl IntoIterator<Item = i64>) -> Vec<IdRows> {
    ids.into_iter().map(|id| IdRows { id, rows: 2, span: None, digest: 0 }).collect()
}

pub struct FakeSweeper {
    pub journal: Journal,
}

impl Sweeper for FakeSweeper {
    fn sweep(&self, range: RangeId, attempt: Attempt) {
        self.journal.note(Note::Swept(range, attempt));
    }
}

type Life = Pin<Box<dyn Future<Output = ()>>>;
type Script = Box<dyn Fn(&AttemptJob) -> Life>;

/// Processes that live until the test ends them, or as long as a script says.
pub struct FakeProcesses {
    journal: Journal,
    script: Option<Script>,
    refuse: RefCell<bool>,
    running: RefCell<BTreeMap<(RangeId, Attempt), oneshot::Sender<()>>>,
}

impl FakeProcesses {
    pub fn new(journal: &Journal) -> Self {
        Self {
            journal: journal.clone(),
            script: None,
            refuse: RefCell::default(),
            running: RefCell::default(),
        }
    }

    pub fn scripted(journal: &Journal, script: impl Fn(&AttemptJob) -> Life + 'static) -> Self {
        Self { script: Some(Box::new(script)), ..Self::new(journal) }
    }

    pub fn refuse(&self, refuse: bool) {
        *self.refuse.borrow_mut() = refuse;
    }

    /// The process and everything below it ends.
    pub fn end(&self, range: RangeId, attempt: Attempt) {
        let process = self.running.borrow_mut().remove(&(range, attempt)).expect("a running process");
        process.send(()).expect("somebody waits for it");
    }
}

impl Processes for FakeProcesses {
    fn start(&self, job: AttemptJob) -> std::io::Result<Started> {
        let (range, attempt) = (job.range, job.attempt);
        if *self.refuse.borrow() {
            self.journal.note(Note::StartFailed(range, attempt));
            return Err(std::io::Error::other("no more processes"));
        }
        let life = match &self.script {
            Some(script) => script(&job),
            None => {
                let (end, ended) = oneshot::channel();
                self.running.borrow_mut().insert((range, attempt), end);
                Box::pin(async { ended.await.expect("only `end` ends a process") })
            }
        };
        self.journal.note(Note::Started(Box::new(job)));
        let (on_gone, on_stop) = (self.journal.clone(), self.journal.clone());
        let gone = async move {
            life.await;
            on_gone.note(Note::Gone(range, attempt));
        };
        let stop = move |kill_now| on_stop.note(Note::ToldToStop { range, attempt, kill_now });
        Ok(Started { gone: Box::pin(gone), stop: Box::new(stop) })
    }
}

/// GPUs whose memory the test fills and frees.
pub struct FakeGpus {
    seen: Mutex<Result<GpuSnapshot, GpuError>>,
    looks: AtomicUsize,
    looking_now: AtomicUsize,
    most_at_once: AtomicUsize,
    /// A closed one is a driver that does not answer.
    pub gate: Gate,
}

impl FakeGpus {
    /// GPUs of 80 GiB, nothing on them.
    pub fn new(count: u32) -> Arc<Self> {
        let gpus = (0..count).map(free_gpu).collect();
        Arc::new(Self {
            seen: Mutex::new(Ok(GpuSnapshot { gpus, distances: Vec::new() })),
            looks: AtomicUsize::new(0),
            looking_now: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            gate: Gate::default(),
        })
    }

    pub fn looks(&self) -> usize {
        self.looks.load(Ordering::SeqCst)
    }

    pub fn most_looks_at_once(&self) -> usize {
        self.most_at_once.load(Ordering::SeqCst)
    }

    pub fn use_gib(&self, ordinal: u32, gib: u64) {
        let mut seen = self.seen.lock().unwrap();
        let gpus = &mut seen.as_mut().expect("a driver that answers").gpus;
        let gpu = gpus.iter_mut().find(|gpu| gpu.ordinal == ordinal).expect("a GPU");
        gpu.used_bytes = gib << 30;
        gpu.free_bytes = gpu.total_bytes - gpu.used_bytes;
    }

    /// What the driver says from now on; gives what it said so far.
    pub fn answer(&self, answer: Result<GpuSnapshot, GpuError>) -> Result<GpuSnapshot, GpuError> {
        std::mem::replace(&mut *self.seen.lock().unwrap(), answer)
    }
}

impl Gpus for FakeGpus {
    fn snapshot(&self) -> Result<GpuSnapshot, GpuError> {
        let at_once = self.looking_now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(at_once, Ordering::SeqCst);
        self.looks.fetch_add(1, Ordering::SeqCst);
        self.gate.pass();
        let seen = self.seen.lock().unwrap().clone();
        self.looking_now.fetch_sub(1, Ordering::SeqCst);
        seen
    }
}

fn free_gpu(ordinal: u32) -> GpuFacts {
    GpuFacts {
        ordinal,
        uuid: format!("GPU-{ordinal}"),
        name: "Fake".into(),
        pci_bus_id: format!("00000000:{ordinal:02X}:00.0"),
        total_bytes: 80 << 30,
        free_bytes: 80 << 30,
        used_bytes: 0,
        processes: Some(0),
        locked: false,
        fault: None,
    }
}

pub fn lease(id: u64, ordinals: &[u32]) -> Lease {
    let gpus = ordinals.iter().map(|n| LeasedGpu { ordinal: *n, uuid: format!("GPU-{n}") }).collect();
    Lease { id: LeaseId(id), gpus }
}
