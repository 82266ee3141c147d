//! What comes in of a partition that this worker has: entries behind the cursor, and events that were set aside.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::{Cmd, Value, cmd};

use crate::headrace::error::Error;
use crate::headrace::event::Event;
use crate::headrace::keys::{GroupKeys, PartitionKeys};
use crate::headrace::limits;
use crate::headrace::node::{Node, Wire};
use crate::headrace::reply::{self, Row};
use crate::headrace::settlement::Outcome;

use super::batch::{Batch, Item};
use super::lease::Lease;
use super::lines::{Aside, Lines};

/// See the module.
pub(crate) struct Intake {
    node: Arc<Node>,
    keys: PartitionKeys,
    group: GroupKeys,
    /// How long a read waits at most.
    block: Duration,
    /// The connection that blocks.
    wire: Option<Wire>,
    /// The last entry that is settled: what is behind it is read.
    pub cursor: String,
    lines: Lines,
    /// Until where what was set aside is read, and whether there is more.
    position: String,
    unread: bool,
    /// How many entries like those of the last read make `READ_BYTES`.
    fit: usize,
    /// How many events an entry of the last read had.
    packed: usize,
}

impl Intake {
    pub fn new(
        node: Arc<Node>,
        keys: PartitionKeys,
        group: GroupKeys,
        block: Duration,
        cursor: String,
    ) -> Self {
        Self {
            node,
            keys,
            group,
            block,
            wire: None,
            cursor,
            lines: Lines::default(),
            position: "0-0".to_owned(),
            unread: true,
            fit: limits::FIRST_READ_RECORDS,
            packed: 1,
        }
    }

    /// The connection may be broken: the next read opens another.
    pub fn reconnect(&mut self) {
        self.wire = None;
    }

    /// What can be handled now, waiting for it a while: about so many events. May be given up at any time.
    pub async fn take(&mut self, lease: &Lease, wanted: usize) -> Result<Batch, Error> {
        self.load().await?; // before anything else: later events of keys that wait must wait, too
        let mut batch = self.fetch(lease, wanted).await?;
        let pause = batch.items.is_empty().then(|| self.pause(lease));
        let entries = (wanted / self.packed).clamp(1, self.fit);
        self.read(&mut batch, entries, pause).await?;
        Ok(batch)
    }

    /// One event that had been set aside, or else one entry.
    pub async fn take_one(&mut self, lease: &Lease) -> Result<Batch, Error> {
        self.load().await?;
        let mut batch = self.fetch(lease, 1).await?;
        if batch.items.is_empty() {
            self.read(&mut batch, 1, Some(self.pause(lease))).await?;
        }
        Ok(batch)
    }

    /// These are settled on the server.
    pub fn settled(&mut self, items: &[Item]) {
        for Item { event, outcome, aside, .. } in items {
            match (outcome, aside) {
                (None | Some(Outcome::Return), Some(_)) => {} // it goes on waiting
                (Some(outcome), Some(aside)) => {
                    self.lines.remove(aside);
                    self.unread |= outcome.comes_again();
                }
                (outcome, None) => {
                    self.unread |= outcome.as_ref().is_some_and(Outcome::comes_again);
                    entry_of(&event.token).clone_into(&mut self.cursor);
                }
            }
        }
    }

    /// Reads what was set aside since it was read last.
    async fn load(&mut self) -> Result<(), Error> {
        while self.unread {
            let mut page = cmd("XRANGE");
            page.arg(&self.group.retry).arg(format!("({}", self.position)).arg("+");
            page.arg("COUNT").arg(limits::BATCH_RECORDS_MAX);
            let rows = reply::rows(self.node.command::<Value>(&page).await?)?;
            self.unread = rows.len() == limits::BATCH_RECORDS_MAX;
            self.add(rows);
        }
        Ok(())
    }

    fn add(&mut self, rows: Vec<Row>) {
        for (token, fields) in rows {
            self.position.clone_from(&token);
            self.lines.add(Aside::of(token, &fields));
        }
    }

    /// What was set aside and is due.
    async fn fetch(&mut self, lease: &Lease, limit: usize) -> Result<Batch, Error> {
        let mut batch = Batch::default();
        let due = self.lines.due(lease.now_ms(), limit);
        let fetched = join_all(due.iter().map(|aside| self.fields(&aside.token))).await;
        for (aside, fields) in due.into_iter().zip(fetched) {
            if let Some(fields) = fields? {
                let event = Event::again(aside.token.clone(), fields);
                batch.push_aside(aside, event);
            } else {
                lease.renew().await?; // or the server has forgotten what it told us of
                self.lines.remove(&aside); // an operator took it away
            }
        }
        Ok(batch)
    }

    async fn fields(&self, token: &str) -> Result<Option<Vec<Vec<u8>>>, Error> {
        let entry =
            self.node.command::<Value>(cmd("XRANGE").arg(&self.group.retry).arg(token).arg(token)).await?;
        let Some((_, mut fields)) = reply::rows(entry)?.pop() else { return Ok(None) };
        if fields.first().is_some_and(|name| name == b"due") {
            fields.drain(..2);
        }
        Ok(Some(fields))
    }

    /// How long nothing can be due.
    fn pause(&self, lease: &Lease) -> Duration {
        let next = self.lines.next_ms().map(|due_ms| u64::try_from(due_ms - lease.now_ms()).unwrap_or(0));
        next.map_or(self.block, |ms| self.block.min(Duration::from_millis(ms)))
    }

    /// Adds up to so many entries of the partition to the batch. `pause`: how long to wait for them, or for anything that is set aside.
    async fn read(
        &mut self,
        batch: &mut Batch,
        entries: usize,
        pause: Option<Duration>,
    ) -> Result<(), Error> {
        let mut call = cmd("XREAD");
        call.arg("COUNT").arg(entries);
        if let Some(pause) = pause {
            call.arg("BLOCK").arg(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX).max(1));
        }
        call.arg("STREAMS").arg(&self.group.retry);
        if self.lines.len() < limits::ASIDE_RECORDS_MAX {
            call.arg(&self.keys.stream).arg(&self.position).arg(&self.cursor);
        } else {
            call.arg(&self.position); // what follows would most often have to be set aside, too
        }
        let mut found = Vec::new();
        for (stream, rows) in reply::streams(self.ask(&call).await?)? {
            if stream == self.keys.stream {
                found = rows;
            } else {
                self.unread = true;
                self.add(rows);
            }
        }
        self.load().await?;
        if found.is_empty() {
            return Ok(());
        }
        let bytes = found.iter().filter_map(|(_, fields)| fields.last()).map(Vec::len).sum::<usize>();
        self.fit = (limits::READ_BYTES * found.len() / (bytes + 1)).max(1);
        let (before, count) = (batch.items.len(), found.len());
        for row in found {
            batch.push_entry(row, &self.lines);
        }
        self.packed = (batch.items.len() - before).div_ceil(count).max(1);
        Ok(())
    }

    async fn ask(&mut self, call: &Cmd) -> Result<Value, Error> {
        let mut wire = match &self.wire {
            Some(wire) => wire.clone(),
            None => self.node.open(limits::REQUEST + self.block).await?,
        };
        self.wire = Some(wire.clone());
        Ok(wire.send(call).await?)
    }
}

/// The entry that an event came with.
pub(crate) fn entry_of(token: &str) -> &str {
    token.split_once('/').map_or(token, |(entry, _)| entry)
}
