//! The machine's real GPUs, through NVIDIA's management library.
//!
//! NVML calls can hang for ever with a wedged driver, so all of them happen on one thread of their own. Whoever asks
//! waits for an answer with a deadline; a thread that hangs is left alone, and work goes on once it comes back.

use crate::ports::{GpuError, Gpus};
use crate::types::{GpuFacts, GpuSnapshot};
use nvml_wrapper as sys;
use nvml_wrapper::error::NvmlError;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Names the library to load instead of the system's `libnvidia-ml.so.1`.
pub const LIBRARY_VARIABLE: &str = "AUTO_SCHEDULER_NVML_LIB";
/// How long one look may take.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// Real GPUs; see the module.
#[derive(Debug)]
pub struct Nvml {
    shared: Arc<Shared>,
    deadline: Duration,
}

#[derive(Debug, Default)]
struct Shared {
    desk: Mutex<Desk>,
    changed: Condvar,
}

/// What callers and the thread tell each other. Looks are counted from 1.
#[derive(Debug, Default)]
struct Desk {
    wanted: u64,
    begun: u64,
    ended: u64,
    begun_at: Option<Instant>,
    /// Somebody waited for the current look in vain.
    wedged: bool,
    closed: bool,
    answer: Option<Result<GpuSnapshot, GpuError>>,
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Nvml {
    /// With `library` or else the system's; nothing is loaded before the first look.
    pub fn new(library: Option<PathBuf>, deadline: Duration) -> Result<Self, GpuError> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("nvml".to_owned())
            .spawn(move || serve(&theirs, Reader { library, ..Reader::default() }))
            .map_err(|error| GpuError::Driver(format!("no thread could be started for NVML: {error}")))?;
        Ok(Self { shared, deadline })
    }

    /// As the environment asks for, with the usual deadline.
    pub fn from_env() -> Result<Self, GpuError> {
        Self::new(std::env::var_os(LIBRARY_VARIABLE).map(PathBuf::from), DEADLINE)
    }
}

impl Gpus for Nvml {
    fn snapshot(&self) -> Result<GpuSnapshot, GpuError> {
        let mut desk = self.shared.desk();
        if desk.wedged {
            return Err(desk.wedged_since(self.deadline));
        }
        // A look that has begun already may have passed the GPU that matters: ask for the one after it.
        let mine = desk.begun + 1;
        desk.wanted = mine;
        self.shared.changed.notify_all();
        let wait = self.shared.changed.wait_timeout_while(desk, self.deadline, |desk| desk.ended < mine);
        let (mut desk, _) = wait.unwrap_or_else(PoisonError::into_inner);
        if desk.ended >= mine
            && let Some(answer) = &desk.answer
        {
            return answer.clone();
        }
        desk.wedged = true;
        Err(desk.wedged_since(self.deadline))
    }
}

impl Drop for Nvml {
    /// The thread ends by itself, unless it hangs; nobody waits for it.
    fn drop(&mut self) {
        self.shared.desk().closed = true;
        self.shared.changed.notify_all();
    }
}

impl Desk {
    fn wedged_since(&self, deadline: Duration) -> GpuError {
        GpuError::Wedged(self.begun_at.map_or(deadline, |begun_at| begun_at.elapsed()))
    }
}

/// The thread: one look after the other, whenever one is wanted.
fn serve(shared: &Shared, mut reader: Reader) {
    loop {
        let desk = shared.desk();
        let waited = shared.changed.wait_while(desk, |desk| desk.wanted <= desk.begun && !desk.closed);
        let mut desk = waited.unwrap_or_else(PoisonError::into_inner);
        if desk.closed {
            return;
        }
        desk.begun += 1;
        desk.begun_at = Some(Instant::now());
        drop(desk);
        let answer = reader.look();
        let mut desk = shared.desk();
        desk.ended = desk.begun;
        desk.begun_at = None;
        desk.wedged = false;
        desk.answer = Some(answer);
        shared.changed.notify_all();
    }
}

