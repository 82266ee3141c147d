//! What is in hand of a partition: some events that had been set aside, then a stretch of the partition without a gap; and how each
//! of them ends. Books only, no calls.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::headrace::commit::weight;
use crate::headrace::event::Event;
use crate::headrace::limits;
use crate::headrace::packed;
use crate::headrace::reply::Row;
use crate::headrace::settlement::Outcome;

use super::lines::{Aside, Lines};

/// One event in hand.
#[derive(Debug)]
pub(crate) struct Item {
    pub event: Arc<Event>,
    /// None: nobody has handled it yet.
    pub outcome: Option<Outcome>,
    /// It had been set aside.
    pub aside: Option<Aside>,
    /// Whether its entry ends with it: entries are settled as a whole.
    pub last: bool,
}

/// The events of one key: where they are in the batch, and what they are.
pub(crate) type Lane = Vec<(usize, Arc<Event>)>;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub items: Vec<Item>,
}

impl Batch {
    /// An event that had been set aside; those of a key in their order, and all before the stretch.
    pub fn push_aside(&mut self, aside: Aside, event: Event) {
        self.items.push(Item { event: Arc::new(event), outcome: None, aside: Some(aside), last: true });
    }

    /// The next entry of the partition. Events of keys that wait are set aside unhandled.
    pub fn push_entry(&mut self, (id, fields): Row, lines: &Lines) {
        let events = match packed::unpack(&fields) {
            Some(events) => {
                events.into_iter().enumerate().map(|(n, own)| Event::new(format!("{id}/{n}"), own)).collect()
            }
            None => vec![Event::new(id, fields)],
        };
        for event in events {
            let outcome = lines.hold(event.key()).then_some(Outcome::Return);
            self.items.push(Item { event: Arc::new(event), outcome, aside: None, last: false });
        }
        if let Some(item) = self.items.last_mut() {
            item.last = true;
        }
    }

    /// What is to be handled, by key.
    pub fn lanes(&self) -> Vec<Lane> {
        let (mut lanes, mut by_key) = (Vec::<Lane>::new(), HashMap::new());
        for (at, item) in self.items.iter().enumerate().filter(|(_, item)| item.outcome.is_none()) {
            let lane = *by_key.entry(item.event.key()).or_insert(lanes.len());
            if lane == lanes.len() {
                lanes.push(Vec::new());
            }
            lanes[lane].push((at, Arc::clone(&item.event)));
        }
        lanes
    }

    /// Leaves what is behind the last event that was handled to others; but an entry that was begun is ended.
    pub fn cut(&mut self) {
        let handled =
            |item: &Item| item.outcome.as_ref().is_some_and(|outcome| !matches!(outcome, Outcome::Return));
        let mut end = self.items.iter().rposition(handled).map_or(0, |at| at + 1);
        while end > 0 && end < self.items.len() && !self.items[end - 1].last {
            end += 1;
        }
        self.items.truncate(end);
    }

    /// Nothing of a key goes on behind an event that is to be handled again, whatever has become of it: it is handled again, too.
    pub fn hold_back(&mut self) {
        let goes_on = |item: &Item| item.outcome.as_ref().is_some_and(|outcome| !outcome.comes_again());
        if self.items.iter().all(goes_on) {
            return;
        }
        let mut stopped = HashSet::new();
        for item in &mut self.items {
            let key = item.event.key().map(<[u8]>::to_vec);
            if item.outcome.is_none() || stopped.contains(&key) {
                item.outcome = Some(Outcome::Return);
            }
            if !goes_on(item) {
                stopped.insert(key);
            }
        }
    }

    /// How many of the first items one call settles: whole entries.
    pub fn step(&self) -> usize {
        let (mut bytes, mut end) = (0, 0);
        for (at, item) in self.items.iter().enumerate() {
            bytes += item.outcome.as_ref().map_or(0, |outcome| weight(&item.event, outcome));
            if end > 0 && (bytes > limits::BATCH_BYTES_MAX || at >= limits::BATCH_RECORDS_MAX) {
                break;
            }
            if item.last {
                end = at + 1;
            }
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn batch(keys: &[&str]) -> Batch {
        let mut batch = Batch::default();
        for (n, key) in keys.iter().enumerate() {
            let fields = ["key", key, "data", "{}"].map(|word| word.as_bytes().to_vec());
            batch.push_entry((format!("{}-0", n + 1), fields.to_vec()), &Lines::default());
        }
        batch
    }

    fn retry() -> Outcome {
        Outcome::Retry { delay: Duration::ZERO, reason: String::new() }
    }

    fn ends(batch: &Batch) -> Vec<bool> {
        batch.items.iter().map(|item| item.outcome.as_ref().is_some_and(Outcome::comes_again)).collect()
    }

    #[test]
    fn what_follows_a_failed_event_of_its_key_waits_even_if_it_was_handled() {
        let mut batch = batch(&["a", "b", "a", "b", "a"]);
        let lanes = batch.lanes();
        assert_eq!(lanes.iter().map(Vec::len).collect::<Vec<_>>(), [3, 2]);
        for (at, _) in lanes.concat() {
            batch.items[at].outcome = Some(if at == 2 { retry() } else { Outcome::Done });
        }
        batch.hold_back();
        assert_eq!(ends(&batch), [false, false, true, false, true]);
        batch.items.drain(..3); // written, and then one of the rest is refused
        batch.items[0].outcome = Some(retry());
        batch.hold_back();
        assert_eq!(ends(&batch), [true, true]);
    }

    #[test]
    fn what_is_not_begun_is_left_to_others_but_whole_entries_are_ended() {
        let mut batch = batch(&["a", "b", "a", "b", "c"]);
        batch.items[1].outcome = Some(Outcome::Done);
        batch.items[1].last = false; // the second and the third are one entry
        batch.items[4].outcome = Some(Outcome::Return); // its key waited: nobody has handled it
        batch.cut();
        batch.hold_back();
        assert_eq!(ends(&batch), [true, false, true]);
        assert_eq!(batch.step(), 3);
    }
}
