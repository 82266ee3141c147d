//! The time in which this worker has a partition: from the lease that was taken to the lease that was given back or lost.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::headrace::backoff::Backoff;
use crate::headrace::error::Error;
use crate::headrace::handler::Handler;
use crate::headrace::keys::{GroupKeys, PartitionKeys};
use crate::headrace::limits;
use crate::headrace::retention::trim;
use crate::headrace::scripts::Script;
use crate::headrace::worker::Worker;

use super::intake::Intake;
use super::lease::{Found, Lease, is_loss};
use super::rounds::Rounds;

/// One partition of a group.
#[derive(Clone)]
pub(crate) struct Partition {
    pub keys: PartitionKeys,
    pub group: GroupKeys,
}

/// How a tenure is ended.
#[derive(Clone)]
pub(crate) struct Stop {
    /// Nothing more is begun.
    pub leaving: CancellationToken,
    /// Handlers at work are not waited for any longer.
    pub give_up: CancellationToken,
}

/// How a tenure has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The partition is free.
    Given,
    /// It belongs to another, or was deleted; what was in hand is forgotten.
    Lost,
}

/// Serves a partition until it is given back or lost. Fails if the server refuses for good.
pub(crate) async fn serve<H: Handler>(
    worker: Arc<Worker<H>>,
    partition: Partition,
    lease: Lease,
    found: Found,
    stop: Stop,
) -> Result<Ended, Error> {
    let lease = Arc::new(lease);
    let (node, sub) = (worker.topics.node(), &worker.sub);
    let intake = Intake::new(
        Arc::clone(node),
        partition.keys.clone(),
        partition.group.clone(),
        sub.block,
        found.cursor,
    );
    let mut rounds = Rounds {
        worker: Arc::clone(&worker),
        partition: partition.clone(),
        lease: Arc::clone(&lease),
        intake,
        stop,
        tasks: JoinSet::new(),
        careful: if found.careful { 2 * limits::READ_RECORDS_MAX } else { 0 }, // as many as a round may have had
        poison: found.poison,
        wanted: limits::FIRST_READ_RECORDS,
    };
    let serving = async {
        rounds.run().await?;
        give_back(&lease, &partition).await
    };
    let result = tokio::select! {
        result = serving => result,
        lost = keep(&worker, &partition, &lease) => Err(lost),
    };
    rounds.tasks.shutdown().await; // nothing of a partition that was lost goes on
    match result {
        Ok(()) => Ok(Ended::Given),
        Err(error) if is_loss(&error) => {
            let (stream, group) = (&partition.keys.stream, &sub.group);
            tracing::warn!(
                stream,
                group,
                %error,
                "this worker lost the partition. Was it silent for longer than its lease (handlers that block the runtime's \
                 threads, a paused process), or did the server lose writes (a failover)? What it had in hand is handled by \
                 the partition's next holder; its own results for that are dropped"
            );
            if error.code() == Some("NOGROUP") {
                worker.topics.forget(&sub.topic);
            }
            Ok(Ended::Lost)
        }
        Err(error) => Err(error),
    }
}

async fn give_back(lease: &Lease, partition: &Partition) -> Result<(), Error> {
    let mut backoff = Backoff::new(format!("giving back {}", partition.keys.stream));
    loop {
        match lease.give().await {
            Err(error) if error.may_pass() => backoff.wait(&error).await,
            given => return given,
        }
    }
}

/// Renews the lease, appends what is due and trims, until the partition is lost.
async fn keep<H>(worker: &Worker<H>, partition: &Partition, lease: &Lease) -> Error {
    let (stream, sub) = (&partition.keys.stream, &worker.sub);
    let beat = worker.status.pulse.add(format!("lease of {stream}"));
    let mut backoff = Backoff::new(format!("lease of {stream} for group {}", sub.group));
    let interval = sub.lease / limits::RENEWALS_PER_LEASE;
    let (mut next, mut trimmed) = (Instant::now(), 0);
    loop {
        beat.beat();
        let pause = next.saturating_duration_since(Instant::now());
        sleep(pause.min(Duration::from_secs(5))).await; // to be seen alive also with a long lease
        if Instant::now() < next {
            continue;
        }
        next = Instant::now() + interval;
        let kept = async {
            lease.renew().await?;
            let due = tend(worker, partition).await?;
            if lease.commits() != trimmed {
                trimmed = lease.commits();
                trim(worker.topics.node(), &sub.topic, &partition.keys, &partition.group).await?;
            }
            Ok::<_, Error>(due)
        };
        match kept.await {
            Ok(due) => {
                backoff.over();
                next = due.map_or(next, |due| next.min(Instant::now() + due));
            }
            Err(error) if is_loss(&error) => return error,
            Err(error) if error.may_pass() => {
                next = Instant::now();
                backoff.wait(&error).await;
            }
            Err(error) => tracing::error!(stream, %error, "lease"),
        }
    }
}

/// Appends delayed events that are due; says when the next one is.
async fn tend<H>(worker: &Worker<H>, partition: &Partition) -> Result<Option<Duration>, Error> {
    let keys = [partition.keys.stream.as_str(), &partition.keys.delayed];
    let words = ["", "0", &limits::BATCH_RECORDS_MAX.to_string()];
    let (next_ms, _, _): (i64, i64, i64) = worker.topics.node().call(Script::Tend, &keys, &words).await?;
    Ok(u64::try_from(next_ms).ok().map(|ms| Duration::from_millis(ms + 1)))
}
