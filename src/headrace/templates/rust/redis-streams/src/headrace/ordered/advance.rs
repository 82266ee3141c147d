//! Settles what is in hand of a partition, by as few calls of the advance script as it takes.

use std::collections::HashMap;
use std::iter;

use redis::{Cmd, Value};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::headrace::backoff::Backoff;
use crate::headrace::commit::{Writes, outputs_of};
use crate::headrace::error::Error;
use crate::headrace::execute::judge;
use crate::headrace::handler::Failure;
use crate::headrace::keys::GroupKeys;
use crate::headrace::observer::{Observer, Verdict};
use crate::headrace::place::Subscription;
use crate::headrace::reply;
use crate::headrace::scripts::Script;
use crate::headrace::settlement::Outcome;
use crate::headrace::topic::Topic;
use crate::headrace::topics::Topics;

use super::batch::{Batch, Item};
use super::intake::{Intake, entry_of};
use super::lease::Lease;

/// Settles the events of one partition.
pub(crate) struct Advance<'a> {
    pub topics: &'a Topics,
    pub sub: &'a Subscription,
    pub observer: &'a dyn Observer,
    pub lease: &'a Lease,
    pub stream: &'a str,
    pub group: &'a GroupKeys,
    /// The worker leaves the partition.
    pub leaving: &'a CancellationToken,
}

impl Advance<'_> {
    /// Settles them all, however often it takes; an error is final. A worker that leaves does not wait until there is room for what
    /// they write: they are left to the next one, which handles them again.
    pub async fn settle(&self, mut batch: Batch, intake: &mut Intake) -> Result<(), Error> {
        let mut backoff = Backoff::new(format!("settling what is in hand of {}", self.stream));
        while !batch.items.is_empty() {
            batch.hold_back();
            let step = batch.step();
            let error = match self.send(&batch.items[..step], &intake.cursor).await {
                Ok(None) => {
                    backoff.over();
                    let done: Vec<Item> = batch.items.drain(..step).collect();
                    intake.settled(&done);
                    self.tell(&done);
                    continue;
                }
                Ok(Some((at, why))) => {
                    let failure =
                        Failure::Retry(format!("a write recorded by the handler cannot be made: {why}"));
                    let item = &mut batch.items[at];
                    item.outcome = Some(judge(self.sub, &item.event, &failure));
                    continue;
                }
                Err(error) => error,
            };
            if !error.may_pass() {
                return Err(error);
            }
            let outcomes = batch.items[..step].iter().filter_map(|item| item.outcome.as_ref());
            if self.topics.make_way(&outputs_of(outcomes), &error).await {
                continue;
            }
            let leaving = self.leaving.is_cancelled();
            if leaving && error.is_held_up() {
                let (stream, events) = (self.stream, batch.items.len());
                tracing::warn!(stream, events, reason = %error, "not settled; left to the next worker");
                return Ok(());
            }
            tokio::select! {
                () = backoff.wait(&error) => {} // a repeated call writes nothing again
                () = self.leaving.cancelled(), if !leaving => {}
            }
        }
        Ok(())
    }

    /// One call. Some: nothing was written, because a write of this item cannot be made, for this reason.
    async fn send(&self, items: &[Item], cursor: &str) -> Result<Option<(usize, String)>, Error> {
        let step = Step::of(items);
        if step.is_empty() {
            return Ok(None);
        }
        for (topic, _) in outputs_of(items.iter().filter_map(|item| item.outcome.as_ref())) {
            self.topics.register(&topic).await?;
        }
        let call = {
            let count = |topic: &Topic| self.topics.count(topic);
            let lease = (self.lease.token.as_str(), self.sub.lease_ms(), self.lease.commits());
            step.call(self.stream, self.group, &self.sub.group, &count, lease, cursor)
        };
        let sent = Instant::now();
        let reply = reply::items(self.topics.node().evaluate(Script::Advance, &call).await?)?;
        if let [Value::Int(1), commits] = reply.as_slice() {
            self.lease.committed(sent, reply::int(commits)?);
            return Ok(None);
        }
        let [_refused, index, _place, why] = reply::exactly(Value::Array(reply))?;
        let at = usize::try_from(reply::int(&index)?).ok().and_then(|index| step.writing().nth(index));
        let at = at.ok_or_else(|| Error::refused("ANSWER", "the server refused what was not sent"))?.at;
        Ok(Some((at, String::from_utf8_lossy(&reply::bytes(why)?).into_owned())))
    }

    fn tell(&self, items: &[Item]) {
        let mut counts: HashMap<Verdict, usize> = HashMap::new();
        for outcome in items.iter().filter_map(|item| item.outcome.as_ref()) {
            *counts.entry(outcome.verdict()).or_default() += 1;
        }
        for (verdict, count) in counts {
            self.observer.settled(verdict, count);
        }
    }
}

/// An event that is settled, and where it is among the items.
struct Ended<'a> {
    at: usize,
    item: &'a Item,
    outcome: &'a Outcome,
}

impl Ended<'_> {
    fn is_plain(&self) -> bool {
        matches!(self.outcome, Outcome::Done)
    }
}

/// What one call settles.
pub(crate) struct Step<'a> {
    stretch: Vec<Ended<'a>>,
    asides: Vec<Ended<'a>>,
}

impl<'a> Step<'a> {
    /// All of these whose end is known, but what was set aside and goes on waiting is not named.
    pub fn of(items: &'a [Item]) -> Self {
        let ended =
            |(at, item): (usize, &'a Item)| item.outcome.as_ref().map(|outcome| Ended { at, item, outcome });
        let (stretch, asides): (Vec<_>, Vec<_>) =
            items.iter().enumerate().filter_map(ended).partition(|one| one.item.aside.is_none());
        let named = |one: &Ended<'_>| !matches!(one.outcome, Outcome::Return);
        Self { stretch, asides: asides.into_iter().filter(named).collect() }
    }

    pub fn is_empty(&self) -> bool {
        self.stretch.is_empty() && self.asides.is_empty()
    }

    /// What has words of its own in the call, in their order.
    fn writing(&self) -> impl Iterator<Item = &Ended<'a>> + Clone {
        self.stretch.iter().filter(|one| !one.is_plain()).chain(&self.asides)
    }

    /// The call. `count`: how many partitions a topic has now. `lease`: token, length in ms, commits that were answered.
    pub fn call(
        &self,
        stream: &str,
        keys: &GroupKeys,
        group: &str,
        count: &dyn Fn(&Topic) -> u32,
        (token, lease_ms, commits): (&str, String, i64),
        cursor: &str,
    ) -> Cmd {
        let mut writes = Writes::aside(group, count);
        for one in self.writing() {
            writes.add_events(iter::once((one.item.event.as_ref(), one.outcome)));
        }
        let next = self.stretch.last().map_or(cursor, |one| entry_of(&one.item.event.token));
        let events = self.stretch.len();
        let entries = self.stretch.iter().filter(|one| one.item.last).count();
        let plain = self.stretch.iter().filter(|one| one.is_plain()).count();
        let mut call = Script::Advance.call(5 + writes.keys.len());
        call.arg(stream)
            .arg(&keys.retry)
            .arg(&keys.record)
            .arg(&keys.dead)
            .arg(&keys.delayed)
            .arg(&writes.keys);
        call.arg(group).arg(token).arg(cursor).arg(next).arg(entries).arg(plain).arg(events - entries);
        call.arg(lease_ms).arg(events - plain).arg(self.asides.len()).arg(commits);
        for one in &self.asides {
            call.arg(&one.item.event.token);
        }
        call.arg(&writes.words);
        call
    }
}
