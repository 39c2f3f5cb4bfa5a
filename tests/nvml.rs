//! The real NVML path against the stand-in library of `examples/nvml_standin.rs`, whose file each test rewrites while
//! the library is in use.

use auto_scheduler::os::nvml::Nvml;
use auto_scheduler::ports::{GpuError, Gpus};
use auto_scheduler::types::GpuSnapshot;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Long enough never to be met by accident.
const AMPLE: Duration = Duration::from_secs(120);

/// A copy of the stand-in in a folder of its own, so that tests in one process do not share its state.
struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn new(state: Value) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let machine = Self { folder };
        std::fs::copy(built_standin(), machine.library()).expect("the stand-in can be copied");
        machine.rewrite(state);
        machine
    }

    fn library(&self) -> PathBuf {
        self.folder.path().join("libnvidia-ml.so.1")
    }

    /// At once or not at all, as a half-written file would be an error of its own.
    fn rewrite(&self, state: Value) {
        let draft = self.folder.path().join("draft");
        std::fs::write(&draft, state.to_string()).expect("a draft");
        std::fs::rename(&draft, self.folder.path().join("nvml.json")).expect("renamed");
    }

    fn nvml(&self) -> Nvml {
        Nvml::new(Some(self.library()), AMPLE).expect("a thread")
    }
}

/// `cargo test` builds examples beside the test programs: target/PROFILE/examples, target/PROFILE/deps.
fn built_standin() -> PathBuf {
    let program = std::env::current_exe().expect("the test program has a path");
    let profile = program.parent().and_then(Path::parent).expect("target/PROFILE");
    let library = profile.join("examples/libnvml_standin.so");
    assert!(library.exists(), "{} is missing: cargo build --example nvml_standin", library.display());
    library
}

fn gpu(uuid: &str, bus: &str) -> Value {
    json!({"uuid": uuid, "name": "NVIDIA H100", "pci_bus_id": format!("00000000:{bus}:00.0"),
           "total_mib": 81920, "used_mib": 0})
}

fn with(mut gpu: Value, key: &str, value: Value) -> Value {
    gpu[key] = value;
    gpu
}

fn names(snapshot: &GpuSnapshot) -> Vec<(u32, &str)> {
    snapshot.gpus.iter().map(|gpu| (gpu.ordinal, gpu.uuid.as_str())).collect()
}

#[test]
fn memory_and_processes_are_read_and_a_rewritten_file_is_seen() {
    let busy = with(with(gpu("GPU-b", "18"), "used_mib", json!(2300)), "processes", json!([11, 12]));
    let machine = Machine::new(json!({"gpus": [gpu("GPU-a", "17"), busy]}));
    let nvml = machine.nvml();
    let snapshot = nvml.snapshot().expect("readable");
    assert_eq!(names(&snapshot), [(0, "GPU-a"), (1, "GPU-b")]);
    let [a, b] = snapshot.gpus.as_slice() else { panic!("two GPUs") };
    assert_eq!((a.total_bytes, a.free_bytes, a.used_bytes), (80 << 30, 80 << 30, 0));
    assert_eq!((b.free_bytes, b.used_bytes), ((81920 - 2300) << 20, 2300 << 20));
    assert_eq!((a.processes, b.processes), (Some(0), Some(2)));
    assert_eq!((b.name.as_str(), b.pci_bus_id.as_str()), ("NVIDIA H100", "00000000:18:00.0"));
    assert!(snapshot.gpus.iter().all(|gpu| !gpu.locked && gpu.fault.is_none()));
    assert!(snapshot.distances.is_empty(), "the driver tells no topology");

    machine.rewrite(json!({"gpus": [with(gpu("GPU-a", "17"), "used_mib", json!(5000))]}));
    let snapshot = nvml.snapshot().expect("readable");
    assert_eq!(names(&snapshot), [(0, "GPU-a")]);
    assert_eq!(snapshot.gpus[0].used_bytes, 5000 << 20);
}

#[test]
fn ordinals_and_distances_follow_the_pci_bus_not_nvmls_index() {
    let machine = Machine::new(json!({
        "gpus": [gpu("GPU-last", "CA"), gpu("GPU-first", "0B"), gpu("GPU-middle", "4F")],
        "topology": [[0, 10, 20], [10, 0, 50], [20, 50, 0]],
    }));
    let snapshot = machine.nvml().snapshot().expect("readable");
    assert_eq!(names(&snapshot), [(0, "GPU-first"), (1, "GPU-middle"), (2, "GPU-last")]);
    assert_eq!(snapshot.distances, [[0, 50, 10], [50, 0, 20], [10, 20, 0]]);
}

