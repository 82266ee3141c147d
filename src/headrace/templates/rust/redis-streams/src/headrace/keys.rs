//! Every key on the server that this client touches; all of a partition's live in the slot of its stream.

/// hash: topic → number of partitions.
pub(crate) const TOPICS: &str = "headrace:topics";
/// hash: topic → the numbers of partitions that it had before, with blanks between.
pub(crate) const GROWN: &str = "headrace:grown";

/// The keys of one partition.
#[derive(Clone, Debug)]
pub(crate) struct PartitionKeys {
    /// stream: the events.
    pub stream: String,
    /// sorted set: entries that wait for their time.
    pub delayed: String,
    /// sorted set: ids that callers gave → when they are forgotten.
    pub ids: String,
    /// hash: what packed entries and growing need to know.
    pub packed: String,
}

impl PartitionKeys {
    pub fn new(stream: &str) -> Self {
        let beside = |name: &str| format!("{{{stream}}}:{name}");
        Self {
            stream: stream.to_owned(),
            delayed: beside("delayed"),
            ids: beside("ids"),
            packed: beside("packed"),
        }
    }

    /// string: `epoch seq`, the mark of one producer.
    pub fn producer(&self, name: &str) -> String {
        format!("{{{}}}:producer:{name}", self.stream)
    }
}

/// The keys of one group on one partition.
#[derive(Clone, Debug)]
pub(crate) struct GroupKeys {
    /// hash: the group's record.
    pub record: String,
    /// stream: what the group handles again.
    pub retry: String,
    /// sorted set: retries that wait for their time.
    pub delayed: String,
    /// stream: dead letters.
    pub dead: String,
    /// sorted set: worker → when its lease ends.
    pub workers: String,
}

impl GroupKeys {
    pub fn new(stream: &str, group: &str) -> Self {
        let beside = |name: &str| format!("{{{stream}}}:{name}:{group}");
        Self {
            record: beside("group"),
            retry: beside("retry"),
            delayed: beside("delayed"),
            dead: beside("dead"),
            workers: beside("workers"),
        }
    }
}

/// The keys of a group in ordered mode that belong to its whole topic.
#[derive(Clone, Debug)]
pub(crate) struct MemberKeys {
    /// sorted set: worker → when its lease ends.
    pub workers: String,
    /// stream of one entry: who came, went or freed a partition last.
    pub changes: String,
}

impl MemberKeys {
    pub fn new(topic: &str, group: &str) -> Self {
        let beside = |name: &str| format!("{{{topic}}}:{name}:{group}");
        Self { workers: beside("workers"), changes: beside("changes") }
    }
}
