//! `grpc.health.v1`: what `/readyz` says, for gRPC clients and load balancers. SERVING only while this process is ready.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use crate::api::proto::orders_server::SERVICE_NAME;
use crate::health::Health;

/// How often it is looked at. Clients are told of changes only.
const EVERY: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(2);
/// The process as a whole, and its service.
const NAMES: [&str; 2] = ["", SERVICE_NAME];

/// Tells clients whether this process is ready.
pub struct Serving {
    reporter: HealthReporter,
    health: Health,
}

impl Serving {
    /// Not ready yet, and the service that says so.
    pub async fn new(health: Health) -> (Self, HealthServer<HealthService>) {
        let serving = Self { reporter: HealthReporter::new(), health };
        serving.say(false).await;
        let service = HealthService::from_health_reporter(serving.reporter.clone());
        (serving, HealthServer::new(service))
    }

    /// Reports until `closing`. Then whoever watches is let go: a connection ends with its last call.
    pub async fn report(mut self, closing: CancellationToken) {
        tokio::select! {
            () = self.follow() => {}
            () = self.health.stopping.cancelled() => {}
        }
        self.say(false).await;
        closing.cancelled().await;
        for name in NAMES {
            self.reporter.clear_service_status(name).await;
        }
    }

    async fn follow(&self) {
        let mut known = false;
        loop {
            let ready = self.is_ready().await;
            if ready != known {
                self.say(ready).await;
                known = ready;
            }
            sleep(EVERY).await;
        }
    }

    async fn is_ready(&self) -> bool {
        let answers = matches!(timeout(PATIENCE, self.health.node.ping()).await, Ok(Ok(())));
        answers && self.health.worker.is_serving()
    }

    async fn say(&self, ready: bool) {
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in NAMES {
            self.reporter.set_service_status(name, status).await;
        }
    }
}
