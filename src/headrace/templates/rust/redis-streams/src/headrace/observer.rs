//! What metrics can be made of.

use std::time::Duration;

/// How a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Handled, with what it wrote.
    Handled,
    /// To be handled again later.
    Retried,
    /// Rests in the dead letters.
    Dead,
    /// Handed back unhandled.
    Returned,
    /// Another worker had settled it; nothing was written.
    Lost,
}

/// Is told of what happens. Every method does nothing unless it is implemented.
pub trait Observer: Send + Sync + 'static {
    /// A handler begins.
    fn began(&self) {}
    /// It ended after this time.
    fn ended(&self, _took: Duration) {}
    /// So many deliveries are settled on the server.
    fn settled(&self, _verdict: Verdict, _events: usize) {}
    /// So many events were taken over from workers that died.
    fn reclaimed(&self, _events: usize) {}
    /// So many events were published.
    fn published(&self, _events: usize) {}
}

/// Observes nothing.
impl Observer for () {}
