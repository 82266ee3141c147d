//! Does this server keep what it acknowledges?

use redis::cmd;

use super::node::Node;

/// What must be true of it, and what is lost else.
const WANTED: [(&str, &str, &str); 3] = [
    ("appendonly", "yes", "a restart forgets everything since the last snapshot"),
    ("appendfsync", "always", "a crash loses the last seconds of what was acknowledged"),
    ("maxmemory-policy", "noeviction", "events are evicted when the memory is full"),
];

/// Warns of settings that break the promises. A server that hides its settings (most managed ones) is taken at its word.
pub(crate) async fn examine(node: &Node) {
    for (name, wanted, otherwise) in WANTED {
        let found: Result<(String, String), _> = node.command(cmd("CONFIG").arg("GET").arg(name)).await;
        if let Ok((_, found)) = found
            && found != wanted
        {
            let fix = format!("CONFIG SET {name} {wanted}");
            tracing::warn!(setting = name, found, wanted, fix, "the server may lose events: {otherwise}");
        }
    }
}
