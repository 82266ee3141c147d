//! The service as its callers see it.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{Server, until};
use service::api::proto::PlaceOrderRequest;
use service::api::proto::orders_client::OrdersClient;
use service::config::Config;
use service::headrace::{Record, partition_of, stream_of};
use service::orders::PLACED;
use service::topics::{ACCEPTED, GROUP, ORDERS};
use service::{Error, health, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

const SERVICE: &str = "orders.v1.Orders";

/// The service at work, and a client of it.
struct Service {
    grpc: SocketAddr,
    http: SocketAddr,
    channel: Channel,
    stop: CancellationToken,
    running: JoinHandle<Result<(), Error>>,
}

impl Service {
    /// With these variables set.
    async fn start(server: &Server, variables: &[(&str, &str)]) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = Config::from(|name| match name {
            "APP_REDIS_URL" => Some(server.url.clone()),
            "APP_GRPC_ADDR" => Some(free.to_string()),
            _ => variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(config.unwrap(), listener, stop.clone()));
        let channel = Endpoint::from_shared(format!("http://{free}")).unwrap().connect_lazy();
        Self { grpc: free, http, channel, stop, running }
    }

    async fn place(
        &self,
        order_id: Option<&str>,
        customer: &str,
        amount_cents: i64,
    ) -> Result<String, Status> {
        let order = PlaceOrderRequest {
            order_id: order_id.map(str::to_owned),
            customer: customer.to_owned(),
            amount_cents,
        };
        self.send(Request::new(order)).await
    }

    async fn send(&self, request: Request<PlaceOrderRequest>) -> Result<String, Status> {
        let answer = OrdersClient::new(self.channel.clone()).place_order(request).await;
        answer.map(|answer| answer.into_inner().order_id)
    }

    /// Its health, [`None`] if it does not answer.
    async fn health(&self, name: &str) -> Option<ServingStatus> {
        let request = HealthCheckRequest { service: name.to_owned() };
        let answer = HealthClient::new(self.channel.clone()).check(request).await;
        answer.ok().map(|answer| answer.into_inner().status())
    }

    async fn watch(&self, name: &str) -> Streaming<HealthCheckResponse> {
        let request = HealthCheckRequest { service: name.to_owned() };
        HealthClient::new(self.channel.clone()).watch(request).await.unwrap().into_inner()
    }

    async fn is(&self, status: ServingStatus) {
        let what = format!("it is {}", status.as_str_name());
        until(&what, async || self.health(SERVICE).await == Some(status)).await;
        assert_eq!(self.health("").await, Some(status));
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    /// It ends by itself, soon.
    async fn ended(self) {
        timeout(Duration::from_secs(20), self.running).await.unwrap().unwrap().unwrap();
    }
}

/// A server that a test may do with what it likes.
async fn own_server() -> Option<Server> {
    let server = Server::start().await;
    if !server.is_own() {
        eprintln!("NOT RUN: needs a server of its own");
        return None;
    }
    Some(server)
}

#[tokio::test]
async fn an_order_is_accepted_once_and_the_service_stops_cleanly() {
    let Some(server) = own_server().await else { return };
    let service = Service::start(&server, &[("APP_GRACE_SECONDS", "0.5")]).await;
    service.is(ServingStatus::Serving).await;
    health::probe(service.http).await.unwrap();
    assert_eq!(service.get("/readyz").await, (200, "ready\n".to_owned()));

    for _ in 0..3 {
        assert_eq!(service.place(Some("order-1"), "ann", 1_250).await.unwrap(), "order-1");
    }
    until("it is handled", async || server.ask::<Option<i64>>("HGET revenue ann").await.is_some()).await;
    assert!(!service.place(None, "ann", 1_250).await.unwrap().is_empty());
    until("both are handled", async || server.ask::<i64>("HGET revenue ann").await == 2_500).await;
    assert_eq!(server.entries(&ORDERS).await.len(), 2);
    assert_eq!(server.entries(&ACCEPTED).await.len(), 2);
    let (_, metrics) = service.get("/metrics").await;
    for line in ["handled_total{outcome=\"handled\"} 2", "published_total 4", "in_flight 0"] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }

    let _silent = TcpStream::connect(service.grpc).await.unwrap();
    let mut watch = service.watch(SERVICE).await;
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    service.stop.cancel();
    // Whoever watches is told at once, and then let go: nothing waits for it.
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert_eq!(service.get("/readyz").await, (503, "stopping\n".to_owned()));
    assert_eq!(service.place(Some("order-2"), "bob", 100).await.unwrap(), "order-2", "during the grace");
    let last = timeout(Duration::from_secs(5), watch.message()).await;
    assert!(last.unwrap().unwrap().is_none());
    let (http, channel) = (service.http, service.channel.clone());
    service.ended().await;
    assert_eq!(server.workers(&ORDERS, GROUP).await, 0);
    assert!(TcpStream::connect(http).await.is_err());
    let late = OrdersClient::new(channel).place_order(PlaceOrderRequest::default()).await.unwrap_err();
    assert_eq!(late.code(), Code::Unavailable);
}

#[tokio::test]
async fn what_others_publish_is_handled_or_rests_in_the_dead_letters() {
    let Some(server) = own_server().await else { return };
    let service = Service::start(&server, &[]).await;
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
    service.stop.cancel();
    service.ended().await;
}

#[tokio::test]
async fn what_cannot_be_meant_is_told_from_what_may_pass() {
    let Some(mut server) = own_server().await else { return };
    let patience = [("APP_PUBLISH_PATIENCE_SECONDS", "0.5"), ("APP_MESSAGE_BYTES_MAX", "1000")];
    let service = Service::start(&server, &patience).await;
    service.is(ServingStatus::Serving).await;

    let long = "x".repeat(1_000);
    let wrong = [
        (Some("no good"), "ann", 100, Code::InvalidArgument, "order_id: expected 1 to 128"),
        (Some(""), "ann", 100, Code::InvalidArgument, "order_id: expected 1 to 128"),
        (None, "", 100, Code::InvalidArgument, "customer: expected one"),
        (None, "ann", 0, Code::InvalidArgument, "amount_cents: expected more than 0, got 0"),
        (None, long.as_str(), 100, Code::OutOfRange, "the limit is: 1000 bytes"),
    ];
    for (order_id, customer, amount_cents, code, text) in wrong {
        let status = service.place(order_id, customer, amount_cents).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(text), "{status}");
    }
    assert_eq!(service.health("no.such.Service").await, None);

    server.kill();
    service.is(ServingStatus::NotServing).await;
    let status = service.place(Some("order-1"), "ann", 100).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("repeat the call with order_id \"order-1\""), "{status}");
    assert_eq!(service.get("/livez").await.0, 200);

    server.start_again().await;
    service.is(ServingStatus::Serving).await;
    for _ in 0..2 {
        service.place(Some("order-1"), "ann", 100).await.unwrap();
    }
    until("it is handled", async || server.ask::<Option<i64>>("HGET revenue ann").await == Some(100)).await;
    assert_eq!(server.entries(&ORDERS).await.len(), 1);
    service.stop.cancel();
    service.ended().await;
}

