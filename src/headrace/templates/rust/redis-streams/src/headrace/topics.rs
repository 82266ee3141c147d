//! The server's list of topics: whoever uses one first writes how many partitions it has, and everyone else goes by that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use redis::cmd;

use super::error::Error;
use super::keys::{GROWN, PartitionKeys, TOPICS};
use super::node::{Node, lock};
use super::partition::stream_of;
use super::retention::make_room;
use super::topic::{Topic, is_name};

/// The topics that this process uses.
pub struct Topics {
    node: Arc<Node>,
    /// How many partitions each has now, once it is registered.
    counts: Mutex<HashMap<String, u32>>,
}

impl Topics {
    /// Asks nobody yet.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node, counts: Mutex::default() }
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// How many partitions the topic has: as it says itself until it is registered.
    pub(crate) fn count(&self, topic: &Topic) -> u32 {
        lock(&self.counts).get(topic.name.as_ref()).copied().unwrap_or(topic.partitions)
    }

    pub(crate) fn is_registered(&self, topic: &Topic) -> bool {
        lock(&self.counts).contains_key(topic.name.as_ref())
    }

    /// Puts a topic on the server's list, once. Refused if it never had as many partitions as it says.
    pub(crate) async fn register(&self, topic: &Topic) -> Result<(), Error> {
        if self.is_registered(topic) {
            return Ok(());
        }
        let (name, declared) = (topic.name.as_ref(), topic.partitions);
        if !is_name(name) || declared == 0 {
            let text =
                format!("topic {name:?}: expected 1 to 128 of A-Z a-z 0-9 . _ - and at least one partition");
            return Err(Error::refused("NAME", text));
        }
        let mut count = declared;
        let fresh: bool = self.node.command(cmd("HSETNX").arg(TOPICS).arg(name).arg(declared)).await?;
        if !fresh {
            let known: Option<u32> = self.node.command(cmd("HGET").arg(TOPICS).arg(name)).await?;
            count = known.unwrap_or(declared);
            if count != declared {
                self.require_grown(topic, count).await?;
            }
        }
        lock(&self.counts).insert(name.to_owned(), count);
        Ok(())
    }

    async fn require_grown(&self, topic: &Topic, count: u32) -> Result<(), Error> {
        let (name, declared) = (topic.name.as_ref(), topic.partitions);
        let before: Option<String> = self.node.command(cmd("HGET").arg(GROWN).arg(name)).await?;
        if before.is_some_and(|before| before.split(' ').any(|number| number.parse() == Ok(declared))) {
            return Ok(());
        }
        let text = format!(
            "topic {name} has {count} partitions on the server, and this program declares {declared}: declare {count}, let \
             `headrace partitions {name} N` grow it, or use another topic"
        );
        Err(Error::refused("PARTITIONS", text))
    }

    /// Asks the server how many partitions a topic has by now.
    pub(crate) async fn recount(&self, topic: &Topic) -> Result<u32, Error> {
        let known: Option<u32> = self.node.command(cmd("HGET").arg(TOPICS).arg(topic.name.as_ref())).await?;
        if let Some(count) = known {
            lock(&self.counts).insert(topic.name.clone().into_owned(), count);
        }
        Ok(self.count(topic))
    }

    /// After a commit that was refused because of the topics of its outputs: whether there is more room for them now.
    pub(crate) async fn make_way(&self, outputs: &[(Topic, usize)], error: &Error) -> bool {
        let mut room = false;
        for (topic, events) in outputs {
            match error {
                Error::Grew(_) => {
                    let _asked_again = self.recount(topic).await;
                }
                Error::Full(text) => {
                    let count = self.count(topic);
                    let streams = (0..count).map(|number| stream_of(&topic.name, number, count));
                    for full in streams.filter(|stream| text.split(' ').any(|word| word == stream)) {
                        room |= make_room(&self.node, topic, &PartitionKeys::new(&full), *events).await;
                    }
                }
                Error::Unreachable(_) | Error::Refused { .. } => {}
            }
        }
        room
    }

    /// The topic was deleted on the server: it is registered anew with its next use.
    pub(crate) fn forget(&self, topic: &Topic) {
        lock(&self.counts).remove(topic.name.as_ref());
    }
}
