//! A service that takes orders over gRPC, publishes them as events, and handles them in a worker.
//!
//! What it is about is in [`orders`] and [`api`]; [`headrace`] is the wire and not to be edited.

pub mod api;
pub mod config;
pub mod headrace;
pub mod health;
pub mod metrics;
pub mod orders;
pub mod serving;
pub mod shutdown;
pub mod telemetry;
pub mod topics;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::TimeoutLayer;

use config::Config;
use headrace::{Node, Publisher, Retry, Subscription, Topics, Worker};
use metrics::Metrics;
use serving::Serving;

/// A client that is gone without a word is noticed after so long a silence.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// For answers that are on their way at the very end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why the service ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The events server refuses for good; the text says what to do.
    #[error("events: {0}")]
    Events(#[from] headrace::Error),
    /// An address cannot be listened at, or signals cannot be received.
    #[error("listening: {0}")]
    Listening(#[from] std::io::Error),
    /// The gRPC server failed.
    #[error("grpc: {0}")]
    Grpc(#[from] tonic::transport::Error),
}

/// Serves gRPC at the configured address, and probes and metrics by `listener`, until `stop` is cancelled and what is in hand
/// is finished or handed back.
pub async fn run(config: Config, listener: TcpListener, stop: CancellationToken) -> Result<(), Error> {
    let incoming = TcpIncoming::from(listen(config.grpc_addr).await?).with_nodelay(Some(true));
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
    let side = metrics::router(metrics)
        .merge(health::router(health.clone()))
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, config.request_timeout))
        .layer(CatchPanicLayer::new());
    let (serving, health) = Serving::new(health).await;
    let calls = TaskTracker::new();
    let orders = api::router(publisher, config.message_bytes_max, config.request_timeout, calls.clone());

    // After the signal traffic is still sent here for a moment; the probes say no from the first.
    let closing = CancellationToken::new();
    let grace = close_after(stop.clone(), config.grace, closing.clone());
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .add_routes(Routes::from(orders).add_service(health))
        .serve_with_incoming_shutdown(incoming, closing.clone().cancelled_owned());
    let server = tokio::spawn(server);
    // Probes and metrics are answered to the end.
    let ended = CancellationToken::new();
    let side = axum::serve(listener, side).with_graceful_shutdown(ended.clone().cancelled_owned());
    let side = tokio::spawn(side.into_future());
    let working = async {
        let result = worker.run(closing.clone()).await;
        stop.cancel(); // a worker that gave up ends the service, so that it is seen and started again
        result
    };
    let (result, (), ()) = tokio::join!(working, grace, serving.report(closing.clone()));
    let called = finish(server, calls, config.request_timeout).await;
    ended.cancel();
    let _late = timeout(LAST_WORDS, side).await;
    called?;
    Ok(result?)
}

/// Ends with the last connection, or soon after the last call: a connection that does not close is not waited for.
async fn finish(
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    calls: TaskTracker,
    limit: Duration,
) -> Result<(), tonic::transport::Error> {
    calls.close();
    let answered = async {
        if timeout(limit, calls.wait()).await.is_err() {
            tracing::warn!("calls were cut off at the end of their time");
        }
        sleep(LAST_WORDS).await;
    };
    tokio::select! {
        Ok(result) = server => result,
        () = answered => Ok(()),
    }
}

async fn close_after(stop: CancellationToken, grace: Duration, closing: CancellationToken) {
    stop.cancelled().await;
    sleep(grace).await;
    closing.cancel();
}

async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| std::io::Error::new(error.kind(), format!("APP_GRPC_ADDR {address}: {error}")))
}
