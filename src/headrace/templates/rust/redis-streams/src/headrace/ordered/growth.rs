//! A topic that got more partitions: a new one is taken up when its keys are done with where they were before.

use redis::{Value, cmd};

use crate::headrace::error::Error;
use crate::headrace::keys::{GroupKeys, PartitionKeys};
use crate::headrace::limits;
use crate::headrace::node::Node;
use crate::headrace::reply;

use super::lines::Spot;

/// Whether an ordered group may take up this partition.
pub(crate) async fn drained(
    node: &Node,
    keys: &PartitionKeys,
    group: &GroupKeys,
    name: &str,
) -> Result<bool, Error> {
    let born: (Option<String>, Option<String>) =
        node.command(cmd("HMGET").arg(&keys.packed).arg("parent").arg("fence")).await?;
    let (Some(parent), Some(fence)) = born else { return Ok(true) };
    if parent.is_empty() || node.command::<bool>(cmd("HEXISTS").arg(&group.record).arg("drained")).await? {
        return Ok(true);
    }
    let (before, fence) = (GroupKeys::new(&parent, name), Spot::of(fence.as_bytes()));
    let cursor: Option<String> = node.command(cmd("HGET").arg(&before.record).arg("cursor")).await?;
    if cursor.is_none_or(|cursor| Spot::of(cursor.as_bytes()) < fence) {
        return Ok(false);
    }
    // One that fails again goes to the end, so that it is met there.
    let mut after = "-".to_owned();
    loop {
        let mut page = cmd("XRANGE");
        page.arg(&before.retry).arg(&after).arg("+").arg("COUNT").arg(limits::BATCH_RECORDS_MAX);
        let rows = reply::rows(node.command::<Value>(&page).await?)?;
        let Some((last, _)) = rows.last() else { break };
        after = format!("({last}");
        let origin = |fields: &[Vec<u8>]| {
            let found = fields.chunks_exact(2).find(|pair| pair[0] == b"origin");
            found.map_or(Spot::default(), |pair| Spot::of(&pair[1]))
        };
        if rows.iter().any(|(_, fields)| origin(fields).is_within(fence)) {
            return Ok(false);
        }
    }
    node.command::<i64>(cmd("HSET").arg(&group.record).arg("drained").arg(1)).await?;
    Ok(true)
}
