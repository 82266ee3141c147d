//! One event on its way out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::limits;

/// `CloudEvents` attributes and the trace: headers that travel under their own name. Any other travels as `x-NAME`.
const ATTRIBUTES: [&str; 7] =
    ["source", "time", "subject", "datacontenttype", "dataschema", "traceparent", "tracestate"];

/// When an event is appended to its topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Due {
    /// At once.
    #[default]
    Now,
    /// This long from now, by the server's clock.
    In(Duration),
    /// At this time.
    At(SystemTime),
}

impl Due {
    /// Whether it needs no word.
    fn is_now(self) -> bool {
        matches!(self, Self::Now | Self::In(Duration::ZERO))
    }

    /// As the scripts read it: `''` at once, `+ms` from now, `ms` Unix time.
    pub(crate) fn word(self) -> String {
        match self {
            Self::Now | Self::In(Duration::ZERO) => String::new(),
            Self::In(delay) => format!("+{}", delay.as_millis()),
            Self::At(time) => time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis().to_string(),
        }
    }

    /// How long from now, if not at once.
    pub(crate) fn wait(self) -> Option<Duration> {
        match self {
            Self::Now => None,
            Self::In(delay) => Some(delay),
            Self::At(time) => Some(time.duration_since(SystemTime::now()).unwrap_or_default()),
        }
    }
}

/// Why a record cannot be published, or an effect not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub(crate) String);

impl Invalid {
    fn of_record(why: &str) -> Self {
        Self(format!("the event cannot be published: {why}"))
    }
}

/// One event on its way out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub(crate) kind: String,
    pub(crate) body: Vec<u8>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) id: Option<String>,
    pub(crate) due: Due,
    pub(crate) headers: Vec<(String, String)>,
}

impl Record {
    /// An event of this type with a body of any bytes; an empty type if the topic has only one.
    pub fn new(kind: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        Self { kind: kind.into(), body: body.into(), ..Self::default() }
    }

    /// An event of this type with a body of JSON.
    pub fn json<T: Serialize>(kind: impl Into<String>, payload: &T) -> Result<Self, Invalid> {
        let body = serde_json::to_vec(payload)
            .map_err(|error| Invalid::of_record(&format!("its body is no JSON: {error}")))?;
        Ok(Self::new(kind, body))
    }

    /// Events with the same key go to the same partition.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// A name of the event's own: repeats are dropped within the topic's window.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// When it is appended to its topic.
    #[must_use]
    pub fn with_due(mut self, due: Due) -> Self {
        self.due = due;
        self
    }

    /// A further attribute; the names of `CloudEvents` keep their meaning.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: impl Into<String>) -> Self {
        let name = if ATTRIBUTES.contains(&name) { name.to_owned() } else { format!("x-{name}") };
        self.headers.push((name, value.into()));
        self
    }

    /// Belongs to the present span or, if spans are not exported, to the trace that this `traceparent` names.
    #[must_use]
    pub fn in_trace(mut self, traceparent: Option<&str>) -> Self {
        let origin = traceparent.map(|parent| ("traceparent".to_owned(), parent.to_owned()));
        super::trace::stamp(&mut self, origin.as_slice());
        self
    }

    pub(crate) fn has_header(&self, name: &str) -> bool {
        self.headers.iter().any(|(known, _)| known == name)
    }

    /// Whether it has an id or a due time, which the publish script must be told of.
    pub(crate) fn is_general(&self) -> bool {
        self.id.is_some() || !self.due.is_now()
    }

    /// What decides its partition, if anything does.
    pub(crate) fn place(&self) -> Option<&[u8]> {
        self.key.as_deref().or(self.id.as_deref().map(str::as_bytes))
    }

    /// Its fields when it is published under this id, unless it brings its own.
    pub(crate) fn fields(&self, id: &[u8]) -> Vec<Vec<u8>> {
        let id = self.id.as_deref().map_or(id, str::as_bytes);
        let mut out = vec![b"id".to_vec(), id.to_vec()];
        if !self.kind.is_empty() {
            out.extend([b"type".to_vec(), self.kind.clone().into_bytes()]);
        }
        for (name, value) in &self.headers {
            out.extend([name.clone().into_bytes(), value.clone().into_bytes()]);
        }
        if let Some(key) = &self.key {
            out.extend([b"key".to_vec(), key.clone()]);
        }
        out.extend([b"data".to_vec(), self.body.clone()]);
        out
    }

    /// Whether it keeps every bound.
    pub(crate) fn check(&self) -> Result<(), Invalid> {
        let invalid = |text: String| Err(Invalid::of_record(&text));
        if self.body.len() > limits::BODY_BYTES_MAX {
            return invalid(format!(
                "expected a body of at most {} bytes, got {}",
                limits::BODY_BYTES_MAX,
                self.body.len()
            ));
        }
        if let Some(id) = &self.id
            && !(1..=limits::ID_BYTES_MAX).contains(&id.len())
        {
            return invalid(format!(
                "expected an id of 1 to {} bytes, got {}",
                limits::ID_BYTES_MAX,
                id.len()
            ));
        }
        if self.key.as_ref().is_some_and(|key| key.len() > limits::KEY_BYTES_MAX) {
            return invalid(format!("expected a key of at most {} bytes", limits::KEY_BYTES_MAX));
        }
        if self.headers.len() > limits::HEADERS_MAX {
            return invalid(format!(
                "expected at most {} headers, got {}",
                limits::HEADERS_MAX,
                self.headers.len()
            ));
        }
        if let Some((name, _)) =
            self.headers.iter().find(|(n, v)| n.len() + v.len() > limits::HEADER_BYTES_MAX)
        {
            return invalid(format!(
                "expected header {name:?} to have at most {} bytes",
                limits::HEADER_BYTES_MAX
            ));
        }
        if self.due.wait().is_some_and(|wait| wait > limits::DELAY_MAX) {
            return invalid("expected a due time within a year".to_owned());
        }
        Ok(())
    }
}
