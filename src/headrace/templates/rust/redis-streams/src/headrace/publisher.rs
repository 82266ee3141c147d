//! Publishing: each event to its partition, in the order of the calls, exactly once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::backoff::Backoff;
use super::error::Error;
use super::limits;
use super::node::lock;
use super::observer::Observer;
use super::parcel::{Parcel, PublishError};
use super::partition::{partition_of, stream_of};
use super::producer::Producer;
use super::record::Record;
use super::topic::Topic;
use super::topics::Topics;
use super::trace;

/// Publishes to any topic. Clones share their producers.
#[derive(Clone)]
pub struct Publisher {
    router: Arc<Router>,
    /// How long publishing waits for a server that is away or full before it gives up.
    patience: Duration,
}

impl Publisher {
    /// Connects on first use.
    pub fn new(topics: Arc<Topics>, patience: Duration, observer: Arc<dyn Observer>) -> Self {
        let router = Router {
            topics,
            lines: Mutex::default(),
            counts: Mutex::default(),
            queues: Mutex::default(),
            spread: AtomicU32::new(0),
            observer,
        };
        Self { router: Arc::new(router), patience }
    }

    /// Returns when the event is durable on the server. If the caller goes away meanwhile, it may be published all the same.
    pub async fn publish(&self, topic: &Topic, record: Record) -> Result<(), PublishError> {
        self.publish_all(topic, vec![record]).await
    }

    /// Returns when all events are durable on the server. Those of one key are appended in their order. If the caller goes away
    /// meanwhile, some may be published and others not.
    pub async fn publish_all(&self, topic: &Topic, mut records: Vec<Record>) -> Result<(), PublishError> {
        for record in &mut records {
            trace::stamp(record, &[]);
            record.check()?;
        }
        if records.is_empty() {
            return Ok(());
        }
        let count = records.len();
        let deadline = Instant::now() + self.patience;
        let turn = self.router.queue(topic).map(|queue| Turn { router: &self.router, topic, queue });
        let place = match &turn {
            Some(turn) => Some(turn.come(deadline).await?),
            None => None,
        };
        self.register(topic, deadline).await?;
        let (parcel, told) = Parcel::new(records, deadline);
        let partitions = self.router.partitions(topic);
        self.router.send(topic, partitions, parcel).await;
        drop(place);
        drop(turn);
        told.await.map_err(|_| PublishError::Closed)??;
        self.router.observer.published(count);
        Ok(())
    }

    /// As patient as publishing is: the server may be absent for a while.
    async fn register(&self, topic: &Topic, deadline: Instant) -> Result<(), PublishError> {
        let mut backoff = None;
        while let Err(error) = self.router.topics.register(topic).await {
            if !error.may_pass() || Instant::now() > deadline {
                return Err(error.into());
            }
            backoff
                .get_or_insert_with(|| Backoff::new(format!("publishing to {}", topic.name)))
                .wait(&error)
                .await;
        }
        Ok(())
    }
}

/// Which partition's producer a parcel goes to.
pub(crate) struct Router {
    topics: Arc<Topics>,
    /// By stream, and how many partitions there were when it was first published to.
    lines: Mutex<HashMap<(String, u32), mpsc::Sender<Parcel>>>,
    /// How many partitions a topic had when it was first published to: the producers of that time lead on to the present
    /// ones, so that nothing newer overtakes what they hold.
    counts: Mutex<HashMap<String, u32>>,
    /// Where calls wait that came before their topic was registered. While one does, later ones wait behind it.
    queues: Mutex<HashMap<String, Queue>>,
    /// Where the next events without a key go.
    spread: AtomicU32,
    observer: Arc<dyn Observer>,
}

/// Whoever has it hands over events of a topic; the others have it in the order in which they came.
type Queue = Arc<tokio::sync::Mutex<()>>;

/// A call that stands in a queue. The last one that leaves removes it.
struct Turn<'a> {
    router: &'a Router,
    topic: &'a Topic,
    queue: Queue,
}

impl Turn<'_> {
    async fn come(&self, deadline: Instant) -> Result<tokio::sync::MutexGuard<'_, ()>, PublishError> {
        timeout_at(deadline, self.queue.lock()).await.map_err(|_| {
            let text = "no answer from the server to those who published to this topic before";
            Error::Unreachable(text.to_owned()).into()
        })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queues = lock(&self.router.queues);
        drop(std::mem::take(&mut self.queue));
        let name = self.topic.name.as_ref();
        if queues.get(name).is_some_and(|queue| Arc::strong_count(queue) == 1) {
            queues.remove(name);
        }
    }
}

impl Router {
    /// Where to wait before events of this topic are handed over, if need be.
    fn queue(&self, topic: &Topic) -> Option<Queue> {
        let mut queues = lock(&self.queues);
        let name = topic.name.as_ref();
        if let Some(queue) = queues.get(name) {
            return Some(Arc::clone(queue));
        }
        (!self.topics.is_registered(topic)).then(|| Arc::clone(queues.entry(name.to_owned()).or_default()))
    }

    fn partitions(&self, topic: &Topic) -> u32 {
        *lock(&self.counts).entry(topic.name.clone().into_owned()).or_insert_with(|| self.topics.count(topic))
    }

    /// Hands a parcel to the producers of its partitions, of `count`.
    pub async fn send(self: &Arc<Self>, topic: &Topic, count: u32, mut parcel: Parcel) {
        let records = std::mem::take(&mut parcel.records);
        let spread = self.spread.fetch_add(1, Ordering::Relaxed);
        let mut split: Vec<(u32, Vec<Record>)> = Vec::new();
        for record in records {
            let number = record.place().map_or(spread % count.max(1), |place| partition_of(place, count));
            match split.iter_mut().find(|(own, _)| *own == number) {
                Some((_, records)) => records.push(record),
                None => split.push((number, vec![record])),
            }
        }
        for (number, mut records) in split {
            let line = self.line(topic, &stream_of(&topic.name, number, count), count);
            while !records.is_empty() {
                let mut bytes = 0;
                let fits = records.iter().take(limits::PUBLISH_RECORDS).take_while(|record| {
                    bytes += record.body.len();
                    bytes <= limits::BATCH_BYTES_MAX
                });
                let rest = records.split_off(fits.count().max(1));
                // A line ends only with this router; then its caller learns it from the parcel that is dropped here.
                let _closed = line.send(parcel.piece(std::mem::replace(&mut records, rest))).await;
            }
        }
    }

    fn line(self: &Arc<Self>, topic: &Topic, stream: &str, count: u32) -> mpsc::Sender<Parcel> {
        let mut lines = lock(&self.lines);
        let line = lines.entry((stream.to_owned(), count)).or_insert_with(|| {
            let (sender, waiting) = mpsc::channel(limits::PUBLISH_WAITING_MAX);
            let node = Arc::clone(self.topics.node());
            tokio::spawn(
                Producer::new(node, Arc::downgrade(self), topic.clone(), stream, count, waiting).run(),
            );
            sender
        });
        line.clone()
    }
}
