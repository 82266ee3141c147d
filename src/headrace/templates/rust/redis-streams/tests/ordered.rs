//! What ordered mode promises, on a real server.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Proxy, Server, Working, streams, subscription, topic, until};
use redis::cmd;
use service::headrace::{Context, Event, Failure, Handler, Node, Record, Subscription, Topic, partition_of};
use tokio::time::{sleep, timeout};

const KEYS: usize = 8;

/// Appends each event's number to a list of its key, with the ack, and keeps a record of its calls. An event of type
/// * `flaky` fails twice, `misfit` by what it writes,
/// * `broken` always,
/// * `hangs` never ends while `hanging` is set.
#[derive(Clone)]
struct Log {
    topic: Topic,
    takes: Duration,
    calls: Arc<Mutex<Vec<Call>>>,
    /// Keys with a handler at work, of all workers together.
    busy: Arc<Mutex<HashSet<String>>>,
    /// Two handlers of one key were at work at the same time.
    collided: Arc<AtomicBool>,
    hanging: Arc<AtomicBool>,
    begun: Arc<AtomicUsize>,
}

/// Key, number and attempt of an event that a handler was called with.
type Call = (String, usize, u32);

struct Busy<'a>(&'a Log, String);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.lock().unwrap().remove(&self.1);
    }
}

impl Log {
    fn new(topic: &Topic, takes: Duration) -> Self {
        Self {
            topic: topic.clone(),
            takes,
            calls: Arc::default(),
            busy: Arc::default(),
            collided: Arc::default(),
            hanging: Arc::new(AtomicBool::new(true)),
            begun: Arc::default(),
        }
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    fn list(&self, key: &str) -> String {
        format!("done:{}:{key}", self.topic.name)
    }

    fn calls_of(&self, key: &str) -> Vec<(usize, u32)> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|(own, ..)| own == key).map(|(_, n, attempt)| (*n, *attempt)).collect()
    }

    /// All of the first so many [`mixed`] numbers of each key are settled, and in order.
    async fn is_done(&self, server: &Server, topic: &Topic, count: usize) {
        let handled = fine(count).count();
        settled(server, topic, handled * KEYS, (count - handled) * KEYS).await;
        for key in (0..KEYS).map(key) {
            self.is_in_order(server, &key, fine(count)).await;
        }
    }

    /// These were handled, once and in this order; and never two of a key at the same time.
    async fn is_in_order(&self, server: &Server, key: &str, expected: impl Iterator<Item = usize>) {
        let done: Vec<usize> = server.ask(&format!("LRANGE {} 0 -1", self.list(key))).await;
        assert_eq!(done, expected.collect::<Vec<_>>(), "key {key}");
        assert!(!self.collided.load(Ordering::SeqCst), "two handlers of one key at the same time");
    }
}

impl Handler for Log {
    async fn handle(&self, event: &Event, ctx: &mut Context) -> Result<(), Failure> {
        let key = String::from_utf8_lossy(event.key().unwrap()).into_owned();
        let number: usize = event.json()?;
        self.calls.lock().unwrap().push((key.clone(), number, event.attempt()));
        self.begun.fetch_add(1, Ordering::SeqCst);
        if !self.busy.lock().unwrap().insert(key.clone()) {
            self.collided.store(true, Ordering::SeqCst);
        }
        let _busy = Busy(self, key.clone());
        sleep(self.takes).await;
        while event.kind() == "hangs" && self.hanging.load(Ordering::SeqCst) {
            sleep(Duration::from_millis(20)).await;
        }
        match event.kind().as_ref() {
            "flaky" if event.attempt() < 3 => return Err(Failure::Retry("not yet".to_owned())),
            "broken" => return Err(Failure::Retry("never".to_owned())),
            "rejected" => return Err(Failure::Reject("nonsense".to_owned())),
            "misfit" if event.attempt() < 3 => ctx.effect("INCRBY", &self.list(&key), ["1"])?,
            _ => {}
        }
        ctx.effect("RPUSH", &self.list(&key), [number.to_string()])?;
        Ok(())
    }
}

fn ordered(topic: &Topic) -> Subscription {
    Subscription { ordered: true, ..subscription(topic) }
}

fn key(n: usize) -> String {
    format!("key-{n}")
}

