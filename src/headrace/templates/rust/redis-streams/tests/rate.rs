//! How fast one worker is: `cargo test --release --test rate -- --ignored --nocapture`.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Instant;

use common::{Server, Working, subscription, topic, until};
use service::headrace::{Context, Event, Failure, Handler, Record};

struct Nothing;

impl Handler for Nothing {
    async fn handle(&self, _: &Event, _: &mut Context) -> Result<(), Failure> {
        Ok(())
    }
}

const EVENTS: usize = 500_000;
const CALL: usize = 500;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn events_a_second_with_fsync_always() {
    let (server, topic) = (Server::start().await, topic());
    let body = r#"{"order_id":"o-000000000001","customer":"customer-000123","amount_cents":1250,"note":"some text"}"#;
    let publisher = server.publisher();
    let began = Instant::now();
    let calls = (0..8).map(|_| {
        let (publisher, topic) = (publisher.clone(), topic.clone());
        tokio::spawn(async move {
            for _ in 0..EVENTS / CALL / 8 {
                publisher.publish_all(&topic, vec![Record::new("OrderPlaced", body); CALL]).await.unwrap();
            }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    report("published", began);
    let began = Instant::now();
    let working = Working::start(&server.url, subscription(&topic), Nothing);
    until("all are handled", async || server.handled(&topic).await == EVENTS).await;
    report("handled", began);
    working.stop().await;
}

fn report(what: &str, began: Instant) {
    let events = u32::try_from(EVENTS).unwrap();
    println!("{what}: {:.0} events/s ({EVENTS} events)", f64::from(events) / began.elapsed().as_secs_f64());
}
