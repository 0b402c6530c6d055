//! The parts of one process while they run. The first that ends ends all.

use std::pin::pin;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long parts may take to end after the signal, before they are left behind.
const PATIENCE: Duration = Duration::from_secs(10);
/// By then a start is over, and what only it needed of the program's code can leave memory.
const START: Duration = Duration::from_secs(10);

pub struct Running {
    pub shutdown: CancellationToken,
    parts: JoinSet<(&'static str, anyhow::Result<()>)>,
}

impl Running {
    pub fn new(shutdown: CancellationToken) -> Self {
        Running { shutdown, parts: JoinSet::new() }
    }

    pub fn spawn<E>(&mut self, name: &'static str, part: impl Future<Output = Result<(), E>> + Send + 'static)
    where
        anyhow::Error: From<E>,
    {
        self.parts.spawn(async move { (name, part.await.map_err(anyhow::Error::from)) });
    }

    /// Waits for the signal, or for a part that fails without it; then for all parts.
    pub async fn wait(mut self) -> anyhow::Result<()> {
        // Here and not in `main`: the processes that the container engine starts must not have threads.
        if let Err(error) = tikv_jemalloc_ctl::background_thread::write(true) {
            tracing::warn!("memory that is free stays with this process until it works again: {error}");
        }
        let mut outcome = Ok(());
        let mut started = pin!(tokio::time::sleep(START));
        let mut is_starting = true;
        loop {
            let ended = tokio::select! {
                () = self.shutdown.cancelled() => break,
                () = &mut started, if is_starting => {
                    is_starting = false;
                    if let Err(error) = linux::process::forget_code() {
                        tracing::debug!("the code that the start needed stays in memory: {error}");
                    }
                    continue;
                }
                ended = self.parts.join_next() => ended,
            };
            match ended {
                // One that had a single thing to say has said it.
                Some(Ok((_, Ok(())))) => {}
                Some(Ok((name, Err(error)))) => {
                    outcome = Err(error.context(format!("the {name} failed")));
                    break;
                }
                Some(Err(panic)) => {
                    outcome = Err(anyhow::anyhow!(panic).context("a part panicked"));
                    break;
                }
                None => break,
            }
        }
        self.shutdown.cancel();
        let end = async {
            while let Some(ended) = self.parts.join_next().await {
                if let Ok((name, Err(error))) = ended {
                    tracing::warn!("the {name} ended badly: {error:#}");
                }
            }
        };
        if tokio::time::timeout(PATIENCE, end).await.is_err() {
            tracing::warn!("some parts did not end within {} s", PATIENCE.as_secs());
        }
        outcome
    }
}
