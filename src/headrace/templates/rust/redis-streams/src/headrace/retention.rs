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
    let (keep, age) = (topic.retain_events.to_string(), topic.retain.as_millis().to_string());
    let keys = [keys.stream.as_str(), &group.record, &keys.packed];
    loop {
        let words = [keep.as_str(), &age, &limits::TRIM_RECORDS.to_string()];
        let (_, more): (i64, i64) = node.call(Script::Trim, &keys, &words).await?;
        if more == 0 {
            return Ok(());
        }
    }
}
