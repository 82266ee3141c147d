//! What the wire promises, on a real server.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Proxy, Server, Working, publisher, subscription, topic, until};
use redis::cmd;
use service::headrace::{
    Context, Due, Event, Failure, Handler, Node, Record, Start, Subscription, Topic, partition_of,
};
use tokio::time::sleep;

/// Counts each event in a hash, by its id, with the ack; before that it does what its type says.
#[derive(Clone, Default)]
struct Count {
    seen: String,
    calls: Arc<AtomicUsize>,
}

impl Count {
    fn new(topic: &Topic) -> Self {
        Self { seen: format!("seen:{}", topic.name), calls: Arc::default() }
    }

    /// Each of these ids was counted, once.
    async fn counted(&self, server: &Server, events: usize) {
        let counts: Vec<(String, usize)> = server.ask(&format!("HGETALL {}", self.seen)).await;
        assert_eq!(counts.len(), events);
        assert!(counts.iter().all(|(_, count)| *count == 1), "{counts:?}");
    }
}

impl Handler for Count {
    async fn handle(&self, event: &Event, ctx: &mut Context) -> Result<(), Failure> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        match event.kind().as_ref() {
            "slow" => sleep(Duration::from_millis(300)).await,
            "hangs" => sleep(Duration::from_secs(3_600)).await,
            "flaky" if event.attempt() < 3 => return Err(Failure::Retry("not yet".to_owned())),
            "broken" => return Err(Failure::Retry("never".to_owned())),
            "rejected" => return Err(Failure::Reject("nonsense".to_owned())),
            "panics" => panic!("as asked"),
            "misfit" => ctx.effect("INCRBY", &self.seen, ["1"])?,
            _ => {}
        }
        ctx.effect("HINCRBY", &self.seen, [event.id().as_ref(), "1"])?;
        Ok(())
    }
}

fn numbered(count: usize) -> Vec<Record> {
    (0..count).map(|n| Record::new("", n.to_string())).collect()
}

async fn entries(server: &Server, stream: &str) -> Vec<Vec<(String, String)>> {
    let rows: Vec<(String, Vec<(String, String)>)> = server.ask(&format!("XRANGE {stream} - +")).await;
    rows.into_iter().map(|(_, fields)| fields).collect()
}

fn field<'a>(fields: &'a [(String, String)], name: &str) -> &'a str {
    fields.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
}

