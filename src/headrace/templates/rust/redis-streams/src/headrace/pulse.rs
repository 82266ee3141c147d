//! Whether the loops of a worker make progress: what a liveness probe wants to know.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::node::lock;

/// Longer than any wait of a loop that goes on.
const STALLED: Duration = Duration::from_secs(60);

/// The loops of a worker.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<Mutex<Vec<Beat>>>);

/// One loop, as long as it runs.
#[derive(Clone, Debug)]
pub(crate) struct Beat {
    name: String,
    last: Arc<Mutex<Instant>>,
}

impl Pulse {
    pub(crate) fn add(&self, name: impl Into<String>) -> Beat {
        let beat = Beat { name: name.into(), last: Arc::new(Mutex::new(Instant::now())) };
        lock(&self.0).push(beat.clone());
        beat
    }

    /// The names of loops that have stood still for too long; those that have ended do not count.
    pub fn stalled(&self) -> Vec<String> {
        let mut beats = lock(&self.0);
        beats.retain(|beat| Arc::strong_count(&beat.last) > 1);
        beats
            .iter()
            .filter(|beat| lock(&beat.last).elapsed() > STALLED)
            .map(|beat| beat.name.clone())
            .collect()
    }
}

impl Beat {
    /// The loop goes on.
    pub fn beat(&self) {
        *lock(&self.last) = Instant::now();
    }
}
