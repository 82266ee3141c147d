//! Replies taken apart by moving, not copying: they are large.

use redis::Value;

use super::error::Error;

/// An entry: its id, and its fields, names and values in turn.
pub(crate) type Row = (String, Vec<Vec<u8>>);

fn strange(value: &Value) -> Error {
    let text: String = format!("{value:?}").chars().take(200).collect();
    Error::refused("ANSWER", format!("the server answered what it should not: {text}"))
}

/// The items of an array; nil stands for none.
pub(crate) fn items(value: Value) -> Result<Vec<Value>, Error> {
    match value {
        Value::Array(items) => Ok(items),
        Value::Nil => Ok(Vec::new()),
        other => Err(strange(&other)),
    }
}

/// The items of an array of this length.
pub(crate) fn exactly<const N: usize>(value: Value) -> Result<[Value; N], Error> {
    items(value)?.try_into().map_err(|items| strange(&Value::Array(items)))
}

pub(crate) fn bytes(value: Value) -> Result<Vec<u8>, Error> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        other => Err(strange(&other)),
    }
}

pub(crate) fn text(value: Value) -> Result<String, Error> {
    String::from_utf8(bytes(value)?).map_err(|error| strange(&Value::BulkString(error.into_bytes())))
}

pub(crate) fn int(value: &Value) -> Result<i64, Error> {
    match value {
        Value::Int(number) => Ok(*number),
        other => Err(strange(other)),
    }
}

/// `id, [name, value, ...]`.
pub(crate) fn row(id: Value, fields: Value) -> Result<Row, Error> {
    Ok((text(id)?, items(fields)?.into_iter().map(bytes).collect::<Result<_, _>>()?))
}

/// What XRANGE answers.
pub(crate) fn rows(value: Value) -> Result<Vec<Row>, Error> {
    items(value)?.into_iter().map(|own| exactly(own).and_then(|[id, fields]| row(id, fields))).collect()
}

/// What XREAD and XREADGROUP answer: the rows of each stream.
pub(crate) fn streams(value: Value) -> Result<Vec<(String, Vec<Row>)>, Error> {
    let stream = |stream| {
        let [name, own] = exactly(stream)?;
        Ok((text(name)?, rows(own)?))
    };
    items(value)?.into_iter().map(stream).collect()
}
