//! Who serves a group in ordered mode: the live workers share the partitions.

use std::sync::Arc;
use std::time::Duration;

use redis::{Value, cmd};
use tokio::time::sleep;

use crate::headrace::error::Error;
use crate::headrace::keys::MemberKeys;
use crate::headrace::limits;
use crate::headrace::node::{Node, Wire};
use crate::headrace::place::Subscription;
use crate::headrace::scripts::Script;

/// What a worker does among the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// It lives.
    Stay,
    /// It lives, and has freed a partition.
    Tell,
    /// It goes.
    Leave,
}

/// This worker among the live ones.
pub(crate) struct Members {
    node: Arc<Node>,
    sub: Arc<Subscription>,
    keys: MemberKeys,
    wire: Option<Wire>,
    /// The last change that is known.
    last: String,
}

impl Members {
    pub fn new(node: Arc<Node>, sub: Arc<Subscription>) -> Self {
        let keys = MemberKeys::new(&sub.topic.name, &sub.group);
        Self { node, sub, keys, wire: None, last: "0-0".to_owned() }
    }

    /// Who lives, and when the first of their leases ends.
    pub async fn call(&mut self, how: How) -> Result<(Vec<String>, Option<Duration>), Error> {
        let how = match how {
            How::Stay => "stay",
            How::Tell => "tell",
            How::Leave => "leave",
        };
        let words = [self.sub.worker.as_str(), &self.sub.lease_ms(), how];
        let keys = [self.keys.workers.as_str(), &self.keys.changes];
        let (members, first_ms, last): (Vec<String>, i64, String) =
            self.node.call(Script::Members, &keys, &words).await?;
        self.last = last;
        Ok((members, u64::try_from(first_ms).ok().map(|ms| Duration::from_millis(ms + 1))))
    }

    /// Waits until something has changed since the last call, or for so long.
    pub async fn changed(&mut self, pause: Duration) -> Result<(), Error> {
        match self.wait(pause).await {
            Err(error) if error.may_pass() => {
                self.wire = None;
                sleep(limits::RETRY_FIRST).await; // there is something to look at
                Ok(())
            }
            waited => waited,
        }
    }

    async fn wait(&mut self, pause: Duration) -> Result<(), Error> {
        let mut wire = match &self.wire {
            Some(wire) => wire.clone(),
            None => self.node.open(limits::REQUEST + self.sub.lease).await?,
        };
        self.wire = Some(wire.clone());
        let mut call = cmd("XREAD");
        call.arg("BLOCK").arg(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX).max(1));
        call.arg("STREAMS").arg(&self.keys.changes).arg(&self.last);
        let _changed: Value = wire.send(&call).await?;
        Ok(())
    }
}
