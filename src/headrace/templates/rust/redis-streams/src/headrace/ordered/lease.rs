//! The lease of a partition: who may settle its events.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::headrace::error::Error;
use crate::headrace::limits;
use crate::headrace::node::{Node, lock};
use crate::headrace::place::Subscription;
use crate::headrace::reply;
use crate::headrace::scripts::Script;

/// Whether an answer means that the partition is not this worker's any more: nothing that is in hand of it can be settled.
pub(crate) fn is_loss(error: &Error) -> bool {
    matches!(error.code(), Some("FENCED" | "CURSOR" | "NOGROUP"))
}

/// What was found when a lease was taken.
pub(crate) struct Found {
    /// The last entry that is settled.
    pub cursor: String,
    /// Workers died here: events are handled one by one.
    pub careful: bool,
    /// The event that too many workers died of, or nothing.
    pub poison: String,
}

/// What became of an attempt to take a lease.
pub(crate) enum Answer {
    /// It is ours.
    Taken(Box<Lease>, Found),
    /// Another worker has it, for so long if it is not renewed.
    Held(Duration),
}

/// See the module.
pub(crate) struct Lease {
    node: Arc<Node>,
    sub: Arc<Subscription>,
    record: String,
    /// What `advance` is told.
    pub token: String,
    /// When it ends if it is not renewed, by our clock and not later than by the server's.
    until: watch::Sender<Instant>,
    /// What the server's clock showed, in Unix ms, and when.
    clock: Mutex<(Instant, i64)>,
    /// How many commits the server said it knows: one that knows fewer has forgotten some.
    commits: AtomicI64,
    /// The event that is handled alone, or nothing.
    trying: Mutex<String>,
}

impl Lease {
    /// Takes it if it is free.
    pub async fn take(node: &Arc<Node>, sub: &Arc<Subscription>, record: &str) -> Result<Answer, Error> {
        let sent = Instant::now();
        let words = ["take", sub.worker.as_str(), &sub.lease_ms()];
        let reply = reply::items(node.call(Script::Lease, &[record], &words).await?)?;
        if let [Value::Int(0), left, _holder] = reply.as_slice() {
            return Ok(Answer::Held(Duration::from_millis(u64::try_from(reply::int(left)?).unwrap_or(0))));
        }
        let [_taken, token, cursor, now, crashes, suspect, deaths] = reply::exactly(Value::Array(reply))?;
        let (crashes, deaths, suspect) = (reply::int(&crashes)?, reply::int(&deaths)?, reply::text(suspect)?);
        let careful = crashes >= limits::DEATHS_APART || !suspect.is_empty();
        let is_poison = deaths >= limits::DEATHS_MAX - limits::DEATHS_APART;
        let lease = Self {
            node: Arc::clone(node),
            sub: Arc::clone(sub),
            record: record.to_owned(),
            token: reply::text(token)?,
            until: watch::Sender::new(sent + sub.lease),
            clock: Mutex::new((Instant::now(), reply::int(&now)?)),
            commits: AtomicI64::new(0),
            trying: Mutex::default(),
        };
        if crashes > 0 {
            let (group, worker) = (&sub.group, &sub.worker);
            tracing::warn!(
                record,
                group,
                worker,
                crashes,
                suspect,
                deaths,
                "took over from a worker that died"
            );
        }
        let poison = if is_poison { suspect } else { String::new() };
        Ok(Answer::Taken(Box::new(lease), Found { cursor: reply::text(cursor)?, careful, poison }))
    }

    /// Renews it. An error that [`is_loss`] says that it is not ours any more.
    pub async fn renew(&self) -> Result<(), Error> {
        let (sent, commits) = (Instant::now(), self.commits());
        let trying = lock(&self.trying).clone();
        let words = ["renew", self.sub.worker.as_str(), &self.sub.lease_ms(), &self.token, &trying];
        let (_renewed, now, known): (i64, i64, i64) =
            self.node.call(Script::Lease, &[&self.record], &words).await?;
        if known < commits {
            let text =
                format!("the server knows {known} commits of {commits}: it has lost some (a failover?)");
            return Err(Error::refused("CURSOR", text));
        }
        *lock(&self.clock) = (Instant::now(), now);
        self.prolong(sent);
        Ok(())
    }

    /// Says which event is handled alone from now on: should it kill this worker, too, the next one knows.
    pub async fn try_alone(&self, event: &str) -> Result<(), Error> {
        event.clone_into(&mut lock(&self.trying));
        self.renew().await
    }

    /// Nothing is handled alone any more.
    pub fn tried(&self) {
        lock(&self.trying).clear();
    }

    /// It is free; whoever's share the partition is may take it.
    pub async fn give(&self) -> Result<(), Error> {
        let words = ["give", self.sub.worker.as_str(), &self.sub.lease_ms(), &self.token];
        self.node.call::<Value>(Script::Lease, &[&self.record], &words).await.map(drop)
    }

    /// A commit, sent then, was answered: it has renewed the lease.
    pub fn committed(&self, sent: Instant, commits: i64) {
        self.commits.store(commits, Ordering::Relaxed);
        self.prolong(sent);
    }

    /// How many commits the server said it knows.
    pub fn commits(&self) -> i64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Waits until it is surely ours: who was silent for too long has to ask first.
    pub async fn hold(&self) {
        let mut until = self.until.subscribe();
        let _held = until.wait_for(|until| Instant::now() < *until).await;
    }

    /// The server's clock, in Unix ms.
    pub fn now_ms(&self) -> i64 {
        let (then, ms) = *lock(&self.clock);
        ms + i64::try_from(then.elapsed().as_millis()).unwrap_or(0)
    }

    fn prolong(&self, sent: Instant) {
        let until = sent + self.sub.lease;
        self.until.send_if_modified(|known| {
            let later = until > *known;
            *known = until.max(*known);
            later
        });
    }
}
