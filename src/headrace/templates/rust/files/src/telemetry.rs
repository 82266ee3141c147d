//! Logs as JSON on standard output and, if `OTEL_EXPORTER_OTLP_ENDPOINT` is set, traces to a collector.
//!
//! `RUST_LOG` chooses what is logged. The trace of an event goes on in its handler and in what that publishes, with or without a
//! collector.

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

/// What has to be flushed at the end.
pub struct Telemetry(Option<SdkTracerProvider>);

/// Starts logging and tracing for the process.
pub fn start() -> Result<Telemetry, ExporterBuildError> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = fmt::layer().json().flatten_event(true).with_span_list(false);
    let provider =
        if std::env::var_os("OTEL_EXPORTER_OTLP_ENDPOINT").is_some() { Some(provider()?) } else { None };
    let traces = provider
        .as_ref()
        .map(|provider| tracing_opentelemetry::layer().with_tracer(provider.tracer(env!("CARGO_PKG_NAME"))));
    tracing_subscriber::registry().with(filter).with(logs).with(traces).init();
    Ok(Telemetry(provider))
}

fn provider() -> Result<SdkTracerProvider, ExporterBuildError> {
    let exporter = SpanExporter::builder().with_tonic().build()?;
    let mut resource = Resource::builder();
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name(env!("CARGO_PKG_NAME"));
    }
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build())
}

impl Telemetry {
    /// Sends what is left.
    pub fn stop(self) {
        if let Some(Err(error)) = self.0.map(|provider| provider.shutdown()) {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}