#[test]
fn one_failing_gpu_does_not_hide_the_others_and_keeps_its_name_and_rank() {
    let whole = || json!({"gpus": [gpu("GPU-a", "17"), gpu("GPU-b", "18"), gpu("GPU-c", "19")]});
    for (key, code, expected) in [
        ("error", 15, "it fell off the bus (NVML error 15)"),
        ("handle_error", 15, "it fell off the bus (NVML error 15)"),
        ("error", 16, "it needs a reset (NVML error 16)"),
        ("error", 999, "an internal driver error occurred"),
    ] {
        let machine = Machine::new(whole());
        let nvml = machine.nvml();
        nvml.snapshot().expect("readable");
        let mut state = whole();
        state["gpus"][1][key] = json!(code);
        machine.rewrite(state);
        let snapshot = nvml.snapshot().expect("the others are readable");
        assert_eq!(names(&snapshot), [(0, "GPU-a"), (1, "GPU-b"), (2, "GPU-c")], "{key} {code}");
        let faults: Vec<_> = snapshot.gpus.iter().map(|gpu| gpu.fault.as_deref()).collect();
        assert_eq!(faults, [None, Some(expected), None], "{key} {code}");
        machine.rewrite(whole());
        assert!(nvml.snapshot().expect("readable").gpus.iter().all(|gpu| gpu.fault.is_none()));
    }
}

#[test]
fn a_gpu_that_was_never_readable_keeps_the_rank_of_its_index() {
    let lost = with(gpu("GPU-a", "17"), "handle_error", json!(15));
    let machine = Machine::new(json!({"gpus": [lost, gpu("GPU-b", "18")]}));
    let snapshot = machine.nvml().snapshot().expect("the other is readable");
    assert_eq!(names(&snapshot), [(0, "unreadable-0"), (1, "GPU-b")]);
}

#[test]
fn a_gpu_we_may_not_use_is_not_counted() {
    let forbidden = with(gpu("GPU-a", "17"), "handle_error", json!(4));
    let machine = Machine::new(json!({"gpus": [forbidden, gpu("GPU-b", "18")]}));
    assert_eq!(names(&machine.nvml().snapshot().expect("readable")), [(0, "GPU-b")]);
}

#[test]
fn trouble_of_the_whole_driver_is_an_error_and_passes() {
    let healthy = || json!({"gpus": [gpu("GPU-a", "17")]});
    let machine = Machine::new(healthy());
    let nvml = machine.nvml();
    nvml.snapshot().expect("readable");
    for (state, expected) in [
        (json!({"gpus": [with(gpu("GPU-a", "17"), "error", json!(18))]}), "error 18"),
        (json!({"gpus": [gpu("GPU-a", "17")], "count_error": 18}), "error 18"),
        (json!({"gpus": [], "count_error": 999}), "internal driver error"),
    ] {
        machine.rewrite(state);
        let error = nvml.snapshot().expect_err("the driver is unusable");
        assert!(matches!(&error, GpuError::Driver(text) if text.contains(expected)), "{error}");
        machine.rewrite(healthy());
        assert_eq!(names(&nvml.snapshot().expect("readable again")), [(0, "GPU-a")]);
    }
}

#[test]
fn without_a_driver_the_choices_are_named() {
    let machine = Machine::new(json!({"gpus": [], "init_error": 9}));
    let missing = Nvml::new(Some(machine.folder.path().join("none.so")), AMPLE).expect("a thread");
    for nvml in [machine.nvml(), missing] {
        let error = nvml.snapshot().expect_err("there is no driver");
        assert!(matches!(error, GpuError::NoDriver(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("--gpus 0,1,...") && text.contains("--gpus sim:N"), "{text}");
    }
    machine.rewrite(json!({"gpus": [gpu("GPU-a", "17")]}));
    assert_eq!(machine.nvml().snapshot().expect("a driver now").gpus.len(), 1);
}

/// However slow the machine: the hang lasts until the file is rewritten, and whoever asks waits no longer than told.
#[test]
fn a_hanging_driver_is_wedged_until_it_comes_back() {
    let healthy = || json!({"gpus": [gpu("GPU-a", "17")]});
    let hanging = json!({"gpus": [with(gpu("GPU-a", "17"), "hang_ms", json!(3_600_000))]});
    let machine = Machine::new(hanging);
    let nvml = Nvml::new(Some(machine.library()), Duration::from_millis(50)).expect("a thread");
    for _ in 0..3 {
        let error = nvml.snapshot().expect_err("it hangs");
        assert!(matches!(error, GpuError::Wedged(_)), "{error}");
    }
    machine.rewrite(healthy());
    let recovered = loop {
        match nvml.snapshot() {
            Ok(snapshot) => break snapshot,
            Err(GpuError::Wedged(_)) => std::thread::sleep(Duration::from_millis(5)),
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(names(&recovered), [(0, "GPU-a")]);
}

#[test]
fn many_may_ask_at_once() {
    let machine = Machine::new(json!({"gpus": [gpu("GPU-a", "17"), gpu("GPU-b", "18")]}));
    let nvml = machine.nvml();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(nvml.snapshot().expect("readable").gpus.len(), 2);
                }
            });
        }
    });
}
