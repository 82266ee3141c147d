//! One worker of a group: joins every partition of its topic, serves it, and hands back what is left when it stops.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::backoff::Backoff;
use super::committer::Committer;
use super::error::Error;
use super::execute::dispatch;
use super::handler::Handler;
use super::ordered::Crew;
use super::partition::stream_of;
use super::place::{Place, Start, Subscription};
use super::pulse::Pulse;
use super::reader::Reader;
use super::scripts::Script;
use super::topic::is_name;
use super::topics::Topics;
use super::{heartbeat, limits, observer::Observer};

/// How a worker is, for probes.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Whether its loops make progress.
    pub pulse: Pulse,
    joined: Arc<AtomicBool>,
}

impl Status {
    /// Whether it serves its group: joined, and not stopping.
    pub fn is_serving(&self) -> bool {
        self.joined.load(Ordering::Relaxed)
    }
}

/// See the module.
pub struct Worker<H> {
    pub(super) topics: Arc<Topics>,
    pub(super) sub: Arc<Subscription>,
    pub(super) handler: Arc<H>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) status: Status,
    /// Handlers that could begin now.
    pub(super) idle: Arc<Semaphore>,
    /// Partitions that there were when it began.
    first_count: OnceLock<u32>,
}

impl<H: Handler> Worker<H> {
    /// Connects when it runs. Refused if a name or a time cannot be meant.
    pub fn new(
        topics: Arc<Topics>,
        sub: Subscription,
        handler: H,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, Error> {
        if let Some(name) = [&sub.group, &sub.worker].into_iter().find(|name| !is_name(name)) {
            return Err(Error::refused("NAME", format!("{name:?}: expected 1 to 128 of A-Z a-z 0-9 . _ -")));
        }
        if sub.lease.as_millis() < 500
            || sub.block.is_zero()
            || sub.concurrency == 0
            || sub.retry.attempts == 0
        {
            let text =
                "expected a lease of at least 500 ms, and more than 0 for block, concurrency and attempts";
            return Err(Error::refused("SUBSCRIPTION", text));
        }
        let idle = Arc::new(Semaphore::new(sub.concurrency));
        let (sub, handler) = (Arc::new(sub), Arc::new(handler));
        Ok(Self {
            topics,
            sub,
            handler,
            observer,
            status: Status::default(),
            idle,
            first_count: OnceLock::new(),
        })
    }

    /// How it is, also while it runs.
    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// Serves until `stop`; then what has not begun is handed back, handlers at work have [`Subscription::drain`] to end, and the
    /// worker leaves. Returns early if the server refuses for good: what it says tells what to do. A worker that is dropped
    /// instead is taken for dead when its lease ends.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        if self.sub.ordered {
            return Crew::new(Arc::new(self)).run(stop).await;
        }
        let stop = stop.child_token();
        let mut places = JoinSet::new();
        let mut joined = HashSet::new();
        let mut result = self.serve(&stop, &mut places, &mut joined).await;
        self.left();
        stop.cancel();
        while let Some(ended) = places.join_next().await {
            result = result.and(flat(ended));
        }
        result
    }

    /// How it joins a partition: one that the topic has got since this began is read from its first event on.
    pub(super) fn joining(&self, number: u32, count: u32) -> Arc<Subscription> {
        if number < *self.first_count.get_or_init(|| count) {
            return Arc::clone(&self.sub);
        }
        Arc::new(Subscription { start: Start::Earliest, ..Subscription::clone(&self.sub) })
    }

    /// It serves its group from now on.
    pub(super) fn joined(&self) {
        self.status.joined.store(true, Ordering::Relaxed);
    }

    /// It does no more.
    pub(super) fn left(&self) {
        self.status.joined.store(false, Ordering::Relaxed);
    }

    async fn serve(
        &self,
        stop: &CancellationToken,
        places: &mut JoinSet<Result<(), Error>>,
        joined: &mut HashSet<String>,
    ) -> Result<(), Error> {
        let mut backoff =
            Backoff::new(format!("joining group {} of {}", self.sub.group, self.sub.topic.name));
        loop {
            let again = match self.join_all(stop, places, joined).await {
                Ok(()) => {
                    backoff.over();
                    self.joined();
                    None
                }
                Err(error) if error.may_pass() => Some(error),
                Err(error) => return Err(error),
            };
            let pause = async {
                match &again {
                    Some(error) => backoff.wait(error).await,
                    None if self.sub.topic.partitions > 1 => {
                        sleep(self.sub.lease / limits::RENEWALS_PER_LEASE).await;
                    }
                    None => std::future::pending().await, // a topic of one partition stays so
                }
            };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(ended) = places.join_next() => return flat(ended),
                () = pause => {}
            }
        }
    }

    /// Joins the partitions that are not joined yet; the topic may have got more.
    async fn join_all(
        &self,
        stop: &CancellationToken,
        places: &mut JoinSet<Result<(), Error>>,
        joined: &mut HashSet<String>,
    ) -> Result<(), Error> {
        let topic = &self.sub.topic;
        self.topics.register(topic).await?;
        let count = if topic.partitions > 1 { self.topics.recount(topic).await? } else { 1 };
        for number in 0..count {
            let stream = stream_of(&topic.name, number, count);
            if joined.contains(&stream) {
                continue;
            }
            let (topics, sub) = (Arc::clone(&self.topics), self.joining(number, count));
            let place =
                Place::new(topics, sub, &stream, Arc::clone(&self.observer), self.status.pulse.clone());
            place.join(false).await?;
            tracing::info!(stream, group = self.sub.group, worker = self.sub.worker, "serving");
            joined.insert(stream);
            places.spawn(serve(place, Arc::clone(&self.handler), Arc::clone(&self.idle), stop.clone()));
        }
        Ok(())
    }
}

