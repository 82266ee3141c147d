//! An event as it was read: attribute names and values in turn. Raw, because anybody may have written it.

use std::borrow::Cow;

use serde::de::DeserializeOwned;

use super::handler::Failure;

/// Attributes with a meaning of their own; all others are headers.
const OWN: [&[u8]; 9] =
    [b"id", b"type", b"data", b"key", b"attempt", b"origin", b"reason", b"due", b"replay"];
/// What a copy says anew.
const REPLACED: [&[u8]; 5] = [b"id", b"attempt", b"origin", b"reason", b"due"];

/// One event that a worker was given.
#[derive(Clone, Debug)]
pub struct Event {
    /// The event's place: the id of its entry, and `/n` if it shares the entry with others.
    pub(crate) token: String,
    /// Names and values in turn.
    pub(crate) fields: Vec<Vec<u8>>,
    attempt: u32,
}

impl Event {
    /// An event of a topic.
    pub fn new(token: String, fields: Vec<Vec<u8>>) -> Self {
        Self { token, fields, attempt: 1 }
    }

    /// An event of a retry stream: a copy says its attempt right behind its id.
    pub fn again(token: String, fields: Vec<Vec<u8>>) -> Self {
        let said = fields.get(2).filter(|name| *name == b"attempt").and(fields.get(3));
        let attempt = said.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok()).unwrap_or(1);
        Self { token, fields, attempt }
    }

    fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.fields.chunks_exact(2).find(|pair| pair[0] == name).map(|pair| pair[1].as_slice())
    }

    /// The event's identity, stable over every retry and takeover: use it as idempotency key towards others.
    pub fn id(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.id_bytes())
    }

    pub(crate) fn id_bytes(&self) -> &[u8] {
        self.get(b"id").filter(|id| !id.is_empty()).unwrap_or(self.token.as_bytes())
    }

    /// Where it stood in its partition, as its copies say.
    pub(crate) fn origin(&self) -> &[u8] {
        self.get(b"origin").unwrap_or(self.token.as_bytes())
    }

    /// The name of the event's type as its publisher said it, or empty: to tell types apart use [`Self::one_of`].
    pub fn kind(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.get(b"type").unwrap_or_default())
    }

    /// The ordering key.
    pub fn key(&self) -> Option<&[u8]> {
        self.get(b"key")
    }

    /// Which call of the handler this is, from 1. Time spent in workers that died does not count.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// A header by the name it was published under.
    pub fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        self.headers().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// `CloudEvents` attributes by their name, other headers without their `x-`.
    pub fn headers(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
        self.fields.chunks_exact(2).filter(|pair| !OWN.contains(&pair[0].as_slice())).map(|pair| {
            let name = pair[0].strip_prefix(b"x-").unwrap_or(&pair[0]);
            (String::from_utf8_lossy(name), String::from_utf8_lossy(&pair[1]))
        })
    }

    /// The body.
    pub fn data(&self) -> &[u8] {
        self.get(b"data").unwrap_or_default()
    }

    /// The event, from JSON. A topic of one type needs no more: its events may say any type, or none. [`Failure::Reject`] if the body
    /// does not fit: it will not fit later.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        let body =
            self.get(b"data").ok_or_else(|| Failure::Reject("the entry has no `data` field".to_owned()))?;
        serde_json::from_slice(body).map_err(|error| Failure::Reject(error.to_string()))
    }

    /// Which of the topic's several types the event has; then [`Self::decode`] it. [`Failure::Reject`] if it has none or another:
    /// name all types of the topic, and return `Ok(())` for those that this group does not care for.
    pub fn one_of<'a>(&self, types: &[&'a str]) -> Result<&'a str, Failure> {
        let kind = self.kind();
        types.iter().copied().find(|known| *known == kind).ok_or_else(|| {
            Failure::Reject(format!("unknown event type {kind:?}; this topic has {}", types.join(", ")))
        })
    }

    /// The body as JSON of this type, for those who judge the error themselves: `?` makes a retry of it.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(self.data())
    }

    /// The identity of the n-th output (from 0) of this event handled by a group: the same however often it is handled.
    pub fn derived_id(&self, group: &str, n: usize) -> Vec<u8> {
        [self.id_bytes(), b":", group.as_bytes(), b":", n.to_string().as_bytes()].concat()
    }

    /// The fields of a copy for the retries or the dead letters: all of the original, preceded by where it came from.
    pub fn copy(&self, attempt: u32, reason: &str) -> Vec<Vec<u8>> {
        let id = self.get(b"id").unwrap_or(self.token.as_bytes());
        let mut out = Vec::with_capacity(self.fields.len() + 6);
        let mut pair = |name: &[u8], value: &[u8]| out.extend([name.to_vec(), value.to_vec()]);
        pair(b"id", id);
        pair(b"attempt", attempt.to_string().as_bytes());
        pair(b"origin", self.origin());
        if !reason.is_empty() {
            pair(b"reason", reason.as_bytes());
        }
        for own in self.fields.chunks_exact(2).filter(|own| !REPLACED.contains(&own[0].as_slice())) {
            pair(&own[0], &own[1]);
        }
        out
    }
}
