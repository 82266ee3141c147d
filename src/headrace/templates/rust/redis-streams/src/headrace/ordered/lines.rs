//! Which keys of a partition wait behind a failed event, and for what. What is set aside lies in the group's retry stream; here is
//! only who waits behind whom.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// An ordering key; events without one are as of one key.
pub(crate) type Key = Option<Vec<u8>>;

/// Where an event stood in its partition: milliseconds and number of its entry, and its number in a packed one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Spot(u64, u64, u64);

impl Spot {
    /// The spot that a token names; the very first for a token of another writer's making.
    pub fn of(token: &[u8]) -> Self {
        let text = std::str::from_utf8(token).unwrap_or_default();
        let (entry, n) = text.split_once('/').unwrap_or((text, "0"));
        let (ms, seq) = entry.split_once('-').unwrap_or((entry, "0"));
        match (ms.parse(), seq.parse(), n.parse()) {
            (Ok(ms), Ok(seq), Ok(n)) => Self(ms, seq, n),
            _ => Self::default(),
        }
    }

    /// Whether its entry is this one or stands before it.
    pub fn is_within(self, entry: Self) -> bool {
        (self.0, self.1) <= (entry.0, entry.1)
    }
}

/// An event that was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Aside {
    /// Its entry in the retry stream.
    pub token: String,
    key: Key,
    /// Where it stood in its partition; of copies of one event, the first set aside is the first.
    spot: (Spot, Spot),
    due_ms: i64,
}

impl Aside {
    /// An entry of the retry stream.
    pub fn of(token: String, fields: &[Vec<u8>]) -> Self {
        let get = |name: &[u8]| fields.chunks_exact(2).find(|pair| pair[0] == name).map(|pair| &pair[1]);
        let due = get(b"due").and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        let own = Spot::of(token.as_bytes());
        let origin = get(b"origin").map_or(own, |origin| Spot::of(origin));
        Self { key: get(b"key").cloned(), spot: (origin, own), due_ms: due.unwrap_or(0), token }
    }
}

/// The events of each key that are set aside, in their order.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    by_key: HashMap<Key, BTreeMap<(Spot, Spot), Aside>>,
    /// When the first of each line is due, by the server's clock.
    heads: BTreeSet<(i64, Key)>,
    count: usize,
}

impl Lines {
    /// How many events wait.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether events of this key have to wait.
    pub fn hold(&self, key: Option<&[u8]>) -> bool {
        self.count > 0 && self.by_key.contains_key(&key.map(<[u8]>::to_vec))
    }

    /// When the next line may go on, by the server's clock.
    pub fn next_ms(&self) -> Option<i64> {
        self.heads.first().map(|(due_ms, _)| *due_ms)
    }

    /// Up to `limit` events whose time has come, those of a line in its order and none before the line's first.
    pub fn due(&self, now_ms: i64, limit: usize) -> Vec<Aside> {
        let ripe = self.heads.iter().take_while(|(due_ms, _)| *due_ms <= now_ms);
        let lines = ripe.filter_map(|(_, key)| self.by_key.get(key));
        let due = lines.flat_map(|line| line.values().take_while(|aside| aside.due_ms <= now_ms));
        due.take(limit).cloned().collect()
    }

    /// It was read, from whomever it came.
    pub fn add(&mut self, aside: Aside) {
        let key = aside.key.clone();
        self.change(&key, |line| drop(line.insert(aside.spot, aside)));
    }

    /// It is there no more.
    pub fn remove(&mut self, aside: &Aside) {
        self.change(&aside.key, |line| drop(line.remove(&aside.spot)));
    }

    fn change(&mut self, key: &Key, change: impl FnOnce(&mut BTreeMap<(Spot, Spot), Aside>)) {
        let line = self.by_key.entry(key.clone()).or_default();
        let (before, head) = (line.len(), line.values().next().map(|first| first.due_ms));
        change(line);
        let (after, next) = (line.len(), line.values().next().map(|first| first.due_ms));
        self.count = self.count + after - before;
        if let Some(due_ms) = head {
            self.heads.remove(&(due_ms, key.clone()));
        }
        match next {
            Some(due_ms) => self.heads.insert((due_ms, key.clone())),
            None => self.by_key.remove(key).is_some(),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aside(token: &str, key: &str, origin: &str, due: &str) -> Aside {
        let fields = ["due", due, "id", "x", "attempt", "2", "origin", origin, "key", key];
        Aside::of(token.to_owned(), &fields.map(|word| word.as_bytes().to_vec()))
    }

    fn tokens(due: &[Aside]) -> Vec<&str> {
        due.iter().map(|aside| aside.token.as_str()).collect()
    }

    #[test]
    fn a_line_goes_on_with_its_first_when_that_is_due() {
        let mut lines = Lines::default();
        let first = aside("9-1", "ann", "5-0/2", "1000");
        lines.add(aside("9-0", "ann", "5-0/10", "0"));
        assert_eq!(tokens(&lines.due(0, 9)), ["9-0"], "it is the first as long as nobody knows of another");
        lines.add(first.clone());
        lines.add(aside("9-2", "bob", "7-0", "500"));
        assert!(lines.hold(Some(b"ann")) && !lines.hold(Some(b"eve")) && !lines.hold(None));
        assert_eq!((lines.len(), lines.next_ms()), (3, Some(500)));
        assert_eq!(tokens(&lines.due(999, 9)), ["9-2"]);
        assert_eq!(tokens(&lines.due(1_000, 9)), ["9-2", "9-1", "9-0"]);
        assert_eq!(tokens(&lines.due(1_000, 2)), ["9-2", "9-1"]);
        lines.remove(&first);
        assert_eq!(tokens(&lines.due(0, 9)), ["9-0"]);
        lines.remove(&first);
        lines.remove(&aside("9-0", "ann", "5-0/10", "0"));
        assert!(!lines.hold(Some(b"ann")));
    }

    #[test]
    fn spots_are_in_the_order_of_their_partition() {
        let tokens = ["5-9", "5-10/0", "5-10/2", "5-10/10", "5-11", "40-0"];
        assert!(tokens.windows(2).all(|pair| Spot::of(pair[0].as_bytes()) < Spot::of(pair[1].as_bytes())));
        assert!(
            Spot::of(b"5-10/2").is_within(Spot::of(b"5-10"))
                && !Spot::of(b"5-11").is_within(Spot::of(b"5-10"))
        );
        assert_eq!(Spot::of(b"nonsense"), Spot::default());
    }
}