/// One event for each number and key, of the type that its number asks for.
fn records(numbers: std::ops::Range<usize>, kind: impl Fn(usize) -> &'static str) -> Vec<Record> {
    let keyed = |n: usize| (0..KEYS).map(move |k| (n, k));
    let record = |(n, k): (usize, usize)| Record::new(kind(n), n.to_string()).with_key(key(k));
    numbers.flat_map(keyed).map(record).collect()
}

/// What a number's event does: most are fine.
fn mixed(n: usize) -> &'static str {
    match n % 10 {
        3 => "flaky",
        5 => "broken",
        7 => "rejected",
        8 => "misfit",
        _ => "",
    }
}

fn is_fine(n: usize) -> bool {
    ["", "flaky", "misfit"].contains(&mixed(n))
}

fn fine(count: usize) -> impl Iterator<Item = usize> {
    (0..count).filter(|n| is_fine(*n))
}

/// Handled and dead events of group `g`, and those that are unread or set aside.
async fn ledger(server: &Server, topic: &Topic) -> (usize, usize, usize) {
    let (mut handled, mut dead, mut left) = (0, 0, 0);
    for stream in streams(topic) {
        let record: BTreeMap<String, String> = server.ask(&format!("HGETALL {{{stream}}}:group:g")).await;
        handled += record.get("handled").map_or(0, |text| text.parse::<usize>().unwrap());
        dead += server.ask::<usize>(&format!("XLEN {{{stream}}}:dead:g")).await;
        let cursor = record.get("cursor").map_or("0-0", String::as_str);
        let unread: Vec<redis::Value> = server.ask(&format!("XRANGE {stream} ({cursor} +")).await;
        left += unread.len() + server.ask::<usize>(&format!("XLEN {{{stream}}}:retry:g")).await;
    }
    (handled, dead, left)
}

async fn settled(server: &Server, topic: &Topic, handled: usize, dead: usize) {
    let what = format!("{handled} handled, {dead} dead, nothing left");
    until(&what, async || ledger(server, topic).await == (handled, dead, 0)).await;
}

/// Which worker has how many partitions.
async fn owners(server: &Server, topic: &Topic) -> BTreeMap<String, usize> {
    let mut owners = BTreeMap::new();
    for stream in streams(topic) {
        let owner: Option<String> = server.ask(&format!("HGET {{{stream}}}:group:g owner")).await;
        *owners.entry(owner.unwrap_or_default()).or_default() += 1;
    }
    owners
}

#[tokio::test]
async fn the_events_of_a_key_are_handled_in_their_order_though_some_fail() {
    let (server, topic) = (Server::start().await, topic().partitions(4));
    let log = Log::new(&topic, Duration::ZERO);
    let working = Working::start(&server.url, ordered(&topic), log.clone());
    let publisher = server.publisher();
    for n in 0..4 {
        publisher.publish_all(&topic, records(n * 10..(n + 1) * 10, mixed)).await.unwrap();
        sleep(Duration::from_millis(50)).await;
    }
    let handled = fine(40).count();
    settled(&server, &topic, handled * KEYS, (40 - handled) * KEYS).await;
    // Each event is called as often as it fails, and only then the next one of its key; but what was handled behind one whose
    // writes could not be made is handled again behind it.
    let attempts = |n: usize| if ["", "rejected"].contains(&mixed(n)) { 1 } else { 3 };
    for key in (0..KEYS).map(key) {
        log.is_in_order(&server, &key, fine(40)).await;
        let (calls, mut last) = (log.calls_of(&key), BTreeMap::new());
        for (n, attempt) in calls {
            let earlier = (0..n).filter(|n| mixed(*n) != "misfit");
            let ended = |n: usize| last.get(&n) == Some(&attempts(n));
            assert!(earlier.into_iter().all(ended), "{key}: {n} was called before its time");
            last.insert(n, attempt);
        }
        assert!((0..40).all(|n| last[&n] == attempts(n)), "{last:?}");
    }
    working.stop().await;
}

#[tokio::test]
async fn what_a_killed_worker_had_is_taken_over_in_order() {
    let (server, topic) = (Server::start().await, topic().partitions(3));
    let log = Log::new(&topic, Duration::from_millis(2));
    let mut working = Working::start(&server.url, ordered(&topic), log.clone());
    let publisher = server.publisher();
    for n in 0..4 {
        publisher.publish_all(&topic, records(n * 20..(n + 1) * 20, mixed)).await.unwrap();
        let before = log.begun();
        until("it is at work", async || log.begun() > before + 40).await;
        working.kill().await;
        working = Working::start(&server.url, ordered(&topic), log.clone());
    }
    log.is_done(&server, &topic, 80).await;
    working.stop().await;
}

