//! Records as the words of the publish script: runs of one shape, so that what they share is said once.

use redis::Cmd;

use super::record::Record;

/// What records must share to travel as one run.
fn alike(a: &Record, b: &Record) -> bool {
    a.kind == b.kind
        && a.headers == b.headers
        && a.key.is_some() == b.key.is_some()
        && a.is_general() == b.is_general()
}

/// Adds the records to a call.
pub(crate) fn add(call: &mut Cmd, records: &[&Record]) {
    for run in records.chunk_by(|a, b| alike(a, b)) {
        let first = run[0];
        let (keyed, general) = (first.key.is_some(), first.is_general());
        let constant = usize::from(!first.kind.is_empty()) + first.headers.len();
        call.arg(run.len()).arg(if general { "1" } else { "0" }).arg(constant).arg(if keyed {
            "2"
        } else {
            "1"
        });
        if !first.kind.is_empty() {
            call.arg("type").arg(&first.kind);
        }
        for (name, value) in &first.headers {
            call.arg(name).arg(value);
        }
        if keyed {
            call.arg("key");
        }
        call.arg("data");
        for record in run {
            if general {
                call.arg(record.id.as_deref().unwrap_or_default()).arg(record.due.word());
            }
            if let Some(key) = &record.key {
                call.arg(key.as_slice());
            }
            call.arg(record.body.as_slice());
        }
    }
}
