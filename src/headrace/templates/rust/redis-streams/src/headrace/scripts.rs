//! The server's scripts. They are part of the wire, byte for byte the same in every language, and called by their digest.

use std::sync::LazyLock;

/// A script by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Script {
    Publish,
    Join,
    Commit,
    Tend,
    Claim,
    Leave,
    Trim,
    Advance,
    Lease,
    Members,
}

/// What is loaded on each new connection.
pub(crate) const ALL: [Script; 10] = [
    Script::Publish,
    Script::Join,
    Script::Commit,
    Script::Tend,
    Script::Claim,
    Script::Leave,
    Script::Trim,
    Script::Advance,
    Script::Lease,
    Script::Members,
];

static DIGESTS: LazyLock<[String; ALL.len()]> =
    LazyLock::new(|| ALL.map(|script| redis::Script::new(script.text()).get_hash().to_owned()));

impl Script {
    /// Its source.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Publish => include_str!("scripts/publish.lua"),
            Self::Join => include_str!("scripts/join.lua"),
            Self::Commit => include_str!("scripts/commit.lua"),
            Self::Tend => include_str!("scripts/tend.lua"),
            Self::Claim => include_str!("scripts/claim.lua"),
            Self::Leave => include_str!("scripts/leave.lua"),
            Self::Trim => include_str!("scripts/trim.lua"),
            Self::Advance => include_str!("scripts/advance.lua"),
            Self::Lease => include_str!("scripts/lease.lua"),
            Self::Members => include_str!("scripts/members.lua"),
        }
    }

    /// What EVALSHA calls it by.
    pub fn digest(self) -> &'static str {
        &DIGESTS[self as usize]
    }

    /// The beginning of a call with this many keys; keys and arguments follow.
    pub fn call(self, keys: usize) -> redis::Cmd {
        let mut call = redis::cmd("EVALSHA");
        call.arg(self.digest()).arg(keys);
        call
    }
}
