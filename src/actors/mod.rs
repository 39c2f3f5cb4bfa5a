//! Thin shells around the cores: they turn messages and the world's answers into events, and perform actions.
//! Actors know each other as recipients of messages only.

pub mod gpu_pool;
pub mod merge;
pub mod monitor;
pub mod supervisor;
pub mod worker;

use actix::fut::wrap_future;
use actix::{Actor, ActorFutureExt, AsyncContext, Context};

/// Runs blocking work (fsync, CSV, NVML) on a thread of its own and hands its result back to the actor.
fn off_thread<A, T>(
    ctx: &mut Context<A>,
    work: impl FnOnce() -> T + Send + 'static,
    then: impl FnOnce(T, &mut A, &mut Context<A>) + 'static,
) where
    A: Actor<Context = Context<A>>,
    T: Send + 'static,
{
    let job = tokio::task::spawn_blocking(work);
    ctx.spawn(wrap_future::<_, A>(job).map(|result, actor, ctx| match result {
        Ok(value) => then(value, actor, ctx),
        // The work panicked, and so do we: a job whose end nobody learns of would stall the run.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }));
}
