//! What must survive: a server that is killed, that forgets its scripts or everything, that is away or allows little; a worker that
//! stops, and handlers that panic.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Proxy, Server, Working, publisher, subscription, topic, topics, until};
use service::headrace::{
    Context, Durability, Event, Failure, Handler, Node, Observer, Publisher, Record, Subscription, Topic,
    Topics, Worker,
};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

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

/// The bodies of what a topic of one partition holds, in their order.
async fn bodies(server: &Server, topic: &Topic) -> Vec<usize> {
    let body = |(_, fields): (String, Vec<(String, String)>)| fields.last().unwrap().1.parse().unwrap();
    server.entries(topic).await.into_iter().map(body).collect()
}

#[tokio::test]
async fn a_server_that_is_killed_and_started_again_loses_nothing() {
    let (mut server, topic) = (Server::start().await, topic());
    if !server.is_own() {
        return eprintln!("NOT RUN: needs a server of its own");
    }
    let slow = Slow::new(&topic, Duration::from_millis(5));
    let working = Working::start(&server.url, subscription(&topic), slow.clone());
    let publishing =
        server.publishing(&topic, Duration::from_millis(5), (0..200).map(|n| numbered(n * 10, 10)));
    server.crash().await;
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

#[tokio::test]
async fn what_is_published_when_the_connection_breaks_does_not_overtake_what_was_on_its_way() {
    let (server, topic) = (Server::start().await, topic());
    let proxy = Proxy::start(&server.url).await;
    let node = Arc::new(Node::new(&proxy.url).unwrap());
    let publisher =
        Publisher::new(Arc::new(Topics::new(Arc::clone(&node))), Duration::from_secs(30), Arc::new(()));
    publisher.publish_all(&topic, numbered(0, 1)).await.unwrap();
    for n in 0..20 {
        proxy.lose_a_question();
        let (node, own, to) = (Arc::clone(&node), publisher.clone(), topic.clone());
        let second = tokio::spawn(async move {
            assert!(node.ping().await.is_err()); // this one sees first that the connection is gone
            own.publish_all(&to, numbered(2 * n + 2, 1)).await.unwrap();
        });
        for _ in 0..5 {
            tokio::task::yield_now().await; // behind its ping
        }
        publisher.publish_all(&topic, numbered(2 * n + 1, 1)).await.unwrap();
        second.await.unwrap();
    }
    assert_eq!(bodies(&server, &topic).await, (0..=40).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_first_events_of_a_program_keep_their_order_while_the_server_is_away() {
    let (server, topic) = (Server::start().await, topic());
    let away = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let publisher = publisher(&format!("redis://{away}"));
    let calls = (0..20).map(|n| {
        let (publisher, topic) = (publisher.clone(), topic.clone());
        tokio::spawn(async move { publisher.publish_all(&topic, numbered(n, 1)).await })
    });
    let calls: Vec<_> = calls.collect();
    sleep(Duration::from_millis(300)).await;
    let _proxy = Proxy::at(&away, &server.url).await;
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(bodies(&server, &topic).await, (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn callers_that_wait_for_a_connection_fail_together() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap(); // nobody accepts
    let node = Arc::new(Node::new(&format!("redis://{}", silent.local_addr().unwrap())).unwrap());
    let began = Instant::now();
    let calls = (0..16).map(|_| {
        let node = Arc::clone(&node);
        tokio::spawn(async move { node.ping().await })
    });
    for call in calls.collect::<Vec<_>>() {
        assert!(call.await.unwrap().is_err());
    }
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed()); // one attempt takes 5 s
}

#[tokio::test]
async fn a_server_that_may_lose_events_is_refused_unless_that_is_accepted() {
    let server = Server::start().await;
    if !server.is_own() {
        return eprintln!("NOT RUN: needs a server of its own");
    }
    let settings = [
        ("appendonly no", "appendonly yes"),
        ("appendfsync everysec", "appendfsync always"),
        ("no-appendfsync-on-rewrite yes", "no-appendfsync-on-rewrite no"),
        ("maxmemory-policy allkeys-lru maxmemory 1gb", "maxmemory-policy noeviction"),
    ];
    for (wrong, right) in settings {
        server.ask::<String>(&format!("CONFIG SET {wrong}")).await;
        for ordered in [false, true] {
            let topic = topic();
            let own = || Subscription { ordered, ..subscription(&topic) };
            let slow = Slow::new(&topic, Duration::ZERO);
            let refused = Working::start(&server.url, own(), slow.clone()).ended().await.unwrap_err();
            assert_eq!(refused.code(), Some("DURABILITY"));
            assert!(refused.to_string().contains(&format!("CONFIG SET {right}")), "{refused}");
            assert!(publisher(&server.url).publish_all(&topic, numbered(0, 1)).await.is_err());
            assert_eq!(server.ask::<usize>(&format!("EXISTS {}", topic.name)).await, 0);

            let node = || Arc::new(Node::new(&server.url).unwrap().durability(Durability::Relaxed));
            let worker = Worker::new(Arc::new(Topics::new(node())), own(), slow.clone(), Arc::new(()));
            let stop = CancellationToken::new();
            let working = tokio::spawn(worker.unwrap().run(stop.clone()));
            let known = Arc::new(Topics::new(node()));
            let publisher = Publisher::new(known, Duration::from_secs(30), Arc::new(()));
            publisher.publish_all(&topic, numbered(0, 1)).await.unwrap();
            until("it is handled", async || server.ask::<usize>(&format!("HLEN {}", slow.seen)).await == 1)
                .await;
            stop.cancel();
            working.await.unwrap().unwrap();
        }
        server.ask::<String>(&format!("CONFIG SET {right}")).await;
    }
}

/// What the wire reference says under "Access rights".
const RIGHTS: &str = "+ping +info +time +config|get +client|id +client|unblock +script|load +evalsha +wait \
    +xadd +xread +xreadgroup +xack +xclaim +xpending +xinfo +xgroup +xdel +xlen +xrange +xtrim \
    +zadd +zrem +zrange +zrangebyscore +zremrangebyscore +zcard +zscore \
    +get +set +exists +type +del +expire +pexpire +pttl +hset +hget +hmget +hsetnx +hincrby";

/// The URL of a user with these rights on this topic and what its handlers write.
async fn limited(server: &Server, topic: &Topic) -> String {
    let name = &topic.name;
    let keys =
        format!("~{name} ~{{{name}}}:* ~{name}.* ~{{{name}.* ~seen:{name} ~headrace:topics ~headrace:grown");
    server.ask::<String>(&format!("ACL SETUSER {name} on >secret resetchannels {keys} {RIGHTS}")).await;
    server.url.replace("redis://", &format!("redis://{name}:secret@"))
}

#[tokio::test]
async fn the_rights_of_the_wire_reference_suffice_for_workers() {
    let server = Server::start().await;
    for (ordered, partitions) in [(false, 1), (false, 2), (true, 1), (true, 2)] {
        let topic = topic().partitions(partitions);
        let url = limited(&server, &topic).await;
        let slow = Slow::new(&topic, Duration::ZERO);
        let working = Working::start(&url, Subscription { ordered, ..subscription(&topic) }, slow.clone());
        publisher(&url).publish_all(&topic, numbered(0, 10)).await.unwrap();
        let handled = async || server.ask::<usize>(&format!("HLEN {}", slow.seen)).await == 10;
        let all = timeout(Duration::from_secs(10), until("all are handled", handled)).await;
        working.stop().await;
        assert!(all.is_ok(), "ordered {ordered}, {partitions} partitions");
    }
}

#[tokio::test]
async fn the_rights_of_the_wire_reference_suffice_to_make_room() {
    let server = Server::start().await;
    let topic = Topic { cap_events: 1, retain_events: 0, ..topic() };
    let url = limited(&server, &topic).await;
    let publisher = Publisher::new(topics(&url), Duration::from_secs(3), Arc::new(()));
    publisher.publish_all(&topic, numbered(0, 1)).await.unwrap();
    server.ask::<String>(&format!("XGROUP CREATE {} done $", topic.name)).await;
    publisher.publish_all(&topic, numbered(1, 1)).await.unwrap();
    assert_eq!(bodies(&server, &topic).await, [1]);
}

#[tokio::test]
async fn a_worker_that_stops_hands_back_what_it_cannot_commit() {
    struct Forward(Topic, Arc<AtomicUsize>);
    impl Handler for Forward {
        async fn handle(&self, _event: &Event, ctx: &mut Context) -> Result<(), Failure> {
            self.1.fetch_add(1, Ordering::SeqCst);
            ctx.publish(&self.0, Record::new("", "{}"))?;
            Ok(())
        }
    }
    let server = Server::start().await;
    for ordered in [false, true] {
        let (from, full) = (topic(), Topic { cap_events: 1, ..topic() });
        server.publisher().publish_all(&full, numbered(0, 1)).await.unwrap();
        server.publisher().publish_all(&from, numbered(0, 3)).await.unwrap();
        let packed = format!("{{{}}}:packed of", full.name);
        for life in 0..2 {
            if life == 1 {
                server.ask::<usize>(&format!("HSET {packed} 0")).await; // as while it is getting more partitions
            }
            let calls = Arc::<AtomicUsize>::default();
            let own = Subscription { ordered, ..subscription(&from) };
            let working = Working::start(&server.url, own, Forward(full.clone(), Arc::clone(&calls)));
            until("it is at work", async || calls.load(Ordering::SeqCst) == 3).await;
            sleep(Duration::from_millis(100)).await; // its commit is refused
            let began = Instant::now();
            working.stop().await;
            assert!(began.elapsed() < Duration::from_secs(4), "ordered {ordered}, life {life}");
            assert_eq!(server.workers(&from, "g").await, 0, "ordered {ordered}: it has left");
            let owner: Option<String> = server.ask(&format!("HGET {{{}}}:group:g owner", from.name)).await;
            assert!(owner.is_none_or(|owner| owner.is_empty()), "ordered {ordered}: the partition is free");
        }
        server.ask::<usize>(&format!("XTRIM {} MAXLEN 0", full.name)).await;
        server.ask::<usize>(&format!("HDEL {packed}")).await;
        let open = Topic { cap_events: 10, ..full.clone() };
        let calls = Arc::<AtomicUsize>::default();
        let own = Subscription { ordered, ..subscription(&from) };
        let working = Working::start(&server.url, own, Forward(open, Arc::clone(&calls)));
        until("all are handled", async || server.handled(&from).await == 3).await;
        working.stop().await;
        assert_eq!(server.ask::<usize>(&format!("XLEN {}", full.name)).await, 3);
        assert_eq!(server.ask::<usize>(&format!("XLEN {{{}}}:dead:g", from.name)).await, 0);
    }
}

/// Panics before there is a future to be awaited, unless its observer is to panic.
struct Eager(bool);

impl Handler for Eager {
    fn handle(&self, _event: &Event, _: &mut Context) -> impl Future<Output = Result<(), Failure>> + Send {
        assert!(!self.0, "as asked");
        async { Ok(()) }
    }
}

impl Observer for Eager {
    fn ended(&self, _took: Duration) {
        assert!(self.0, "as asked");
    }
}

#[tokio::test]
async fn whatever_panics_around_an_event_it_is_tried_as_often_as_any_other() {
    let server = Server::start().await;
    for (ordered, handler) in [(false, true), (true, true), (false, false), (true, false)] {
        let topic = topic();
        server.publisher().publish_all(&topic, numbered(0, 1)).await.unwrap();
        let own = Subscription { ordered, ..subscription(&topic) };
        let working = Working::observed(&server.url, own, Eager(handler), Eager(handler));
        let dead = format!("{{{}}}:dead:g", topic.name);
        let buried = async || server.ask::<usize>(&format!("XLEN {dead}")).await == 1;
        let ended = timeout(Duration::from_secs(10), until("it is dead", buried)).await;
        assert!(ended.is_ok(), "ordered {ordered}, the handler panics: {handler}");
        working.stop().await;
        let rows: Vec<(String, Vec<(String, String)>)> = server.ask(&format!("XRANGE {dead} - +")).await;
        let fields = &rows[0].1;
        let field = |name: &str| fields.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str());
        assert_eq!(field("attempt"), Some("3"));
        assert!(field("reason").unwrap().ends_with("panicked: as asked"), "{:?}", field("reason"));
    }
}

#[tokio::test]
async fn an_entry_with_thousands_of_fields_harms_nobody() {
    for ordered in [false, true] {
        let (server, topic) = (Server::start().await, topic());
        let publisher = server.publisher();
        let publish =
            async |n: &str| publisher.publish(&topic, Record::new("", n).with_key("a")).await.unwrap();
        publish("0").await;
        let mut wide = redis::cmd("XADD");
        wide.arg(topic.name.as_ref()).arg("*");
        for n in 0..5_000 {
            wide.arg(format!("field{n}")).arg("value");
        }
        let _id: String = Node::new(&server.url).unwrap().command(&wide).await.unwrap();
        publish("1").await;
        let own = Subscription { ordered, ..subscription(&topic) };
        let working = Working::start(&server.url, own, Slow::new(&topic, Duration::ZERO));
        let dead = format!("XLEN {{{}}}:dead:g", topic.name);
        until("two are handled, and one is dead", async || {
            server.handled(&topic).await == 2 && server.ask::<usize>(&dead).await == 1
        })
        .await;
        working.stop().await;
    }
}
