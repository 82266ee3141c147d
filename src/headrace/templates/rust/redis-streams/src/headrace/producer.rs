//! Idempotent publishing to one partition: batches in sequence, a few in flight, callers that come meanwhile share the next one.
//!
//! Each batch carries (producer, epoch, sequence of its first record), so one whose answer was lost is simply sent again and
//! the server drops what it has. When a batch fails, sending stops, everything in flight is answered or cut off, and what is
//! not acknowledged is sent again, oldest first, one by one. The epoch grows only after the server said that a batch is *not*
//! there (GAP): only then may its records be numbered anew.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::Poll;

use redis::{Cmd, RedisError, Value};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::backoff::Backoff;
use super::error::Error;
use super::keys::PartitionKeys;
use super::node::Node;
use super::parcel::{Parcel, PublishError};
use super::publisher::Router;
use super::record::Record;
use super::retention::make_room;
use super::scripts::Script;
use super::topic::Topic;
use super::{limits, random, runs};

type Reply = Pin<Box<dyn Future<Output = Result<Value, RedisError>> + Send>>;

/// Parcels that travel in one call.
#[derive(Default)]
pub(crate) struct Batch {
    parcels: Vec<Parcel>,
    records: usize,
    bytes: usize,
    /// Epoch and sequence of its first record, once it has them.
    number: Option<(u64, u64)>,
}

impl Batch {
    fn add(&mut self, parcel: Parcel) {
        self.records += parcel.records.len();
        self.bytes += parcel.bytes();
        self.parcels.push(parcel);
    }

    fn has_room_for(&self, parcel: &Parcel) -> bool {
        self.parcels.is_empty()
            || (self.records + parcel.records.len() <= limits::PUBLISH_RECORDS
                && self.bytes + parcel.bytes() <= limits::BATCH_BYTES_MAX)
    }

    fn records(&self) -> Vec<&Record> {
        self.parcels.iter().flat_map(|parcel| &parcel.records).collect()
    }
}

/// Who publishes: a name that is never used again, and how far it has counted.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub name: String,
    pub epoch: u64,
    /// The last sequence given out.
    pub last: u64,
}

impl Identity {
    fn new() -> Self {
        Self { name: random::name(), epoch: 1, last: 0 }
    }

    /// New numbers; legal only when nothing without an answer is on its way.
    fn renumber(&mut self) {
        if self.last > 0 {
            self.epoch += 1;
        }
        self.last = 0;
    }
}

