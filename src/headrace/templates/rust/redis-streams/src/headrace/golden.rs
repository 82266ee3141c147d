//! The golden vectors that every language has: what this client makes of entries, and the words that it sends, are exactly theirs.

use serde_json::Value as Json;

use super::commit::{Writes, commit_call};
use super::effect::Effect;
use super::event::Event;
use super::keys::{GroupKeys, PartitionKeys};
use super::ordered::{Aside, Item, Step};
use super::packed::unpack;
use super::partition::partition_of;
use super::producer::publish_call;
use super::record::{Due, Record};
use super::settlement::{Entry, Outcome, Settlement};
use super::topic::Topic;

/// The cases of a file.
macro_rules! golden {
    ($name:literal) => {
        serde_json::from_str::<Vec<Json>>(include_str!(concat!("../../tests/golden/", $name, ".json")))
            .unwrap()
    };
}

/// Text, or bytes as hex.
fn raw(value: &Json) -> Vec<u8> {
    if let Some(text) = value.as_str() {
        return text.as_bytes().to_vec();
    }
    let hex = value["hex"].as_str().unwrap();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn raws(value: &Json) -> Vec<Vec<u8>> {
    value.as_array().unwrap().iter().map(raw).collect()
}

fn text(value: &Json) -> String {
    String::from_utf8(raw(value)).unwrap()
}

fn event(value: &Json) -> Event {
    let (token, fields) = (text(&value["token"]), raws(&value["fields"]));
    let copied = fields.get(2).is_some_and(|name| name == b"attempt");
    if copied { Event::again(token, fields) } else { Event::new(token, fields) }
}

/// The words of a call behind its digest and number of keys.
fn words(call: &redis::Cmd) -> Vec<Vec<u8>> {
    let simple = call.args_iter().map(|word| match word {
        redis::Arg::Simple(bytes) => bytes.to_vec(),
        _ => unreachable!(),
    });
    simple.skip(3).collect()
}

fn expected(case: &Json) -> Vec<Vec<u8>> {
    [raws(&case["keys"]), raws(&case["argv"])].concat()
}

fn record(given: &Json) -> Record {
    let kind = given["type"].as_str().unwrap_or_default();
    let due = match (given["delay_ms"].as_u64(), given["at_ms"].as_u64()) {
        (Some(delay), _) => Due::In(std::time::Duration::from_millis(delay)),
        (_, Some(at)) => Due::At(std::time::UNIX_EPOCH + std::time::Duration::from_millis(at)),
        _ => Due::Now,
    };
    let headers = given["headers"].as_array().into_iter().flatten();
    Record {
        kind: kind.to_owned(),
        body: raw(&given["body"]),
        key: given.get("key").map(raw),
        id: given.get("id").map(text),
        due,
        headers: headers.map(|pair| (text(&pair[0]), text(&pair[1]))).collect(),
    }
}

#[test]
fn keys_have_their_partitions() {
    for case in golden!("partition") {
        let partitions = u32::try_from(case["partitions"].as_u64().unwrap()).unwrap();
        assert_eq!(
            Some(u64::from(partition_of(&raw(&case["key"]), partitions))),
            case["partition"].as_u64(),
            "{case}"
        );
    }
}

#[test]
fn entries_are_read_copied_and_named() {
    for case in golden!("entry") {
        if let Some(read) = case.get("read") {
            let (event, seen) = (event(read), &case["seen"]);
            assert_eq!(event.id(), seen["id"].as_str().unwrap(), "{case}");
            assert_eq!(event.kind(), seen["type"].as_str().unwrap(), "{case}");
            assert_eq!(event.key(), seen["key"].as_str().map(str::as_bytes), "{case}");
            assert_eq!(Some(u64::from(event.attempt())), seen["attempt"].as_u64(), "{case}");
            assert_eq!(event.data(), raw(&seen["data"]), "{case}");
            let headers =
                event.headers().map(|(name, value)| (name.into_owned(), Json::from(value.into_owned())));
            assert_eq!(Json::Object(headers.collect()), seen["headers"], "{case}");
        } else if let Some(copy) = case.get("copy") {
            let attempt = u32::try_from(copy["attempt"].as_u64().unwrap()).unwrap();
            let fields = event(copy).copy(attempt, copy["reason"].as_str().unwrap());
            assert_eq!(fields, raws(&case["fields"]), "{case}");
        } else {
            let derive = &case["derive"];
            let n = usize::try_from(derive["n"].as_u64().unwrap()).unwrap();
            assert_eq!(
                event(derive).derived_id(derive["group"].as_str().unwrap(), n),
                raw(&case["id"]),
                "{case}"
            );
        }
    }
}

#[test]
fn packed_entries_are_unpacked_or_are_one_event() {
    for case in golden!("record_batch") {
        let token = case["token"].as_str().unwrap();
        let events = unpack(&raws(&case["fields"])).map(|events| {
            events
                .into_iter()
                .enumerate()
                .map(|(n, fields)| (format!("{token}/{n}"), fields))
                .collect::<Vec<_>>()
        });
        let expected = case["events"]
            .as_array()
            .map(|events| events.iter().map(|event| (text(&event[0]), raws(&event[1]))).collect::<Vec<_>>());
        assert_eq!(events, expected, "{case}");
    }
}

#[test]
fn publish_sends_these_words() {
    let mut compared = 0;
    for case in golden!("publish") {
        let Some(given) = case.get("given").filter(|given| given.get("packing").is_none()) else { continue };
        let records: Vec<Record> = given["records"].as_array().unwrap().iter().map(record).collect();
        let argv = raws(&case["argv"]);
        let word = |n: usize| String::from_utf8(argv[n].clone()).unwrap();
        let number = |n: usize| word(n).parse::<u64>().unwrap();
        let topic = Topic { cap_events: number(4), ..Topic::new("orders") };
        let keys = PartitionKeys::new(&text(&case["keys"][0]));
        let count = u32::try_from(number(7)).unwrap();
        let records: Vec<&Record> = records.iter().collect();
        let call = publish_call(&keys, &topic, count, &word(0), (number(1), number(2)), &records);
        assert_eq!(words(&call), expected(&case), "{case}");
        compared += 1;
    }
    assert!(compared > 2);
}

#[test]
fn commit_sends_these_words() {
    let mut compared = 0;
    for case in golden!("commit") {
        let Some(given) = case.get("given").filter(|given| !given.is_null()) else { continue };
        let settle = |one: &Json| Entry::One(Settlement { event: event(one), outcome: outcome(one) });
        let entries = [&given["plain"], &given["rich"]].into_iter().flat_map(|list| list.as_array().unwrap());
        let entries: Vec<Entry> = entries.map(settle).collect();
        let count = |topic: &Topic| topic.partitions;
        let mut writes = Writes::new("billing", &count);
        entries.iter().filter(|entry| !entry.is_plain()).for_each(|entry| writes.add(entry));
        let held = case["argv"][2].as_str().unwrap().parse().unwrap();
        let source = case["keys"][0].as_str().unwrap();
        let keys = GroupKeys::new("orders", "billing");
        let call = commit_call(source, &keys, ("billing", "w1/1"), held, &entries, &writes);
        assert_eq!(words(&call), expected(&case), "{case}");
        compared += 1;
    }
    assert!(compared > 10);
}

#[test]
fn advance_sends_these_words() {
    let mut compared = 0;
    for case in golden!("advance") {
        let effect = || Effect {
            command: "HINCRBY".to_owned(),
            key: "revenue".to_owned(),
            arguments: vec![b"ann".to_vec(), b"5".to_vec()],
        };
        let wrote = || Outcome::Wrote { outputs: Vec::new(), effects: vec![effect()] };
        let delay = std::time::Duration::from_millis(500);
        let outcomes = match case["name"].as_str().unwrap() {
            "three events are handled" => vec![Outcome::Done, Outcome::Done, Outcome::Done],
            "an effect" => vec![Outcome::Done, wrote()],
            "an event is set aside" => vec![Outcome::Retry { delay, reason: "boom".to_owned() }],
            "an event that was set aside is handled" => Vec::new(),
            _ => continue,
        };
        let item = |event, outcome, aside| Item {
            event: std::sync::Arc::new(event),
            outcome: Some(outcome),
            aside,
            last: true,
        };
        let added = case["before"].as_array().unwrap().iter().map(raws);
        let added = added.filter(|words| words[0] == b"XADD" && words[1] == b"orders");
        let mut items: Vec<Item> = added
            .zip(outcomes)
            .map(|(words, outcome)| {
                let token = String::from_utf8(words[2].clone()).unwrap();
                item(Event::new(token, words[3..].to_vec()), outcome, None)
            })
            .collect();
        if items.is_empty() {
            let aside = Aside::of("5-1".to_owned(), &[]);
            items.push(item(Event::again("5-1".to_owned(), Vec::new()), Outcome::Done, Some(aside)));
        }
        let keys = GroupKeys::new("orders", "billing");
        let count = |topic: &Topic| topic.partitions;
        let lease = ("1:w1", "15000".to_owned(), 0);
        let call = Step::of(&items).call("orders", &keys, "billing", &count, lease, "0-0");
        assert_eq!(words(&call), expected(&case), "{case}");
        compared += 1;
    }
    assert_eq!(compared, 4);
}

fn outcome(given: &Json) -> Outcome {
    let reason = given["reason"].as_str().unwrap_or_default().to_owned();
    let list = |name: &str| given[name].as_array().cloned().unwrap_or_default();
    match given["verdict"].as_str() {
        Some("RETRY") => {
            let delay = std::time::Duration::from_millis(given["delay_ms"].as_u64().unwrap());
            Outcome::Retry { delay, reason }
        }
        Some("DEAD") => Outcome::Dead { reason },
        Some("RETURN") => Outcome::Return,
        _ if given.get("effects").is_none() && given.get("outputs").is_none() => Outcome::Done,
        _ => {
            let topic = |name: &Json| Topic { name: text(name).into(), ..Topic::new("") };
            let outputs =
                list("outputs").iter().map(|own| (topic(&own["topic"]), record(&own["record"]))).collect();
            let effect = |words: &Json| {
                let mut words = raws(words).into_iter();
                let mut word = || String::from_utf8(words.next().unwrap()).unwrap();
                Effect { command: word(), key: word(), arguments: words.collect() }
            };
            Outcome::Wrote { outputs, effects: list("effects").iter().map(effect).collect() }
        }
    }
}
