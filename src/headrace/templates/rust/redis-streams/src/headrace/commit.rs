//! Settlements as the words of the commit script.

use std::collections::HashMap;
use std::time::Duration;

use redis::Cmd;

use super::event::Event;
use super::keys::{GroupKeys, PartitionKeys};
use super::limits;
use super::partition::{partition_of, stream_of};
use super::record::Record;
use super::scripts::Script;
use super::settlement::{Entry, Outcome};
use super::topic::Topic;

/// Where the keys that writes name begin; the five before them are fixed.
const FIRST_PLACE: usize = 6;

/// The writes of one call: words for ARGV, and the keys that they name by their place among KEYS.
pub(crate) struct Writes<'a> {
    group: &'a str,
    count: &'a dyn Fn(&Topic) -> u32,
    pub keys: Vec<String>,
    pub words: Vec<Vec<u8>>,
    /// Bytes of what they carry, about.
    pub size: usize,
    /// When the first retry is due.
    pub retry: Option<Duration>,
    /// Ordered mode: what is to be handled again waits in the retry stream.
    aside: bool,
    effects: HashMap<String, usize>,
    outputs: HashMap<String, usize>,
}

impl<'a> Writes<'a> {
    /// None yet. `count`: how many partitions a topic has now.
    pub fn new(group: &'a str, count: &'a dyn Fn(&Topic) -> u32) -> Self {
        Self {
            group,
            count,
            keys: Vec::new(),
            words: Vec::new(),
            size: 0,
            retry: None,
            aside: false,
            effects: HashMap::new(),
            outputs: HashMap::new(),
        }
    }

    /// None yet, for ordered mode.
    pub fn aside(group: &'a str, count: &'a dyn Fn(&Topic) -> u32) -> Self {
        Self { aside: true, ..Self::new(group, count) }
    }

    fn word(&mut self, word: &(impl ToString + ?Sized)) {
        self.words.push(word.to_string().into_bytes());
    }

    /// An entry: how many of its events are handled, how many there are, number of words, its writes.
    pub fn add(&mut self, entry: &Entry) {
        let settlements = entry.settlements();
        self.add_events(settlements.iter().map(|one| (&one.event, &one.outcome)));
    }

    /// As [`Self::add`], of these events.
    pub fn add_events<'b>(&mut self, events: impl Iterator<Item = (&'b Event, &'b Outcome)> + Clone) {
        let handled = events.clone().filter(|(_, outcome)| outcome.is_handled()).count();
        self.word(&handled);
        self.word(&events.clone().count());
        self.word("");
        let start = self.words.len();
        for (event, outcome) in events {
            self.add_writes(event, outcome);
        }
        self.words[start - 1] = (self.words.len() - start).to_string().into_bytes();
    }

    fn add_writes(&mut self, event: &Event, outcome: &Outcome) {
        match outcome {
            Outcome::Done => {}
            Outcome::Wrote { outputs, effects } => {
                for effect in effects {
                    let place = self.place_effect(&effect.key);
                    self.word("E");
                    self.word(&place);
                    self.word(&effect.arguments.len());
                    self.word(&effect.command);
                    self.carry(effect.arguments.clone());
                }
                for (n, (topic, record)) in outputs.iter().enumerate() {
                    self.add_output(topic, record, &event.derived_id(self.group, n));
                }
            }
            Outcome::Retry { delay, reason } => {
                self.word(if self.aside { "P" } else { "Z" });
                self.word(&delay.as_millis());
                self.fields(event.copy(event.attempt() + 1, reason));
                self.retry = Some(self.retry.map_or(*delay, |first| first.min(*delay)));
            }
            Outcome::Dead { reason } => {
                self.word("D");
                self.fields(event.copy(event.attempt(), reason));
            }
            Outcome::Return => {
                if self.aside {
                    self.word("P");
                    self.word("0");
                } else {
                    self.word("B");
                }
                self.fields(event.copy(event.attempt(), ""));
            }
        }
    }

    /// An output goes to the partition of its key, else of its id, so that it is the same however often its input is handled.
    fn add_output(&mut self, topic: &Topic, record: &Record, id: &[u8]) {
        let count = (self.count)(topic);
        let stream = stream_of(&topic.name, partition_of(record.place().unwrap_or(id), count), count);
        let place = self.place_output(stream);
        self.word("O");
        self.word(&place);
        self.word(&topic.cap_events);
        self.word(&topic.id_window.as_millis());
        self.word(&count);
        self.word(&record.id.as_deref().unwrap_or_default());
        self.word(&record.due.word());
        self.fields(record.fields(id));
    }

    fn fields(&mut self, fields: Vec<Vec<u8>>) {
        self.word(&fields.len());
        self.carry(fields);
    }

    fn carry(&mut self, words: Vec<Vec<u8>>) {
        self.size += words.iter().map(Vec::len).sum::<usize>();
        self.words.extend(words);
    }

    fn place_effect(&mut self, key: &str) -> usize {
        if let Some(place) = self.effects.get(key) {
            return *place;
        }
        let place = FIRST_PLACE + self.keys.len();
        self.keys.push(key.to_owned());
        self.effects.insert(key.to_owned(), place);
        place
    }

    /// The place of an output's stream; its delayed, ids and packed follow.
    fn place_output(&mut self, stream: String) -> usize {
        if let Some(place) = self.outputs.get(&stream) {
            return *place;
        }
        let place = FIRST_PLACE + self.keys.len();
        let PartitionKeys { stream: own, delayed, ids, packed } = PartitionKeys::new(&stream);
        self.keys.extend([own, delayed, ids, packed]);
        self.outputs.insert(stream, place);
        place
    }

    /// Which of the settlements has the word at `place`, from 0, of all the writes of its entry.
    pub fn at_fault(entry: &Entry, group: &str, count: &dyn Fn(&Topic) -> u32, place: usize) -> usize {
        let mut end = 0;
        let settlements = entry.settlements();
        for (n, settlement) in settlements.iter().enumerate() {
            let mut own = Writes::new(group, count);
            own.add_writes(&settlement.event, &settlement.outcome);
            end += own.words.len();
            if place < end {
                return n;
            }
        }
        settlements.len().saturating_sub(1)
    }
}

