//! The gRPC face: takes orders, as `proto/orders.proto` says.

use std::any::Any;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::service::Routes;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::classify::{GrpcCode, GrpcErrorsAsFailures, SharedClassifier};
use tower_http::trace::TraceLayer;

use crate::headrace::{self, PublishError, Publisher, Record, is_name, random_name};
use crate::orders::{OrderPlaced, PLACED};
use crate::topics::ORDERS;
use proto::orders_server::{Orders, OrdersServer};
use proto::{PlaceOrderRequest, PlaceOrderResponse};

/// Messages, server and client, generated from `proto/orders.proto`.
#[allow(missing_docs, clippy::pedantic)]
pub mod proto {
    tonic::include_proto!("orders.v1");
}

/// `orders.v1.Orders`: messages of at most so many bytes, answers within this time. What is unanswered is in `calls`.
pub fn router(publisher: Publisher, message_bytes_max: usize, limit: Duration, calls: TaskTracker) -> Router {
    let orders = OrdersServer::new(Api { publisher }).max_decoding_message_size(message_bytes_max);
    // A caller's mistake is no failure of ours.
    let failures = [GrpcCode::InvalidArgument, GrpcCode::OutOfRange, GrpcCode::Unimplemented]
        .into_iter()
        .fold(GrpcErrorsAsFailures::new(), GrpcErrorsAsFailures::with_success);
    Routes::new(orders)
        .into_axum_router()
        .layer(from_fn_with_state((limit, calls), within))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(TraceLayer::new(SharedClassifier::new(failures)).make_span_with(request_span))
}

struct Api {
    publisher: Publisher,
}

#[tonic::async_trait]
impl Orders for Api {
    async fn place_order(
        &self,
        request: tonic::Request<PlaceOrderRequest>,
    ) -> Result<tonic::Response<PlaceOrderResponse>, Status> {
        let (metadata, _, new) = request.into_parts();
        let order_id = match new.order_id {
            None => random_name(),
            Some(id) if is_name(&id) => id,
            Some(_) => return Err(invalid("order_id: expected 1 to 128 of A-Z a-z 0-9 . _ -")),
        };
        if new.customer.is_empty() {
            return Err(invalid("customer: expected one"));
        }
        if new.amount_cents <= 0 {
            return Err(invalid(format!("amount_cents: expected more than 0, got {}", new.amount_cents)));
        }
        let order = OrderPlaced {
            order_id: order_id.clone(),
            customer: new.customer,
            amount_cents: new.amount_cents,
        };
        let traceparent = metadata.get("traceparent").and_then(|value| value.to_str().ok());
        let record = Record::json(PLACED, &order)
            .map_err(|error| refusal(&error.into(), &order_id))?
            .with_id(&order_id)
            .with_key(order.customer.as_str())
            .in_trace(traceparent);
        match self.publisher.publish(&ORDERS, record).await {
            Ok(()) => Ok(tonic::Response::new(PlaceOrderResponse { order_id })),
            Err(error) => Err(refusal(&error, &order_id)),
        }
    }
}

fn invalid(text: impl Into<String>) -> Status {
    Status::invalid_argument(text)
}

/// What the caller is told when an order was not published.
fn refusal(error: &PublishError, order_id: &str) -> Status {
    tracing::warn!(%error, order_id, "an order was not published");
    match error {
        PublishError::Invalid(_) => invalid(error.to_string()),
        PublishError::Server(error) if !error.may_pass() => Status::internal("the log says more"),
        // The events server is away or full: the same call may succeed later.
        PublishError::Server(_) | PublishError::Closed => Status::unavailable(format!(
            "the order may not have been placed: repeat the call with order_id {order_id:?}"
        )),
    }
}

/// A caller's own deadline, if it is shorter, is kept by the server below.
async fn within(
    State((limit, calls)): State<(Duration, TaskTracker)>,
    request: Request,
    next: Next,
) -> Response {
    let _call = calls.token();
    timeout(limit, next.run(request)).await.unwrap_or_else(|_| {
        Status::deadline_exceeded(
            "the order may not have been placed: repeat the call with the same order_id",
        )
        .into_http()
    })
}

/// The panic itself is on standard error.
fn panicked(_: Box<dyn Any + Send>) -> Response<Body> {
    tracing::error!("a call panicked");
    Status::internal("the log says more").into_http()
}

/// A span for each call, the child of its caller's.
fn request_span(request: &Request) -> tracing::Span {
    let span = tracing::info_span!(
        "request",
        otel.kind = "server",
        rpc.system = "grpc",
        url.path = request.uri().path(),
    );
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    headrace::adopt(&span, header("traceparent"), header("tracestate"));
    span
}
