//! The configuration: read once from the environment, checked, then frozen.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use crate::headrace::{Durability, is_name};
use crate::topics;

/// Everything that a deployment may choose. `RUST_LOG` and the `OTEL_*` variables are read where they belong.
#[derive(Clone)]
pub struct Config {
    /// `APP_GRPC_ADDR`: where gRPC is served.
    pub grpc_addr: SocketAddr,
    /// `APP_HTTP_ADDR`: where probes and metrics are served.
    pub http_addr: SocketAddr,
    /// `APP_REDIS_URL`: the events server; it may hold a password.
    pub redis_url: String,
    /// `APP_DURABILITY`: `fsync` refuses a server that may lose events, `relaxed` warns of it.
    pub durability: Durability,
    /// `APP_GROUP`: workers of the same group share the events; another group gets every event again.
    pub group: String,
    /// `APP_CONCURRENCY`: handlers at work at the same time.
    pub concurrency: usize,
    /// `APP_ATTEMPTS`: calls of a handler before its event rests in the dead letters.
    pub attempts: u32,
    /// `APP_LEASE_SECONDS`: how long a worker may be silent before others take over.
    pub lease: Duration,
    /// `APP_HANDLER_TIMEOUT_SECONDS`
    pub handler_timeout: Duration,
    /// `APP_REQUEST_TIMEOUT_SECONDS`: for a call whose caller sets no shorter deadline.
    pub request_timeout: Duration,
    /// `APP_PUBLISH_PATIENCE_SECONDS`: how long publishing waits for a server that is away.
    pub publish_patience: Duration,
    /// `APP_MESSAGE_BYTES_MAX`: of a request.
    pub message_bytes_max: usize,
    /// `APP_GRACE_SECONDS`: between "not ready" and the end of listening, for load balancers to notice.
    pub grace: Duration,
    /// `APP_DRAIN_SECONDS`: for handlers at work to end. With the grace and ten seconds more it must be shorter than the
    /// platform's time to kill.
    pub drain: Duration,
}

/// A variable that cannot be meant.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: expected {expected}, got {got:?}")]
pub struct Invalid {
    name: &'static str,
    expected: String,
    got: String,
}

impl Config {
    /// From `APP_*`; what is not set has a default.
    pub fn from_env() -> Result<Self, Invalid> {
        Self::from(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    /// From anything that knows variables by name.
    pub fn from(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, Invalid> {
        let text = |name: &str, default: &str| lookup(name).unwrap_or_else(|| default.to_owned());
        let seconds = |name, default| -> Result<Duration, Invalid> {
            let value: f64 =
                parsed(name, text(name, default), "seconds", |value| (0.0..=86_400.0).contains(value))?;
            Ok(Duration::from_secs_f64(value))
        };
        let name = |name, default| {
            parsed(name, text(name, default), "1 to 128 of A-Z a-z 0-9 . _ -", |value: &String| {
                is_name(value)
            })
        };
        let address = |name, default| parsed(name, text(name, default), "ADDRESS:PORT", |_| true);
        Ok(Self {
            grpc_addr: address("APP_GRPC_ADDR", "0.0.0.0:50051")?,
            http_addr: address("APP_HTTP_ADDR", "0.0.0.0:8080")?,
            redis_url: text("APP_REDIS_URL", "redis://127.0.0.1:6379"),
            durability: parsed(
                "APP_DURABILITY",
                text("APP_DURABILITY", "fsync"),
                "fsync or relaxed",
                |_| true,
            )?,
            group: name("APP_GROUP", topics::GROUP)?,
            concurrency: parsed(
                "APP_CONCURRENCY",
                text("APP_CONCURRENCY", topics::CONCURRENCY),
                "1 to 10000",
                |n| (1..=10_000).contains(n),
            )?,
            attempts: parsed("APP_ATTEMPTS", text("APP_ATTEMPTS", topics::ATTEMPTS), "1 to 100", |n| {
                (1..=100).contains(n)
            })?,
            lease: seconds("APP_LEASE_SECONDS", topics::LEASE_SECONDS)?,
            handler_timeout: seconds("APP_HANDLER_TIMEOUT_SECONDS", topics::HANDLER_TIMEOUT_SECONDS)?,
            request_timeout: seconds("APP_REQUEST_TIMEOUT_SECONDS", "30")?,
            publish_patience: seconds("APP_PUBLISH_PATIENCE_SECONDS", "10")?,
            message_bytes_max: parsed(
                "APP_MESSAGE_BYTES_MAX",
                text("APP_MESSAGE_BYTES_MAX", "65536"),
                "bytes, at most 1 MiB",
                |n| *n <= 1 << 20,
            )?,
            grace: seconds("APP_GRACE_SECONDS", "0")?,
            drain: seconds("APP_DRAIN_SECONDS", "15")?,
        })
    }
}

fn parsed<T: FromStr>(
    name: &'static str,
    got: String,
    expected: &str,
    fits: impl Fn(&T) -> bool,
) -> Result<T, Invalid> {
    match got.parse() {
        Ok(value) if fits(&value) => Ok(value),
        _ => Err(Invalid { name, expected: expected.to_owned(), got }),
    }
}

/// Says where the server is, never the password.
impl fmt::Debug for Config {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.redis_url.rsplit('@').next().unwrap_or_default().split("://").last();
        out.debug_struct("Config")
            .field("grpc_addr", &self.grpc_addr)
            .field("http_addr", &self.http_addr)
            .field("redis", &host)
            .field("durability", &self.durability)
            .field("group", &self.group)
            .field("concurrency", &self.concurrency)
            .field("attempts", &self.attempts)
            .field("lease", &self.lease)
            .field("handler_timeout", &self.handler_timeout)
            .field("grace", &self.grace)
            .field("drain", &self.drain)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &'static str, value: &str) -> Result<Config, Invalid> {
        Config::from(|known| (known == name).then(|| value.to_owned()))
    }

    #[test]
    fn defaults_are_valid() {
        let config = Config::from(|_| None).unwrap();
        assert_eq!(config.group, topics::GROUP);
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        let error = with("APP_ATTEMPTS", "0").unwrap_err().to_string();
        assert_eq!(error, "APP_ATTEMPTS: expected 1 to 100, got \"0\"");
        assert!(with("APP_DURABILITY", "quorum").is_err());
        assert!(with("APP_GROUP", "a b").is_err() && with("APP_LEASE_SECONDS", "NaN").is_err());
    }

    #[test]
    fn secrets_are_not_shown() {
        let config = with("APP_REDIS_URL", "redis://user:secret@host:6379/0").unwrap();
        let shown = format!("{config:?}");
        assert!(shown.contains("host:6379") && !shown.contains("secret"), "{shown}");
    }
}
