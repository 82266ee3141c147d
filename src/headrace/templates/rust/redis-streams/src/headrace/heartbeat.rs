//! A worker's heartbeat: renews its lease by the server's clock, appends what is due, notices the dead, trims.
//!
//! One call each third of a lease, and one more at each moment that is known to be the due time of a delayed record.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::backoff::Backoff;
use super::error::Error;
use super::limits;
use super::node::lock;
use super::place::Place;
use super::retention::trim;
use super::scripts::Script;

/// Renews the lease until the task is aborted; the lease is not given up here.
pub(crate) async fn run(place: Arc<Place>) {
    let beat = place.pulse.add(format!("heartbeat of {}", place.stream()));
    let mut backoff = Backoff::new(format!("heartbeat of group {} on {}", place.sub.group, place.stream()));
    let interval = place.sub.lease / limits::RENEWALS_PER_LEASE;
    let (mut renewed, mut swept, mut trimmed) = (Instant::now(), Instant::now(), 0);
    loop {
        beat.beat();
        let next = *lock(&place.alarm.next);
        let soon = next.min(Instant::now() + Duration::from_secs(5)); // to be seen alive also with a long lease
        let changed = timeout_at(soon, place.alarm.changed.notified()).await.is_ok();
        let started = Instant::now();
        if changed || started < next {
            continue;
        }
        *lock(&place.alarm.next) = started + interval;
        match tend(&place, started - renewed).await {
            Ok(()) => {
                backoff.over();
                renewed = started;
                if started - swept > limits::SWEEP {
                    swept = started;
                    place.sweep();
                }
                let committed = place.committed.load(Ordering::Relaxed);
                if committed != trimmed {
                    trimmed = committed;
                    if let Err(error) = trim(&place.node, &place.sub.topic, &place.keys, &place.group).await {
                        tracing::warn!(stream = place.stream(), %error, "not trimmed; tried again with the next heartbeat");
                    }
                }
            }
            Err(error) if error.may_pass() => {
                *lock(&place.alarm.next) = started;
                backoff.wait(&error).await;
            }
            Err(error) => tracing::error!(stream = place.stream(), %error, "heartbeat"),
        }
    }
}

async fn tend(place: &Arc<Place>, silent: Duration) -> Result<(), Error> {
    let (keys, group, sub) = (&place.keys, &place.group, &place.sub);
    let names =
        [&keys.stream, &keys.delayed, &group.retry, &group.delayed, &group.workers].map(String::as_str);
    let words = [sub.worker.as_str(), &sub.lease_ms(), &limits::BATCH_RECORDS_MAX.to_string()];
    let (next_ms, lost, lease_ms): (i64, i64, i64) = place.node.call(Script::Tend, &names, &words).await?;
    if silent > sub.lease || lost == 1 {
        tracing::warn!(
            stream = place.stream(),
            group = sub.group,
            ?silent,
            "this worker was silent for longer than its lease (handlers that block the runtime's threads, or a paused process); \
             others may have taken over its events, then its own results for them are dropped"
        );
    }
    if lease_ms < 0 || lost == 1 {
        place.look_around(); // lost: others took over, or all was deleted, which a blocked read may not notice
    } else {
        place.due_in(millis(lease_ms)); // a live worker renews long before; for a dead one this is the moment
    }
    if next_ms >= 0 {
        place.due_in(millis(next_ms));
    }
    Ok(())
}

fn millis(number: i64) -> Duration {
    Duration::from_millis(u64::try_from(number).unwrap_or(0))
}
