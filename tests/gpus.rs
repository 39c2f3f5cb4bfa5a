//! Leasing through the real NVML path, against a stand-in library whose GPUs a test changes while a run uses them.

mod support;

use serde_json::{Value, json};
use std::fs;
use std::process::Command;
use support::{Bench, Run, until, until_true};

const GIB: u64 = 1024;

/// One GPU as the stand-in reads it; bus ids ascend against the index, so that index and ordinal differ.
fn gpu(index: usize, used_mib: u64) -> Value {
    json!({
        "uuid": format!("GPU-{index}"),
        "pci_bus_id": format!("00000000:{:02X}:00.0", 0x80 - index),
        "total_mib": 80 * GIB,
        "used_mib": used_mib,
    })
}

/// A test's folder with a stand-in library of its own.
struct Machine(Bench);

impl Machine {
    fn new(ids: std::ops::Range<i64>, used_mib: &[u64]) -> Self {
        let machine = Self(Bench::new(ids));
        fs::copy(standin(), machine.0.path("libnvml.so")).expect("cargo test builds the stand-in");
        machine.set(used_mib);
        machine
    }

    fn set(&self, used_mib: &[u64]) {
        let gpus: Vec<Value> = used_mib.iter().enumerate().map(|(index, used)| gpu(index, *used)).collect();
        self.0.write("nvml.new", &json!({ "gpus": gpus }).to_string());
        fs::rename(self.0.path("nvml.new"), self.0.path("nvml.json")).expect("replaced at once");
    }

    fn command(&self) -> Command {
        let mut command = self.0.command(env!("CARGO_BIN_EXE_auto-scheduler"));
        command.env("AUTO_SCHEDULER_NVML_LIB", self.0.path("libnvml.so"));
        command
    }

    /// A run on every GPU that NVML shows, two per worker.
    fn start(&self, worker: &str, more: &[&str]) -> Run {
        let (input, out) = (self.0.text_path("input.csv"), self.0.text_path("out"));
        let locks = self.0.text_path("gpu-locks");
        let mut command = self.command();
        command.args([
            "--input-path",
            &input,
            "--output-path",
            &out,
            "--num-workers",
            "2",
            "--worker",
            worker,
        ]);
        command.args(["--lock-dir", &locks, "--start-stagger", "0"]).args(more);
        self.0.spawn(command)
    }

    fn status(&self) -> Value {
        let ended = self.0.on_out("status", &["--json"]).code(0);
        serde_json::from_str(&ended.stdout).expect("a JSON document")
    }

    /// What the first range that waits waits for.
    fn waits_for(&self) -> String {
        until("status says what a range waits for", || {
            let status = self.0.out("live.json").exists().then(|| self.status())?;
            let ranges = status["ranges"].as_array()?.clone();
            let waiting = ranges.into_iter().find(|r| r["state"] == "waiting" && r["note"] != "")?;
            Some(waiting["note"].as_str()?.to_owned())
        })
    }
}

fn standin() -> std::path::PathBuf {
    let exe = std::env::current_exe().expect("our own path");
    exe.ancestors().nth(2).expect("target/PROFILE").join("examples/libnvml_standin.so")
}

#[test]
fn gpus_are_listed_in_pci_order_with_the_reason_why_not() {
    let machine = Machine::new(0..1, &[0, 5000]);
    let mut command = machine.command();
    command.args(["gpus", "--lock-dir", &machine.0.text_path("gpu-locks")]);
    let ended = machine.0.spawn(command).wait().code(0);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert!(lines[1].starts_with("0") && lines[1].contains("GPU-1"), "{}", ended.stdout);
    assert!(lines[1].ends_with("no: holds 5000 MiB (limit 1000 MiB)"), "{}", ended.stdout);
    assert!(lines[2].contains("GPU-0") && lines[2].ends_with("yes"), "{}", ended.stdout);
}

