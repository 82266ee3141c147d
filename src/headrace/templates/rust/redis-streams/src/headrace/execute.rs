//! One delivery through the handler: call it with a deadline, judge how it ended. Nothing here talks to the server.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::event::Event;
use super::handler::{Context, Failure, Handler};
use super::limits;
use super::observer::Observer;
use super::place::{Delivery, Place, Subscription};
use super::settlement::Outcome;
use super::trace;

/// A delivery and how it is to be settled.
pub(crate) struct Settled {
    pub delivery: Delivery,
    pub outcome: Outcome,
}

/// A delivery on its way through the handler. Whatever happens it comes out again: dropped half-way it is handed back.
struct InHand {
    delivery: Option<Delivery>,
    out: mpsc::UnboundedSender<Settled>,
}

impl InHand {
    fn settle(mut self, outcome: Outcome) {
        self.send(outcome);
    }

    fn send(&mut self, outcome: Outcome) {
        if let Some(delivery) = self.delivery.take() {
            let _ended = self.out.send(Settled { delivery, outcome }); // nobody listens: the lease brings it to others
        }
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.send(Outcome::Return);
    }
}

/// Gives deliveries to the handler, each in a task of its own, `Subscription::concurrency` at a time; hands back what has not begun
/// when it is stopped, and what has not ended when `give_up` comes.
pub(crate) async fn dispatch<H: Handler>(
    place: Arc<Place>,
    handler: Arc<H>,
    idle: Arc<Semaphore>,
    mut reads: mpsc::Receiver<Vec<Delivery>>,
    out: mpsc::UnboundedSender<Settled>,
    (stop, give_up): (CancellationToken, CancellationToken),
) {
    let mut tasks = JoinSet::new();
    while let Some(deliveries) = reads.recv().await {
        for mut delivery in deliveries {
            while tasks.try_join_next().is_some() {}
            delivery.read.begin();
            let verdict = delivery.verdict.take();
            let in_hand = InHand { delivery: Some(delivery), out: out.clone() };
            if let Some(verdict) = verdict {
                in_hand.settle(verdict);
                continue;
            }
            let mut permit = Arc::clone(&idle).try_acquire_owned().ok();
            if permit.is_none() {
                permit = tokio::select! {
                    permit = Arc::clone(&idle).acquire_owned() => permit.ok(),
                    () = stop.cancelled() => None,
                };
            }
            if permit.is_none() || stop.is_cancelled() {
                continue; // it is handed back
            }
            let (place, handler) = (Arc::clone(&place), Arc::clone(&handler));
            tasks.spawn(async move {
                let outcome = match &in_hand.delivery {
                    Some(delivery) => {
                        execute(&place.sub, place.observer.as_ref(), handler.as_ref(), &delivery.event).await
                    }
                    None => Outcome::Return,
                };
                in_hand.settle(outcome);
                drop(permit);
            });
        }
    }
    tokio::select! {
        () = async { while tasks.join_next().await.is_some() {} } => {}
        () = give_up.cancelled() => tasks.shutdown().await,
    }
}

/// A call of the handler is at work until this is dropped, however it ends.
struct Clock<'a> {
    observer: &'a dyn Observer,
    began: Instant,
}

impl Drop for Clock<'_> {
    fn drop(&mut self) {
        self.observer.ended(self.began.elapsed());
    }
}

/// One call of the handler. An event whose handling panics, wherever it does, has failed: were it handed back, it would come again
/// without pause for ever.
pub(crate) async fn execute<H: Handler>(
    sub: &Subscription,
    observer: &dyn Observer,
    handler: &H,
    event: &Event,
) -> Outcome {
    let count = event.fields.len();
    if count > limits::ENTRY_WORDS_MAX {
        let text = format!("the entry has {} fields, more than any event has", count / 2);
        return judge(sub, event, &Failure::Reject(text));
    }
    let whole = AssertUnwindSafe(call(sub, observer, handler, event)).catch_unwind();
    whole.await.unwrap_or_else(|panic| {
        let text = format!("what surrounds the handler panicked: {}", said(panic.as_ref()));
        judge(sub, event, &Failure::Retry(text))
    })
}

async fn call<H: Handler>(
    sub: &Subscription,
    observer: &dyn Observer,
    handler: &H,
    event: &Event,
) -> Outcome {
    let span = tracing::info_span!(
        "handle",
        otel.kind = "consumer",
        messaging.destination.name = %sub.topic.name,
        messaging.consumer.group.name = sub.group,
        messaging.message.id = %event.id(),
        attempt = event.attempt(),
    );
    let trace = trace::of(event);
    if let Some((_, parent)) = trace.first() {
        trace::adopt(&span, Some(parent), trace.get(1).map(|(_, state)| state.as_str()));
    }
    let mut ctx = Context { trace, ..Context::default() };
    observer.began();
    let clock = Clock { observer, began: Instant::now() };
    // Its function may panic itself, before it returns what is awaited.
    let work = async { handler.handle(event, &mut ctx).await };
    let call = AssertUnwindSafe(timeout(sub.timeout, work)).catch_unwind();
    let result = call.instrument(span).await;
    drop(clock);
    let failure = match result {
        Ok(Ok(Ok(()))) if ctx.outputs.is_empty() && ctx.effects.is_empty() => return Outcome::Done,
        Ok(Ok(Ok(()))) => return Outcome::Wrote { outputs: ctx.outputs, effects: ctx.effects },
        Ok(Ok(Err(failure))) => failure,
        Ok(Err(_)) => Failure::Retry(format!("the handler took longer than {:?}", sub.timeout)),
        Err(panic) => Failure::Retry(format!("the handler panicked: {}", said(panic.as_ref()))),
    };
    judge(sub, event, &failure)
}

fn said(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or(panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}

/// A failed event: a retry that becomes due later, or a dead letter. Both are rows of the same commit.
pub(crate) fn judge(sub: &Subscription, event: &Event, failure: &Failure) -> Outcome {
    let (reason, attempt) = (failure.reason(), event.attempt());
    let (topic, group, id) = (sub.topic.name.as_ref(), &sub.group, event.id());
    if attempt < sub.retry.attempts && matches!(failure, Failure::Retry(_)) {
        let delay = sub.retry.pause(attempt);
        tracing::warn!(topic, group, %id, attempt, reason, ?delay, "an event failed and will be retried");
        return Outcome::Retry { delay, reason };
    }
    tracing::error!(topic, group, %id, attempt, reason, "an event failed and rests in the dead letters (`headrace dead`)");
    Outcome::Dead { reason }
}
