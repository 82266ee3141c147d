//! A topic that got more partitions: a new one is taken up when its keys are done with where they were before.

use redis::{Value, cmd};

use crate::headrace::error::Error;
use crate::headrace::keys::{GroupKeys, PartitionKeys};
use crate::headrace::limits;
use crate::headrace::node::Node;
use crate::headrace::reply;

use super::lines::Spot;

/// Whether an ordered group may take up this partition: it is done with what its keys had in the parent, and before in the
/// parent's parent, and so on.
pub(crate) async fn drained(
    node: &Node,
    keys: &PartitionKeys,
    group: &GroupKeys,
    name: &str,
) -> Result<bool, Error> {
    let mut at = keys.stream.clone();
    loop {
        let known = cmd("HGET").arg(&GroupKeys::new(&at, name).record).arg("drained").to_owned();
        if node.command::<Option<String>>(&known).await?.is_some() {
            break;
        }
        let packed = PartitionKeys::new(&at).packed;
        let born: (Option<String>, Option<String>) =
            node.command(cmd("HMGET").arg(packed).arg("parent").arg("fence")).await?;
        let (Some(parent), Some(fence)) = born else { break };
        if parent.is_empty() {
            break;
        }
        if !is_done(node, &parent, &GroupKeys::new(&parent, name), &fence).await? {
            return Ok(false);
        }
        at = parent;
    }
    if at != keys.stream {
        node.command::<i64>(cmd("HSET").arg(&group.record).arg("drained").arg(1)).await?;
    }
    Ok(true)
}

/// Whether nothing before the fence is unsettled, or waits to be handled again.
async fn is_done(node: &Node, parent: &str, before: &GroupKeys, fence: &str) -> Result<bool, Error> {
    let cursor: Option<String> = node.command(cmd("HGET").arg(&before.record).arg("cursor")).await?;
    let Some(cursor) = cursor else { return Ok(false) };
    let end = Spot::of(fence.as_bytes());
    if Spot::of(cursor.as_bytes()) < end {
        let mut unread = cmd("XRANGE");
        unread.arg(parent).arg(format!("({cursor}")).arg(fence).arg("COUNT").arg(1);
        if !reply::rows(node.command::<Value>(&unread).await?)?.is_empty() {
            return Ok(false); // what is trimmed is nobody's
        }
    }
    // One that fails again goes to the end, so that it is met there.
    let mut after = "-".to_owned();
    loop {
        let mut page = cmd("XRANGE");
        page.arg(&before.retry).arg(&after).arg("+").arg("COUNT").arg(limits::BATCH_RECORDS_MAX);
        let rows = reply::rows(node.command::<Value>(&page).await?)?;
        let Some((last, _)) = rows.last() else { return Ok(true) };
        after = format!("({last}");
        let origin = |fields: &[Vec<u8>]| {
            let found = fields.chunks_exact(2).find(|pair| pair[0] == b"origin");
            found.map_or(Spot::default(), |pair| Spot::of(&pair[1]))
        };
        if rows.iter().any(|(_, fields)| origin(fields).is_within(end)) {
            return Ok(false);
        }
    }
}
