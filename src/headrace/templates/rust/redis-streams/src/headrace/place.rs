//! A worker's place in one group on one partition: what its reader, its committer and its heartbeat share.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use redis::{Value, cmd};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::books::{Books, Source};
use super::error::Error;
use super::event::Event;
use super::handler::Retry;
use super::joining;
use super::keys::{GroupKeys, PartitionKeys};
use super::limits;
use super::node::{Node, lock};
use super::observer::Observer;
use super::pulse::Pulse;
use super::settlement::Outcome;
use super::topic::Topic;
use super::topics::Topics;

/// Where a group begins when it is made; later it goes on where it stood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With everything that the topic still holds.
    #[default]
    Earliest,
    /// With what is published from now on.
    Latest,
}

/// One group on one topic, and how its worker works.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// What is read.
    pub topic: Topic,
    /// Workers of one group share its events.
    pub group: String,
    /// This worker's name; no other life may ever have it.
    pub worker: String,
    /// Where the group begins.
    pub start: Start,
    /// Whether the events of a key are handled one after the other: partitions belong to one worker at a time, and what follows a
    /// failed event of its key waits. All programs of a group say the same. Events without a key are as of one key.
    pub ordered: bool,
    /// When a worker was silent for so long, others take over what it holds. A handler may take longer.
    pub lease: Duration,
    /// How long a read waits for events.
    pub block: Duration,
    /// Handlers at work at the same time.
    pub concurrency: usize,
    /// How long a handler may take.
    pub timeout: Duration,
    /// What becomes of an event that failed.
    pub retry: Retry,
    /// How long handlers at work may go on when the worker stops; what is left is handed back.
    pub drain: Duration,
}

impl Subscription {
    /// With the usual times, under a name that is never used again.
    pub fn new(topic: Topic, group: impl Into<String>) -> Self {
        Self {
            topic,
            group: group.into(),
            worker: super::random::name(),
            start: Start::Earliest,
            ordered: false,
            lease: Duration::from_secs(15),
            block: Duration::from_secs(5),
            concurrency: 100,
            timeout: Duration::from_secs(600),
            retry: Retry::default(),
            drain: Duration::from_secs(25),
        }
    }

    pub(crate) fn lease_ms(&self) -> String {
        self.lease.as_millis().to_string()
    }
}

/// Events that came with one read: how fast they are handled says how many to read next.
#[derive(Debug, Default)]
pub(crate) struct Read {
    began: OnceLock<Instant>,
    total: AtomicUsize,
    left: AtomicUsize,
}

impl Read {
    /// So many events came with it.
    pub fn expect(&self, events: usize) {
        self.total.store(events, Ordering::Release);
        self.left.store(events, Ordering::Release);
    }

    /// One of them is being handled.
    pub fn begin(&self) {
        let _first = self.began.get_or_init(Instant::now);
    }

    /// One more is handled. Some: it was the last; events a second.
    pub fn note(&self) -> Option<f64> {
        if self.left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return None;
        }
        let took = self.began.get()?.elapsed().as_secs_f64();
        let total = u32::try_from(self.total.load(Ordering::Acquire)).unwrap_or(u32::MAX);
        Some(f64::from(total) / took.max(1e-6))
    }
}

/// A packed entry that is held; it is settled as a whole.
#[derive(Debug)]
pub(crate) struct Pack {
    pub id: String,
    pub events: usize,
}

/// One event that this worker holds.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub event: Event,
    pub slot: u32,
    pub source: Source,
    pub pack: Option<Arc<Pack>>,
    /// How it ends without being handled: too many workers died with it.
    pub verdict: Option<Outcome>,
    pub read: Arc<Read>,
}

/// When the heartbeat is due.
#[derive(Debug)]
pub(crate) struct Alarm {
    pub next: Mutex<Instant>,
    pub changed: Notify,
}

