//! What is kept of a partition: all that a group has still to settle, and what the topic keeps for replay.

use super::error::Error;
use super::keys::{GroupKeys, PartitionKeys};
use super::limits;
use super::node::Node;
use super::scripts::Script;
use super::topic::Topic;

/// Trims what every group is done with and nobody wants to replay.
pub(crate) async fn trim(
    node: &Node,
    topic: &Topic,
    keys: &PartitionKeys,
    group: &GroupKeys,
) -> Result<(), Error> {
    let kept = topic.retain_events;
    while trim_some(node, topic, keys, group, kept, limits::TRIM_RECORDS).await?.1 != 0 {}
    Ok(())
}

/// For who was refused these events because the partition is full, and repeats that anyway: whether there is more room now. What is
/// kept for replay gives way to what comes, unless that would not help.
pub(crate) async fn make_room(node: &Node, topic: &Topic, keys: &PartitionKeys, events: usize) -> bool {
    let nobody = GroupKeys::new(&keys.stream, ""); // in its slot, and within our rights
    for spare in [0, limits::PACKED_SPARE] {
        let events = events as u64;
        let room = topic.cap_events.saturating_sub(events.saturating_add(spare));
        let kept =
            if events <= topic.cap_events { topic.retain_events.min(room) } else { topic.retain_events };
        match trim_some(node, topic, keys, &nobody, kept, limits::BATCH_RECORDS_MAX * 10).await {
            Ok((0, _)) => {}
            Ok(_) => return true,
            Err(error @ Error::Refused { .. }) => {
                tracing::warn!(stream = keys.stream, %error, "not trimmed: now only a worker can make room");
                return false;
            }
            Err(error) => {
                tracing::debug!(stream = keys.stream, %error, "not trimmed; what was refused is repeated anyway");
                return false;
            }
        }
    }
    false
}

/// How many were trimmed; 1 if there is more.
async fn trim_some(
    node: &Node,
    topic: &Topic,
    keys: &PartitionKeys,
    group: &GroupKeys,
    kept: u64,
    most: usize,
) -> Result<(i64, i64), Error> {
    let keys = [keys.stream.as_str(), &group.record, &keys.packed];
    let age = topic.retain.as_millis().to_string();
    let unread = if topic.keep_for_first_group { "0" } else { "1" };
    node.call(Script::Trim, &keys, &[&kept.to_string(), &age, &most.to_string(), unread]).await
}