/// The topics that get an output, and how many each.
pub(crate) fn outputs_of<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> Vec<(Topic, usize)> {
    let mut out: Vec<(Topic, usize)> = Vec::new();
    for outcome in outcomes {
        if let Outcome::Wrote { outputs, .. } = outcome {
            for (topic, _) in outputs {
                match out.iter_mut().find(|(known, _)| known == topic) {
                    Some((_, events)) => *events += 1,
                    None => out.push((topic.clone(), 1)),
                }
            }
        }
    }
    out
}

/// Takes from the front what fits into one call.
pub(crate) fn one_call(entries: &mut Vec<Entry>) -> Vec<Entry> {
    let mut bytes = 0;
    let fits = entries.iter().take(limits::BATCH_RECORDS_MAX).take_while(|entry| {
        let before = bytes;
        bytes += entry.settlements().iter().map(|one| weight(&one.event, &one.outcome)).sum::<usize>();
        before == 0 || bytes <= limits::BATCH_BYTES_MAX
    });
    let rest = entries.split_off(fits.count());
    std::mem::replace(entries, rest)
}

/// How much a call carries of an event, in bytes, about. An output counts for so much at least that all those of a call fit into its topic.
pub(crate) fn weight(event: &Event, outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Done => 0,
        Outcome::Wrote { outputs, effects } => {
            let outputs = outputs.iter().map(|(topic, record)| {
                let most = usize::try_from(topic.cap_events / 2).unwrap_or(usize::MAX);
                let share = limits::BATCH_BYTES_MAX / most.clamp(1, limits::BATCH_RECORDS_MAX);
                share.max(record.body.len() + 64)
            });
            let effects =
                effects.iter().flat_map(|effect| &effect.arguments).map(|argument| argument.len() + 8);
            outputs.chain(effects).sum()
        }
        Outcome::Retry { .. } | Outcome::Dead { .. } | Outcome::Return => {
            event.fields.iter().map(Vec::len).sum()
        }
    }
}

/// One call of the commit script. `held`: how many entries of `source` the consumer holds, -1: unknown.
pub(crate) fn commit_call(
    source: &str,
    keys: &GroupKeys,
    (group, consumer): (&str, &str),
    held: i64,
    entries: &[Entry],
    writes: &Writes<'_>,
) -> Cmd {
    let mut call = Script::Commit.call(5 + writes.keys.len());
    call.arg(source).arg(&keys.retry).arg(&keys.record).arg(&keys.dead).arg(&keys.delayed).arg(&writes.keys);
    let plain = entries.iter().filter(|entry| entry.is_plain());
    let rich = entries.iter().filter(|entry| !entry.is_plain());
    call.arg(group).arg(consumer).arg(held).arg(plain.clone().count()).arg(rich.clone().count());
    for entry in plain.chain(rich) {
        call.arg(entry.id());
    }
    call.arg(&writes.words);
    call
}
