//! The worker's command line and environment.

use crate::types::{Attempt, Lease, RangeId};

/// What every worker of a run is started with; the rest depends on the attempt.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WorkerCommand {
    /// Program and leading arguments.
    pub program: Vec<String>,
    /// As typed: the worker resolves it from the scheduler's working folder.
    pub input_path: String,
    /// As typed; attempts get a folder below it.
    pub output_path: String,
    pub tp_size: u64,
    pub dp_size: u64,
    /// `--name value` pairs and switches in the original's order.
    pub model_args: Vec<String>,
    /// What stood behind `--`.
    pub extra_args: Vec<String>,
}

impl WorkerCommand {
    /// The argument vector for one gap of a range, run in the attempt's own folder.
    pub fn argv(&self, gap: RangeId, attempt_dir: &str) -> Vec<String> {
        let output = format!("{}/{attempt_dir}", self.output_path.trim_end_matches('/'));
        let mut argv = self.program.clone();
        let pairs = [
            ("--input_path", self.input_path.clone()),
            ("--output_path", output),
            ("--low", gap.low.to_string()),
            ("--high", gap.high.to_string()),
            ("--tp_size", self.tp_size.to_string()),
            ("--dp_size", self.dp_size.to_string()),
        ];
        argv.extend(pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
        argv.push("--resume".into());
        argv.extend(self.model_args.iter().cloned());
        argv.extend(self.extra_args.iter().cloned());
        argv
    }
}

/// Environment added for one attempt; TMPDIR is the shim's to add.
pub fn environment(
    scheduler_id: &str,
    range: RangeId,
    attempt: Attempt,
    lease: &Lease,
) -> Vec<(String, String)> {
    let ordinals: Vec<String> = lease.gpus.iter().map(|gpu| gpu.ordinal.to_string()).collect();
    let uuids: Vec<&str> = lease.gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
    [
        ("CUDA_VISIBLE_DEVICES", ordinals.join(",")),
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID".into()),
        ("R2R_SCHEDULER_ID", scheduler_id.into()),
        ("R2R_WORKER_RANGE", range.to_string()),
        ("AUTO_SCHEDULER_ATTEMPT", attempt.to_string()),
        ("AUTO_SCHEDULER_GPU_UUIDS", uuids.join(",")),
        ("PYTHONUNBUFFERED", "1".into()),
        ("SPT_NOENV", "1".into()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// A command as it may be written down: values of names like TOKEN, KEY, SECRET and PASSWORD are masked, in
/// `--name value`, `--name=value` and `NAME=value`.
pub fn masked(argv: &[String]) -> Vec<String> {
    let mut hide_next = false;
    argv.iter()
        .map(|word| {
            let (name, value) = word.split_once('=').map_or((word.as_str(), None), |(n, v)| (n, Some(v)));
            if std::mem::take(&mut hide_next) && !word.starts_with("--") {
                return "***".to_owned();
            }
            match (is_secret(name), value) {
                (true, Some(_)) => format!("{name}=***"),
                (true, None) => {
                    hide_next = word.starts_with('-');
                    word.clone()
                }
                (false, _) => word.clone(),
            }
        })
        .collect()
}

fn is_secret(name: &str) -> bool {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).map(str::to_ascii_lowercase);
    let secret = ["token", "key", "secret", "password", "passwd", "passphrase", "credential", "credentials"];
    words.into_iter().any(|word| secret.iter().any(|end| word.ends_with(end)))
}

/// A float as Python's `str` prints it, since that is what the original puts on a worker's command line.
pub fn python_float(value: f64) -> String {
    let plain = format!("{value:?}");
    match plain.split_once('e') {
        None if value != 0.0 && value.abs() < 1e-4 => {
            let (digits, exponent) = split_exponent(&format!("{value:e}"));
            format!("{digits}e{exponent}")
        }
        None => plain,
        Some(_) => {
            let (digits, exponent) = split_exponent(&plain);
            format!("{digits}e{exponent}")
        }
    }
}

/// Python writes at least two exponent digits and always a sign.
fn split_exponent(text: &str) -> (String, String) {
    let (digits, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let (sign, number) = match exponent.strip_prefix('-') {
        Some(number) => ('-', number),
        None => ('+', exponent),
    };
    (digits.strip_suffix(".0").unwrap_or(digits).to_owned(), format!("{sign}{number:0>2}"))
}

/// One shell line a person can copy: every word quoted where it has to be.
pub fn shell_line(argv: &[String]) -> Vec<String> {
    let words: Vec<String> = argv.iter().map(|word| quoted(word)).collect();
    let mut lines: Vec<String> = vec![String::new()];
    for word in words {
        if let Some(line) = lines.last_mut()
            && (!word.starts_with("--") || line.is_empty())
        {
            line.push_str(if line.is_empty() { "" } else { " " });
            line.push_str(&word);
        } else {
            lines.push(word);
        }
    }
    lines
}

fn quoted(word: &str) -> String {
    shlex::try_quote(word).map_or_else(|_| word.escape_default().to_string(), std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LeaseId, LeasedGpu};

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn the_command_line_is_the_originals_in_its_order() {
        let command = WorkerCommand {
            program: words("python3 step_2.py"),
            input_path: "in.csv".into(),
            output_path: "out/x/".into(),
            tp_size: 2,
            dp_size: 1,
            model_args: words("--max_tokens 32768 --is_print True"),
            extra_args: words("--mine 1"),
        };
        let expected = "python3 step_2.py --input_path in.csv --output_path out/x/attempts/0_8.1 --low 3 --high 8 \
                        --tp_size 2 --dp_size 1 --resume --max_tokens 32768 --is_print True --mine 1";
        assert_eq!(command.argv(RangeId::new(3, 8), "attempts/0_8.1"), words(expected));
    }

    #[test]
    fn the_environment_names_gpus_range_and_attempt() {
        let gpus = [4, 5].map(|i| LeasedGpu { ordinal: i, uuid: format!("GPU-{i}") }).into();
        let lease = Lease { id: LeaseId(1), gpus };
        let env = environment("s1", RangeId::new(-3, 8), Attempt(2), &lease);
        let get = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(get("CUDA_VISIBLE_DEVICES"), Some("4,5"));
        assert_eq!(get("AUTO_SCHEDULER_GPU_UUIDS"), Some("GPU-4,GPU-5"));
        assert_eq!(get("R2R_WORKER_RANGE"), Some("-3_8"));
        assert_eq!(get("AUTO_SCHEDULER_ATTEMPT"), Some("2"));
    }

    #[test]
    fn secrets_are_masked_and_token_counts_are_not() {
        let line = words(
            "env HF_TOKEN=abc MYSECRET=abc w --apitoken abc --api-key abc --max_tokens 9 --secret=abc --token --resume",
        );
        let shown = "env HF_TOKEN=*** MYSECRET=*** w --apitoken *** --api-key *** --max_tokens 9 --secret=*** --token --resume";
        assert_eq!(masked(&line), words(shown));
    }

    #[test]
    fn floats_are_printed_as_python_prints_them() {
        let table = [
            (0.0, "0.0"),
            (0.9, "0.9"),
            (1.0, "1.0"),
            (12.5, "12.5"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (-0.25, "-0.25"),
        ];
        for (value, text) in table {
            assert_eq!(python_float(value), text);
        }
    }

    #[test]
    fn a_printed_command_can_be_copied() {
        let argv = ["a b", "--x", "it's", "--y", "1"].map(str::to_owned);
        assert_eq!(shell_line(&argv), ["'a b'", "--x \"it's\"", "--y 1"]);
    }
}
