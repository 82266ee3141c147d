//! Which partition an event belongs to: the same in every language, for ever.

/// The partition of a key, from 0: CRC-32 (IEEE 802.3, as in zlib) modulo the number of partitions.
pub fn partition_of(key: &[u8], partitions: u32) -> u32 {
    crc32fast::hash(key) % partitions.max(1)
}

/// The stream of partition `number`: the topic itself if it has one partition, else `topic.number`.
pub fn stream_of(topic: &str, number: u32, partitions: u32) -> String {
    if partitions == 1 { topic.to_owned() } else { format!("{topic}.{number}") }
}
