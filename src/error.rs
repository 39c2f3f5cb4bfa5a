//! How the program ends: the exit codes, and failures with their hints.

use std::error::Error;
use std::fmt;

/// Exit statuses; the numbers are part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    Done = 0,
    Usage = 2,
    Refused = 3,
    Incomplete = 4,
    MergeFailed = 5,
    Broken = 6,
    Resumable = 75,
    HungUp = 129,
    Interrupted = 130,
    Terminated = 143,
}

impl ExitCode {
    pub const ALL: [Self; 10] = [
        Self::Done,
        Self::Usage,
        Self::Refused,
        Self::Incomplete,
        Self::MergeFailed,
        Self::Broken,
        Self::Resumable,
        Self::HungUp,
        Self::Interrupted,
        Self::Terminated,
    ];

    pub fn code(self) -> u8 {
        self as u8
    }

    /// What the number means, as `--help` prints it.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Done => "every planned id is accounted for and merged",
            Self::Usage => "usage: a flag is unknown, missing or has a bad value",
            Self::Refused => "refused before starting: input, configuration, GPUs, or another scheduler",
            Self::Incomplete => "ended with something missing, all of it listed in merge_summary.json",
            Self::MergeFailed => "the merge or its proof failed",
            Self::Broken => "the worker's environment or configuration can never work",
            Self::Resumable => "waited longer than --wait-timeout; the same command resumes",
            Self::HungUp => "stopped by SIGHUP; the same command resumes",
            Self::Interrupted => "stopped by SIGINT; the same command resumes",
            Self::Terminated => "stopped by SIGTERM; the same command resumes",
        }
    }

    /// The table under `--help`.
    pub fn table() -> String {
        let lines = Self::ALL.map(|code| format!("  {:>3}  {}", code.code(), code.sentence()));
        format!("Exit codes:\n{}", lines.join("\n"))
    }
}

/// Why the program ends without having done its job: printed once, with its causes and a remedy.
#[derive(Debug)]
pub struct Failure {
    pub code: ExitCode,
    message: String,
    hint: Option<String>,
}

impl Failure {
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Refused, message)
    }

    /// An error with all its causes.
    pub fn from_error(code: ExitCode, error: &dyn Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            message.push_str(&format!(": {inner}"));
            cause = inner.source();
        }
        // It may quote a file's bytes, which must not reach a terminal as commands.
        let shown = message.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c });
        Self::new(code, shown.collect::<String>())
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl From<crate::ports::StoreError> for Failure {
    fn from(error: crate::ports::StoreError) -> Self {
        let failure = Self::from_error(ExitCode::Refused, &error);
        match error {
            crate::ports::StoreError::Io { path, .. } => failure.hint(format!(
                "check that {} can be read and written and that its disk has room",
                path.display()
            )),
            crate::ports::StoreError::Newer { .. } => {
                failure.hint("use the newer version, or another --output-path")
            }
            crate::ports::StoreError::Garbage { path, .. } => {
                failure.hint(format!("move {} away; what only it knew is then done again", path.display()))
            }
            crate::ports::StoreError::Held(_) => {
                failure.hint("give the same command again once that worker has ended")
            }
            crate::ports::StoreError::Data(_) => {
                failure.hint("nothing was lost; mend what is named and give the same command again")
            }
        }
    }
}
