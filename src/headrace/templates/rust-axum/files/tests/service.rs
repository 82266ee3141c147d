//! The service as its callers see it.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{Server, until};
use serde_json::{Value, json};
use service::config::Config;
use service::headrace::{Record, partition_of, stream_of};
use service::orders::PLACED;
use service::topics::{ACCEPTED, GROUP, ORDERS};
use service::{health, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

async fn ask(address: SocketAddr, method: &str, path: &str, key: Option<&str>, body: &str) -> (u16, String) {
    let key = key.map(|key| format!("Idempotency-Key: {key}\r\n")).unwrap_or_default();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n{key}Content-Length: {length}\r\n\r\n{body}"
    );
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn an_order_is_accepted_once_and_the_service_stops_cleanly() {
    let server = Server::start().await;
    if !server.is_own() {
        return eprintln!("NOT RUN: needs a server of its own");
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = Config::from(|name| match name {
        "APP_REDIS_URL" => Some(server.url.clone()),
        "APP_GRACE_SECONDS" => Some("0.5".to_owned()),
        _ => None,
    });
    let stop = CancellationToken::new();
    let running = tokio::spawn(run(config.unwrap(), listener, stop.clone()));
    until("it is ready", async || ask(address, "GET", "/readyz", None, "").await.0 == 200).await;
    health::probe(address).await.unwrap();

    let order = json!({ "customer": "ann", "amount_cents": 1250 }).to_string();
    let key = format!("order-{}", std::process::id());
    for _ in 0..3 {
        let (status, body) = ask(address, "POST", "/orders", Some(&key), &order).await;
        assert_eq!((status, body), (202, json!({ "order_id": key }).to_string()));
    }
    until("it is handled", async || server.ask::<Option<i64>>("HGET revenue ann").await.is_some()).await;
    assert_eq!(ask(address, "POST", "/orders", None, &order).await.0, 202);
    until("both are handled", async || server.ask::<i64>("HGET revenue ann").await == 2_500).await;
    assert_eq!(server.entries(&ORDERS).await.len(), 2);
    assert_eq!(server.entries(&ACCEPTED).await.len(), 2);

    let wrong = [
        ("/orders", Some("no good"), order.as_str(), 422),
        ("/orders", None, r#"{"customer":"ann","amount_cents":0}"#, 422),
        ("/orders", None, "{", 400),
        ("/nowhere", None, "{}", 404),
    ];
    for (path, key, body, status) in wrong {
        let (got, problem) = ask(address, "POST", path, key, body).await;
        let problem: Value = serde_json::from_str(&problem).unwrap();
        assert_eq!((got, problem["status"].as_u64()), (status, Some(u64::from(status))), "{problem}");
    }
    let (_, metrics) = ask(address, "GET", "/metrics", None, "").await;
    for line in ["handled_total{outcome=\"handled\"} 2", "published_total 4", "in_flight 0"] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }

    stop.cancel();
    let (status, why) = ask(address, "GET", "/readyz", None, "").await;
    assert_eq!((status, why.as_str()), (503, "stopping\n"));
    tokio::time::timeout(Duration::from_secs(10), running).await.unwrap().unwrap().unwrap();
    assert_eq!(server.workers(&ORDERS, GROUP).await, 0);
}

#[tokio::test]
async fn what_others_publish_is_handled_or_rests_in_the_dead_letters() {
    let server = Server::start().await;
    if !server.is_own() {
        return eprintln!("NOT RUN: needs a server of its own");
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = Config::from(|name| (name == "APP_REDIS_URL").then(|| server.url.clone())).unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(run(config, listener, stop.clone()));
    let order = |kind, amount| {
        let body = format!(r#"{{"order_id":"o-1","customer":"ann","amount_cents":{amount}}}"#);
        Record::new(kind, body).with_key("ann")
    };
    // The topic has one type, so that it need not be said.
    let records =
        [(PLACED, "1"), ("", "10"), ("Renamed", "100"), ("", "-4"), ("", "\"x\""), ("Renamed", "null")];
    let records = records.map(|(kind, amount)| order(kind, amount));
    server.publisher().publish_all(&ORDERS, records.to_vec()).await.unwrap();
    let handled = async || server.ask::<Option<i64>>("HGET revenue ann").await == Some(111);
    until("three are handled", handled).await;
    let number = partition_of(b"ann", ORDERS.partitions);
    let dead = format!("XLEN {{{}}}:dead:{GROUP}", stream_of(&ORDERS.name, number, ORDERS.partitions));
    until("three are dead", async || server.ask::<usize>(&dead).await == 3).await;
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(20), running).await.unwrap().unwrap().unwrap();
}
