//! Packed entries: several events of one publish call in one entry of the stream. This client reads them; it writes none.

use super::limits;

/// Names and values of the shortest packed entry: id, events, before, sizes, data.
const FIELDS_MIN: usize = 10;

/// The fields of each event of a packed entry; None for any other entry, and for one that is not well formed.
pub fn unpack(fields: &[Vec<u8>]) -> Option<Vec<Vec<Vec<u8>>>> {
    let end = fields.len();
    if end < FIELDS_MIN || !end.is_multiple_of(2) {
        return None;
    }
    if fields[2] != b"events" || fields[end - 4] != b"sizes" || fields[end - 2] != b"data" {
        return None;
    }
    let dot = fields[1].iter().rposition(|byte| *byte == b'.')?;
    let (stem, first) = (&fields[1][..=dot], number(&fields[1][dot + 1..])?);
    let count =
        usize::try_from(number(&fields[3])?).ok().filter(|count| *count <= limits::BATCH_RECORDS_MAX)?;
    let bodies = slices(&fields[end - 1], &fields[end - 3])?;
    let (mut shared, mut keys) = (&fields[6..end - 4], None);
    if let [rest @ .., _, sizes, name, all] = shared
        && name == b"keys"
    {
        keys = Some(slices(all, sizes)?);
        shared = rest;
    }
    if bodies.len() != count || keys.as_ref().is_some_and(|keys| keys.len() != count) {
        return None;
    }
    let event = |(n, body): (usize, &&[u8])| {
        let id = [stem, (first + n as u64).to_string().as_bytes()].concat();
        let mut own = Vec::with_capacity(shared.len() + 6);
        own.extend([b"id".to_vec(), id]);
        own.extend_from_slice(shared);
        if let Some(keys) = &keys {
            own.extend([b"key".to_vec(), keys[n].to_vec()]);
        }
        own.extend([b"data".to_vec(), body.to_vec()]);
        own
    };
    Some(bodies.iter().enumerate().map(event).collect())
}

fn number(text: &[u8]) -> Option<u64> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Consecutive pieces of these sizes, if they add up.
fn slices<'a>(mut data: &'a [u8], sizes: &[u8]) -> Option<Vec<&'a [u8]>> {
    let sizes: Vec<usize> = serde_json::from_slice(sizes).ok()?;
    let mut out = Vec::with_capacity(sizes.len());
    for size in sizes {
        let (piece, rest) = data.split_at_checked(size)?;
        out.push(piece);
        data = rest;
    }
    (data.is_empty() && !out.is_empty()).then_some(out)
}
