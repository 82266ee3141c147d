//! A worker in ordered mode: takes its share of the partitions, serves each, and gives them back when others come or it stops.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::headrace::backoff::Backoff;
use crate::headrace::error::Error;
use crate::headrace::handler::Handler;
use crate::headrace::joining::join;
use crate::headrace::keys::{GroupKeys, PartitionKeys};
use crate::headrace::limits;
use crate::headrace::partition::stream_of;
use crate::headrace::worker::{Worker, flat};

use super::growth::drained;
use super::lease::{Answer, Found, Lease, is_loss};
use super::members::{How, Members};
use super::shares::share_of;
use super::tenure::{Ended, Partition, Stop, serve};

/// What becomes of a partition of this worker's share.
enum Taken {
    Ours(Box<(Partition, Lease, Found)>),
    /// It cannot be had yet; worth asking again after this long.
    NotYet(Duration),
}

/// See the module.
pub(crate) struct Crew<H> {
    worker: Arc<Worker<H>>,
    members: Members,
    /// The partitions that this worker has, and what makes it leave each.
    held: HashMap<u32, CancellationToken>,
    tenures: JoinSet<(u32, Result<Ended, Error>)>,
    /// The partitions that it has had.
    known: HashSet<u32>,
    give_up: CancellationToken,
}

impl<H: Handler> Crew<H> {
    pub fn new(worker: Arc<Worker<H>>) -> Self {
        let members = Members::new(Arc::clone(worker.topics.node()), Arc::clone(&worker.sub));
        Self {
            worker,
            members,
            held: HashMap::new(),
            tenures: JoinSet::new(),
            known: HashSet::new(),
            give_up: CancellationToken::new(),
        }
    }

    /// As [`Worker::run`].
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Error> {
        let result = self.serve(&stop).await;
        self.worker.left();
        let left = self.leave().await;
        result.and(left)
    }

    async fn serve(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        let (topic, group) = (&self.worker.sub.topic.name, &self.worker.sub.group);
        let beat = self.worker.status.pulse.add(format!("membership of group {group} on {topic}"));
        let mut backoff = Backoff::new(format!("membership of group {group} on {topic}"));
        let mut how = How::Stay;
        while !stop.is_cancelled() {
            beat.beat();
            let looked = tokio::select! {
                looked = self.look(how) => looked,
                () = overdue(stop) => break, // what it may have taken is free when the lease ends
            };
            let pause = match looked {
                Ok(pause) => pause,
                Err(error) if error.may_pass() => {
                    tokio::select! { () = backoff.wait(&error) => {}, () = stop.cancelled() => {} }
                    continue;
                }
                Err(error) => return Err(error),
            };
            backoff.over();
            how = How::Stay;
            self.worker.joined();
            tokio::select! {
                Some(ended) = self.tenures.join_next() => {
                    let (number, ended) = flat(ended.map(Ok))?;
                    self.held.remove(&number);
                    if ended? == Ended::Given {
                        how = How::Tell;
                    }
                }
                changed = self.members.changed(pause) => changed?,
                () = stop.cancelled() => {}
            }
        }
        Ok(())
    }

