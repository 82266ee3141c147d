//! The gate: does this server keep what it acknowledges? It looks once, when the program connects.

use std::collections::HashMap;

use redis::{Cmd, FromRedisValue, cmd};

use super::error::Error;
use super::node::Wire;

/// What is done with a server that may lose what it has acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// It is refused.
    #[default]
    Fsync,
    /// It is used, with a warning.
    Relaxed,
}

impl std::str::FromStr for Durability {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        match name {
            "fsync" => Ok(Self::Fsync),
            "relaxed" => Ok(Self::Relaxed),
            _ => Err(()),
        }
    }
}

/// What must be true of the server, and what is lost else; the gravest first.
const WANTED: [(&str, &str, &str); 4] = [
    ("appendonly", "yes", "a restart forgets everything since the last snapshot"),
    ("appendfsync", "always", "a crash loses the last seconds of what was acknowledged"),
    ("no-appendfsync-on-rewrite", "no", "a crash loses what was acknowledged while its file was rewritten"),
    (POLICY, "noeviction", "events are evicted when the memory is full"),
];
const POLICY: &str = "maxmemory-policy";

/// Refuses settings that break the promises, or warns of them. A server that hides its settings (most managed ones) is judged by what
/// it tells.
pub(crate) async fn enforce(wire: &mut Wire, level: Durability) -> Result<(), Error> {
    let mut found = HashMap::<String, String>::new();
    for name in WANTED.iter().map(|(name, ..)| *name).chain(["maxmemory"]) {
        found.extend(
            ask::<HashMap<_, _>>(wire, cmd("CONFIG").arg("GET").arg(name)).await?.unwrap_or_default(),
        );
    }
    let info = ask::<String>(wire, cmd("INFO").arg("persistence")).await?.unwrap_or_default();
    if info.contains("aof_enabled:0") {
        found.insert("appendonly".to_owned(), "no".to_owned());
    }
    if found.get("maxmemory").is_some_and(|limit| limit == "0") {
        found.remove(POLICY); // there is no limit, so nothing is evicted
    }
    for (name, wanted, otherwise) in WANTED {
        let Some(found) = found.get(name).filter(|found| *found != wanted) else { continue };
        let fix = format!("CONFIG SET {name} {wanted}");
        if level == Durability::Fsync {
            let text = format!(
                "the server may lose events: {name} is {found}, and so {otherwise}; fix: {fix} (`headrace doctor` finds \
                 everything), or accept it with APP_DURABILITY=relaxed"
            );
            return Err(Error::refused("DURABILITY", text));
        }
        tracing::warn!(setting = name, found, wanted, fix, "the server may lose events: {otherwise}");
    }
    Ok(())
}

/// [`None`]: the server does not tell us.
async fn ask<T: FromRedisValue>(wire: &mut Wire, question: &Cmd) -> Result<Option<T>, Error> {
    match wire.send(question).await.map_err(Error::from) {
        Ok(reply) => Ok(redis::from_redis_value(reply).ok()),
        Err(error) if error.may_pass() => Err(error),
        Err(_) => Ok(None),
    }
}