#[tokio::test]
async fn workers_share_the_partitions_and_one_that_stops_gives_its_back_at_once() {
    let (server, topic) = (Server::start().await, topic().partitions(7));
    let log = Log::new(&topic, Duration::from_millis(1));
    let worker = |name: &str| {
        let mut own = ordered(&topic);
        own.lease = Duration::from_secs(600); // nobody waits for that
        own.worker = format!("{}-{name}", topic.name);
        Working::start(&server.url, own, log.clone())
    };
    let counts = async || {
        let mut counts: Vec<usize> = owners(&server, &topic).await.into_values().collect();
        counts.sort_unstable();
        counts
    };
    let batches = (0..100).map(|n| records(n..n + 1, |_| ""));
    let publishing = server.publishing(&topic, Duration::from_millis(10), batches);
    let quick = async |what: &str, expected: &[usize]| {
        let shared = until(what, async || counts().await == expected);
        assert!(timeout(Duration::from_secs(8), shared).await.is_ok(), "{what}: {:?}", counts().await);
    };
    let first = worker("a");
    quick("one worker has them all", &[7]).await;
    let second = worker("b");
    quick("two share them", &[3, 4]).await;
    let third = worker("c");
    quick("three share them", &[2, 2, 3]).await;
    first.stop().await;
    quick("two are left", &[3, 4]).await;
    third.stop().await;
    quick("one is left", &[7]).await;
    publishing.await.unwrap();
    settled(&server, &topic, 100 * KEYS, 0).await;
    for key in (0..KEYS).map(key) {
        log.is_in_order(&server, &key, 0..100).await;
    }
    assert_eq!(log.begun(), 100 * KEYS, "who hands over a partition settles what it has begun");
    second.stop().await;
    let changes: BTreeMap<String, redis::Value> =
        server.ask(&format!("XINFO STREAM {{{}}}:changes:g", topic.name)).await;
    let redis::Value::Int(changes) = changes["entries-added"] else { panic!("{changes:?}") };
    assert!(
        changes > 3 + 3,
        "the others are told not only of workers that come and go, but also of partitions"
    );
}

#[tokio::test]
async fn a_server_that_is_killed_and_started_again_loses_neither_events_nor_their_order() {
    let (mut server, topic) = (Server::start().await, topic().partitions(3));
    if !server.is_own() {
        return eprintln!("NOT RUN: needs a server of its own");
    }
    let log = Log::new(&topic, Duration::from_millis(2));
    let working = Working::start(&server.url, ordered(&topic), log.clone());
    let publishing =
        server.publishing(&topic, Duration::from_millis(5), (0..100).map(|n| records(n..n + 1, mixed)));
    server.crash().await;
    publishing.await.unwrap();
    log.is_done(&server, &topic, 100).await;
    working.stop().await;
}

#[tokio::test]
async fn answers_that_are_lost_change_nothing() {
    let (server, topic) = (Server::start().await, topic().partitions(2));
    let proxy = Proxy::start(&server.url).await;
    let log = Log::new(&topic, Duration::from_millis(1));
    let working = Working::start(&proxy.url, ordered(&topic), log.clone());
    let publisher = server.publisher();
    for n in 0..40 {
        publisher.publish_all(&topic, records(n..n + 1, mixed)).await.unwrap();
        sleep(Duration::from_millis(u64::try_from(n).unwrap() % 7)).await;
        proxy.lose_an_answer();
        sleep(Duration::from_millis(60)).await;
    }
    log.is_done(&server, &topic, 40).await;
    working.stop().await;
}

