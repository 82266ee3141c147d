//! Every bound in one place; names end in their unit. They are the same in every language that shares the wire.

use std::time::Duration;

pub(crate) const BODY_BYTES_MAX: usize = 1 << 20;
pub(crate) const HEADER_BYTES_MAX: usize = 1 << 10;
pub(crate) const HEADERS_MAX: usize = 64;
pub(crate) const KEY_BYTES_MAX: usize = 1 << 10;
pub(crate) const ID_BYTES_MAX: usize = 256;
/// A delay beyond this is a mistake.
pub(crate) const DELAY_MAX: Duration = Duration::from_secs(366 * 86_400);
/// Why an event failed, in one line of at most this.
pub(crate) const REASON_CHARS_MAX: usize = 1_000;

pub(crate) const BATCH_RECORDS_MAX: usize = 1_000;
pub(crate) const BATCH_BYTES_MAX: usize = 1 << 20;
/// Outputs and effects that one handled event may record.
pub(crate) const WRITES_MAX: usize = 1_000;
/// Arguments of one effect; a script can call a command with some 8,000 words.
pub(crate) const EFFECT_WORDS_MAX: usize = 7_900;

/// Records per publish call when more wait.
pub(crate) const PUBLISH_RECORDS: usize = 500;
/// Publish calls in flight; while they fly the next batch fills.
pub(crate) const PUBLISH_WINDOW: usize = 2;
/// Calls of `publish` that wait in one line before callers are held back.
pub(crate) const PUBLISH_WAITING_MAX: usize = 4_096;
/// A producer's mark is forgotten after this long without a publish.
pub(crate) const PRODUCER_IDLE: Duration = Duration::from_secs(7 * 86_400);

pub(crate) const FIRST_READ_RECORDS: usize = 16;
pub(crate) const READ_RECORDS_MAX: usize = 1_000;
/// What one read should bring at most, by the size of the events seen so far.
pub(crate) const READ_BYTES: usize = 4 << 20;
/// A read brings about what is handled in this time: enough to hide the read behind the handling.
pub(crate) const READ_STOCK: Duration = Duration::from_millis(100);
pub(crate) const RENEWALS_PER_LEASE: u32 = 3;
/// How long a settled event waits for slower neighbours of its read before it is committed without them.
pub(crate) const COMMIT_WAIT: Duration = Duration::from_millis(10);
/// Below this many entries a gate for each is cheaper than asking for the pending counts.
pub(crate) const PROOF_MIN: usize = 4;
/// An event that was held by this many workers when they died rests in the dead letters.
pub(crate) const DEATHS_MAX: i64 = 5;
/// From this many on, the worker that took over an event takes nothing else until it is settled.
pub(crate) const DEATHS_APART: i64 = 2;
/// From this many on, an event is taken over without company.
pub(crate) const DEATHS_ALONE: i64 = 4;
/// Ordered mode: a partition in which this many events wait behind failed ones is read no further until they are fewer.
pub(crate) const ASIDE_RECORDS_MAX: usize = 100_000;
/// Ordered mode: a partition that another worker still has is asked for again after this long, should word that it is free be lost.
pub(crate) const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Ordered mode: a new partition whose parent is not done with is looked at again after this long.
pub(crate) const DRAINED: Duration = Duration::from_millis(200);
/// How often a worker looks for what nobody has told it of.
pub(crate) const SWEEP: Duration = Duration::from_secs(60);
/// Events that may be missing from what was trimmed of packed entries: two of them, as writers pack them.
pub(crate) const PACKED_SPARE: u64 = 200;
/// Entries trimmed in one call.
pub(crate) const TRIM_RECORDS: usize = 100_000;
/// How long a stopping worker tries to hand back what is left.
pub(crate) const LEAVE: Duration = Duration::from_secs(10);

pub(crate) const CONNECT: Duration = Duration::from_secs(5);
/// The server may be silent for so long on a call; longer than its slowest fsync.
pub(crate) const REQUEST: Duration = Duration::from_secs(15);
pub(crate) const RETRY_FIRST: Duration = Duration::from_millis(50);
pub(crate) const RETRY_MAX: Duration = Duration::from_secs(2);
/// Different reasons of one outage that are logged.
pub(crate) const REASONS_MAX: usize = 8;
/// Names and values of an entry that is handled. One of another tool with more rests in the dead letters, with the first of them.
pub(crate) const ENTRY_WORDS_MAX: usize = 7_000;

const _: () = assert!(PUBLISH_RECORDS <= BATCH_RECORDS_MAX && READ_RECORDS_MAX <= BATCH_RECORDS_MAX);
const _: () = assert!(BODY_BYTES_MAX <= BATCH_BYTES_MAX);
const _: () = assert!(DEATHS_APART <= DEATHS_ALONE && DEATHS_ALONE < DEATHS_MAX);
