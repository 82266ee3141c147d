//! The HTTP face: takes orders. Errors are `application/problem+json` (RFC 9457).

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use crate::headrace::{self, PublishError, Publisher, Record, is_name, random_name};
use crate::orders::{OrderPlaced, PLACED};
use crate::topics::ORDERS;

/// `POST /orders`.
pub fn router(publisher: Publisher) -> Router {
    Router::new().route("/orders", post(place)).fallback(|| async { Problem::NotFound }).with_state(publisher)
}

#[derive(Deserialize)]
struct NewOrder {
    customer: String,
    amount_cents: i64,
}

#[derive(Serialize)]
struct Accepted {
    order_id: String,
}

/// Answers when the order is durable. A request that is repeated with the same `Idempotency-Key` places one order.
async fn place(
    State(publisher): State<Publisher>,
    headers: HeaderMap,
    body: Result<Json<NewOrder>, JsonRejection>,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let Json(new) = body?;
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let order_id = match header("idempotency-key") {
        None => random_name(),
        Some(key) if is_name(key) => key.to_owned(),
        Some(_) => return Err(Problem::invalid("Idempotency-Key: expected 1 to 128 of A-Z a-z 0-9 . _ -")),
    };
    if new.amount_cents <= 0 || new.customer.is_empty() {
        return Err(Problem::invalid("expected a customer, and amount_cents above 0"));
    }
    let order =
        OrderPlaced { order_id: order_id.clone(), customer: new.customer, amount_cents: new.amount_cents };
    let record = Record::json(PLACED, &order)?.with_id(&order_id).with_key(order.customer.as_str());
    publisher.publish(&ORDERS, record.in_trace(header("traceparent"))).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { order_id })))
}

/// What went wrong, for the caller.
enum Problem {
    Invalid {
        status: StatusCode,
        detail: String,
    },
    NotFound,
    /// The events server is away or full: the same request may succeed later.
    Unavailable,
    Internal,
}

impl Problem {
    fn invalid(detail: &str) -> Self {
        Self::Invalid { status: StatusCode::UNPROCESSABLE_ENTITY, detail: detail.to_owned() }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, detail) = match self {
            Self::Invalid { status, detail } => (status, detail),
            Self::NotFound => (StatusCode::NOT_FOUND, "no such resource".to_owned()),
            Self::Unavailable => {
                let detail =
                    "the order may not have been placed: repeat the request with the same Idempotency-Key";
                (StatusCode::SERVICE_UNAVAILABLE, detail.to_owned())
            }
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "the log says more".to_owned()),
        };
        let title = status.canonical_reason();
        let body = serde_json::json!({ "type": "about:blank", "status": status.as_u16(), "title": title, "detail": detail });
        (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Self::Invalid { status: rejection.status(), detail: rejection.body_text() }
    }
}

impl From<headrace::Invalid> for Problem {
    fn from(invalid: headrace::Invalid) -> Self {
        Self::invalid(&invalid.to_string())
    }
}

impl From<PublishError> for Problem {
    fn from(error: PublishError) -> Self {
        tracing::warn!(%error, "an order was not published");
        match error {
            PublishError::Invalid(invalid) => invalid.into(),
            PublishError::Server(error) if !error.may_pass() => Self::Internal,
            PublishError::Server(_) | PublishError::Closed => Self::Unavailable,
        }
    }
}
