//! W3C trace context: into what is published, out of what is handled.

use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::event::Event;
use super::record::Record;

/// Headers of the trace that an event belongs to.
pub(crate) type Trace = Vec<(String, String)>;

const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";

/// The trace that an event belongs to, if any.
pub(crate) fn of(event: &Event) -> Trace {
    let header = |name: &str| Some((name.to_owned(), event.header(name)?.into_owned()));
    header(PARENT).into_iter().chain(header(STATE)).collect()
}

/// Writes the present span into a record that says nothing of a trace; without one, the trace of its origin goes on.
pub(crate) fn stamp(record: &mut Record, origin: &[(String, String)]) {
    if record.has_header(PARENT) {
        return;
    }
    let context = Span::current().context();
    let span = context.span();
    let own = span.span_context();
    if own.is_valid() {
        let (trace, id, flags) = (own.trace_id(), own.span_id(), own.trace_flags().to_u8());
        record.headers.push((PARENT.to_owned(), format!("00-{trace}-{id}-{flags:02x}")));
        let state = own.trace_state().header();
        if !state.is_empty() {
            record.headers.push((STATE.to_owned(), state));
        }
    } else {
        record.headers.extend_from_slice(origin);
    }
}

/// Makes the span a child of the one that a `traceparent` names, if it names one.
pub fn adopt(span: &Span, traceparent: Option<&str>, tracestate: Option<&str>) {
    let Some(parent) = traceparent.and_then(|text| parse(text, tracestate)) else { return };
    // Without an exporter there is no such layer, and nothing to do.
    let _unused = span.set_parent(opentelemetry::Context::new().with_remote_span_context(parent));
}

fn parse(text: &str, state: Option<&str>) -> Option<SpanContext> {
    let mut parts = text.split('-');
    let (_version, trace, id, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
    let state = state.and_then(|state| state.parse::<TraceState>().ok()).unwrap_or_default();
    let context =
        SpanContext::new(TraceId::from_hex(trace).ok()?, SpanId::from_hex(id).ok()?, flags, true, state);
    context.is_valid().then_some(context)
}
