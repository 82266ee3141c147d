//! The one place where a server's and a client library's errors become ours.
//!
//! Three answers to "did it happen?": surely not and may be repeated ([`Error::Full`], [`Error::Grew`]), unknown
//! ([`Error::Unreachable`]: the call is repeated, because every call of ours is idempotent), never will ([`Error::Refused`]).

use redis::{ErrorKind, RedisError};

/// Why a call to the server failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The server did not answer, or not now. Whether the call was executed is unknown; it may be repeated.
    #[error("{0}")]
    Unreachable(String),
    /// The server takes no writes at present. Nothing was written.
    #[error("{0}")]
    Full(String),
    /// A topic has this many partitions now, 0: it is getting more at this moment. Nothing was written.
    #[error(
        "the topic has {0} partitions now (0: it is getting more; was `headrace partitions` interrupted? then run it again)"
    )]
    Grew(u32),
    /// The server said no, and will again.
    #[error("{text}")]
    Refused {
        /// The first word of the server's answer.
        code: String,
        /// What to do about it.
        text: String,
    },
}

const NOT_NOW: &[(&str, &str)] = &[
    ("LOADING", "the server is loading its data; waiting for it"),
    ("BUSY", "the server is busy with a slow script; waiting (an operator may send SCRIPT KILL)"),
    ("MASTERDOWN", "this replica has lost its primary; waiting for a failover"),
    ("READONLY", "this server is a read-only replica; connecting again (a failover may be under way)"),
    ("CLUSTERDOWN", "the cluster is down; waiting for a failover"),
    ("NOSCRIPT", "the server has forgotten the scripts; loading them again"),
    ("TRYAGAIN", "the slot is being moved; trying again"),
    ("NOREPLICAS", "not enough replicas are connected (min-replicas-to-write); waiting for them"),
    ("UNBLOCKED", "a blocking read was ended by the server; reading again"),
];
const FULL: &[(&str, &str)] = &[
    ("OOM", "the server is out of memory (maxmemory); consume, trim or raise maxmemory, nothing was lost"),
    ("MISCONF", "the server cannot write to its disk and refuses writes; free its disk, nothing was lost"),
    (
        "BACKPRESSURE",
        "the topic is at its cap; groups are behind, one is forgotten (see `headrace groups`), or there is none (`keep_for_first_group`)",
    ),
];
const NEVER: &[(&str, &str)] = &[
    (
        "WRONGTYPE",
        "a key of this topic holds another type of data: choose another topic name or move that key away",
    ),
    (
        "NOPERM",
        "this user may not do that: extend its ACL (the rights are listed in Headrace's wire reference)",
    ),
    ("NOAUTH", "the server wants a password: put it into the URL, redis://user:password@host"),
    ("WRONGPASS", "wrong user name or password in the URL"),
    (
        "DENIED",
        "the server is in protected mode and accepts only local clients: give it a password or bind it properly",
    ),
    ("MOVED", "the server is part of a Cluster, which this client does not follow: use a single server"),
    ("CROSSSLOT", "the server is part of a Cluster, which this client does not follow: use a single server"),
    ("NOGROUP", "the group does not exist on the server"),
    ("FENCED", "another has taken its place"),
    ("DESTROYED", "the group was destroyed on the server while it was in use"),
    ("MODE", "the group is used in the other mode on the server"),
];

fn advice(list: &[(&'static str, &'static str)], code: &str) -> Option<&'static str> {
    list.iter().find(|(known, _)| *known == code).map(|(_, advice)| *advice)
}

impl Error {
    /// A refusal of our own, worded like the server's.
    pub(crate) fn refused(code: &str, text: impl Into<String>) -> Self {
        Self::Refused { code: code.to_owned(), text: text.into() }
    }

    /// The first word of the server's answer, if it refused.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            _ => None,
        }
    }

    /// Whether nothing was written, for a reason that may last and that only others can remove.
    pub(crate) fn is_held_up(&self) -> bool {
        matches!(self, Self::Full(_) | Self::Grew(0))
    }

    /// Whether the same call can succeed later.
    pub fn may_pass(&self) -> bool {
        !matches!(self, Self::Refused { .. })
    }
}

impl From<RedisError> for Error {
    fn from(error: RedisError) -> Self {
        let Some(code) = error.code() else {
            return match error.kind() {
                ErrorKind::AuthenticationFailed => Self::refused(
                    "WRONGPASS",
                    format!("the server does not accept the user name and password of the URL [{error}]"),
                ),
                ErrorKind::InvalidClientConfig => {
                    Self::refused("URL", format!("the URL of the server cannot be used: {error}"))
                }
                ErrorKind::UnexpectedReturnType => Self::refused(
                    "ANSWER",
                    format!("the server answered what no script of ours answers: {error}"),
                ),
                _ => Self::Unreachable(format!(
                    "no answer from the server; is it up, and the URL right? [{error}]"
                )),
            };
        };
        if code == "GREW" {
            return Self::Grew(error.detail().and_then(|n| n.trim().parse().ok()).unwrap_or(0));
        }
        let text = |advice: &str| format!("{advice} [{error}]");
        if let Some(advice) = advice(NOT_NOW, code) {
            Self::Unreachable(text(advice))
        } else if let Some(advice) = advice(FULL, code) {
            Self::Full(text(advice))
        } else if error.detail().is_some_and(|detail| detail.contains("max number of clients")) {
            Self::Unreachable(text("the server has no room for another client (maxclients)"))
        } else {
            Self::refused(code, text(advice(NEVER, code).unwrap_or("the server refused")))
        }
    }
}
