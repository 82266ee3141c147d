//! Where a topic lives, and how much of it is kept.

use std::borrow::Cow;
use std::time::Duration;

/// A topic. Whoever publishes to it or subscribes to it must say the same number of partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// 1 to 128 of `A-Z a-z 0-9 . _ -`.
    pub name: Cow<'static, str>,
    /// How many streams the events are spread over, by their keys.
    pub partitions: u32,
    /// Publishing waits when the topic holds this many events.
    pub cap_events: u64,
    /// Settled events are kept for replay, as far as the cap has room for them, until the topic holds more than this many ...
    pub retain_events: u64,
    /// ... or they are older than this. An event that a group still needs is never trimmed.
    pub retain: Duration,
    /// While no group exists, all events are kept for the first to come. False: only the two bounds above decide what is kept.
    pub keep_for_first_group: bool,
    /// How long an id that a caller gave drops repeats.
    pub id_window: Duration,
}

impl Topic {
    /// A topic of one partition with the usual bounds.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name: Cow::Borrowed(name),
            partitions: 1,
            cap_events: 10_000_000,
            retain_events: 1_000_000,
            retain: Duration::from_secs(86_400),
            keep_for_first_group: true,
            id_window: Duration::from_secs(86_400),
        }
    }

    /// With this many partitions.
    #[must_use]
    pub const fn partitions(mut self, partitions: u32) -> Self {
        self.partitions = partitions;
        self
    }
}

/// Whether this may be the name of a topic, group, producer or worker: no braces (they choose a slot), blanks or controls.
pub fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=128).contains(&name.len()) && name.bytes().all(allowed)
}
