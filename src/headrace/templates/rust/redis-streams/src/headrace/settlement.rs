//! How events end, in the terms of a commit.

use std::time::Duration;

use super::effect::Effect;
use super::event::Event;
use super::observer::Verdict;
use super::record::Record;
use super::topic::Topic;

/// How one delivery ends.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// Handled, nothing to write.
    Done,
    /// Handled, with what leaves with the ack.
    Wrote { outputs: Vec<(Topic, Record)>, effects: Vec<Effect> },
    /// To be handled again after a while.
    Retry { delay: Duration, reason: String },
    /// To the dead letters.
    Dead { reason: String },
    /// Back to the group at once, the attempt unchanged.
    Return,
}

impl Outcome {
    /// Whether the handler did what it should.
    pub fn is_handled(&self) -> bool {
        matches!(self, Self::Done | Self::Wrote { .. })
    }

    /// Whether it is to be handled again.
    pub fn comes_again(&self) -> bool {
        matches!(self, Self::Retry { .. } | Self::Return)
    }

    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Done | Self::Wrote { .. } => Verdict::Handled,
            Self::Retry { .. } => Verdict::Retried,
            Self::Dead { .. } => Verdict::Dead,
            Self::Return => Verdict::Returned,
        }
    }
}

/// One event and how it ends.
#[derive(Clone, Debug)]
pub(crate) struct Settlement {
    pub event: Event,
    pub outcome: Outcome,
}

/// An entry that is settled by one call: an event, or all events that are packed into it.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    One(Settlement),
    Pack { id: String, events: Vec<Settlement> },
}

impl Entry {
    pub fn id(&self) -> &str {
        match self {
            Self::One(settlement) => &settlement.event.token,
            Self::Pack { id, .. } => id,
        }
    }

    pub fn settlements(&self) -> &[Settlement] {
        match self {
            Self::One(settlement) => std::slice::from_ref(settlement),
            Self::Pack { events, .. } => events,
        }
    }

    /// Just acknowledged. A packed entry is always given as one with writes.
    pub fn is_plain(&self) -> bool {
        matches!(self, Self::One(Settlement { outcome: Outcome::Done, .. }))
    }
}
