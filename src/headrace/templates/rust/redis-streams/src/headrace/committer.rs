//! Settles what a worker holds of one partition: one call for each read buffer, when all of it is settled or its first event has
//! waited for a moment.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use redis::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::books::Source;
use super::commit::{self, Writes, commit_call};
use super::error::Error;
use super::execute::{Settled, judge};
use super::handler::Failure;
use super::limits;
use super::node::lock;
use super::observer::Verdict;
use super::place::Place;
use super::reply;
use super::scripts::Script;
use super::settlement::{Entry, Settlement};
use super::topic::Topic;

/// A read buffer and one of its streams: what one call settles entries of.
type Hold = (u32, Source);

/// Entries that are ready to be committed.
struct Waiting {
    entries: Vec<Entry>,
    since: Instant,
}

/// A commit that was answered.
struct Answer {
    hold: Hold,
    entries: Vec<Entry>,
    lost: Vec<String>,
    /// Entries with a write that cannot be made: the place of its first word, and why.
    refused: HashMap<String, (usize, String)>,
}

/// See the module.
pub(crate) struct Committer {
    place: Arc<Place>,
    waiting: BTreeMap<Hold, Waiting>,
    /// Packed entries of which some events, not all, are settled.
    begun: HashMap<(u32, String), Vec<Settlement>>,
    /// One call at a time for each hold: what it tells the server it holds is true.
    flying: FuturesUnordered<BoxFuture<'static, Result<Answer, Error>>>,
    busy: Vec<Hold>,
    /// The worker leaves: what cannot be committed now is handed back.
    leaving: CancellationToken,
}

impl Committer {
    pub fn new(place: Arc<Place>, leaving: CancellationToken) -> Self {
        let (waiting, begun) = (BTreeMap::new(), HashMap::new());
        Self { place, waiting, begun, flying: FuturesUnordered::new(), busy: Vec::new(), leaving }
    }

    /// Commits until nobody can settle any more and all is committed, or the server refuses for good.
    pub async fn run(mut self, mut settled: mpsc::UnboundedReceiver<Settled>) -> Result<(), Error> {
        let beat = self.place.pulse.add(format!("committer of {}", self.place.stream()));
        let (mut open, mut batch) = (true, Vec::new());
        loop {
            beat.beat();
            let ripe = self.launch(open);
            if !open && self.flying.is_empty() && self.waiting.is_empty() {
                return Ok(());
            }
            let ripe = ripe.unwrap_or_else(|| Instant::now() + Duration::from_secs(5));
            tokio::select! {
                count = settled.recv_many(&mut batch, limits::READ_RECORDS_MAX), if open => {
                    open = count > 0;
                    batch.drain(..).for_each(|one| self.sort(one));
                }
                Some(answer) = self.flying.next() => self.land(answer?),
                () = sleep_until(ripe) => {}
            }
        }
    }

    fn sort(&mut self, Settled { delivery, outcome }: Settled) {
        if let Some(pace) = delivery.read.note() {
            let mut known = lock(&self.place.pace);
            *known = if *known > 0.0 { *known * 0.7 + pace * 0.3 } else { pace };
        }
        let hold = (delivery.slot, delivery.source);
        let settlement = Settlement { event: delivery.event, outcome };
        let Some(pack) = delivery.pack else { return self.wait(hold, Entry::One(settlement)) };
        let events = self.begun.entry((delivery.slot, pack.id.clone())).or_default();
        events.push(settlement);
        if events.len() == pack.events
            && let Some(events) = self.begun.remove(&(delivery.slot, pack.id.clone()))
        {
            self.wait(hold, Entry::Pack { id: pack.id.clone(), events });
        }
    }

    fn wait(&mut self, hold: Hold, entry: Entry) {
        let new = || Waiting { entries: Vec::new(), since: Instant::now() };
        self.waiting.entry(hold).or_insert_with(new).entries.push(entry);
    }