/// Publishes one entry of several events, as the script of all languages writes it: numbers and keys in turn.
async fn publish_packed(server: &Server, topic: &Topic, first: usize, kind: &str, events: &[(usize, &str)]) {
    let script = include_str!("../src/headrace/scripts/publish.lua");
    let stream = topic.name.as_ref();
    let beside = |name: &str| format!("{{{stream}}}:{name}");
    let sizes = |words: &[String]| format!("{:?}", words.iter().map(String::len).collect::<Vec<_>>());
    let keys: Vec<String> = events.iter().map(|(_, key)| (*key).to_owned()).collect();
    let bodies: Vec<String> = events.iter().map(|(n, _)| n.to_string()).collect();
    let mut call = cmd("EVAL");
    call.arg(script).arg(5).arg(stream);
    call.arg(["producer:p1", "delayed", "ids", "packed"].map(beside).to_vec());
    let count = events.len();
    call.arg("p1").arg(1).arg(first).arg(count).arg(10_000_000).arg(604_800).arg(86_400_000).arg(1);
    call.arg(count).arg(2).arg(1).arg(4).arg("type").arg(kind);
    call.arg("keysizes").arg("keys").arg("sizes").arg("data");
    call.arg(sizes(&keys)).arg(keys.concat()).arg(sizes(&bodies)).arg(bodies.concat());
    Node::new(&server.url).unwrap().command::<Vec<i64>>(&call).await.unwrap();
}

#[tokio::test]
async fn the_events_of_packed_entries_are_in_order_too_and_a_worker_that_stops_in_the_middle_loses_none() {
    let (server, topic) = (Server::start().await, topic());
    let both: Vec<(usize, &str)> = (0..20).flat_map(|n| [(n, "a"), (n, "b")]).collect();
    publish_packed(&server, &topic, 1, "", &both[..16]).await;
    publish_packed(&server, &topic, 17, "flaky", &both[16..18]).await;
    publish_packed(&server, &topic, 19, "", &both[18..]).await;
    let log = Log::new(&topic, Duration::from_millis(20));
    let working = Working::start(&server.url, ordered(&topic), log.clone());
    until("it is in the middle", async || log.begun() >= 5).await;
    working.stop().await;
    assert!(log.begun() < 16);
    let begun = log.begun();
    assert_eq!(ledger(&server, &topic).await.0, begun, "what it had begun is settled");
    let working = Working::start(&server.url, ordered(&topic), log.clone());
    settled(&server, &topic, 40, 0).await;
    log.is_in_order(&server, "a", 0..20).await;
    log.is_in_order(&server, "b", 0..20).await;
    assert_eq!(log.begun(), 40 + 2 * 2, "nothing was handled twice but what failed");
    let extra: usize = server.ask(&format!("HGET {{{}}}:group:g extra_settled", topic.name)).await;
    assert_eq!(extra, 40 - 3);
    working.stop().await;
}

#[tokio::test]
async fn an_event_that_kills_its_workers_rests_in_the_dead_letters_and_the_others_are_handled() {
    let (server, topic) = (Server::start().await, topic());
    let kind = |n: usize| if n == 5 { "hangs" } else { "" };
    let records = (0..10).map(|n| Record::new(kind(n), n.to_string()).with_key("a"));
    server.publisher().publish_all(&topic, records.collect()).await.unwrap();
    let mut short = ordered(&topic);
    short.lease = Duration::from_millis(500);
    let log = Log::new(&topic, Duration::ZERO);
    for deaths in 0..5 {
        let own = Subscription { worker: format!("{}-w{deaths}", topic.name), ..short.clone() };
        let hanging = Working::start(&server.url, own, log.clone());
        let calls = async || log.calls_of("a").iter().filter(|(n, _)| *n == 5).count() > deaths;
        until("it is at work", calls).await;
        sleep(Duration::from_millis(400)).await; // longer than it takes to renew the lease
        hanging.kill().await;
    }
    let working = Working::start(&server.url, short, log.clone());
    settled(&server, &topic, 9, 1).await;
    let dead: Vec<(String, BTreeMap<String, String>)> =
        server.ask(&format!("XRANGE {{{}}}:dead:g - +", topic.name)).await;
    assert_eq!((dead[0].1["data"].as_str(), dead[0].1["attempt"].as_str()), ("5", "1"));
    assert_eq!(dead[0].1["reason"], "5 workers that held it died");
    log.is_in_order(&server, "a", (0..10).filter(|n| *n != 5)).await;
    // An operator gives it another chance: it is one event like any other.
    log.hanging.store(false, Ordering::SeqCst);
    let (id, origin) = (&dead[0].1["id"], &dead[0].1["origin"]);
    let again = format!("{{{}}}:retry:g * id {id} attempt 1 origin {origin} key a data 5", topic.name);
    let _: String = server.ask(&format!("XADD {again}")).await;
    settled(&server, &topic, 10, 1).await;
    working.stop().await;
}