/// See the module.
pub(crate) struct Place {
    pub topics: Arc<Topics>,
    pub node: Arc<Node>,
    pub sub: Arc<Subscription>,
    pub keys: PartitionKeys,
    pub group: GroupKeys,
    pub observer: Arc<dyn Observer>,
    pub pulse: Pulse,
    pub books: Mutex<Books>,
    /// The suspect is settled.
    pub cleared: Notify,
    pub alarm: Alarm,
    /// Events taken and not settled.
    pub in_hand: AtomicUsize,
    /// Some of them are settled.
    pub room: Notify,
    /// Entries settled so far.
    pub committed: AtomicU64,
    /// Events a second, lately; 0 while unknown.
    pub pace: Mutex<f64>,
}

impl Place {
    pub fn new(
        topics: Arc<Topics>,
        sub: Arc<Subscription>,
        stream: &str,
        observer: Arc<dyn Observer>,
        pulse: Pulse,
    ) -> Arc<Self> {
        let next = Instant::now() + sub.lease / limits::RENEWALS_PER_LEASE;
        Arc::new(Self {
            node: Arc::clone(topics.node()),
            topics,
            keys: PartitionKeys::new(stream),
            group: GroupKeys::new(stream, &sub.group),
            sub,
            observer,
            pulse,
            books: Mutex::new(Books::new()),
            cleared: Notify::new(),
            alarm: Alarm { next: Mutex::new(next), changed: Notify::new() },
            in_hand: AtomicUsize::new(0),
            room: Notify::new(),
            committed: AtomicU64::new(0),
            pace: Mutex::new(0.0),
        })
    }

    /// The stream, for people.
    pub fn stream(&self) -> &str {
        &self.keys.stream
    }

    pub fn source(&self, source: Source) -> &str {
        match source {
            Source::Topic => &self.keys.stream,
            Source::Retry => &self.group.retry,
        }
    }

    pub fn consumer(&self, slot: u32) -> String {
        format!("{}/{slot}", self.sub.worker)
    }

    /// Creates what is absent and takes the lease. `again`: see [`joining::join`].
    pub async fn join(&self, again: bool) -> Result<(), Error> {
        joining::join(&self.node, &self.sub, &self.keys, &self.group, again).await
    }

    /// There may be something to take over: a read that blocks is ended for it.
    pub fn look_around(self: &Arc<Self>) {
        lock(&self.books).dead = true;
        self.unblock();
    }

    /// Looks at everything that anybody might have left behind.
    pub fn sweep(self: &Arc<Self>) {
        lock(&self.books).strays = true;
        self.look_around();
    }

    /// Ends the read that blocks, if one does. Repeated, because the first may come before the server has seen what it is to end.
    pub fn unblock(self: &Arc<Self>) {
        let Some(id) = lock(&self.books).reading else { return };
        let place = Arc::clone(self);
        tokio::spawn(async move {
            let mut pause = Duration::from_millis(5);
            while lock(&place.books).reading == Some(id) && pause < place.sub.block {
                let ended: Result<Value, Error> =
                    place.node.command(cmd("CLIENT").arg("UNBLOCK").arg(id)).await;
                if ended.is_err() {
                    return; // the read ends with its connection, or by itself
                }
                sleep(pause).await;
                pause *= 2;
            }
        });
    }

    /// Calls the heartbeat in this time if it is not due before.
    pub fn due_in(&self, delay: Duration) {
        let when = Instant::now() + delay + Duration::from_millis(1);
        let mut next = lock(&self.alarm.next);
        if when < *next {
            *next = when;
            self.alarm.changed.notify_one();
        }
    }

    /// So many events are settled.
    pub fn note_settled(&self, events: usize) {
        self.in_hand.fetch_sub(events, Ordering::Relaxed);
        self.room.notify_one();
    }

    /// How many events to ask for: as many as could begin now, or as are handled in a moment.
    pub fn wanted(&self, idle: usize) -> usize {
        let pace = *lock(&self.pace);
        if pace <= 0.0 {
            return limits::FIRST_READ_RECORDS;
        }
        let stock = Duration::from_secs_f64((pace * limits::READ_STOCK.as_secs_f64()).min(1e6)).as_secs();
        usize::try_from(stock).unwrap_or(usize::MAX).max(idle).clamp(1, limits::READ_RECORDS_MAX)
    }
}
