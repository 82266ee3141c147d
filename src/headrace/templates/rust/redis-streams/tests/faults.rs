//! What must survive: a server that is killed, that forgets its scripts or everything, and a worker that stops.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Server, Working, subscription, topic, until};
use service::headrace::{Context, Event, Failure, Handler, Record, Topic};
use tokio::time::sleep;

/// Counts each event by its body, with the ack, and takes its time.
#[derive(Clone)]
struct Slow {
    seen: String,
    takes: Duration,
    calls: Arc<AtomicUsize>,
}

impl Slow {
    fn new(topic: &Topic, takes: Duration) -> Self {
        Self { seen: format!("seen:{}", topic.name), takes, calls: Arc::default() }
    }

    async fn counted(&self, server: &Server, events: usize) {
        let counts: Vec<(String, usize)> = server.ask(&format!("HGETALL {}", self.seen)).await;
        assert_eq!(counts.len(), events);
        assert!(counts.iter().all(|(_, count)| *count == 1));
    }
}

impl Handler for Slow {
    async fn handle(&self, event: &Event, ctx: &mut Context) -> Result<(), Failure> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        sleep(self.takes).await;
        ctx.effect("HINCRBY", &self.seen, [event.data(), b"1"])?;
        Ok(())
    }
}

fn numbered(from: usize, count: usize) -> Vec<Record> {
    (from..from + count).map(|n| Record::new("", n.to_string())).collect()
}

#[tokio::test]
async fn a_server_that_is_killed_and_started_again_loses_nothing() {
    let (mut server, topic) = (Server::start().await, topic());
    if !server.is_own() {
        return eprintln!("NOT RUN: needs a server of its own");
    }
    let slow = Slow::new(&topic, Duration::from_millis(5));
    let working = Working::start(&server.url, subscription(&topic), slow.clone());
    let publisher = server.publisher();
    let publishing = {
        let topic = topic.clone();
        tokio::spawn(async move {
            for n in 0..200 {
                publisher.publish_all(&topic, numbered(n * 10, 10)).await.unwrap();
                sleep(Duration::from_millis(5)).await;
            }
        })
    };
    for _ in 0..3 {
        sleep(Duration::from_millis(200)).await;
        server.kill();
        sleep(Duration::from_millis(100)).await;
        server.start_again().await;
    }
    publishing.await.unwrap();
    server.settled(&topic, 2_000, 0).await;
    slow.counted(&server, 2_000).await;
    assert_eq!(server.ask::<usize>(&format!("XLEN {}", topic.name)).await, 2_000);
    working.stop().await;
}

#[tokio::test]
async fn a_server_that_forgets_its_scripts_is_told_them_again() {
    let (server, topic) = (Server::start().await, topic());
    let slow = Slow::new(&topic, Duration::from_millis(1));
    let working = Working::start(&server.url, subscription(&topic), slow.clone());
    let publisher = server.publisher();
    for n in 0..20 {
        publisher.publish_all(&topic, numbered(n * 50, 50)).await.unwrap();
        server.ask::<String>("SCRIPT FLUSH").await;
    }
    server.settled(&topic, 1_000, 0).await;
    slow.counted(&server, 1_000).await;
    working.stop().await;
}

#[tokio::test]
async fn a_group_begins_anew_when_everything_was_deleted() {
    let (server, topic) = (Server::start().await, topic());
    if !server.is_own() {
        return eprintln!("NOT RUN: needs a server of its own");
    }
    let slow = Slow::new(&topic, Duration::ZERO);
    let working = Working::start(&server.url, subscription(&topic), slow.clone());
    let publisher = server.publisher();
    publisher.publish_all(&topic, numbered(0, 100)).await.unwrap();
    server.settled(&topic, 100, 0).await;
    server.ask::<String>("FLUSHALL").await;
    publisher.publish_all(&topic, numbered(0, 50)).await.unwrap();
    server.settled(&topic, 50, 0).await;
    slow.counted(&server, 50).await;
    working.stop().await;
}

#[tokio::test]
async fn a_worker_that_stops_finishes_what_it_began_and_hands_back_the_rest() {
    let (server, topic) = (Server::start().await, topic());
    let slow = Slow::new(&topic, Duration::from_millis(300));
    server.publisher().publish_all(&topic, numbered(0, 50)).await.unwrap();
    let mut narrow = subscription(&topic);
    narrow.concurrency = 4;
    let working = Working::start(&server.url, narrow, slow.clone());
    until("handlers are at work", async || slow.calls.load(Ordering::SeqCst) >= 4).await;
    working.stop().await;
    let begun = slow.calls.load(Ordering::SeqCst);
    assert!(begun < 50);
    slow.counted(&server, begun).await;
    let name = &topic.name;
    assert_eq!(server.ask::<usize>(&format!("ZCARD {{{name}}}:workers:g")).await, 0, "its lease has ended");
    let consumers: Vec<redis::Value> = server.ask(&format!("XINFO CONSUMERS {name} g")).await;
    assert!(consumers.is_empty(), "{consumers:?}");
    let returned: Vec<(String, Vec<(String, String)>)> =
        server.ask(&format!("XRANGE {{{name}}}:retry:g - +")).await;
    assert!(
        !returned.is_empty()
            && returned.iter().all(|(_, fields)| fields[1] == ("attempt".into(), "1".into()))
    );

    let quick = Slow { takes: Duration::ZERO, ..slow.clone() };
    let working = Working::start(&server.url, subscription(&topic), quick);
    server.settled(&topic, 50, 0).await;
    slow.counted(&server, 50).await;
    working.stop().await;
}

#[tokio::test]
async fn handlers_that_do_not_end_in_time_are_given_up_and_their_events_handed_back() {
    let (server, topic) = (Server::start().await, topic());
    server.publisher().publish_all(&topic, numbered(0, 3)).await.unwrap();
    let slow = Slow::new(&topic, Duration::from_secs(3_600));
    let mut hasty = subscription(&topic);
    hasty.drain = Duration::from_millis(100);
    hasty.timeout = Duration::from_secs(7_200);
    let working = Working::start(&server.url, hasty, slow.clone());
    until("handlers are at work", async || slow.calls.load(Ordering::SeqCst) == 3).await;
    working.stop().await;
    assert_eq!(server.ask::<usize>(&format!("XLEN {{{}}}:retry:g", topic.name)).await, 3);
}
