//! Events over Redis Streams, on the wire that all languages share. Made with the service and replaced as a whole when it is
//! upgraded: do not edit.
//!
//! Four promises and what each rests on:
//!
//! * **Published once.** A batch is (producer, epoch, sequence); the server keeps a mark for each producer and drops repeats, so a
//!   lost answer is met by sending the same batch again.
//! * **Applied once.** A handler records what it writes in its [`Context`]. It is written in the same script that acknowledges the
//!   event, and only by the first worker to do so.
//! * **Never lost.** A failure becomes a retry or a dead letter in that same commit. A worker holds a lease; when it ends, others
//!   take over what the worker held. Nothing unread is trimmed.
//! * **In order**, if the subscription says so. A partition is one worker's at a time; it handles the events of a key one after the
//!   other, and what follows one that failed is set aside behind it.
//!
//! They hold on a server that keeps what it has acknowledged: `appendonly yes` and `appendfsync always`. Another one is refused,
//! unless [`Durability::Relaxed`] accepts it.

mod backoff;
mod books;
mod commit;
mod committer;
mod durability;
mod effect;
mod error;
mod event;
mod execute;
#[cfg(test)]
mod golden;
mod handler;
mod heartbeat;
mod joining;
mod keys;
mod limits;
mod node;
mod observer;
mod ordered;
mod packed;
mod parcel;
mod partition;
mod place;
mod producer;
mod publisher;
mod pulse;
mod random;
mod reader;
mod record;
mod reply;
mod retention;
mod runs;
mod scripts;
mod settlement;
mod topic;
mod topics;
mod trace;
mod worker;

pub use durability::Durability;
pub use error::Error;
pub use event::Event;
pub use handler::{Context, Failure, Handler, Retry};
pub use node::Node;
pub use observer::{Observer, Verdict};
pub use parcel::PublishError;
pub use partition::{partition_of, stream_of};
pub use place::{Start, Subscription};
pub use publisher::Publisher;
pub use pulse::Pulse;
pub use random::name as random_name;
pub use record::{Due, Invalid, Record};
pub use topic::{Topic, is_name};
pub use topics::Topics;
pub use trace::adopt;
pub use worker::{Status, Worker};