#[test]
fn ranges_wait_for_gpus_and_take_them_once_they_are_free() {
    let machine = Machine::new(0..4, &[0, 7000]);
    let worker = machine.0.scripted("--print-env");
    let run = machine.start(&worker, &[]);
    let reason = machine.waits_for();
    assert!(reason.contains("2 GPUs wanted, 1 free") && reason.contains("MiB"), "{reason}");
    machine.set(&[0, 0]);
    run.wait().code(0);
    machine.0.assert_merged();
    let env = machine.0.log("0_2", 1);
    assert!(
        env.contains("CUDA_VISIBLE_DEVICES=0,1") && env.contains("CUDA_DEVICE_ORDER=PCI_BUS_ID"),
        "{env}"
    );
    assert!(env.contains("AUTO_SCHEDULER_GPU_UUIDS=GPU-1,GPU-0"), "{env}");
}

#[test]
fn a_gpu_is_leased_again_only_when_its_memory_is_back() {
    let machine = Machine::new(0..4, &[0, 0]);
    let worker = machine.0.scripted(&format!("--wait-for {}", machine.0.text_path("go")));
    let run = machine.start(&worker, &[]);
    until_true("the first worker runs", || machine.0.names("logs").len() == 1);
    // What the worker holds while it runs, and for a while after its end.
    machine.set(&[60_000, 60_000]);
    machine.0.write("go", "");
    run.until_said("completed successfully");
    let reason = machine.waits_for();
    assert!(reason.contains("2 GPUs wanted, 0 free"), "{reason}");
    assert_eq!(machine.0.names("logs").len(), 1, "the second range started on occupied GPUs");
    machine.set(&[0, 0]);
    run.wait().code(0);
    machine.0.assert_merged();
}

#[test]
fn waiting_can_be_bounded() {
    let machine = Machine::new(0..4, &[7000, 7000]);
    let run = machine.start(&machine.0.scripted(""), &["--wait-timeout", "1s"]);
    run.wait().code(75);
    assert!(machine.0.names("logs").is_empty());
}

#[test]
fn a_group_larger_than_the_machine_is_refused() {
    let machine = Machine::new(0..4, &[0, 0]);
    let run = machine.start(&machine.0.scripted(""), &["--gpus-per-worker", "3"]);
    run.wait().refused(&["wants 3 GPUs", "of the 2 on this machine"]);
}

#[test]
fn a_listed_gpu_that_does_not_exist_is_refused() {
    let machine = Machine::new(0..4, &[0, 0]);
    let run = machine.start(&machine.0.scripted(""), &["--gpus", "0,5"]);
    run.wait().refused(&["no GPU 5", "GPU-0"]);
}

#[test]
fn an_inherited_cuda_visible_devices_narrows_what_is_leased() {
    let machine = Machine::new(0..4, &[0, 0, 0, 0]);
    let locks = machine.0.text_path("gpu-locks");
    let (input, out) = (machine.0.text_path("input.csv"), machine.0.text_path("out"));
    let mut command = machine.command();
    command.env("CUDA_VISIBLE_DEVICES", "1,3").args(["--input-path", &input, "--output-path", &out]);
    command.args([
        "--num-workers",
        "1",
        "--lock-dir",
        &locks,
        "--worker",
        &machine.0.scripted("--print-env"),
    ]);
    machine.0.spawn(command).wait().code(0);
    assert!(machine.0.log("0_4", 1).contains("CUDA_VISIBLE_DEVICES=1,3"), "{}", machine.0.log("0_4", 1));
}

#[test]
fn two_schedulers_never_use_a_gpu_at_the_same_time() {
    let machine = Machine::new(0..4, &[0, 0]);
    let other = Bench::new(0..4);
    let holding = machine.0.scripted(&format!("--wait-for {}", machine.0.text_path("go")));
    let first = machine.start(&holding, &["--max-parallel-workers", "1"]);
    until_true("the first worker runs", || machine.0.names("logs").len() == 1);
    let (input, out) = (other.text_path("input.csv"), other.text_path("out"));
    let mut command = machine.command();
    command.args(["--input-path", &input, "--output-path", &out, "--num-workers", "1"]);
    command.args(["--lock-dir", &machine.0.text_path("gpu-locks"), "--worker", &other.scripted("")]);
    let second = machine.0.spawn(command);
    second.until_said("Nothing runs");
    assert!(second.stderr().contains("is locked by another scheduler"), "{}", second.stderr());
    assert!(other.names("logs").is_empty());
    machine.0.write("go", "");
    first.wait().code(0);
    second.wait().code(0);
    machine.0.assert_merged();
    other.assert_merged();
}
