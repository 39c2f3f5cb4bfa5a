//! A stand-in libnvidia-ml: the few functions that schedulers call, driven by a JSON file that is read again at every
//! call, so that a test (or a curious user) can lose a GPU or wedge the driver of a running program.
//!
//! The file is the one that `NVML_STANDIN_FILE` names, else `nvml.json` beside the library itself: tests that run at
//! the same time in one process each copy the library into a folder of their own. Replace the file by renaming, or a
//! call may read half of it (and answer 999).
//!
//! ```json
//! {
//!   "driver_version": "570.86.15",
//!   "init_error": 9,
//!   "count_error": 18,
//!   "topology": [[0, 10], [10, 0]],
//!   "gpus": [
//!     {"uuid": "GPU-a", "name": "NVIDIA H100", "pci_bus_id": "00000000:17:00.0",
//!      "total_mib": 81920, "used_mib": 0, "processes": [4711],
//!      "error": 15, "handle_error": 15, "hang_ms": 60000}
//!   ]
//! }
//! ```
//!
//! `gpus` is in NVML's index order; only `uuid` is needed (1 GPU per bus, 80 GiB, nothing in use). `topology` holds
//! NVML's levels (0 same board, 10, 20, 30, 40, 50 system). `error` is answered by all calls that ask a GPU for
//! more than who it is, `handle_error` by the look-up itself, `init_error` and `count_error` by those calls. With
//! `hang_ms`, asking for memory takes that long, or until the file says otherwise.
//!
//! Programs that load `libnvidia-ml.so.1` by name find it through a link of that name and LD_LIBRARY_PATH.

use serde_json::Value;
use std::ffi::{CStr, OsStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

type Return = c_uint;

const SUCCESS: Return = 0;
const INVALID_ARGUMENT: Return = 2;
const NOT_SUPPORTED: Return = 3;
const NOT_FOUND: Return = 6;
const INSUFFICIENT_SIZE: Return = 7;
const VERSION_MISMATCH: Return = 25;
const UNKNOWN: Return = 999;

const MIB: u64 = 1 << 20;

// ---- the file ----

/// One GPU of the file, found anew at every call; the opaque handle is its index + 1.
struct Gpu {
    index: usize,
    entry: Value,
}

impl Gpu {
    fn text(&self, key: &str, default: &str) -> String {
        self.entry.get(key).and_then(Value::as_str).unwrap_or(default).to_owned()
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.entry.get(key).and_then(Value::as_u64)
    }

    fn pci_bus_id(&self) -> String {
        self.text("pci_bus_id", &format!("00000000:{:02X}:00.0", self.index + 1))
    }

    fn pids(&self) -> Vec<c_uint> {
        let pids = self.entry.get("processes").and_then(Value::as_array).cloned().unwrap_or_default();
        pids.iter().filter_map(Value::as_u64).map(|pid| pid as c_uint).collect()
    }

    /// Total and used bytes.
    fn memory(&self) -> (u64, u64) {
        let total = self.number("total_mib").unwrap_or(80 << 10);
        (total * MIB, self.number("used_mib").unwrap_or(0).min(total) * MIB)
    }
}

#[repr(C)]
struct DlInfo {
    file: *const c_char,
    base: *mut c_void,
    symbol: *const c_char,
    address: *mut c_void,
}

unsafe extern "C" {
    fn dladdr(address: *const c_void, info: *mut DlInfo) -> c_int;
}

fn state_file() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("NVML_STANDIN_FILE") {
        return Some(named.into());
    }
    let mut info = DlInfo {
        file: std::ptr::null(),
        base: std::ptr::null_mut(),
        symbol: std::ptr::null(),
        address: std::ptr::null_mut(),
    };
    // SAFETY: the address is one of this library's own functions, and `info` outlives the call.
    let found = unsafe { dladdr(nvmlShutdown as *const c_void, &mut info) };
    if found == 0 || info.file.is_null() {
        return None;
    }
    // SAFETY: dladdr succeeded, so `file` is a C string that lives as long as the library.
    let library = unsafe { CStr::from_ptr(info.file) };
    Some(Path::new(OsStr::from_bytes(library.to_bytes())).with_file_name("nvml.json"))
}

fn state() -> Result<Value, Return> {
    let text = std::fs::read(state_file().ok_or(UNKNOWN)?).map_err(|_| UNKNOWN)?;
    serde_json::from_slice(&text).map_err(|_| UNKNOWN)
}

fn gpus(state: &Value) -> Vec<Value> {
    state.get("gpus").and_then(Value::as_array).cloned().unwrap_or_default()
}

fn planned_error(place: &Value, key: &str) -> Result<(), Return> {
    match place.get(key).and_then(Value::as_u64) {
        Some(code) => Err(code as Return),
        None => Ok(()),
    }
}