#[tokio::test]
async fn a_call_has_its_time_and_is_answered_also_when_the_service_stops() {
    let Some(mut server) = own_server().await else { return };
    let times = [("APP_REQUEST_TIMEOUT_SECONDS", "5"), ("APP_PUBLISH_PATIENCE_SECONDS", "60")];
    let service = Service::start(&server, &times).await;
    service.is(ServingStatus::Serving).await;
    server.kill();
    let status = service.place(Some("order-1"), "ann", 100).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(status.message().contains("with the same order_id"), "{status}");

    let (begun, back) = tokio::join!(service.place(Some("order-2"), "bob", 100), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        service.stop.cancel();
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.start_again().await;
        server
    });
    assert_eq!(begun.unwrap(), "order-2");
    service.ended().await;
    // The first is there too: a caller that gives up does not stop what it has begun.
    assert_eq!(back.entries(&ORDERS).await.len(), 2);
}

#[tokio::test]
async fn a_trace_goes_on_in_the_event() {
    let Some(server) = own_server().await else { return };
    let service = Service::start(&server, &[]).await;
    service.is(ServingStatus::Serving).await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let order = PlaceOrderRequest { order_id: None, customer: "ann".to_owned(), amount_cents: 100 };
    let mut request = Request::new(order);
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    service.send(request).await.unwrap();
    until("it is handled", async || server.entries(&ACCEPTED).await.len() == 1).await;
    for topic in [ORDERS, ACCEPTED] {
        let rows = server.entries(&topic).await;
        assert!(rows[0].1.contains(&("traceparent".to_owned(), parent.to_owned())), "{rows:?}");
    }
    service.stop.cancel();
    service.ended().await;
}
