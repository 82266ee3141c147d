//! A group joins a partition: makes what is absent, and says what it found.

use super::error::Error;
use super::keys::{GroupKeys, PartitionKeys};
use super::node::Node;
use super::place::{Start, Subscription};
use super::scripts::Script;

/// Creates what is absent; in shared mode the worker's lease begins. `again`: the group was there and is gone; it begins anew with
/// what takes the place of the deleted partition.
pub(crate) async fn join(
    node: &Node,
    sub: &Subscription,
    keys: &PartitionKeys,
    group: &GroupKeys,
    again: bool,
) -> Result<(), Error> {
    let (name, topic) = (&sub.group, &sub.topic.name);
    let start = if again || sub.start == Start::Earliest { "0" } else { "$" };
    let (mode, other) = if sub.ordered { ("ordered", "shared") } else { ("shared", "ordered") };
    let names = [
        &keys.stream,
        &group.retry,
        &group.record,
        &group.workers,
        &group.dead,
        &group.delayed,
        &keys.packed,
    ];
    let words = [name, &sub.worker, &sub.lease_ms(), start, mode];
    let answer: Result<String, Error> = node.call(Script::Join, &names.map(String::as_str), &words).await;
    match answer {
        Ok(answer) if answer == "renewed" || (again && answer != "joined") => {
            tracing::error!(
                stream = keys.stream,
                group = name,
                "the stream was deleted on the server (FLUSHALL, DEL, eviction or a restore): what the group had not \
                 settled is lost; beginning with the new stream's first event"
            );
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(Error::Refused { code, .. }) if code == "MODE" => Err(Error::refused(
            "MODE",
            format!(
                "group {name} of topic {topic} is used in {other} mode on the server, and this program subscribes it {mode}: \
                 choose another group name (it gets every event), or begin anew when no worker of it runs: \
                 headrace groups {topic} --reset {name} --to earliest"
            ),
        )),
        Err(Error::Refused { code, .. }) if code == "DESTROYED" => Err(Error::refused(
            "DESTROYED",
            format!(
                "group {name} of topic {topic} was destroyed on the server while it was in use, and with it the place \
                 where it stood. Say where to begin again: headrace groups {topic} --reset {name} --to earliest|latest|ID"
            ),
        )),
        Err(error) => Err(error),
    }
}