/// What stays the same between looks.
#[derive(Debug, Default)]
struct Reader {
    library: Option<PathBuf>,
    nvml: Option<sys::Nvml>,
    /// By NVML index: who a GPU was when it could still say so.
    known: BTreeMap<u32, Identity>,
    /// By pair of UUIDs; boards do not move while the machine runs.
    distances: BTreeMap<(String, String), u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    uuid: String,
    name: String,
    pci_bus_id: String,
    /// Domain, bus, device.
    place: (u32, u32, u32),
}

/// A GPU and its NVML index, with `None` for the place of one that never told.
struct Seen {
    index: u32,
    place: Option<(u32, u32, u32)>,
    facts: GpuFacts,
}

impl Reader {
    fn look(&mut self) -> Result<GpuSnapshot, GpuError> {
        let nvml = match self.nvml.take() {
            Some(nvml) => nvml,
            None => self.load()?,
        };
        match self.read(&nvml) {
            Ok(snapshot) => {
                self.nvml = Some(nvml);
                Ok(snapshot)
            }
            // The library is loaded anew next time: the driver may have been replaced under it.
            Err(error) => {
                self.known.clear();
                Err(failure(error))
            }
        }
    }

    fn load(&self) -> Result<sys::Nvml, GpuError> {
        let mut builder = sys::Nvml::builder();
        if let Some(library) = &self.library {
            builder.lib_path(library.as_os_str());
        }
        builder.init().map_err(failure)
    }

    fn read(&mut self, nvml: &sys::Nvml) -> Result<GpuSnapshot, NvmlError> {
        let mut all = Vec::new();
        for index in 0..nvml.device_count()? {
            match self.read_gpu(nvml, index) {
                Ok(seen) => all.push(seen),
                // Counted by NVML but not ours to use; CUDA does not count it.
                Err(NvmlError::NoPermission) => {}
                Err(error) if concerns_all(&error) => return Err(error),
                Err(error) => all.push(self.unreadable(index, &error)),
            }
        }
        let all = in_pci_order(without_doubles(all));
        let distances = self.distances_between(nvml, &all);
        let rank = |(ordinal, seen): (u32, Seen)| GpuFacts { ordinal, ..seen.facts };
        Ok(GpuSnapshot { gpus: (0..).zip(all).map(rank).collect(), distances })
    }

    /// An error here is this GPU's alone, unless `concerns_all` says otherwise.
    fn read_gpu(&mut self, nvml: &sys::Nvml, index: u32) -> Result<Seen, NvmlError> {
        let device = nvml.device_by_index(index)?;
        let pci = device.pci_info()?;
        let identity = Identity {
            uuid: device.uuid()?,
            name: device.name().unwrap_or_default(),
            pci_bus_id: pci.bus_id,
            place: (pci.domain, pci.bus, pci.device),
        };
        self.known.insert(index, identity.clone());
        let memory = device.memory_info()?;
        let processes = match device.running_compute_processes() {
            Ok(processes) => u32::try_from(processes.len()).ok(),
            Err(error @ (NvmlError::GpuLost | NvmlError::ResetRequired)) => return Err(error),
            Err(_) => None,
        };
        let facts = GpuFacts {
            total_bytes: memory.total,
            free_bytes: memory.free,
            used_bytes: memory.used,
            processes,
            ..nobody(&identity)
        };
        Ok(Seen { index, place: Some(identity.place), facts })
    }

    fn unreadable(&self, index: u32, error: &NvmlError) -> Seen {
        let fault = Some(fault(error));
        match self.known.get(&index) {
            Some(identity) => {
                Seen { index, place: Some(identity.place), facts: GpuFacts { fault, ..nobody(identity) } }
            }
            None => {
                let uuid = format!("unreadable-{index}");
                let stranger =
                    Identity { uuid, name: String::new(), pci_bus_id: String::new(), place: (0, 0, 0) };
                Seen { index, place: None, facts: GpuFacts { fault, ..nobody(&stranger) } }
            }
        }
    }

