//! Takes entries for a worker: new ones, those of dead workers, and those that are under names of its own without its knowing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use redis::{RedisError, Value, cmd, from_redis_value};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::books::Source;
use super::error::Error;
use super::event::Event;
use super::limits;
use super::node::{Wire, lock};
use super::packed;
use super::place::{Delivery, Pack, Place, Read};
use super::reply::{self, Row};
use super::scripts::Script;
use super::settlement::Outcome;

/// Reads one partition.
pub(crate) struct Reader {
    place: Arc<Place>,
    /// What tells how many handlers could begin now.
    idle: Arc<Semaphore>,
    wire: Option<(Wire, i64)>,
    /// How many entries like those of the last read make `READ_BYTES`.
    fit: usize,
    /// How many events an entry of the last read had.
    packed: usize,
    stop: CancellationToken,
}

impl Reader {
    pub fn new(place: Arc<Place>, idle: Arc<Semaphore>, stop: CancellationToken) -> Self {
        Self { place, idle, wire: None, fit: limits::FIRST_READ_RECORDS, packed: 1, stop }
    }

    /// Reads until it is stopped, or the server refuses for good.
    pub async fn run(mut self, out: mpsc::Sender<Vec<Delivery>>) -> Result<(), Error> {
        let beat = self.place.pulse.add(format!("reader of {}", self.place.stream()));
        let mut backoff = Backoff::new(format!("reading {}", self.place.stream()));
        while let Some(room) = self.wait_for_room(&out, &beat).await {
            match self.take().await {
                Ok(deliveries) => {
                    backoff.over();
                    if !deliveries.is_empty() {
                        self.place.in_hand.fetch_add(deliveries.len(), Ordering::Relaxed);
                        room.send(deliveries);
                    }
                }
                Err(error) if error.may_pass() => {
                    let stopped = self.stop.clone();
                    tokio::select! { () = backoff.wait(&error) => {}, () = stopped.cancelled() => {} }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// One read is being handled, one may wait behind it; and what is under way has a bound. None: it is stopped.
    async fn wait_for_room<'a>(
        &self,
        out: &'a mpsc::Sender<Vec<Delivery>>,
        beat: &super::pulse::Beat,
    ) -> Option<mpsc::Permit<'a, Vec<Delivery>>> {
        let most = (4 * limits::READ_RECORDS_MAX).max(2 * self.place.sub.concurrency);
        while !self.stop.is_cancelled() {
            beat.beat();
            let room = async {
                while self.place.in_hand.load(Ordering::Relaxed) >= most {
                    self.place.room.notified().await;
                }
                out.reserve().await.ok()
            };
            tokio::select! {
                room = timeout(self.place.sub.block, room) => if let Ok(room) = room { return room },
                () = self.stop.cancelled() => {}
            }
        }
        None
    }

    async fn take(&mut self) -> Result<Vec<Delivery>, Error> {
        if lock(&self.place.books).suspect.is_some() {
            let _still_at_work = timeout(self.place.sub.block, self.place.cleared.notified()).await;
            return Ok(Vec::new());
        }
        let taken = match self.take_over().await {
            Ok(taken) if taken.is_empty() => self.read().await,
            taken => taken,
        };
        match taken {
            Err(error) if error.code() == Some("NOGROUP") => {
                self.place.topics.forget(&self.place.sub.topic);
                self.place.join(true).await?;
                self.place.topics.register(&self.place.sub.topic).await?;
                Ok(Vec::new())
            }
            taken => taken,
        }
    }

    /// Entries that nobody else will settle.
    async fn take_over(&mut self) -> Result<Vec<Delivery>, Error> {
        let (strays, dead) = {
            let books = lock(&self.place.books);
            (books.strays, books.dead)
        };
        if strays {
            let taken = self.claim(true).await?;
            if !taken.is_empty() {
                return Ok(taken);
            }
        }
        if dead { self.claim(false).await } else { Ok(Vec::new()) }
    }

    /// Takes what is of the dead, or what is ours (`own`) and not under a name that we know to hold something.
    async fn claim(&mut self, own: bool) -> Result<Vec<Delivery>, Error> {
        let place = Arc::clone(&self.place);
        let (slot, filled) = {
            let mut books = lock(&place.books);
            *(if own { &mut books.strays } else { &mut books.dead }) = false; // before the call: meanwhile there may be a reason
            (books.fresh(), books.filled().map(|slot| place.consumer(slot)).collect::<Vec<_>>())
        };
        let commits = place.node.connected().map(|wire| wire.life);
        let (consumer, limit) = (place.consumer(slot), (self.wanted() / self.packed).max(1).to_string());
        let (lease, alone) = (place.sub.lease_ms(), limits::DEATHS_ALONE.to_string());
        let mut words = vec![place.sub.group.as_str(), &place.sub.worker, &consumer, &limit, &lease, &alone];
        words.push(if own { "own" } else { "dead" });
        if own {
            words.extend(filled.iter().map(String::as_str));
        }
        let keys = [place.stream(), &place.group.retry, &place.group.workers];
        let reply = place.node.call(Script::Claim, &keys, &words).await.and_then(taken_of);
        let mut books = lock(&place.books);
        let (gone, rows) = reply.inspect_err(|_| {
            books.strays = true; // the server may have claimed them for it
            books.dead |= !own;
        })?;
        if gone > 0 {
            tracing::error!(
                stream = place.stream(),
                gone,
                "events were deleted on the server before they were handled"
            );
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        *(if own { &mut books.strays } else { &mut books.dead }) = true; // there may be more
        let held = [1, 2].map(|source| rows.iter().filter(|row| row.0 == source).count());
        books.fill(slot, held, commits);
        let (read, mut deliveries) = (Arc::<Read>::default(), Vec::new());
        for (source, deaths, row) in rows {
            let source = if source == 1 { Source::Topic } else { Source::Retry };
            let before = deliveries.len();
            push_events(&mut deliveries, (slot, source), &read, row);
            if !own && judge_deaths(&mut deliveries[before..], deaths) {
                books.suspect = Some(slot);
            }
        }
        drop(books);
        read.expect(deliveries.len());
        if !own {
            let (stream, events) = (place.stream(), deliveries.len());
            tracing::warn!(stream, group = place.sub.group, events, "took over events of a worker that died");
            place.observer.reclaimed(events);
        }
        Ok(deliveries)
    }

    fn wanted(&self) -> usize {
        self.place.wanted(self.idle.available_permits())
    }

    async fn read(&mut self) -> Result<Vec<Delivery>, Error> {
        let place = Arc::clone(&self.place);
        let (mut wire, id) = self.connect().await?;
        let commits = place.node.connected().map(|wire| wire.life);
        let (slot, waits) = {
            let mut books = lock(&place.books);
            let waits = !books.dead && !books.strays && !self.stop.is_cancelled();
            books.reading = waits.then_some(id);
            (books.take(), waits)
        };
        let mut call = cmd("XREADGROUP");
        call.arg("GROUP").arg(&place.sub.group).arg(place.consumer(slot));
        call.arg("COUNT").arg((self.wanted() / self.packed).max(1).min(self.fit));
        if waits {
            call.arg("BLOCK").arg(u64::try_from(place.sub.block.as_millis()).unwrap_or(5_000).max(1));
        }
        call.arg("STREAMS").arg(place.stream()).arg(&place.group.retry).arg(">").arg(">");
        let reply = wire.send(&call).await.map_err(Error::from).and_then(reply::streams);
        let mut books = lock(&place.books);
        books.reading = None;
        let streams = match reply {
            Ok(streams) => streams,
            Err(error) if error.code() == Some("NOGROUP") => {
                books.put_back(slot);
                return Err(error);
            }
            Err(error) => {
                // The server may have given it entries that never arrived, or may do so yet: it is not used again.
                books.strays = true;
                self.wire = None;
                return Err(error);
            }
        };
        let mut held = [0, 0];
        let (mut bytes, mut entries) = (0, 0);
        let (read, mut deliveries) = (Arc::<Read>::default(), Vec::new());
        for (stream, rows) in streams {
            let source = if stream == place.stream() { Source::Topic } else { Source::Retry };
            held[source as usize] = rows.len();
            entries += rows.len();
            bytes += rows.iter().filter_map(|(_, fields)| fields.last()).map(Vec::len).sum::<usize>();
            let (before, count) = (deliveries.len(), rows.len());
            deliveries.reserve(count);
            for row in rows {
                push_events(&mut deliveries, (slot, source), &read, row);
            }
            if source == Source::Topic {
                self.packed = (deliveries.len() - before).div_ceil(count.max(1)).max(1);
            }
        }
        if entries == 0 {
            books.put_back(slot);
        } else {
            books.fill(slot, held, commits);
            self.fit = (limits::READ_BYTES * entries / (bytes + 1)).max(1);
        }
        drop(books);
        read.expect(deliveries.len());
        Ok(deliveries)
    }

    /// The connection for reads. Who answers on a new one may be another server, which has not heard of our last commits: what
    /// it holds under our names is looked at again.
    async fn connect(&mut self) -> Result<(Wire, i64), Error> {
        if let Some(open) = &self.wire {
            return Ok(open.clone());
        }
        let mut wire = self.place.node.open(limits::REQUEST + self.place.sub.block).await?;
        let id = wire.send(cmd("CLIENT").arg("ID")).await?;
        let id = from_redis_value(id).map_err(RedisError::from)?;
        let mut books = lock(&self.place.books);
        books.strays |= books.life != 0;
        books.life = wire.life;
        drop(books);
        self.wire = Some((wire.clone(), id));
        Ok((wire, id))
    }
}

/// An entry that was taken over: 1 for the partition or 2 for the retry stream, deaths, the entry.
type Taken = (i64, i64, Row);

/// What `claim` answers: how many entries are gone, and source, deaths, id and fields of those that were taken.
fn taken_of(reply: Value) -> Result<(i64, Vec<Taken>), Error> {
    let [gone, taken] = reply::exactly(reply)?;
    let one = |own| {
        let [source, deaths, id, fields] = reply::exactly(own)?;
        Ok((reply::int(&source)?, reply::int(&deaths)?, reply::row(id, fields)?))
    };
    Ok((reply::int(&gone)?, reply::items(taken)?.into_iter().map(one).collect::<Result<_, Error>>()?))
}

/// The events of an entry.
fn push_events(out: &mut Vec<Delivery>, (slot, source): (u32, Source), read: &Arc<Read>, (id, fields): Row) {
    let one = |event, pack| Delivery { event, slot, source, pack, verdict: None, read: Arc::clone(read) };
    if source == Source::Retry {
        out.push(one(Event::again(id, fields), None)); // never packed
    } else if let Some(events) = packed::unpack(&fields) {
        let pack = Arc::new(Pack { id: id.clone(), events: events.len() });
        let events = events.into_iter().enumerate().map(|(n, own)| Event::new(format!("{id}/{n}"), own));
        out.extend(events.map(|event| one(event, Some(Arc::clone(&pack)))));
    } else {
        out.push(one(Event::new(id, fields), None));
    }
}

/// What becomes of the events of an entry that workers died with. True: whoever handles them now takes nothing else meanwhile.
fn judge_deaths(events: &mut [Delivery], deaths: i64) -> bool {
    let verdict = if deaths >= limits::DEATHS_MAX {
        tracing::error!(id = %events.first().map(|d| d.event.id()).unwrap_or_default(), deaths, "dead-lettered: its workers died");
        Outcome::Dead { reason: format!("{deaths} workers that held it died") }
    } else if deaths >= limits::DEATHS_APART && events.len() > 1 {
        Outcome::Return // one by one, the innocent get away
    } else {
        return deaths >= limits::DEATHS_APART;
    };
    for delivery in events {
        delivery.verdict = Some(verdict.clone());
    }
    false
}