#[tokio::test]
async fn nothing_of_a_partition_that_was_lost_is_handled_or_written() {
    let (server, topic) = (Server::start().await, topic());
    let log = Log::new(&topic, Duration::ZERO);
    let publisher = server.publisher();
    let publish = async |kind: &'static str, n: usize| {
        publisher.publish(&topic, Record::new(kind, n.to_string()).with_key("a")).await.unwrap();
    };
    publish("hangs", 0).await;
    publish("", 1).await;
    let mut patient = ordered(&topic);
    patient.timeout = Duration::from_secs(3_600);
    let working = Working::start(&server.url, patient, log.clone());
    until("it is at work", async || log.begun() == 1).await;
    let record = format!("{{{}}}:group:g", topic.name);
    let (seconds, _micros): (u64, u64) = server.ask("TIME").await;
    let until_ms = (seconds + 3_600) * 1_000;
    let _: usize = server.ask(&format!("HSET {record} owner thief token 99:thief until {until_ms}")).await;
    until("the handler is ended", async || log.busy.lock().unwrap().is_empty()).await;
    log.hanging.store(false, Ordering::SeqCst);
    publish("", 2).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!((log.begun(), ledger(&server, &topic).await.0), (1, 0));
    let _: usize = server.ask(&format!("HSET {record} owner  until 0")).await;
    settled(&server, &topic, 3, 0).await;
    log.is_in_order(&server, "a", 0..3).await;
    working.stop().await;
}

#[tokio::test]
async fn a_worker_that_cannot_renew_its_lease_begins_nothing() {
    let (server, topic) = (Server::start().await, topic());
    let records = (0..60).map(|n| Record::new("", n.to_string()).with_key(key(n % KEYS)));
    server.publisher().publish_all(&topic, records.collect()).await.unwrap();
    let log = Log::new(&topic, Duration::from_millis(400));
    let mut narrow = ordered(&topic);
    narrow.concurrency = 2; // the first batch takes longer than the lease
    let working = Working::start(&server.url, narrow, log.clone());
    until("it is at work", async || log.begun() > 0).await;
    let _: String = server.ask("CLIENT PAUSE 4000").await;
    sleep(Duration::from_millis(1_500)).await;
    let begun = log.begun();
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!(log.begun(), begun);
    assert!(begun < 16, "there is more in hand");
    until("it goes on", async || log.begun() > begun).await;
    working.kill().await;
}

#[tokio::test]
async fn what_a_server_has_forgotten_is_handled_again() {
    let (server, topic) = (Server::start().await, topic());
    let (name, record) = (topic.name.as_ref(), format!("{{{}}}:group:g", topic.name));
    let log = Log::new(&topic, Duration::ZERO);
    let working = Working::start(&server.url, ordered(&topic), log.clone());
    let publisher = server.publisher();
    publisher.publish(&topic, Record::new("", "0").with_key("a")).await.unwrap();
    settled(&server, &topic, 1, 0).await;
    let before: Vec<String> = server.ask(&format!("HMGET {record} cursor read handled commits")).await;
    for n in 1..4 {
        publisher.publish(&topic, Record::new("", n.to_string()).with_key("a")).await.unwrap();
        settled(&server, &topic, n + 1, 0).await;
    }
    // As after a failover to a replica that had heard of the first commit only.
    let [cursor, read, handled, commits] = before.try_into().unwrap();
    let _: String = server.ask(&format!("XGROUP SETID {name} g {cursor} ENTRIESREAD {read}")).await;
    let _: String = server.ask(&format!("LTRIM {} 0 0", log.list("a"))).await;
    let back = format!("HSET {record} cursor {cursor} read {read} handled {handled} commits {commits}");
    let _: usize = server.ask(&back).await;
    settled(&server, &topic, 4, 0).await;
    log.is_in_order(&server, "a", 0..4).await;
    assert_eq!(log.begun(), 7);
    working.stop().await;
}

