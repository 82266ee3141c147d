//! How fast one worker is: `cargo test --release --test rate -- --ignored --nocapture`.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Instant;

use common::{Server, Working, streams, subscription, topic, until};
use service::headrace::{Context, Event, Failure, Handler, Record, Subscription};

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
    measure(false, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn in_order_of_ten_thousand_keys() {
    measure(true, 16).await;
}

async fn measure(ordered: bool, partitions: u32) {
    let (server, topic) = (Server::start().await, topic().partitions(partitions));
    let body = r#"{"order_id":"o-000000000001","customer":"customer-000123","amount_cents":1250,"note":"some text"}"#;
    let publisher = server.publisher();
    let began = Instant::now();
    let calls = (0..8).map(|caller| {
        let (publisher, topic) = (publisher.clone(), topic.clone());
        let record = move |n: usize| {
            let record = Record::new("OrderPlaced", body);
            if ordered { record.with_key(((caller + 8 * n) % 10_000).to_string()) } else { record }
        };
        tokio::spawn(async move {
            for call in 0..EVENTS / CALL / 8 {
                let records = (call * CALL..(call + 1) * CALL).map(record).collect();
                publisher.publish_all(&topic, records).await.unwrap();
            }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    report("published", began);
    let began = Instant::now();
    let subscription = Subscription { ordered, ..subscription(&topic) };
    let working = Working::start(&server.url, subscription, Nothing);
    let handled = async || {
        let mut handled = 0;
        for stream in streams(&topic) {
            let own: Option<usize> = server.ask(&format!("HGET {{{stream}}}:group:g handled")).await;
            handled += own.unwrap_or(0);
        }
        handled
    };
    until("all are handled", async || handled().await == EVENTS).await;
    report("handled", began);
    working.stop().await;
}

fn report(what: &str, began: Instant) {
    let events = u32::try_from(EVENTS).unwrap();
    println!("{what}: {:.0} events/s ({EVENTS} events)", f64::from(events) / began.elapsed().as_secs_f64());
}