/// Who a handle is, also when the GPU is failing.
fn identity(device: *mut c_void) -> Result<Gpu, Return> {
    let index = (device as usize).checked_sub(1).ok_or(INVALID_ARGUMENT)?;
    let entry = gpus(&state()?).into_iter().nth(index).ok_or(INVALID_ARGUMENT)?;
    Ok(Gpu { index, entry })
}

fn working(device: *mut c_void) -> Result<Gpu, Return> {
    let gpu = identity(device)?;
    planned_error(&gpu.entry, "error")?;
    Ok(gpu)
}

fn hang_while_told(device: *mut c_void) -> Result<(), Return> {
    let begun = Instant::now();
    while let Some(limit) = identity(device)?.number("hang_ms") {
        if begun.elapsed() >= Duration::from_millis(limit) {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

// ---- the C interface ----

fn answer(result: Result<(), Return>) -> Return {
    result.err().unwrap_or(SUCCESS)
}

/// # Safety
/// `to` is null or points to writable memory for a `T`.
unsafe fn put<T>(to: *mut T, value: T) -> Result<(), Return> {
    if to.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and writable by the caller's contract.
    unsafe { to.write(value) };
    Ok(())
}

/// # Safety
/// `to` is null or points to `length` writable bytes.
unsafe fn put_text(to: *mut c_char, length: c_uint, text: &str) -> Result<(), Return> {
    if to.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    if text.len() >= length as usize {
        return Err(INSUFFICIENT_SIZE);
    }
    // SAFETY: text and its final zero fit into the `length` bytes the caller vouches for.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), to.cast::<u8>(), text.len());
        to.add(text.len()).write(0);
    }
    Ok(())
}

fn fixed<const N: usize>(text: &str) -> [c_char; N] {
    let mut field = [0; N];
    for (to, byte) in field.iter_mut().take(N - 1).zip(text.bytes()) {
        *to = byte as c_char;
    }
    field
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> Return {
    answer(state().and_then(|state| planned_error(&state, "init_error")))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> Return {
    nvmlInit_v2()
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> Return {
    SUCCESS
}

/// # Safety
/// As in nvml.h, here and below: pointers are null or point to what the declaration says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> Return {
    answer(state().and_then(|state| {
        planned_error(&state, "count_error")?;
        unsafe { put(count, gpus(&state).len() as c_uint) }
    }))
}

/// # Safety
/// See `nvmlDeviceGetCount_v2`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut *mut c_void) -> Return {
    let handle = (index as usize + 1) as *mut c_void;
    answer(identity(handle).and_then(|gpu| {
        planned_error(&gpu.entry, "handle_error")?;
        unsafe { put(device, handle) }
    }))
}

/// # Safety
/// See `nvmlDeviceGetCount_v2`; `uuid` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: *mut *mut c_void) -> Return {
    if uuid.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: not null, and a C string by contract.
    let wanted = unsafe { CStr::from_ptr(uuid) }.to_string_lossy().into_owned();
    answer(state().and_then(|state| {
        let is_it = |gpu: &Value| gpu.get("uuid").and_then(Value::as_str) == Some(&*wanted);
        let index = gpus(&state).iter().position(is_it).ok_or(NOT_FOUND)?;
        unsafe { put(device, (index + 1) as *mut c_void) }
    }))
}

/// # Safety
/// See `nvmlDeviceGetCount_v2`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetIndex(device: *mut c_void, index: *mut c_uint) -> Return {
    answer(identity(device).and_then(|gpu| unsafe { put(index, gpu.index as c_uint) }))
}

/// # Safety
/// See `nvmlDeviceGetCount_v2`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(device: *mut c_void, uuid: *mut c_char, length: c_uint) -> Return {
    answer(identity(device).and_then(|gpu| unsafe { put_text(uuid, length, &gpu.text("uuid", "")) }))
}

/// # Safety
/// See `nvmlDeviceGetCount_v2`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(device: *mut c_void, name: *mut c_char, length: c_uint) -> Return {
    answer(
        identity(device).and_then(|gpu| unsafe { put_text(name, length, &gpu.text("name", "Stand-in GPU")) }),
    )
}

#[repr(C)]
pub struct PciInfo {
    bus_id_legacy: [c_char; 16],
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    pci_device_id: c_uint,
    pci_sub_system_id: c_uint,
    bus_id: [c_char; 32],
}

/// # Safety
/// See `nvmlDeviceGetCount_v2`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(device: *mut c_void, pci: *mut PciInfo) -> Return {
    answer(identity(device).and_then(|gpu| {
        let id = gpu.pci_bus_id();
        let parts: Vec<c_uint> =
            id.split([':', '.']).filter_map(|part| c_uint::from_str_radix(part, 16).ok()).collect();
        let [domain, bus, device, _function] = parts[..] else { return Err(UNKNOWN) };
        let info = PciInfo {
            bus_id_legacy: fixed(&format!("{domain:04X}:{bus:02X}:{device:02X}.0")),
            domain,
            bus,
            device,
            pci_device_id: 0x2330_10DE,
            pci_sub_system_id: 0,
            bus_id: fixed(&id),
        };
        unsafe { put(pci, info) }
    }))
}

