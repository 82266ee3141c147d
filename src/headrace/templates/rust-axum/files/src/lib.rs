//! A service that takes orders over HTTP, publishes them as events, and handles them in a worker.
//!
//! What it is about is in [`orders`] and [`api`]; [`headrace`] is the wire and not to be edited.

pub mod api;
pub mod config;
pub mod headrace;
pub mod health;
pub mod metrics;
pub mod orders;
pub mod shutdown;
pub mod telemetry;
pub mod topics;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::StatusCode;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;

use config::Config;
use headrace::{Node, Publisher, Retry, Subscription, Topics, Worker};
use metrics::Metrics;

/// Why the service ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The events server refuses for good; the text says what to do.
    #[error("events: {0}")]
    Events(#[from] headrace::Error),
    /// The HTTP server failed.
    #[error("http: {0}")]
    Http(#[from] std::io::Error),
}

/// Serves until `stop` is cancelled and what is in hand is finished or handed back.
pub async fn run(config: Config, listener: TcpListener, stop: CancellationToken) -> Result<(), Error> {
    let node = Arc::new(Node::new(&config.redis_url)?.durability(config.durability));
    let known = Arc::new(Topics::new(Arc::clone(&node)));
    let metrics = Arc::new(Metrics::new());
    let mut subscription = Subscription::new(topics::ORDERS, &config.group);
    subscription.ordered = topics::ORDERED;
    subscription.lease = config.lease;
    subscription.concurrency = config.concurrency;
    subscription.timeout = config.handler_timeout;
    subscription.drain = config.drain;
    subscription.retry = Retry { attempts: config.attempts, ..Retry::default() };
    let worker = Worker::new(Arc::clone(&known), subscription, orders::Orders, metrics.clone())?;
    let publisher = Publisher::new(known, config.publish_patience, metrics.clone());

    let health = health::Health { node, worker: worker.status(), stopping: stop.clone() };
    let app = api::router(publisher)
        .merge(metrics::router(metrics))
        .merge(health::router(health))
        .layer(RequestBodyLimitLayer::new(config.body_bytes_max))
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, config.request_timeout))
        .layer(TraceLayer::new_for_http().make_span_with(request_span))
        .layer(CatchPanicLayer::new());

    // After the signal traffic is still sent here for a moment; the probe says no from the first.
    let closing = CancellationToken::new();
    let grace = close_after(stop.clone(), config.grace, closing.clone());
    let server = axum::serve(listener, app).with_graceful_shutdown(closing.clone().cancelled_owned());
    let serving = tokio::spawn(server.into_future());
    let working = async {
        let result = worker.run(closing.clone()).await;
        stop.cancel(); // a worker that gave up ends the service, so that it is seen and started again
        result
    };
    let (result, ()) = tokio::join!(working, grace);
    if let Ok(Ok(ended)) = timeout(config.request_timeout, serving).await {
        ended?;
    } else {
        tracing::warn!("requests were cut off at the end of their time");
    }
    Ok(result?)
}

async fn close_after(stop: CancellationToken, grace: Duration, closing: CancellationToken) {
    stop.cancelled().await;
    sleep(grace).await;
    closing.cancel();
}

/// A span for each request, the child of its caller's.
fn request_span(request: &Request) -> tracing::Span {
    let span = tracing::info_span!(
        "request",
        otel.kind = "server",
        http.request.method = %request.method(),
        url.path = request.uri().path(),
    );
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    headrace::adopt(&span, header("traceparent"), header("tracestate"));
    span
}
