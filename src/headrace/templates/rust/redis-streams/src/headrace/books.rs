//! Who holds what: each read buffer ("slot") has its own consumer name, `worker/slot`, and is read again only when all that it
//! held is settled. So the pending count of the name proves to the commit script that everything in it is still ours.

use std::collections::BTreeMap;

use super::limits;

/// The two streams that a group reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Source {
    /// The partition.
    Topic,
    /// What the group handles again of it.
    Retry,
}

/// One read buffer that holds something.
#[derive(Clone, Debug)]
struct Slot {
    held: [usize; 2],
    /// The connection over which it was filled.
    read: u64,
    /// The one for commits before that. Over another, the server may be another too, and know of other entries under our name.
    commits: Option<u64>,
}

/// The books of one worker on one partition.
#[derive(Debug, Default)]
pub(crate) struct Books {
    filled: BTreeMap<u32, Slot>,
    free: Vec<u32>,
    last: u32,
    /// There may be entries under names of ours that we do not know to hold them.
    pub strays: bool,
    /// There may be something of dead workers to take over.
    pub dead: bool,
    /// Holds events that workers died with. Nothing else is taken meanwhile: it might die with them, again and again.
    pub suspect: Option<u32>,
    /// The connection that reads, as the server calls it, while it may block.
    pub reading: Option<i64>,
    /// The connection that reads, as we count them.
    pub life: u64,
}

/// What follows from settling.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Freed {
    /// There is a reason to look around.
    pub strays: bool,
    /// The suspect is settled.
    pub cleared: bool,
}

impl Books {
    /// Nothing yet; whether there is something to take over is unknown, so look.
    pub fn new() -> Self {
        Self { dead: true, ..Self::default() }
    }

    /// A slot that was never used: to take over with.
    pub fn fresh(&mut self) -> u32 {
        self.last += 1;
        self.last
    }

    /// A slot to read with.
    pub fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| self.fresh())
    }

    /// It holds nothing.
    pub fn put_back(&mut self, slot: u32) {
        self.free.push(slot);
    }

    /// The server has given it so many entries, over the connection that reads now.
    pub fn fill(&mut self, slot: u32, held: [usize; 2], commits: Option<u64>) {
        self.filled.insert(slot, Slot { held, read: self.life, commits });
    }

    /// How many entries it holds of a stream.
    pub fn held(&self, slot: u32, source: Source) -> usize {
        self.filled.get(&slot).map_or(0, |own| own.held[source as usize])
    }

    /// What to tell `commit` of that, over this connection.
    pub fn claimed(&self, slot: u32, source: Source, settled: usize, life: u64) -> i64 {
        let Some(own) = self.filled.get(&slot) else { return -1 };
        if settled < limits::PROOF_MIN || own.commits != Some(life) {
            return -1;
        }
        i64::try_from(own.held[source as usize]).unwrap_or(-1)
    }

    /// So many entries are settled, by whomever.
    pub fn release(&mut self, slot: u32, source: Source, settled: usize) -> Freed {
        let mut freed = Freed::default();
        let Some(own) = self.filled.get_mut(&slot) else { return freed };
        own.held[source as usize] = own.held[source as usize].saturating_sub(settled);
        if own.held == [0, 0] {
            freed.strays = own.read != self.life; // it was filled before a reconnection
            self.strays |= freed.strays;
            self.filled.remove(&slot);
            self.free.push(slot);
            if self.suspect == Some(slot) {
                self.suspect = None;
                freed.cleared = true;
            }
        }
        freed
    }

    /// The slots that hold something.
    pub fn filled(&self) -> impl Iterator<Item = u32> {
        self.filled.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_free_when_both_streams_are_settled() {
        let mut books = Books::default();
        let slot = books.take();
        books.fill(slot, [5, 1], Some(7));
        assert_eq!(books.claimed(slot, Source::Topic, 4, 7), 5);
        assert_eq!(
            books.claimed(slot, Source::Topic, 4, 8),
            -1,
            "another connection may lead to another server"
        );
        assert_eq!(books.claimed(slot, Source::Topic, 1, 7), -1, "too few to be worth a proof");
        books.release(slot, Source::Topic, 5);
        assert_ne!(books.take(), slot);
        assert_eq!(books.release(slot, Source::Retry, 1), Freed::default());
        assert_eq!(books.take(), slot);
    }

    #[test]
    fn what_was_read_before_a_reconnection_is_looked_at_again() {
        let mut books = Books::default();
        let slot = books.take();
        books.fill(slot, [1, 0], None);
        books.life = 2;
        assert!(books.release(slot, Source::Topic, 1).strays && books.strays);
    }
}
