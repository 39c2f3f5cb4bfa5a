//! Signals to the scheduler, as stop requests.

use crate::core::supervisor::StopCause;
use crate::os::process;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_tokio::Signals;
use std::io;
use tokio_stream::StreamExt;

/// Passes every INT, TERM and HUP on. INT and TERM are handled even if they were ignored at the start (a shell's `&`
/// does that); an ignored HUP stays ignored, as nohup wants it.
///
/// # Errors
/// The handlers cannot be installed.
pub fn forward(mut pass: impl FnMut(StopCause) + 'static) -> io::Result<()> {
    let mut wanted = vec![SIGINT, SIGTERM];
    if !process::is_ignored(SIGHUP)? {
        wanted.push(SIGHUP);
    }
    let mut signals = Signals::new(wanted)?;
    actix::spawn(async move {
        while let Some(signal) = signals.next().await {
            let cause = match signal {
                SIGINT => StopCause::Interrupt,
                SIGHUP => StopCause::HangUp,
                _ => StopCause::Terminate,
            };
            tracing::warn!("stop requested ({cause:?}); once more to kill at once");
            pass(cause);
        }
    });
    Ok(())
}
