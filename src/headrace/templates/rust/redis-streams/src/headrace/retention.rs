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
    while trim_some(node, topic, keys, group, limits::TRIM_RECORDS).await?.1 != 0 {}
    Ok(())
}

/// For who was refused because the partition is full, and repeats it anyway: whether there is room now.
pub(crate) async fn make_room(node: &Node, topic: &Topic, keys: &PartitionKeys) -> bool {
    let nobody = GroupKeys::new(&keys.stream, ""); // in its slot, and within our rights
    match trim_some(node, topic, keys, &nobody, limits::BATCH_RECORDS_MAX * 10).await {
        Ok((trimmed, _)) => trimmed > 0,
        Err(error) => {
            tracing::debug!(stream = keys.stream, %error, "not trimmed; what was refused is repeated anyway");
            false
        }
    }
}

/// How many were trimmed; 1 if there is more.
async fn trim_some(
    node: &Node,
    topic: &Topic,
    keys: &PartitionKeys,
    group: &GroupKeys,
    most: usize,
) -> Result<(i64, i64), Error> {
    let keys = [keys.stream.as_str(), &group.record, &keys.packed];
    let (keep, age) = (topic.retain_events.to_string(), topic.retain.as_millis().to_string());
    let unread = if topic.keep_for_first_group { "0" } else { "1" };
    node.call(Script::Trim, &keys, &[&keep, &age, &most.to_string(), unread]).await
}
