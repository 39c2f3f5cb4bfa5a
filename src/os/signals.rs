//! Signals to the scheduler, as stop requests.

use crate::core::supervisor::StopCause;
use crate::os::process;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_tokio::Signals;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use tokio_stream::StreamExt;

/// Until `forward` takes over, a stop request ends the program at once, with the exit code it always has.
///
/// # Errors
/// The handlers cannot be installed.
pub fn exit_on_stop(code_of: fn(StopCause) -> u8) -> io::Result<Arc<AtomicBool>> {
    let armed = Arc::new(AtomicBool::new(true));
    for signal in wanted()?.iter().copied() {
        let code = i32::from(code_of(cause_of(signal)));
        signal_hook::flag::register_conditional_shutdown(signal, code, Arc::clone(&armed))?;
    }
    Ok(armed)
}

fn cause_of(signal: i32) -> StopCause {
    match signal {
        SIGINT => StopCause::Interrupt,
        SIGHUP => StopCause::HangUp,
        _ => StopCause::Terminate,
    }
}

/// An ignored HUP stays ignored. Asked once, before any handler of ours hides it.
fn wanted() -> io::Result<&'static [i32]> {
    static HANG_UP: OnceLock<bool> = OnceLock::new();
    let ignored = match HANG_UP.get() {
        Some(known) => *known,
        None => *HANG_UP.get_or_init({
            let ignored = process::is_ignored(SIGHUP)?;
            move || ignored
        }),
    };
    Ok(if ignored { &[SIGINT, SIGTERM] } else { &[SIGINT, SIGTERM, SIGHUP] })
}

/// Passes every INT, TERM and HUP on. INT and TERM are handled even if they were ignored at the start (a shell's `&`
/// does that); an ignored HUP stays ignored, as nohup wants it.
///
/// # Errors
/// The handlers cannot be installed.
pub fn forward(armed: &AtomicBool, mut pass: impl FnMut(StopCause) + 'static) -> io::Result<()> {
    let mut signals = Signals::new(wanted()?)?;
    armed.store(false, Ordering::SeqCst);
    actix::spawn(async move {
        while let Some(signal) = signals.next().await {
            let cause = cause_of(signal);
            tracing::warn!("stop requested ({cause:?}); once more to kill at once");
            pass(cause);
        }
    });
    Ok(())
}
