//! The server as a thing that can be called: connects, connects again, loads the scripts.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, Cmd, FromRedisValue, IntoConnectionInfo, RedisError, Value, cmd};

use super::durability::{self, Durability};
use super::error::Error;
use super::limits;
use super::scripts::{self, Script};

/// Locks; a panic elsewhere does not make it unusable, because nothing is left half done under these locks.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection, from its opening to its end. Clones share it.
#[derive(Clone)]
pub(crate) struct Wire {
    connection: MultiplexedConnection,
    /// Tells it from the connections before and after it.
    pub life: u64,
}

impl Wire {
    /// Sends a command and returns its reply; commands are executed in the order of their sending.
    pub async fn send(&mut self, command: &Cmd) -> Result<Value, RedisError> {
        // An error of the server comes as a value.
        match self.connection.send_packed_command(command).await? {
            Value::ServerError(error) => Err(error.into()),
            reply => Ok(reply),
        }
    }
}

/// A server, called over a shared connection; blocking reads get further ones.
///
/// A call that fails with [`Error::Unreachable`] has an unknown outcome; the next call connects again.
pub struct Node {
    client: Client,
    wire: Mutex<Option<Wire>>,
    /// Held by who opens the shared connection; why the last attempt failed.
    opening: tokio::sync::Mutex<Option<Error>>,
    /// Attempts to open it that failed.
    failures: AtomicU64,
    lives: AtomicU64,
    durability: Durability,
    /// The server has passed the gate.
    passed: AtomicBool,
}

impl Node {
    /// Connects on first use; then every call is refused as long as the server may lose what it has acknowledged. Fails if the URL
    /// can never work.
    pub fn new(url: &str) -> Result<Self, Error> {
        // Small writes must not wait for earlier ones to be acknowledged.
        let info = url.into_connection_info()?.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        Ok(Self {
            client: Client::open(info)?,
            wire: Mutex::new(None),
            opening: tokio::sync::Mutex::new(None),
            failures: AtomicU64::new(0),
            lives: AtomicU64::new(0),
            durability: Durability::default(),
            passed: AtomicBool::new(false),
        })
    }

    /// With this level of durability.
    #[must_use]
    pub const fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// A further connection, given up after so long a silence. The client library's default of 500 ms is shorter than
    /// a slow fsync or a blocking read, and a read that is given up strands what it was given.
    pub(crate) async fn open(&self, silence: Duration) -> Result<Wire, Error> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(limits::CONNECT))
            .set_response_timeout(Some(silence))
            .set_pipeline_buffer_size(1_024);
        let connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        Ok(Wire { connection, life: self.lives.fetch_add(1, Ordering::Relaxed) + 1 })
    }

    /// The shared connection, opened if need be; concurrent callers share one attempt.
    pub(crate) async fn wire(&self) -> Result<Wire, Error> {
        if let Some(wire) = self.connected() {
            return Ok(wire);
        }
        let failures = self.failures.load(Ordering::Acquire);
        let mut failed = self.opening.lock().await;
        if let Some(wire) = self.connected() {
            return Ok(wire);
        }
        // The attempt that this caller waited for has failed: one of its own would make those behind it wait once more.
        if self.failures.load(Ordering::Acquire) > failures
            && let Some(error) = failed.as_ref()
        {
            return Err(error.clone());
        }
        let opened = self.open_with_scripts().await;
        match &opened {
            Ok(wire) => *lock(&self.wire) = Some(wire.clone()),
            Err(error) => {
                *failed = Some(error.clone());
                self.failures.fetch_add(1, Ordering::Release);
            }
        }
        opened
    }

    async fn open_with_scripts(&self) -> Result<Wire, Error> {
        let mut wire = self.open(limits::REQUEST).await?;
        if !self.passed.load(Ordering::Acquire) {
            durability::enforce(&mut wire, self.durability).await?;
            self.passed.store(true, Ordering::Release);
        }
        for script in scripts::ALL {
            load(&mut wire, script).await?;
        }
        Ok(wire)
    }

    /// The shared connection if it is there right now.
    pub(crate) fn connected(&self) -> Option<Wire> {
        lock(&self.wire).clone()
    }

    /// Gives up the shared connection if it is still this one; the next call opens another.
    pub(crate) fn drop_wire(&self, life: u64) {
        let mut current = lock(&self.wire);
        if current.as_ref().is_some_and(|wire| wire.life == life) {
            *current = None;
        }
    }

    /// Judges a reply of the shared connection: one that is broken, or leads to a server that is no primary, is given up.
    pub(crate) fn judge<T>(&self, life: u64, reply: Result<T, RedisError>) -> Result<T, Error> {
        reply.map_err(|error| {
            if error.code().is_none_or(|code| code == "READONLY") {
                self.drop_wire(life);
            }
            error.into()
        })
    }

    /// Sends a plain command.
    pub async fn command<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        let mut wire = self.wire().await?;
        let reply = wire.send(command).await;
        Ok(redis::from_redis_value(self.judge(wire.life, reply)?).map_err(RedisError::from)?)
    }

    /// Sends a call that [`Script::call`] began; loads the script again if the server has forgotten it.
    pub(crate) async fn evaluate(&self, script: Script, call: &Cmd) -> Result<Value, Error> {
        let mut wire = self.wire().await?;
        self.evaluate_over(&mut wire, script, call).await
    }

    /// As [`Self::evaluate`], over this connection: what the call says is true of it alone.
    pub(crate) async fn evaluate_over(
        &self,
        wire: &mut Wire,
        script: Script,
        call: &Cmd,
    ) -> Result<Value, Error> {
        let mut reply = wire.send(call).await;
        if reply.as_ref().is_err_and(|error| error.code() == Some("NOSCRIPT")) {
            load(wire, script).await?;
            reply = wire.send(call).await;
        }
        self.judge(wire.life, reply)
    }

    /// Runs a script with these keys and arguments.
    pub(crate) async fn call<T: FromRedisValue>(
        &self,
        script: Script,
        keys: &[&str],
        args: &[&str],
    ) -> Result<T, Error> {
        let mut call = script.call(keys.len());
        call.arg(keys).arg(args);
        Ok(redis::from_redis_value(self.evaluate(script, &call).await?).map_err(RedisError::from)?)
    }

    /// Whether the server answers now.
    pub async fn ping(&self) -> Result<(), Error> {
        self.command::<String>(&cmd("PING")).await.map(drop)
    }
}

async fn load(wire: &mut Wire, script: Script) -> Result<(), Error> {
    match wire.send(cmd("SCRIPT").arg("LOAD").arg(script.text())).await {
        Ok(_) => Ok(()),
        Err(error) if error.code() == Some("ERR") => Err(Error::refused(
            "ERR",
            format!(
                "the server does not take our scripts: it must be Redis 7.0 or newer, or Valkey 7.2 or newer [{error}]"
            ),
        )),
        Err(error) => Err(error.into()),
    }
}