/// What the command `headrace partitions` writes: number, parent and fence of the new partitions.
async fn grown(server: &Server, topic: &Topic, to: u32, children: &[(u32, &str, &str)]) {
    let name = topic.name.as_ref();
    for (number, parent, fence) in children {
        let born = format!("HSET {{{name}.{number}}}:packed parent {parent} fence {fence}");
        let _: usize = server.ask(&born).await;
    }
    for number in 0..to {
        let _: usize = server.ask(&format!("HSET {{{name}.{number}}}:packed of {to} to {to}")).await;
    }
    let before = if to == 4 { "2" } else { "2 4" };
    let mut call = cmd("HSET");
    call.arg("headrace:grown").arg(name).arg(before);
    let _: usize = Node::new(&server.url).unwrap().command(&call).await.unwrap();
    let _: usize = server.ask(&format!("HSET headrace:topics {name} {to}")).await;
}

#[tokio::test]
async fn a_key_that_moves_twice_waits_for_where_it_was_first() {
    let (server, topic) = (Server::start().await, topic().partitions(2));
    let name = topic.name.as_ref();
    let of = |key: &String, count: u32| partition_of(key.as_bytes(), count);
    let moved = (0..10_000).map(key).find(|key| (of(key, 2), of(key, 4), of(key, 8)) == (0, 2, 6)).unwrap();
    let log = Log::new(&topic, Duration::ZERO);
    let publisher = server.publisher();
    publisher.publish(&topic, Record::new("flaky", "0").with_key(moved.as_str())).await.unwrap();
    let fence: Vec<(String, Vec<(String, String)>)> = server.ask(&format!("XRANGE {name}.0 - +")).await;
    let mut slow = ordered(&topic);
    slow.retry.first = Duration::from_secs(1);
    let working = Working::start(&server.url, slow, log.clone());
    until("it has failed", async || log.begun() == 1).await;
    grown(&server, &topic, 4, &[(2, &format!("{name}.0"), &fence[0].0)]).await;
    grown(&server, &topic, 8, &[(6, &format!("{name}.2"), "0-0")]).await;
    publisher.publish(&topic, Record::new("", "1").with_key(moved.as_str())).await.unwrap();
    settled(&server, &topic.clone().partitions(8), 2, 0).await;
    log.is_in_order(&server, &moved, 0..2).await;
    assert_eq!(log.calls_of(&moved), [(0, 1), (0, 2), (0, 3), (1, 1)]);
    working.stop().await;
}

#[tokio::test]
async fn a_new_partition_waits_for_what_its_keys_had_before() {
    let (server, topic) = (Server::start().await, topic().partitions(2));
    let name = topic.name.as_ref();
    // A key that moves from partition 0 of 2 to partition 2 of 4.
    let moved = (0..1_000).map(key).find(|key| partition_of(key.as_bytes(), 4) == 2).unwrap();
    let log = Log::new(&topic, Duration::ZERO);
    let publisher = server.publisher();
    publisher.publish(&topic, Record::new("flaky", "0").with_key(moved.as_str())).await.unwrap();
    let fence: Vec<(String, Vec<(String, String)>)> = server.ask(&format!("XRANGE {name}.0 - +")).await;
    let mut slow = ordered(&topic);
    slow.retry.first = Duration::from_secs(1);
    let working = Working::start(&server.url, slow, log.clone());
    until("it has failed", async || log.begun() == 1).await;
    grown(&server, &topic, 4, &[(2, &format!("{name}.0"), &fence[0].0)]).await;
    publisher.publish(&topic, Record::new("", "1").with_key(moved.as_str())).await.unwrap();
    let four = topic.partitions(4);
    settled(&server, &four, 2, 0).await;
    log.is_in_order(&server, &moved, 0..2).await;
    assert_eq!(log.calls_of(&moved), [(0, 1), (0, 2), (0, 3), (1, 1)]);
    assert_eq!(server.ask::<usize>(&format!("HGET {{{name}.2}}:group:g drained", name = four.name)).await, 1);
    working.stop().await;
}

#[tokio::test]
async fn a_group_has_one_mode() {
    let (server, topic) = (Server::start().await, topic());
    let log = Log::new(&topic, Duration::ZERO);
    let working = Working::start(&server.url, ordered(&topic), log.clone());
    let workers = format!("ZCARD {{{}}}:workers:g", topic.name);
    let owned = async || owners(&server, &topic).await.keys().all(|owner| !owner.is_empty());
    until("it has joined", owned).await;
    working.stop().await;
    assert_eq!(server.ask::<usize>(&workers).await, 0);
    let shared = Working::start(&server.url, subscription(&topic), log);
    let error = shared.ended().await.unwrap_err().to_string();
    assert!(error.contains("used in ordered mode") && error.contains("subscribes it shared"), "{error}");
}