#[repr(C)]
pub struct MemoryV1 {
    total: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[repr(C)]
pub struct MemoryV2 {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

/// # Safety
/// See `nvmlDeviceGetCount_v2`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo(device: *mut c_void, memory: *mut MemoryV1) -> Return {
    answer(hang_while_told(device).and_then(|()| working(device)).and_then(|gpu| {
        let (total, used) = gpu.memory();
        unsafe { put(memory, MemoryV1 { total, free: total - used, used }) }
    }))
}

/// # Safety
/// See `nvmlDeviceGetCount_v2`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: *mut c_void, memory: *mut MemoryV2) -> Return {
    let version = (size_of::<MemoryV2>() | 2 << 24) as c_uint;
    // SAFETY: null or readable by contract; the version goes in, the rest comes out.
    if memory.is_null() || unsafe { (*memory).version } != version {
        return VERSION_MISMATCH;
    }
    answer(hang_while_told(device).and_then(|()| working(device)).and_then(|gpu| {
        let (total, used) = gpu.memory();
        let free = total - used;
        unsafe { put(memory, MemoryV2 { version, total, reserved: 0, free, used }) }
    }))
}

#[repr(C)]
pub struct ProcessInfo {
    pid: c_uint,
    used_gpu_memory: c_ulonglong,
    gpu_instance_id: c_uint,
    compute_instance_id: c_uint,
}

/// # Safety
/// See `nvmlDeviceGetCount_v2`; `infos` is null or has room for `*count` entries.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: *mut c_void,
    count: *mut c_uint,
    infos: *mut ProcessInfo,
) -> Return {
    answer(working(device).and_then(|gpu| {
        let pids = gpu.pids();
        if count.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: not null, and both readable and writable by contract.
        let room = unsafe { count.replace(pids.len() as c_uint) };
        if pids.is_empty() {
            return Ok(());
        }
        if infos.is_null() || (room as usize) < pids.len() {
            return Err(INSUFFICIENT_SIZE);
        }
        let share = gpu.memory().1 / pids.len() as u64;
        for (place, pid) in pids.into_iter().enumerate() {
            let info = ProcessInfo {
                pid,
                used_gpu_memory: share,
                gpu_instance_id: c_uint::MAX,
                compute_instance_id: c_uint::MAX,
            };
            // SAFETY: `place` is below the number of entries the caller made room for.
            unsafe { infos.add(place).write(info) };
        }
        Ok(())
    }))
}

/// # Safety
/// See `nvmlDeviceGetComputeRunningProcesses_v3`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v2(
    device: *mut c_void,
    count: *mut c_uint,
    infos: *mut ProcessInfo,
) -> Return {
    unsafe { nvmlDeviceGetComputeRunningProcesses_v3(device, count, infos) }
}

/// # Safety
/// See `nvmlDeviceGetCount_v2`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTopologyCommonAncestor(
    one: *mut c_void,
    other: *mut c_void,
    level: *mut c_uint,
) -> Return {
    answer(working(one).and_then(|one| {
        let other = working(other)?;
        let state = state()?;
        let matrix = state.get("topology").ok_or(NOT_SUPPORTED)?;
        let known = matrix.get(one.index).and_then(|row| row.get(other.index)).and_then(Value::as_u64);
        unsafe { put(level, known.ok_or(UNKNOWN)? as c_uint) }
    }))
}

#[repr(C)]
pub struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

/// # Safety
/// See `nvmlDeviceGetCount_v2`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUtilizationRates(
    device: *mut c_void,
    rates: *mut Utilization,
) -> Return {
    answer(working(device).and_then(|gpu| {
        let (total, used) = gpu.memory();
        let busy = if gpu.pids().is_empty() { 0 } else { 100 };
        let memory = (used * 100).checked_div(total).unwrap_or(0) as c_uint;
        unsafe { put(rates, Utilization { gpu: busy, memory }) }
    }))
}

/// # Safety
/// See `nvmlDeviceGetCount_v2`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) -> Return {
    answer(state().and_then(|state| {
        let text = state.get("driver_version").and_then(Value::as_str).unwrap_or("570.86.15");
        unsafe { put_text(version, length, text) }
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(code: Return) -> *const c_char {
    let text = match code {
        SUCCESS => c"Success",
        INVALID_ARGUMENT => c"Invalid Argument",
        NOT_SUPPORTED => c"Not Supported",
        NOT_FOUND => c"Not Found",
        INSUFFICIENT_SIZE => c"Insufficient Size",
        9 => c"Driver Not Loaded",
        15 => c"GPU is lost",
        16 => c"GPU requires reset",
        18 => c"Driver/library version mismatch",
        VERSION_MISMATCH => c"Argument version mismatch",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}
