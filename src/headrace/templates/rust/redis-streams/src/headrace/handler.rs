//! What a service implements: a handler of events, and what it may record to leave with the ack.

use std::time::Duration;

use super::effect::Effect;
use super::event::Event;
use super::record::{Invalid, Record};
use super::topic::Topic;
use super::{limits, random, trace};

/// Handles the events of one group. It may be called more than once for an event, after a crash or a retry: what it records
/// in its [`Context`] happens exactly once, whatever else it does should carry the event's id as idempotency key.
pub trait Handler: Send + Sync + 'static {
    /// Handles one event. What it recorded leaves with the ack; after an error nothing of it does.
    fn handle(&self, event: &Event, ctx: &mut Context) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// Why an event could not be handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It may work later: tried again as the [`Retry`] policy says, then it rests in the dead letters.
    Retry(String),
    /// It never will: it goes to the dead letters at once.
    Reject(String),
}

impl Failure {
    /// One line, as it stands in retries and dead letters.
    pub(crate) fn reason(&self) -> String {
        let (kind, text) = match self {
            Self::Retry(text) => ("Retry", text),
            Self::Reject(text) => ("Reject", text),
        };
        let line = format!("{kind}: {text}").replace(['\r', '\n'], " ");
        line.chars().take(limits::REASON_CHARS_MAX).collect()
    }
}

/// Any other error is worth another try.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Retry(error.to_string())
    }
}

/// How often, and when, a failed event is tried again. Retries wait on the server and survive the worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retry {
    /// Calls of the handler in all; 1: no retry.
    pub attempts: u32,
    /// Before the first retry; each further pause is twice as long ...
    pub first: Duration,
    /// ... up to this.
    pub max: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 5, first: Duration::from_secs(1), max: Duration::from_secs(3_600) }
    }
}

impl Retry {
    /// How long after this attempt the next is made, give or take a fifth, so that what failed together comes apart.
    pub(crate) fn pause(&self, attempt: u32) -> Duration {
        let full = self.first.saturating_mul(1 << attempt.clamp(1, 31).saturating_sub(1)).min(self.max);
        full.mul_f64(random::between(0.8, 1.2))
    }
}

/// What a handler records for one event: it leaves with the ack, or not at all.
#[derive(Debug, Default)]
pub struct Context {
    pub(crate) outputs: Vec<(Topic, Record)>,
    pub(crate) effects: Vec<Effect>,
    /// The trace of the event that is handled: it goes on in what is published.
    pub(crate) trace: trace::Trace,
}

impl Context {
    /// Publishes an event with the ack. Its identity follows from that of the handled event, so it is the same however
    /// often this is handled; the writes of one event go up to 1,000.
    pub fn publish(&mut self, topic: &Topic, mut record: Record) -> Result<(), Invalid> {
        record.check()?;
        self.require_room()?;
        trace::stamp(&mut record, &self.trace);
        self.outputs.push((topic.clone(), record));
        Ok(())
    }

    /// Writes to a key with the ack: `ctx.effect("HINCRBY", "totals", ["orders", "1"])`. The commands are those of the wire
    /// reference (SET, INCRBY, HSET, SADD, ZADD ...). A write that never could be made is an error here (an amount that is no integer,
    /// too many arguments); one that cannot be made on what the key holds fails the event.
    pub fn effect<A: AsRef<[u8]>>(
        &mut self,
        command: &str,
        key: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<(), Invalid> {
        self.require_room()?;
        let arguments = arguments.into_iter().map(|argument| argument.as_ref().to_vec()).collect();
        self.effects.push(Effect::new(command, key, arguments)?);
        Ok(())
    }

    fn require_room(&self) -> Result<(), Invalid> {
        if self.outputs.len() + self.effects.len() < limits::WRITES_MAX {
            return Ok(());
        }
        Err(Invalid(format!("expected at most {} outputs and effects of one event", limits::WRITES_MAX)))
    }
}
