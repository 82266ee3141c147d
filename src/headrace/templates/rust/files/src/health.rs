//! Probes. `/livez`: the loops make progress, else start the process again. `/readyz`: send work here.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Router, routing::get};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::headrace::{Node, Status};

const PATIENCE: Duration = Duration::from_secs(2);

/// What the probes look at.
#[derive(Clone)]
pub struct Health {
    /// The events server.
    pub node: Arc<Node>,
    /// The worker of this process.
    pub worker: Status,
    /// Cancelled when the process begins to stop.
    pub stopping: CancellationToken,
}

/// `GET /livez` and `GET /readyz`.
pub fn router(health: Health) -> Router {
    Router::new().route("/livez", get(live)).route("/readyz", get(ready)).with_state(health)
}

/// An events server that is away is no reason to start again.
async fn live(State(health): State<Health>) -> (StatusCode, String) {
    let stalled = health.worker.pulse.stalled();
    if stalled.is_empty() {
        (StatusCode::OK, "alive\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("stalled: {}\n", stalled.join(", ")))
    }
}

async fn ready(State(health): State<Health>) -> (StatusCode, String) {
    let no = |why: String| (StatusCode::SERVICE_UNAVAILABLE, why);
    if health.stopping.is_cancelled() {
        return no("stopping\n".to_owned());
    }
    match timeout(PATIENCE, health.node.ping()).await {
        Ok(Ok(())) if health.worker.is_serving() => (StatusCode::OK, "ready\n".to_owned()),
        Ok(Ok(())) => no("the worker has not joined its group yet\n".to_owned()),
        Ok(Err(error)) => no(format!("events server: {error}\n")),
        Err(_) => no("events server: no answer\n".to_owned()),
    }
}

/// Asks the process at this address whether it is alive: for images without a shell.
pub async fn probe(mut address: SocketAddr) -> Result<(), String> {
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.take(4_096).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    match timeout(PATIENCE, ask).await {
        Ok(Ok(answer)) if answer.starts_with(b"HTTP/1.1 200") => Ok(()),
        Ok(Ok(answer)) => Err(String::from_utf8_lossy(&answer).into_owned()),
        Ok(Err(error)) => Err(format!("{address}: {error}")),
        Err(_) => Err(format!("{address}: no answer within {PATIENCE:?}")),
    }
}