    /// Sends what is ready; answers when the next will be.
    fn launch(&mut self, open: bool) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let holds: Vec<Hold> =
            self.waiting.keys().copied().filter(|hold| !self.busy.contains(hold)).collect();
        for hold in holds {
            let Some(waiting) = self.waiting.get_mut(&hold) else { continue };
            let ripe = waiting.since + limits::COMMIT_WAIT;
            let complete = waiting.entries.len() >= lock(&self.place.books).held(hold.0, hold.1);
            if open && !complete && ripe > Instant::now() {
                next = Some(next.map_or(ripe, |first| first.min(ripe)));
                continue;
            }
            let entries = commit::one_call(&mut waiting.entries);
            if waiting.entries.is_empty() {
                self.waiting.remove(&hold);
            }
            self.busy.push(hold);
            self.flying.push(Box::pin(send(Arc::clone(&self.place), hold, entries, self.leaving.clone())));
        }
        next
    }

    fn land(&mut self, answer: Answer) {
        let Answer { hold, entries, lost, mut refused } = answer;
        self.busy.retain(|busy| *busy != hold);
        let (mut events, mut settled) = (0, 0);
        let mut counts: HashMap<Verdict, usize> = HashMap::new();
        for entry in entries {
            if let Some((place, why)) = refused.remove(entry.id()) {
                let otherwise = self.otherwise(entry, place, &why);
                self.wait(hold, otherwise);
                continue;
            }
            settled += 1;
            events += entry.settlements().len();
            let gone = !lost.is_empty() && lost.iter().any(|id| id == entry.id());
            for settlement in entry.settlements() {
                let verdict = if gone { Verdict::Lost } else { settlement.outcome.verdict() };
                *counts.entry(verdict).or_default() += 1;
            }
        }
        let freed = lock(&self.place.books).release(hold.0, hold.1, settled);
        if freed.strays {
            self.place.unblock();
        }
        if freed.cleared {
            self.place.cleared.notify_one();
        }
        self.place.committed.fetch_add(settled as u64, Ordering::Relaxed);
        self.place.note_settled(events);
        for (verdict, count) in counts {
            self.place.observer.settled(verdict, count);
        }
    }

    /// A write of the entry cannot be made: the event that it is of has failed.
    fn otherwise(&self, mut entry: Entry, place: usize, why: &str) -> Entry {
        let count = |topic: &Topic| self.place.topics.count(topic);
        let fault = Writes::at_fault(&entry, &self.place.sub.group, &count, place);
        let at_fault = match &mut entry {
            Entry::One(settlement) => Some(settlement),
            Entry::Pack { events, .. } => events.get_mut(fault),
        };
        if let Some(Settlement { event, outcome }) = at_fault {
            let failure = Failure::Retry(format!("a write recorded by the handler cannot be made: {why}"));
            *outcome = judge(&self.place.sub, event, &failure);
        }
        entry
    }
}

/// One commit, repeated until it is answered: a repeat finds settled what the first has settled, and writes nothing. A worker that
/// leaves does not wait until there is room for what it writes: its entries stay held, to be handed back.
async fn send(
    place: Arc<Place>,
    hold: Hold,
    entries: Vec<Entry>,
    leaving: CancellationToken,
) -> Result<Answer, Error> {
    let mut backoff = Backoff::new(format!("committing to {}", place.stream()));
    let outputs = commit::outputs_of(entries.iter().flat_map(Entry::settlements).map(|one| &one.outcome));
    loop {
        let error = match attempt(&place, hold, &entries, &outputs).await {
            Ok(reply) => {
                backoff.over();
                return answer(hold, entries, reply);
            }
            Err(error) => error,
        };
        match &error {
            Error::Refused { code, .. } if code == "NOGROUP" => {
                let (stream, group, count) = (place.stream(), &place.sub.group, entries.len());
                tracing::error!(
                    stream,
                    group,
                    count,
                    "the group is gone from the server; entries could not be settled"
                );
                let lost = entries.iter().map(|entry| entry.id().to_owned()).collect();
                return Ok(Answer { hold, entries, lost, refused: HashMap::new() });
            }
            Error::Refused { .. } => return Err(error),
            Error::Grew(_) | Error::Full(_) | Error::Unreachable(_) => {
                if place.topics.make_way(&outputs, &error).await {
                    continue;
                }
            }
        }
        let last = leaving.is_cancelled();
        if last && error.is_held_up() {
            let (stream, count) = (place.stream(), entries.len());
            tracing::warn!(stream, count, reason = %error, "not committed; handed back");
            return Ok(Answer { hold, entries: Vec::new(), lost: Vec::new(), refused: HashMap::new() });
        }
        tokio::select! {
            () = backoff.wait(&error) => {}
            () = leaving.cancelled(), if !last => {}
        }
    }
}

async fn attempt(
    place: &Arc<Place>,
    hold: Hold,
    entries: &[Entry],
    outputs: &[(Topic, usize)],
) -> Result<Value, Error> {
    for (topic, _) in outputs {
        place.topics.register(topic).await?;
    }
    let count = |topic: &Topic| place.topics.count(topic);
    let mut wire = place.node.wire().await?;
    let (call, retry) = {
        let mut writes = Writes::new(&place.sub.group, &count);
        entries.iter().filter(|entry| !entry.is_plain()).for_each(|entry| writes.add(entry));
        let believed = lock(&place.books).claimed(hold.0, hold.1, entries.len(), wire.life);
        let consumer = place.consumer(hold.0);
        let names = (place.sub.group.as_str(), consumer.as_str());
        (commit_call(place.source(hold.1), &place.group, names, believed, entries, &writes), writes.retry)
    };
    let reply = place.node.evaluate_over(&mut wire, Script::Commit, &call).await?;
    if let Some(delay) = retry {
        place.due_in(delay);
    }
    Ok(reply)
}

fn answer(hold: Hold, entries: Vec<Entry>, reply: Value) -> Result<Answer, Error> {
    let [_settled, lost, refused] = reply::exactly(reply)?;
    let lost = reply::items(lost)?.into_iter().map(reply::text).collect::<Result<_, _>>()?;
    let mut words = reply::items(refused)?.into_iter();
    let mut by_id = HashMap::new();
    while let (Some(id), Some(place), Some(why)) = (words.next(), words.next(), words.next()) {
        let place = usize::try_from(reply::int(&place)?).unwrap_or(0);
        by_id.insert(reply::text(id)?, (place, String::from_utf8_lossy(&reply::bytes(why)?).into_owned()));
    }
    Ok(Answer { hold, entries, lost, refused: by_id })
}
