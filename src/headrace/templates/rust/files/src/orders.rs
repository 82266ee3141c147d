//! What this service is about: its events, and what it does with them.

use serde::{Deserialize, Serialize};

use crate::headrace::{Context, Event, Failure, Handler, Record};
use crate::topics::ACCEPTED;

/// Type of [`OrderPlaced`].
pub const PLACED: &str = "OrderPlaced";
/// A customer has ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderPlaced {
    /// The order's name, which the customer may choose.
    pub order_id: String,
    /// Who.
    pub customer: String,
    /// How much.
    pub amount_cents: i64,
}

/// The hash of what each customer has ordered, in cents.
pub const REVENUE: &str = "revenue";

/// Handles orders.
pub struct Orders;

impl Handler for Orders {
    async fn handle(&self, event: &Event, ctx: &mut Context) -> Result<(), Failure> {
        // The topic has one type. With several, `match event.one_of(&[PLACED, CANCELLED])?` comes first.
        let order: OrderPlaced = event.decode()?;
        if order.amount_cents <= 0 {
            return Err(Failure::Reject(format!(
                "amount_cents: expected more than 0, got {}",
                order.amount_cents
            )));
        }
        // Both leave with the ack: exactly once, however often this runs.
        ctx.effect("HINCRBY", REVENUE, [&order.customer, &order.amount_cents.to_string()])?;
        ctx.publish(&ACCEPTED, Record::json("OrderAccepted", &order)?.with_key(order.customer.as_str()))?;
        Ok(())
    }
}
