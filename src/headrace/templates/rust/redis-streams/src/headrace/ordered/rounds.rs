//! A partition round by round: take a batch, handle its keys side by side and the events of a key one after the other, settle all of
//! it by one call, and only then take the next.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::headrace::backoff::Backoff;
use crate::headrace::error::Error;
use crate::headrace::execute::execute;
use crate::headrace::handler::Handler;
use crate::headrace::limits;
use crate::headrace::settlement::Outcome;
use crate::headrace::worker::Worker;

use super::advance::Advance;
use super::batch::{Batch, Lane};
use super::intake::Intake;
use super::lease::{Lease, is_loss};
use super::tenure::{Partition, Stop};

/// See the module.
pub(crate) struct Rounds<H> {
    pub worker: Arc<Worker<H>>,
    pub partition: Partition,
    pub lease: Arc<Lease>,
    pub intake: Intake,
    pub stop: Stop,
    /// Handlers at work. They are ended with the tenure.
    pub tasks: JoinSet<()>,
    /// So many rounds are of one event each, because workers died here.
    pub careful: usize,
    /// The event that too many workers died of, or nothing.
    pub poison: String,
    /// How many events the next batch may have, about.
    pub wanted: usize,
}

impl<H: Handler> Rounds<H> {
    /// Goes on until the worker leaves the partition, and all that was begun is settled; or until an error that is final.
    pub async fn run(&mut self) -> Result<(), Error> {
        let mut backoff = Backoff::new(format!("reading {}", self.partition.keys.stream));
        let leaving = self.stop.leaving.clone();
        while !leaving.is_cancelled() {
            let taken = tokio::select! {
                taken = self.take() => taken,
                () = leaving.cancelled() => break,
            };
            match taken {
                Ok(batch) => {
                    backoff.over();
                    self.go_through(batch).await?;
                }
                Err(error) if error.may_pass() => {
                    self.intake.reconnect();
                    tokio::select! { () = backoff.wait(&error) => {}, () = leaving.cancelled() => {} }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn take(&mut self) -> Result<Batch, Error> {
        if self.careful > 0 {
            return self.intake.take_one(&self.lease).await;
        }
        self.intake.take(&self.lease, self.wanted).await
    }

    async fn go_through(&mut self, mut batch: Batch) -> Result<(), Error> {
        if batch.items.is_empty() {
            return Ok(());
        }
        if self.careful > 0 {
            self.careful -= 1;
            self.handle_alone(&mut batch).await?;
        } else {
            let (lanes, began) = (batch.lanes(), Instant::now());
            let lengths: Vec<usize> = lanes.iter().map(Vec::len).collect();
            self.handle(&mut batch, lanes).await;
            self.wanted =
                next_batch(&lengths, began.elapsed(), self.worker.sub.concurrency).unwrap_or(self.wanted);
        }
        if self.stop.leaving.is_cancelled() {
            batch.cut();
        }
        let advance = Advance {
            topics: &self.worker.topics,
            sub: &self.worker.sub,
            observer: self.worker.observer.as_ref(),
            lease: &self.lease,
            stream: &self.partition.keys.stream,
            group: &self.partition.group,
            leaving: &self.stop.leaving,
        };
        advance.settle(batch, &mut self.intake).await
    }

    /// Handles events, each lane in its order. What had not begun when the worker left, or did not end in time, has no outcome.
    async fn handle(&mut self, batch: &mut Batch, lanes: Vec<Lane>) {
        let (out, mut outcomes) = mpsc::unbounded_channel();
        for lane in lanes {
            let (worker, lease, leaving) =
                (Arc::clone(&self.worker), Arc::clone(&self.lease), self.stop.leaving.clone());
            self.tasks.spawn(go_along(worker, lease, lane, leaving, out.clone()));
        }
        drop(out);
        loop {
            tokio::select! {
                () = self.stop.give_up.cancelled() => break,
                ended = outcomes.recv() => match ended {
                    Some((at, outcome)) => batch.items[at].outcome = Some(outcome),
                    None => break,
                },
            }
        }
        self.tasks.shutdown().await; // all have ended, or are not waited for any longer
        while let Ok((at, outcome)) = outcomes.try_recv() {
            batch.items[at].outcome = Some(outcome);
        }
    }

    /// One event after the other, each with its name left on the server: should it kill this worker, too, the next one knows.
    async fn handle_alone(&mut self, batch: &mut Batch) -> Result<(), Error> {
        let mut stopped = HashSet::new();
        let mut open = batch.lanes().concat();
        open.sort_by_key(|(at, _)| *at);
        for (at, event) in open {
            if self.stop.leaving.is_cancelled() {
                break;
            }
            if stopped.contains(&event.key().map(<[u8]>::to_vec)) {
                continue;
            }
            let name = String::from_utf8_lossy(event.origin()).into_owned();
            if name == self.poison {
                self.poison.clear(); // an operator may send it again: then it is an event like any other
                let deaths = limits::DEATHS_MAX;
                tracing::error!(id = %event.id(), "dead-lettered: its workers died");
                batch.items[at].outcome =
                    Some(Outcome::Dead { reason: format!("{deaths} workers that held it died") });
                continue;
            }
            self.name(&name).await?;
            self.handle(batch, vec![vec![(at, Arc::clone(&event))]]).await;
            if batch.items[at].outcome.as_ref().is_none_or(Outcome::comes_again) {
                stopped.insert(event.key().map(<[u8]>::to_vec));
            }
        }
        self.lease.tried();
        Ok(())
    }

    async fn name(&self, event: &str) -> Result<(), Error> {
        let mut backoff = Backoff::new(format!("lease of {}", self.partition.keys.stream));
        while let Err(error) = self.lease.try_alone(event).await {
            if is_loss(&error) || !error.may_pass() {
                return Err(error);
            }
            backoff.wait(&error).await;
        }
        Ok(())
    }
}

/// How many events the next batch may have, after lanes of these lengths took so long: what is handled in a moment, or what can be
/// side by side. A longer batch would make no more of them at once, and what is due meanwhile would wait.
fn next_batch(lanes: &[usize], took: Duration, concurrency: usize) -> Option<usize> {
    let (events, longest) = (lanes.iter().sum::<usize>(), *lanes.iter().max()?);
    let side_by_side = (2 * events / longest.max(1)).min(concurrency);
    let moment = events as u128 * limits::READ_STOCK.as_micros() / took.as_micros().max(1);
    let moment = usize::try_from(moment).unwrap_or(usize::MAX);
    Some(moment.max(side_by_side).clamp(1, limits::READ_RECORDS_MAX))
}

/// Handles the events of one key, until one is to be handled again.
async fn go_along<H: Handler>(
    worker: Arc<Worker<H>>,
    lease: Arc<Lease>,
    lane: Lane,
    leaving: CancellationToken,
    out: mpsc::UnboundedSender<(usize, Outcome)>,
) {
    for (at, event) in lane {
        let may_begin = async {
            let permit = Arc::clone(&worker.idle).acquire_owned().await;
            lease.hold().await;
            permit
        };
        let permit = tokio::select! {
            biased;
            () = leaving.cancelled() => return,
            permit = may_begin => permit,
        };
        let outcome = execute(&worker.sub, worker.observer.as_ref(), worker.handler.as_ref(), &event).await;
        drop(permit);
        let again = outcome.comes_again();
        let _nobody = out.send((at, outcome));
        if again {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_what_is_handled_in_a_moment_or_side_by_side() {
        let after = |lanes: &[usize], ms| next_batch(lanes, Duration::from_millis(ms), 50).unwrap();
        assert_eq!(after(&[100, 100], 50), 400, "quick: as many as take a moment");
        assert_eq!(after(&[16], 16_000), 2, "one slow key: a few");
        assert_eq!(after(&[1; 16], 1_000), 32, "many slow keys: more at once");
        assert_eq!(after(&[1; 40], 1_000), 50, "but no more than there may be handlers");
        assert_eq!(after(&[2, 1], 0), limits::READ_RECORDS_MAX);
        assert_eq!(next_batch(&[], Duration::ZERO, 50), None);
    }
}