    /// Takes what is free of this worker's share, leaves what is beyond it; returns how long nothing is likely to change.
    async fn look(&mut self, how: How) -> Result<Duration, Error> {
        let sub = Arc::clone(&self.worker.sub);
        self.worker.topics.register(&sub.topic).await?;
        let (members, first) = self.members.call(how).await?;
        let count = if sub.topic.partitions > 1 { self.worker.topics.recount(&sub.topic).await? } else { 1 };
        let mine = share_of(&sub.worker, &members, count);
        for (_, leaving) in self.held.iter().filter(|(number, _)| !mine.contains(number)) {
            leaving.cancel();
        }
        let wanted: Vec<u32> = mine.into_iter().filter(|number| !self.held.contains_key(number)).collect();
        let taken = join_all(wanted.iter().map(|number| self.take(*number, count))).await;
        let mut pause = sub.lease / limits::RENEWALS_PER_LEASE;
        pause = pause.min(first.unwrap_or(pause)).min(Duration::from_secs(5)); // to be seen alive also with a long lease
        let mut failed = None;
        for (number, taken) in wanted.into_iter().zip(taken) {
            match taken {
                Ok(Taken::Ours(taken)) => self.begin(number, *taken),
                Ok(Taken::NotYet(wait)) => pause = pause.min(wait),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(pause), Err)
    }

    async fn take(&self, number: u32, count: u32) -> Result<Taken, Error> {
        let (node, sub) = (self.worker.topics.node(), &self.worker.sub);
        let stream = stream_of(&sub.topic.name, number, count);
        let (keys, group) = (PartitionKeys::new(&stream), GroupKeys::new(&stream, &sub.group));
        let joining = self.worker.joining(number, count);
        join(node, &joining, &keys, &group, self.known.contains(&number)).await?;
        if !drained(node, &keys, &group, &sub.group).await? {
            return Ok(Taken::NotYet(limits::DRAINED));
        }
        match Lease::take(node, sub, &group.record).await {
            Ok(Answer::Taken(lease, found)) => {
                Ok(Taken::Ours(Box::new((Partition { keys, group }, *lease, found))))
            }
            Ok(Answer::Held(left)) => {
                Ok(Taken::NotYet(limits::ASK_AGAIN.min(left + Duration::from_millis(1))))
            }
            Err(error) if is_loss(&error) => Ok(Taken::NotYet(limits::RETRY_FIRST)), // deleted since it was joined
            Err(error) => Err(error),
        }
    }

    fn begin(&mut self, number: u32, (partition, lease, found): (Partition, Lease, Found)) {
        let sub = &self.worker.sub;
        tracing::info!(
            stream = partition.keys.stream,
            group = sub.group,
            worker = sub.worker,
            cursor = found.cursor,
            "serving"
        );
        let stop = Stop { leaving: CancellationToken::new(), give_up: self.give_up.clone() };
        self.held.insert(number, stop.leaving.clone());
        self.known.insert(number);
        let worker = Arc::clone(&self.worker);
        self.tenures.spawn(async move { (number, serve(worker, partition, lease, found, stop).await) });
    }

    /// Gives everything back. What cannot be given is taken over when its lease ends.
    async fn leave(mut self) -> Result<(), Error> {
        self.held.values().for_each(CancellationToken::cancel);
        let mut result = Ok(());
        if timeout(self.worker.sub.drain, join_rest(&mut self.tenures, &mut result)).await.is_err() {
            tracing::warn!("handlers still run at the end of the drain time; their events are handed back");
            self.give_up.cancel();
        }
        let deadline = Instant::now() + limits::LEAVE;
        let settled = deadline - limits::LEAVE / 2; // what cannot be settled must not keep the worker from leaving
        let mut given = timeout_at(settled, join_rest(&mut self.tenures, &mut result)).await.is_ok();
        self.tenures.shutdown().await;
        given &= matches!(timeout_at(deadline, self.members.call(How::Leave)).await, Ok(Ok(_)));
        if !given {
            tracing::warn!(
                group = self.worker.sub.group,
                "the server does not answer: what this worker had is taken over when its lease ends"
            );
        }
        result
    }
}

/// A worker that is stopped waits a moment longer for the server's answer.
async fn overdue(stop: &CancellationToken) {
    stop.cancelled().await;
    sleep(limits::RETRY_MAX).await;
}

async fn join_rest(tenures: &mut JoinSet<(u32, Result<Ended, Error>)>, result: &mut Result<(), Error>) {
    while let Some(ended) = tenures.join_next().await {
        if let Err(error) = flat(ended.map(Ok)).and_then(|(_, ended)| ended)
            && result.is_ok()
        {
            *result = Err(error);
        }
    }
}