    /// All pairs, or nothing where the driver knows none.
    fn distances_between(&mut self, nvml: &sys::Nvml, gpus: &[Seen]) -> Vec<Vec<u32>> {
        let mut matrix = vec![vec![0; gpus.len()]; gpus.len()];
        let mut any_known = false;
        for (row, one) in gpus.iter().enumerate() {
            for (column, other) in gpus.iter().enumerate().skip(row + 1) {
                let known = self.distance(nvml, one, other);
                any_known |= known.is_some();
                let level = known.unwrap_or(FARTHEST);
                matrix[row][column] = level;
                matrix[column][row] = level;
            }
        }
        if any_known { matrix } else { Vec::new() }
    }

    fn distance(&mut self, nvml: &sys::Nvml, one: &Seen, other: &Seen) -> Option<u32> {
        let pair = (one.facts.uuid.clone(), other.facts.uuid.clone());
        if let Some(level) = self.distances.get(&pair) {
            return Some(*level);
        }
        if one.facts.fault.is_some() || other.facts.fault.is_some() {
            return None;
        }
        let (one, other) = (nvml.device_by_index(one.index).ok()?, nvml.device_by_index(other.index).ok()?);
        let level = one.topology_common_ancestor(other).ok()?.as_c();
        self.distances.insert(pair, level);
        Some(level)
    }
}

/// NVML_TOPOLOGY_SYSTEM, also for a pair nobody knows.
const FARTHEST: u32 = 50;

fn nobody(identity: &Identity) -> GpuFacts {
    GpuFacts {
        ordinal: 0,
        uuid: identity.uuid.clone(),
        name: identity.name.clone(),
        pci_bus_id: identity.pci_bus_id.clone(),
        total_bytes: 0,
        free_bytes: 0,
        used_bytes: 0,
        processes: None,
        locked: false,
        fault: None,
    }
}

/// An unreadable GPU may be remembered under an index that another one has taken over since.
fn without_doubles(mut all: Vec<Seen>) -> Vec<Seen> {
    let healthy: BTreeSet<String> =
        all.iter().filter(|seen| seen.facts.fault.is_none()).map(|seen| seen.facts.uuid.clone()).collect();
    for seen in all.iter_mut().filter(|seen| seen.facts.fault.is_some()) {
        if healthy.contains(&seen.facts.uuid) {
            seen.facts.uuid = format!("unreadable-{}", seen.index);
            seen.place = None;
        }
    }
    all
}

/// CUDA counts by PCI place; a GPU that never told its own keeps the rank of its NVML index.
fn in_pci_order(all: Vec<Seen>) -> Vec<Seen> {
    let (mut ranked, homeless): (Vec<Seen>, Vec<Seen>) =
        all.into_iter().partition(|seen| seen.place.is_some());
    ranked.sort_by_key(|seen| seen.place);
    for seen in homeless {
        let rank = ranked.len().min(seen.index as usize);
        ranked.insert(rank, seen);
    }
    ranked
}

/// Errors that say something about the driver rather than about one GPU.
fn concerns_all(error: &NvmlError) -> bool {
    use NvmlError::{DriverNotLoaded, LibRmVersionMismatch, Uninitialized};
    matches!(error, DriverNotLoaded | LibRmVersionMismatch | Uninitialized)
}

fn fault(error: &NvmlError) -> String {
    match error {
        NvmlError::GpuLost => "it fell off the bus (NVML error 15)".to_owned(),
        NvmlError::ResetRequired => "it needs a reset (NVML error 16)".to_owned(),
        other => other.to_string(),
    }
}

fn failure(error: NvmlError) -> GpuError {
    const CHOICES: &str = "name the GPUs with --gpus 0,1,... or simulate some with --gpus sim:N";
    match error {
        NvmlError::LibloadingError(_) => {
            GpuError::NoDriver(format!("NVIDIA's management library cannot be loaded ({error}); {CHOICES}"))
        }
        NvmlError::DriverNotLoaded | NvmlError::LibraryNotFound => {
            GpuError::NoDriver(format!("{error}; {CHOICES}"))
        }
        NvmlError::LibRmVersionMismatch => GpuError::Driver(
            "driver and library are of different versions (NVML error 18), as after an update; \
             reload the kernel module or reboot"
                .to_owned(),
        ),
        other => GpuError::Driver(other.to_string()),
    }
}
