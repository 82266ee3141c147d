//! Waits that double, with each reason logged once per outage, and a line when it is over.

use std::time::Duration;

use tokio::time::sleep;

use super::error::Error;
use super::{limits, random};

/// The patience of one piece of work.
pub(crate) struct Backoff {
    what: String,
    wait: Duration,
    said: Vec<String>,
}

impl Backoff {
    /// `what` names the work that waits, for the log.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), wait: Duration::ZERO, said: Vec::new() }
    }

    /// Waits after a failure; longer each time, with jitter so that clients do not return in step.
    pub async fn wait(&mut self, error: &Error) {
        let reason = error.to_string();
        if !self.said.contains(&reason) && self.said.len() < limits::REASONS_MAX {
            tracing::warn!(work = self.what, reason, "waiting");
            self.said.push(reason);
        }
        self.wait = (self.wait * 2).clamp(limits::RETRY_FIRST, limits::RETRY_MAX);
        sleep(self.wait.mul_f64(random::between(0.5, 1.0))).await;
    }

    /// The work goes on.
    pub fn over(&mut self) {
        if !self.wait.is_zero() {
            tracing::warn!(work = self.what, "going on");
            self.wait = Duration::ZERO;
            self.said.clear();
        }
    }
}
