//! Real servers for the tests, and what goes wrong on the way to them.
#![allow(dead_code, clippy::missing_panics_doc, clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use redis::{FromRedisValue, cmd};
use service::headrace::{
    Durability, Error, Handler, Node, Observer, Publisher, Record, Retry, Subscription, Topic, Topics,
    Worker, stream_of,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// A server of the test's own with `appendfsync always`, or the one at `TEST_REDIS_URL`.
pub struct Server {
    pub url: String,
    node: Node,
    own: Option<(Child, PathBuf, u16)>,
}

/// Id and fields.
pub type Entry = (String, Vec<(String, String)>);

static SERVERS: AtomicUsize = AtomicUsize::new(0);

impl Server {
    pub async fn start() -> Self {
        let (url, own) = if let Ok(url) = std::env::var("TEST_REDIS_URL") {
            (url, None)
        } else {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let number = SERVERS.fetch_add(1, Ordering::Relaxed);
            let dir = std::env::temp_dir().join(format!("service-test-{}-{number}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            (format!("redis://127.0.0.1:{port}"), Some((launch(&dir, port), dir, port)))
        };
        let node = Node::new(&url).unwrap().durability(Durability::Relaxed); // what is tested judges for itself
        let server = Self { url, node, own };
        server.wait().await;
        server
    }

    /// Whether the test may do with it what it likes.
    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }

    async fn wait(&self) {
        until("the server answers", async || self.node.ping().await.is_ok()).await;
    }

    /// Like a power cut.
    pub fn kill(&mut self) {
        let (child, ..) = self.own.as_mut().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub async fn start_again(&mut self) {
        let (child, dir, port) = self.own.as_mut().unwrap();
        *child = launch(dir, *port);
        self.wait().await;
    }

    /// It crashes and comes back, a few times.
    pub async fn crash(&mut self) {
        for _ in 0..3 {
            sleep(Duration::from_millis(200)).await;
            self.kill();
            sleep(Duration::from_millis(100)).await;
            self.start_again().await;
        }
    }

    /// Publishes one batch after the other, so long apart.
    pub fn publishing(
        &self,
        topic: &Topic,
        apart: Duration,
        batches: impl Iterator<Item = Vec<Record>> + Send + 'static,
    ) -> JoinHandle<()> {
        let (publisher, topic) = (self.publisher(), topic.clone());
        tokio::spawn(async move {
            for batch in batches {
                publisher.publish_all(&topic, batch).await.unwrap();
                sleep(apart).await;
            }
        })
    }

    /// One command, its words separated by blanks.
    pub async fn ask<T: FromRedisValue>(&self, line: &str) -> T {
        let mut words = line.split(' ');
        let mut command = cmd(words.next().unwrap());
        command.arg(words.collect::<Vec<_>>());
        self.node.command(&command).await.unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// What a topic holds, partition by partition.
    pub async fn entries(&self, topic: &Topic) -> Vec<Entry> {
        let mut entries = Vec::new();
        for stream in streams(topic) {
            entries.extend(self.ask::<Vec<Entry>>(&format!("XRANGE {stream} - +")).await);
        }
        entries
    }

    /// How many leases workers of a group have, in whichever mode.
    pub async fn workers(&self, topic: &Topic, group: &str) -> usize {
        let mut count = self.ask(&format!("ZCARD {{{}}}:workers:{group}", topic.name)).await;
        for stream in streams(topic).filter(|stream| *stream != topic.name) {
            count += self.ask::<usize>(&format!("ZCARD {{{stream}}}:workers:{group}")).await;
        }
        count
    }

    pub fn topics(&self) -> Arc<Topics> {
        topics(&self.url)
    }

    pub fn publisher(&self) -> Publisher {
        publisher(&self.url)
    }

    /// Events that are handled by group `g`, by its record.
    pub async fn handled(&self, topic: &Topic) -> usize {
        self.ask::<Option<usize>>(&format!("HGET {{{0}}}:group:g handled", topic.name)).await.unwrap_or(0)
    }

    pub async fn is_settled(&self, topic: &Topic, handled: usize, dead: usize) -> bool {
        if self.handled(topic).await != handled {
            return false;
        }
        let name = &topic.name;
        let (delayed, retrying): (usize, usize) = (
            self.ask(&format!("ZCARD {{{name}}}:delayed:g")).await,
            self.ask(&format!("XLEN {{{name}}}:retry:g")).await,
        );
        let buried: usize = self.ask(&format!("XLEN {{{name}}}:dead:g")).await;
        let pending: Vec<redis::Value> = self.ask(&format!("XPENDING {name} g")).await;
        let nothing = delayed == 0 && retrying == 0 && pending[0] == redis::Value::Int(0);
        nothing && buried == dead
    }

    /// Waits until so many events are handled and dead, and nothing is left.
    pub async fn settled(&self, topic: &Topic, handled: usize, dead: usize) {
        let what = format!("{handled} handled, {dead} dead, nothing left");
        until(&what, async || self.is_settled(topic, handled, dead).await).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some((child, dir, _)) = &mut self.own {
            let _ = child.kill();
            let _ = child.wait();
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

fn launch(dir: &std::path::Path, port: u16) -> Child {
    let chosen = std::env::var("TEST_REDIS_SERVER").ok();
    for program in chosen.as_deref().into_iter().chain(["valkey-server", "redis-server"]) {
        let mut command = Command::new(program);
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.args(["--appendonly", "yes", "--appendfsync", "always", "--dir"]).arg(dir);
        if let Ok(child) = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
            return child;
        }
    }
    panic!(
        "no valkey-server or redis-server on PATH: install one, or set TEST_REDIS_SERVER or TEST_REDIS_URL"
    );
}

pub fn topics(url: &str) -> Arc<Topics> {
    Arc::new(Topics::new(Arc::new(Node::new(url).unwrap())))
}

pub fn publisher(url: &str) -> Publisher {
    Publisher::new(topics(url), Duration::from_secs(30), Arc::new(()))
}

/// Where the events of a topic are.
pub fn streams(topic: &Topic) -> impl Iterator<Item = String> {
    (0..topic.partitions).map(|number| stream_of(&topic.name, number, topic.partitions))
}

/// A topic that no other test has.
pub fn topic() -> Topic {
    static TOPICS: AtomicUsize = AtomicUsize::new(0);
    let number = TOPICS.fetch_add(1, Ordering::Relaxed);
    Topic { name: format!("t{}-{number}", std::process::id()).into(), ..Topic::new("") }
}

/// Group `g` with short times.
pub fn subscription(topic: &Topic) -> Subscription {
    let mut subscription = Subscription::new(topic.clone(), "g");
    subscription.lease = Duration::from_secs(1);
    subscription.retry = Retry { attempts: 3, first: Duration::from_millis(20), ..Retry::default() };
    subscription.timeout = Duration::from_secs(10);
    subscription.drain = Duration::from_secs(5);
    subscription
}

/// A worker at work.
pub struct Working {
    stop: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

impl Working {
    pub fn start(url: &str, subscription: Subscription, handler: impl Handler) -> Self {
        Self::observed(url, subscription, handler, ())
    }

    pub fn observed(url: &str, own: Subscription, handler: impl Handler, observer: impl Observer) -> Self {
        let worker = Worker::new(topics(url), own, handler, Arc::new(observer)).unwrap();
        let stop = CancellationToken::new();
        Self { task: tokio::spawn(worker.run(stop.clone())), stop }
    }

    /// As at SIGTERM.
    pub async fn stop(self) {
        self.stop.cancel();
        timeout(Duration::from_secs(20), self.task).await.unwrap().unwrap().unwrap();
    }

    /// When it ends by itself.
    pub async fn ended(self) -> Result<(), Error> {
        timeout(Duration::from_secs(20), self.task).await.unwrap().unwrap()
    }

    /// As by SIGKILL: nothing is handed back.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// Between client and server: loses questions and answers on demand.
pub struct Proxy {
    pub url: String,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Faults {
    question: AtomicBool,
    answer: AtomicBool,
}

impl Proxy {
    pub async fn start(to: &str) -> Self {
        Self::at("127.0.0.1:0", to).await
    }

    pub async fn at(address: &str, to: &str) -> Self {
        let to = to.trim_start_matches("redis://").to_owned();
        let listener = TcpListener::bind(address).await.unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let faults = Arc::new(Faults::default());
        let own = Arc::clone(&faults);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, to.clone(), Arc::clone(&own)));
            }
        });
        Self { url, faults }
    }

    /// The next answer is lost, and its connection with it.
    pub fn lose_an_answer(&self) {
        self.faults.answer.store(true, Ordering::SeqCst);
    }

    /// What is asked next is lost and, a moment later, its connection.
    pub fn lose_a_question(&self) {
        self.faults.question.store(true, Ordering::SeqCst);
    }
}

async fn pass(mut client: TcpStream, to: String, faults: Arc<Faults>) {
    let Ok(mut server) = TcpStream::connect(to).await else { return };
    let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            n = client.read(&mut asked) => match n {
                Ok(n) if n > 0 => {
                    if faults.question.swap(false, Ordering::SeqCst) {
                        return sleep(Duration::from_millis(20)).await;
                    }
                    if server.write_all(&asked[..n]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
            n = server.read(&mut answered) => match n {
                Ok(n) if n > 0 => {
                    let lost = faults.answer.swap(false, Ordering::SeqCst);
                    if lost || client.write_all(&answered[..n]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
        }
    }
}

pub async fn until(what: &str, mut check: impl AsyncFnMut() -> bool) {
    for _ in 0..6_000 {
        if check().await {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("waited a minute in vain: {what}");
}