#[tokio::test]
async fn an_answer_that_is_lost_makes_no_second_event() {
    let (server, topic) = (Server::start().await, topic());
    let proxy = Proxy::start(&server.url).await;
    let publisher = publisher(&proxy.url);
    for round in 0..10 {
        proxy.lose_an_answer();
        let calls = (0..20).map(|_| {
            let (publisher, topic) = (publisher.clone(), topic.clone());
            tokio::spawn(async move { publisher.publish_all(&topic, numbered(5)).await })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap().unwrap();
        }
        assert_eq!(server.ask::<usize>(&format!("XLEN {}", topic.name)).await, (round + 1) * 100);
    }
    let entries = entries(&server, &topic.name).await;
    let ids: HashSet<&str> = entries.iter().map(|entry| field(entry, "id")).collect();
    assert_eq!(ids.len(), 1_000);
}

#[tokio::test]
async fn what_a_handler_records_happens_once_though_answers_are_lost() {
    let (server, topic) = (Server::start().await, topic());
    let proxy = Proxy::start(&server.url).await;
    let count = Count::new(&topic);
    let working = Working::start(&proxy.url, subscription(&topic), count.clone());
    let workers = format!("ZCARD {{{}}}:workers:g", topic.name);
    until("it has joined", async || server.ask::<usize>(&workers).await == 1).await;
    for round in 0..20 {
        server.publisher().publish_all(&topic, numbered(50)).await.unwrap();
        sleep(Duration::from_millis(round)).await;
        proxy.lose_an_answer();
        until("it goes on", async || server.handled(&topic).await > 50 * usize::try_from(round).unwrap())
            .await;
    }
    server.settled(&topic, 1_000, 0).await;
    count.counted(&server, 1_000).await;
    working.stop().await;
}

#[tokio::test]
async fn a_failed_event_is_retried_and_then_rests_in_the_dead_letters() {
    let (server, topic) = (Server::start().await, topic());
    let count = Count::new(&topic);
    let mut short = subscription(&topic);
    short.timeout = Duration::from_millis(50);
    let working = Working::start(&server.url, short, count.clone());
    let kinds = ["flaky", "broken", "rejected", "panics", "hangs", "fine"];
    let records = kinds.map(|kind| Record::new(kind, "{}").with_id(kind).with_header("tenant", "blue"));
    server.publisher().publish_all(&topic, records.to_vec()).await.unwrap();
    server.settled(&topic, 2, 4).await;
    count.counted(&server, 2).await;
    let mut dead = entries(&server, &format!("{{{}}}:dead:g", topic.name)).await;
    dead.sort();
    let said = |entry: &Vec<(String, String)>| {
        assert_eq!(field(entry, "x-tenant"), "blue");
        ["id", "attempt", "reason"].map(|name| field(entry, name).to_owned()).join(" ")
    };
    let said: Vec<String> = dead.iter().map(said).collect();
    let expected = [
        "broken 3 Retry: never",
        "hangs 3 Retry: the handler took longer than 50ms",
        "panics 3 Retry: the handler panicked: as asked",
        "rejected 1 Reject: nonsense",
    ];
    assert_eq!(said, expected);
    working.stop().await;
}

#[tokio::test]
async fn an_event_is_decoded_whatever_its_type_and_one_that_is_unknown_rests_in_the_dead_letters() {
    struct Pick(Topic);
    impl Handler for Pick {
        async fn handle(&self, event: &Event, ctx: &mut Context) -> Result<(), Failure> {
            let kind = if event.header("only").is_some() { "" } else { event.one_of(&["Add", "Other"])? };
            if kind != "Other" {
                let number: i64 = event.decode()?;
                ctx.effect("INCRBY", &format!("sum:{}", self.0.name), [number.to_string()])?;
            }
            Ok(())
        }
    }
    for ordered in [false, true] {
        let (server, topic) = (Server::start().await, topic());
        let own = Subscription { ordered, ..subscription(&topic) };
        let working = Working::start(&server.url, own, Pick(topic.clone()));
        let only = |kind, body| Record::new(kind, body).with_header("only", "1");
        let records = [
            only("", "1"),
            only("Renamed", "10"),
            only("", "\"x\""),
            Record::new("Add", "100"),
            Record::new("Other", "null"),
            Record::new("Add", "null"),
            Record::new("", "1000"),
            Record::new("Renamed", "1000"),
        ];
        server.publisher().publish_all(&topic, records.to_vec()).await.unwrap();
        let bare: String = server.ask(&format!("XADD {} * id bare x-only 1", topic.name)).await;
        assert!(!bare.is_empty());
        let letters = format!("{{{}}}:dead:g", topic.name);
        until("five are dead", async || server.ask::<usize>(&format!("XLEN {letters}")).await == 5).await;
        let record = format!("HGET {{{}}}:group:g handled", topic.name);
        until("four are handled", async || server.ask::<Option<usize>>(&record).await == Some(4)).await;
        assert_eq!(server.ask::<i64>(&format!("GET sum:{}", topic.name)).await, 111, "ordered: {ordered}");
        let mut reasons: Vec<String> = entries(&server, &letters)
            .await
            .iter()
            .map(|entry| {
                assert_eq!(field(entry, "attempt"), "1");
                field(entry, "reason").to_owned()
            })
            .collect();
        reasons.sort();
        let expected = [
            "Reject: invalid type: null, expected i64 at line 1 column 4",
            "Reject: invalid type: string \"x\", expected i64 at line 1 column 3",
            "Reject: the entry has no `data` field",
            "Reject: unknown event type \"\"; this topic has Add, Other",
            "Reject: unknown event type \"Renamed\"; this topic has Add, Other",
        ];
        assert_eq!(reasons, expected);
        working.stop().await;
    }
}

#[tokio::test]
async fn a_write_that_cannot_be_made_fails_its_event_alone() {
    let (server, topic) = (Server::start().await, topic());
    let count = Count::new(&topic);
    let working = Working::start(&server.url, subscription(&topic), count.clone());
    let records = ["fine", "misfit", "fine"].map(|kind| Record::new(kind, "{}"));
    server.publisher().publish_all(&topic, records.to_vec()).await.unwrap();
    server.settled(&topic, 2, 1).await;
    let dead = entries(&server, &format!("{{{}}}:dead:g", topic.name)).await;
    assert!(field(&dead[0], "reason").contains("needs a string"), "{dead:?}");
    count.counted(&server, 2).await;
    working.stop().await;
}

#[tokio::test]
async fn what_a_killed_worker_held_is_taken_over_when_its_lease_ends() {
    /// Handles what the other could not.
    struct Quick(Count);
    impl Handler for Quick {
        async fn handle(&self, event: &Event, ctx: &mut Context) -> Result<(), Failure> {
            assert_eq!(event.attempt(), 1, "a death is no attempt");
            ctx.effect("HINCRBY", &self.0.seen, [event.id().as_ref(), "1"])?;
            Ok(())
        }
    }
    let (server, topic) = (Server::start().await, topic());
    server.publisher().publish_all(&topic, vec![Record::new("hangs", "{}"); 5]).await.unwrap();
    let count = Count::new(&topic);
    let hanging = Working::start(&server.url, subscription(&topic), count.clone());
    until("the first worker is at work", async || count.calls.load(Ordering::SeqCst) == 5).await;
    hanging.kill().await;
    let working = Working::start(&server.url, subscription(&topic), Quick(count.clone()));
    server.settled(&topic, 5, 0).await;
    count.counted(&server, 5).await;
    working.stop().await;
    assert_eq!(server.ask::<usize>(&format!("ZCARD {{{}}}:workers:g", topic.name)).await, 0);
}

#[tokio::test]
async fn an_event_that_kills_its_workers_rests_in_the_dead_letters() {
    let (server, topic) = (Server::start().await, topic());
    server.publisher().publish(&topic, Record::new("hangs", "{}")).await.unwrap();
    let mut short = subscription(&topic);
    short.lease = Duration::from_millis(500);
    for deaths in 0..5 {
        let count = Count::new(&topic);
        let mut own = short.clone();
        own.worker = format!("w{deaths}");
        let hanging = Working::start(&server.url, own, count.clone());
        until("it is at work", async || count.calls.load(Ordering::SeqCst) == 1).await;
        hanging.kill().await;
    }
    let count = Count::new(&topic);
    let working = Working::start(&server.url, short, count.clone());
    server.settled(&topic, 0, 1).await;
    let dead = entries(&server, &format!("{{{}}}:dead:g", topic.name)).await;
    assert_eq!(field(&dead[0], "reason"), "5 workers that held it died");
    assert_eq!(count.calls.load(Ordering::SeqCst), 0);
    working.stop().await;
}

#[tokio::test]
async fn a_packed_entry_is_handled_event_by_event() {
    /// Records the bodies; one of them cannot be handled.
    struct Bodies(String);
    impl Handler for Bodies {
        async fn handle(&self, event: &Event, ctx: &mut Context) -> Result<(), Failure> {
            if event.data() == b"null" {
                return Err(Failure::Reject("nothing".to_owned()));
            }
            ctx.effect("HSET", &self.0, [event.id().as_bytes(), event.data()])?;
            Ok(())
        }
    }
    let (server, topic) = (Server::start().await, topic());
    // A run of kind 2 is one entry: "an event that is fine" and others, of one type, as the script of all languages writes it.
    let script = include_str!("../src/headrace/scripts/publish.lua");
    let name = topic.name.as_ref();
    let beside = |key: &str| format!("{{{name}}}:{key}");
    let mut call = cmd("EVAL");
    call.arg(script).arg(5).arg(name).arg(beside("producer:p1")).arg(beside("delayed")).arg(beside("ids"));
    call.arg(beside("packed"))
        .arg("p1")
        .arg(1)
        .arg(1)
        .arg(3)
        .arg(10_000_000)
        .arg(604_800)
        .arg(86_400_000)
        .arg(1);
    call.arg(3)
        .arg(2)
        .arg(1)
        .arg(2)
        .arg("type")
        .arg("Order")
        .arg("sizes")
        .arg("data")
        .arg("[2,3,4]")
        .arg("[]{ }null");
    let node = Node::new(&server.url).unwrap();
    node.command::<Vec<i64>>(&call).await.unwrap();
    assert_eq!(server.ask::<usize>(&format!("XLEN {name}")).await, 1);
    let seen = format!("seen:{name}");
    let working = Working::start(&server.url, subscription(&topic), Bodies(seen.clone()));
    server.settled(&topic, 2, 1).await;
    let mut bodies: Vec<(String, String)> = server.ask(&format!("HGETALL {seen}")).await;
    bodies.sort();
    let expected = [("p1.1.1", "[]"), ("p1.1.2", "{ }")].map(|(id, body)| (id.to_owned(), body.to_owned()));
    assert_eq!(bodies, expected);
    let dead = entries(&server, &beside("dead:g")).await;
    assert_eq!(field(&dead[0], "id"), "p1.1.3");
    assert!(field(&dead[0], "origin").ends_with("/2"));
    assert_eq!(server.ask::<usize>(&format!("HGET {} extra_settled", beside("group:g"))).await, 2);
    working.stop().await;
}

#[tokio::test]
async fn a_group_is_joined_by_many_and_adopted_from_other_tools() {
    let (server, topic) = (Server::start().await, topic());
    let (name, count) = (topic.name.as_ref(), Count::new(&topic));
    server.ask::<String>(&format!("XADD {name} 1-1 data before")).await;
    server.ask::<String>(&format!("XGROUP CREATE {name} g $ MKSTREAM")).await;
    let first = Working::start(&server.url, subscription(&topic), count.clone());
    let second = Working::start(&server.url, subscription(&topic), count.clone());
    until("both have joined", async || {
        server.ask::<usize>(&format!("ZCARD {{{name}}}:workers:g")).await == 2
    })
    .await;
    server.publisher().publish_all(&topic, numbered(200)).await.unwrap();
    server.settled(&topic, 200, 0).await;
    count.counted(&server, 200).await;
    first.stop().await;
    second.stop().await;

    let mut late = subscription(&topic);
    late.group = "late".to_owned();
    late.start = Start::Latest;
    let third = Working::start(&server.url, late, count.clone());
    until("it has joined", async || {
        server.ask::<usize>(&format!("ZCARD {{{name}}}:workers:late")).await == 1
    })
    .await;
    server.ask::<String>(&format!("XADD {name} * data plain")).await;
    until("it has handled", async || {
        server.ask::<Option<usize>>(&format!("HGET {{{name}}}:group:late handled")).await == Some(1)
    })
    .await;
    third.stop().await;
}

#[tokio::test]
async fn keys_choose_partitions_also_when_the_topic_has_grown() {
    let (server, two) = (Server::start().await, topic().partitions(2));
    let keys: Vec<String> = (0..20).map(|n| format!("customer-{n}")).collect();
    let records =
        || keys.iter().map(|key| Record::new("Order", "{}").with_key(key.as_str())).collect::<Vec<_>>();
    let publisher = server.publisher();
    publisher.publish_all(&two, records()).await.unwrap();
    let name = two.name.as_ref();
    for number in [0, 1] {
        server.ask::<usize>(&format!("HSET {{{name}.{number}}}:packed of 4 to 4")).await;
    }
    server.ask::<usize>(&format!("HSET headrace:topics {name} 4")).await;
    server.ask::<usize>(&format!("HSET headrace:grown {name} 2")).await;
    publisher.publish_all(&two, records()).await.unwrap();
    for number in 0..4_u32 {
        let expected = keys.iter().filter(|key| partition_of(key.as_bytes(), 4) == number).count();
        let old = keys.iter().filter(|key| number < 2 && partition_of(key.as_bytes(), 2) == number).count();
        let length: usize = server.ask(&format!("XLEN {name}.{number}")).await;
        assert_eq!(length, expected + old, "partition {number}");
    }
    let count = Count::new(&two);
    let working = Working::start(&server.url, subscription(&two), count.clone());
    until("all are handled", async || server.ask::<usize>(&format!("HLEN {}", count.seen)).await == 40).await;
    count.counted(&server, 40).await;
    working.stop().await;
}

#[tokio::test]
async fn an_event_with_an_id_or_a_due_time_comes_once_and_not_before() {
    let (server, topic) = (Server::start().await, topic());
    let publisher = server.publisher();
    let record = Record::new("", "{}").with_id("o-1").with_due(Due::In(Duration::from_millis(300)));
    for _ in 0..3 {
        publisher.publish(&topic, record.clone()).await.unwrap();
    }
    let length = format!("XLEN {}", topic.name);
    assert_eq!(server.ask::<usize>(&length).await, 0);
    until("it is due", async || server.ask::<usize>(&length).await == 1).await;
    assert!(publisher.publish(&topic, Record::new("", vec![0; 2 << 20])).await.is_err());
}

#[tokio::test]
async fn a_full_topic_holds_publishers_back_until_there_is_room() {
    let server = Server::start().await;
    let topic = Topic { cap_events: 100, retain_events: 0, ..topic() };
    let publisher = server.publisher();
    let count = Count::new(&topic);
    let absent = Working::start(&server.url, subscription(&topic), count.clone());
    until("there is a group", async || server.workers(&topic, "g").await == 1).await;
    absent.stop().await;
    publisher.publish_all(&topic, numbered(100)).await.unwrap();
    let (later, more) = (publisher.clone(), topic.clone());
    let waiting = tokio::spawn(async move { later.publish_all(&more, numbered(100)).await });
    sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    let working = Working::start(&server.url, subscription(&topic), count.clone());
    waiting.await.unwrap().unwrap();
    server.settled(&topic, 200, 0).await;
    count.counted(&server, 200).await;
    working.stop().await;
}

#[tokio::test]
async fn a_topic_that_nobody_reads_yet_may_obey_its_retention() {
    struct Forward(Topic);
    impl Handler for Forward {
        async fn handle(&self, _event: &Event, ctx: &mut Context) -> Result<(), Failure> {
            ctx.publish(&self.0, Record::new("", "{}"))?;
            Ok(())
        }
    }
    let server = Server::start().await;
    let publisher = server.publisher();
    for retain_events in [100, 1_150] {
        let bounded = || Topic { cap_events: 1_200, retain_events, keep_for_first_group: false, ..topic() };
        let own = bounded();
        for _ in 0..10 {
            publisher.publish_all(&own, numbered(500)).await.unwrap();
        }
        let length = server.ask::<usize>(&format!("XLEN {}", own.name)).await;
        assert!((100..=1_200).contains(&length), "{length} are kept");
        for ordered in [false, true] {
            let (from, to) = (topic(), bounded());
            publisher.publish_all(&from, numbered(3_000)).await.unwrap();
            let own = Subscription { ordered, ..subscription(&from) };
            let working = Working::start(&server.url, own, Forward(to.clone()));
            server.settled(&from, 3_000, 0).await;
            working.stop().await;
            let length = server.ask::<usize>(&format!("XLEN {}", to.name)).await;
            assert!((100..=1_200).contains(&length), "ordered {ordered}: {length} are kept");
        }
    }
}

#[tokio::test]
async fn outputs_leave_with_the_ack_under_an_identity_of_their_own() {
    struct Forward(Topic);
    impl Handler for Forward {
        async fn handle(&self, event: &Event, ctx: &mut Context) -> Result<(), Failure> {
            ctx.publish(&self.0, Record::new("Copy", event.data()).with_key("ann"))?;
            if event.attempt() < 2 { Err(Failure::Retry("once more".to_owned())) } else { Ok(()) }
        }
    }
    let (server, from, to) = (Server::start().await, topic(), topic().partitions(3));
    let working = Working::start(&server.url, subscription(&from), Forward(to.clone()));
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let record = Record::new("", "{}").with_id("o-1").in_trace(Some(trace));
    server.publisher().publish(&from, record).await.unwrap();
    server.settled(&from, 1, 0).await;
    let copies = entries(&server, &format!("{}.{}", to.name, partition_of(b"ann", 3))).await;
    assert_eq!(copies.len(), 1);
    assert_eq!(field(&copies[0], "id"), "o-1:g:0");
    assert_eq!(field(&copies[0], "traceparent"), trace);

    let name = to.name.as_ref();
    for number in 0..3 {
        server.ask::<usize>(&format!("HSET {{{name}.{number}}}:packed of 6 to 6")).await;
    }
    server.ask::<usize>(&format!("HSET headrace:topics {name} 6")).await;
    server.publisher().publish(&from, Record::new("", "{}").with_id("o-2")).await.unwrap();
    server.settled(&from, 2, 0).await;
    let copies = entries(&server, &format!("{name}.{}", partition_of(b"ann", 6))).await;
    assert_eq!(field(copies.last().unwrap(), "id"), "o-2:g:0", "the topic of the output has grown");
    working.stop().await;
}