/// One call of the publish script. `count`: by how many partitions the records were given to this one.
pub(crate) fn publish_call(
    keys: &PartitionKeys,
    topic: &Topic,
    count: u32,
    producer: &str,
    (epoch, first): (u64, u64),
    records: &[&Record],
) -> Cmd {
    let mut call = Script::Publish.call(5);
    call.arg(&keys.stream).arg(keys.producer(producer)).arg(&keys.delayed).arg(&keys.ids).arg(&keys.packed);
    call.arg(producer).arg(epoch).arg(first).arg(records.len()).arg(topic.cap_events);
    call.arg(limits::PRODUCER_IDLE.as_secs()).arg(millis(topic.id_window)).arg(count);
    runs::add(&mut call, records);
    call
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The one producer of a partition in this process.
pub(crate) struct Producer {
    node: Arc<Node>,
    router: Weak<Router>,
    topic: Topic,
    keys: PartitionKeys,
    count: u32,
    waiting: mpsc::Receiver<Parcel>,
    /// The batch that fills.
    filling: Batch,
    /// Does not fit into it.
    held: Option<Parcel>,
    flying: VecDeque<(Batch, Reply, u64)>,
    identity: Identity,
    /// The last sequence of this epoch that the server has acknowledged.
    acknowledged: u64,
    heard: Instant,
    backoff: Backoff,
}

impl Producer {
    pub fn new(
        node: Arc<Node>,
        router: Weak<Router>,
        topic: Topic,
        stream: &str,
        count: u32,
        waiting: mpsc::Receiver<Parcel>,
    ) -> Self {
        Self {
            node,
            router,
            topic,
            keys: PartitionKeys::new(stream),
            count,
            waiting,
            filling: Batch::default(),
            held: None,
            flying: VecDeque::new(),
            identity: Identity::new(),
            acknowledged: 0,
            heard: Instant::now(),
            backoff: Backoff::new(format!("publishing to {stream}")),
        }
    }

    /// Publishes until nobody can send any more.
    pub async fn run(mut self) {
        loop {
            if self.filling.parcels.is_empty() && self.flying.is_empty() {
                let Some(parcel) = self.waiting.recv().await else { return };
                self.filling.add(parcel);
                tokio::task::yield_now().await; // callers that are ready at the same moment join the batch
            }
            self.fill();
            if !self.filling.parcels.is_empty() && self.flying.len() < limits::PUBLISH_WINDOW {
                let batch = self.cut();
                if let Some(more) = self.launch(batch).await {
                    return self.follow(more).await;
                }
                continue;
            }
            let filling = self.held.is_none();
            tokio::select! {
                reply = front(&mut self.flying), if !self.flying.is_empty() => {
                    if let Some(more) = self.land(reply).await {
                        return self.follow(more).await;
                    }
                }
                Some(parcel) = self.waiting.recv(), if filling => self.put(parcel),
            }
        }
    }

    fn put(&mut self, parcel: Parcel) {
        if self.filling.has_room_for(&parcel) {
            self.filling.add(parcel);
        } else {
            self.held = Some(parcel);
        }
    }

    fn fill(&mut self) {
        while self.held.is_none()
            && let Ok(parcel) = self.waiting.try_recv()
        {
            self.put(parcel);
        }
    }

    fn cut(&mut self) -> Batch {
        let mut next = Batch::default();
        if let Some(parcel) = self.held.take() {
            next.add(parcel);
        }
        std::mem::replace(&mut self.filling, next)
    }

    fn call(&mut self, batch: &mut Batch) -> Cmd {
        let (epoch, first) = *batch.number.get_or_insert_with(|| {
            if self.flying.is_empty() && self.heard.elapsed() > limits::PRODUCER_IDLE / 2 {
                self.identity.renumber(); // the server is about to forget us
            }
            let first = self.identity.last + 1;
            self.identity.last += batch.records as u64;
            (self.identity.epoch, first)
        });
        let number = (epoch, first);
        publish_call(&self.keys, &self.topic, self.count, &self.identity.name, number, &batch.records())
    }

    /// Sends a batch behind those in flight. Some: the topic has so many partitions now.
    async fn launch(&mut self, mut batch: Batch) -> Option<u32> {
        let Some(mut wire) = self.node.connected() else {
            return self.recover(None, Some(batch)).await;
        };
        let (call, life) = (self.call(&mut batch), wire.life);
        let mut reply: Reply = Box::pin(async move { wire.send(&call).await });
        // Polled once now, so that batches are sent in their order.
        let answered = std::future::poll_fn(|context| Poll::Ready(reply.as_mut().poll(context))).await;
        if let Poll::Ready(answer) = answered {
            reply = Box::pin(std::future::ready(answer));
        }
        self.flying.push_back((batch, reply, life));
        None
    }

    /// The oldest batch in flight was answered.
    async fn land(&mut self, reply: Result<Value, RedisError>) -> Option<u32> {
        let (batch, _, life) = self.flying.pop_front()?;
        match self.node.judge(life, reply) {
            Ok(_) => {
                self.settle(batch, Ok(()));
                None
            }
            Err(_) => self.recover(Some(batch), None).await, // whatever it is happens again there, which tells the callers
        }
    }

    /// These callers learn how it went, and so do we.
    fn settle(&mut self, batch: Batch, result: Result<(), &Error>) {
        if result.is_ok() {
            self.heard = Instant::now();
            self.acknowledged = batch.number.map_or(0, |(_, first)| first + batch.records as u64 - 1);
            self.append_when_due(&batch);
        }
        for parcel in batch.parcels {
            match result {
                Ok(()) => parcel.succeed(),
                Err(error) => parcel.fail(PublishError::Server(error.clone())),
            }
        }
    }

    /// Records that are due before the workers' next heartbeats are appended from here, if this process is still there.
    fn append_when_due(&self, batch: &Batch) {
        let near = std::time::Duration::from_secs(10);
        for wait in batch.records().iter().filter_map(|record| record.due.wait()).filter(|wait| *wait <= near)
        {
            let (node, keys) = (Arc::clone(&self.node), self.keys.clone());
            tokio::spawn(async move {
                sleep(wait + std::time::Duration::from_millis(1)).await;
                let limit = limits::BATCH_RECORDS_MAX.to_string();
                let appended: Result<Value, Error> =
                    node.call(Script::Tend, &[&keys.stream, &keys.delayed], &["", "0", &limit]).await;
                if let Err(error) = appended {
                    tracing::debug!(stream = keys.stream, %error, "a worker appends it with its next heartbeat");
                }
            });
        }
    }

    /// Sends again what is not acknowledged: one batch at a time, oldest first. `first` was sent before those in flight, `last` comes
    /// after them. Some: the topic has so many partitions now.
    async fn recover(&mut self, first: Option<Batch>, last: Option<Batch>) -> Option<u32> {
        let mut sent = VecDeque::from_iter(first);
        while let Some((batch, reply, life)) = self.flying.pop_front() {
            let _repeated = self.node.judge(life, reply.await); // if it is there, the repeat is dropped
            sent.push_back(batch);
        }
        sent.extend(last);
        while let Some(mut batch) = sent.pop_front() {
            let call = self.call(&mut batch);
            let Err(error) = self.node.evaluate(Script::Publish, &call).await else {
                self.backoff.over();
                self.settle(batch, Ok(()));
                continue;
            };
            let in_time = batch.parcels.iter().any(|parcel| parcel.deadline > Instant::now());
            match &error {
                Error::Refused { code, .. } if code == "GAP" => {
                    self.note_gap(&error);
                    self.identity.renumber();
                    self.acknowledged = 0;
                    batch.number = None;
                    forget_numbers(&mut sent);
                    sent.push_front(batch);
                }
                Error::Grew(more) if *more > 0 => {
                    sent.push_front(batch);
                    self.turn(sent, *more).await;
                    return Some(*more);
                }
                error if error.may_pass() && in_time => {
                    let full = matches!(error, Error::Full(_));
                    if !(full && make_room(&self.node, &self.topic, &self.keys, batch.records).await) {
                        self.backoff.wait(error).await;
                    }
                    sent.push_front(batch);
                }
                error => {
                    if error.code() == Some("FENCED") {
                        self.identity = Identity::new();
                        self.acknowledged = 0;
                        forget_numbers(&mut sent);
                    }
                    self.settle(batch, Err(error));
                }
            }
        }
        None
    }

    fn note_gap(&self, error: &Error) {
        let text = error.to_string();
        let last =
            text.split("last is ").nth(1).and_then(|rest| rest.split([' ', ']']).next()?.parse::<u64>().ok());
        let forgotten = self.acknowledged.saturating_sub(last.unwrap_or(0));
        if forgotten > 0 {
            tracing::error!(
                stream = self.keys.stream,
                forgotten,
                "the server has forgotten acknowledged events of this producer (restored, flushed or failed over without \
                 them); going on with new ones. Compare its durability with `headrace doctor`"
            );
        }
    }

    /// The topic has grown: nothing of what is here was written, and all of it goes onward before anything later does.
    async fn turn(&mut self, sent: VecDeque<Batch>, more: u32) {
        let filling = std::mem::take(&mut self.filling);
        for parcel in
            sent.into_iter().chain([filling]).flat_map(|batch| batch.parcels).chain(self.held.take())
        {
            self.onward(parcel, more).await;
        }
    }

    async fn follow(mut self, more: u32) {
        while let Some(parcel) = self.waiting.recv().await {
            self.onward(parcel, more).await;
        }
    }

    async fn onward(&mut self, parcel: Parcel, more: u32) {
        match self.router.upgrade() {
            Some(router) => router.send(&self.topic, more, parcel).await,
            None => parcel.fail(PublishError::Closed),
        }
    }
}

/// They are numbered anew when they are sent again.
fn forget_numbers(batches: &mut VecDeque<Batch>) {
    for batch in batches {
        batch.number = None;
    }
}

/// The answer to the oldest batch in flight; it stays in its place until [`Producer::land`] takes it.
async fn front(flying: &mut VecDeque<(Batch, Reply, u64)>) -> Result<Value, RedisError> {
    match flying.front_mut() {
        Some((_, reply, _)) => reply.await,
        None => std::future::pending().await,
    }
}
