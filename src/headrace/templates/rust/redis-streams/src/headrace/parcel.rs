//! What one call of `publish` sends, and how its caller learns how it went: also when it travels in several pieces.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::error::Error;
use super::node::lock;
use super::record::{Invalid, Record};

/// Why an event was not published.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PublishError {
    /// It keeps a bound not. Nothing was written.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The server refused, or did not answer for so long. Only after [`Error::Unreachable`] the event may be there: publish
    /// it again if it has an id of its own, then a repeat is dropped.
    #[error("not published: {0}")]
    Server(#[from] Error),
    /// The process ends.
    #[error(
        "the publisher was closed before the event was acknowledged; it may or may not have been written"
    )]
    Closed,
}

/// What a call has still to hear. The caller is told when the last piece is gone.
pub(crate) struct Outcome {
    left: AtomicUsize,
    error: Mutex<Option<PublishError>>,
    caller: Option<oneshot::Sender<Result<(), PublishError>>>,
}

impl Drop for Outcome {
    fn drop(&mut self) {
        let error = lock(&self.error).take();
        let result =
            if *self.left.get_mut() == 0 { Ok(()) } else { Err(error.unwrap_or(PublishError::Closed)) };
        if let Some(caller) = self.caller.take() {
            let _gone = caller.send(result); // a caller that went away no longer cares
        }
    }
}

/// Records that travel together, and whom they are from.
pub(crate) struct Parcel {
    pub records: Vec<Record>,
    pub deadline: Instant,
    outcome: Arc<Outcome>,
}

impl Parcel {
    pub fn new(
        records: Vec<Record>,
        deadline: Instant,
    ) -> (Self, oneshot::Receiver<Result<(), PublishError>>) {
        let (caller, told) = oneshot::channel();
        let left = AtomicUsize::new(records.len());
        let outcome = Arc::new(Outcome { left, error: Mutex::default(), caller: Some(caller) });
        (Self { records, deadline, outcome }, told)
    }

    /// A piece of the same call.
    pub fn piece(&self, records: Vec<Record>) -> Self {
        Self { records, deadline: self.deadline, outcome: Arc::clone(&self.outcome) }
    }

    pub fn bytes(&self) -> usize {
        self.records.iter().map(|record| record.body.len()).sum()
    }

    /// These are durable.
    pub fn succeed(self) {
        self.outcome.left.fetch_sub(self.records.len(), Ordering::Relaxed);
    }

    /// These are not, or it is unknown.
    pub fn fail(self, error: PublishError) {
        lock(&self.outcome.error).get_or_insert(error);
    }
}
