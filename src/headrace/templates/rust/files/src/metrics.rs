//! What Prometheus is told, at `GET /metrics`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing::get};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::headrace::{Observer, Verdict};

type Label = [(&'static str, &'static str); 1];

/// The metrics of this process.
pub struct Metrics {
    registry: Registry,
    handled: Family<Label, Counter>,
    duration: Histogram,
    in_flight: Gauge,
    reclaimed: Counter,
    dead: Counter,
    published: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All zero.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let handled = Family::default();
        let duration = Histogram::new(exponential_buckets(0.000_1, 4.0, 10));
        let (in_flight, reclaimed, dead, published) =
            (Gauge::default(), Counter::default(), Counter::default(), Counter::default());
        registry.register("handled", "Deliveries settled, by how they ended", handled.clone());
        registry.register("handler_duration_seconds", "Time in the handler", duration.clone());
        registry.register("in_flight", "Handlers at work", in_flight.clone());
        registry.register("reclaimed", "Events taken over from workers that died", reclaimed.clone());
        registry.register("dead", "Events that went to the dead letters", dead.clone());
        registry.register("published", "Events published outside of handlers", published.clone());
        Self { registry, handled, duration, in_flight, reclaimed, dead, published }
    }

    /// As Prometheus reads them.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Observer for Metrics {
    fn began(&self) {
        self.in_flight.inc();
    }

    fn ended(&self, took: Duration) {
        self.in_flight.dec();
        self.duration.observe(took.as_secs_f64());
    }

    fn settled(&self, verdict: Verdict, events: usize) {
        let outcome = match verdict {
            Verdict::Handled => "handled",
            Verdict::Retried => "retried",
            Verdict::Dead => "dead",
            Verdict::Returned => "returned",
            Verdict::Lost => "lost",
        };
        self.handled.get_or_create(&[("outcome", outcome)]).inc_by(events as u64);
        if verdict == Verdict::Dead {
            self.dead.inc_by(events as u64);
        }
    }

    fn reclaimed(&self, events: usize) {
        self.reclaimed.inc_by(events as u64);
    }

    fn published(&self, events: usize) {
        self.published.inc_by(events as u64);
    }
}

/// `GET /metrics`.
pub fn router(metrics: Arc<Metrics>) -> Router {
    Router::new().route("/metrics", get(show)).with_state(metrics)
}

async fn show(State(metrics): State<Arc<Metrics>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