/// A task's own result; that it failed otherwise is a bug.
pub(super) fn flat<T>(ended: Result<Result<T, Error>, tokio::task::JoinError>) -> Result<T, Error> {
    ended.unwrap_or_else(|bug| {
        Err(Error::refused("BUG", format!("a task of the worker failed in an unforeseen way: {bug}")))
    })
}

/// Serves one partition that was joined.
async fn serve<H: Handler>(
    place: Arc<Place>,
    handler: Arc<H>,
    idle: Arc<Semaphore>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let (stop, give_up) = (stop.child_token(), CancellationToken::new());
    let (reads, deliveries) = mpsc::channel(1);
    let (out, settled) = mpsc::unbounded_channel();
    let own = Arc::clone(&place);
    let mut heartbeat = AbortOnDropHandle::new(tokio::spawn(heartbeat::run(Arc::clone(&place))));
    let reader = Reader::new(Arc::clone(&place), Arc::clone(&idle), stop.clone());
    let mut reader = AbortOnDropHandle::new(tokio::spawn(reader.run(reads)));
    let tokens = (stop.clone(), give_up.clone());
    let mut dispatcher =
        AbortOnDropHandle::new(tokio::spawn(dispatch(own, handler, idle, deliveries, out, tokens)));
    let leaving = CancellationToken::new();
    let committer = Committer::new(Arc::clone(&place), leaving.clone());
    let mut committer = AbortOnDropHandle::new(tokio::spawn(committer.run(settled)));

    let mut result = tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = &mut reader => flat(ended),
        ended = &mut committer => flat(ended),
        ended = &mut heartbeat => flat(ended.map(Ok)),
    };
    if result.is_ok() && !stop.is_cancelled() {
        result = Err(Error::refused("BUG", "a task of the worker ended by itself: please report it"));
    }
    stop.cancel();
    place.unblock();
    if !reader.is_finished() && timeout(limits::RETRY_MAX, &mut reader).await.is_err() {
        reader.abort(); // its connection ends with it
    }
    let ended = timeout(place.sub.drain, &mut dispatcher).await;
    if ended.is_err() {
        tracing::warn!(
            stream = place.stream(),
            "handlers still run at the end of the drain time; their events are handed back"
        );
        give_up.cancel();
        let _ended = timeout(limits::RETRY_MAX, &mut dispatcher).await;
    }
    leaving.cancel();
    let deadline = Instant::now() + limits::LEAVE;
    if !committer.is_finished() {
        // What cannot be committed must not keep the worker from handing it back.
        let ended = timeout_at(deadline - limits::LEAVE / 2, &mut committer).await;
        if ended.is_err() {
            tracing::warn!(stream = place.stream(), "not everything could be committed in time");
        }
        result = result.and(ended.map_or(Ok(()), flat));
    }
    drop(committer);
    drop(heartbeat); // or it might take the lease again
    if !matches!(timeout_at(deadline, leave(&place)).await, Ok(Ok(()))) {
        tracing::warn!(
            stream = place.stream(),
            group = place.sub.group,
            "the server does not answer: what this worker held is taken over when its lease ends"
        );
    }
    result
}

/// Hands back what is left; then the lease ends.
async fn leave(place: &Place) -> Result<(), Error> {
    let keys = [place.stream(), &place.group.retry, &place.group.workers, &place.group.record];
    let words = [place.sub.group.as_str(), &place.sub.worker, &limits::BATCH_RECORDS_MAX.to_string()];
    while place.node.call::<i64>(Script::Leave, &keys, &words).await? > 0 {}
    Ok(())
}
