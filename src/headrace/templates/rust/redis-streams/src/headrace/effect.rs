//! A write that a handler records, to be made with the ack. What the commit script demands of it whatever the key holds is demanded
//! already when it is recorded, so that the error comes from the line that is wrong.

use super::limits;
use super::record::Invalid;

/// A write on a key of the server, made in the moment of the ack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Effect {
    pub command: String,
    pub key: String,
    pub arguments: Vec<Vec<u8>>,
}

/// What an argument must be.
#[derive(Clone, Copy, Debug)]
enum Word {
    Any,
    /// An integer of at most this size, either way.
    Integer(i64),
    Number,
}

use Word::{Any, Number};
const INTEGER: Word = Word::Integer(9_200_000_000_000_000_000);
const SECONDS: Word = Word::Integer(9_000_000_000_000);
const MILLIS: Word = Word::Integer(9_000_000_000_000_000);

/// The arguments of the commands that an effect may use, and whether they may be repeated.
fn words_of(command: &str) -> Option<(&'static [Word], bool)> {
    Some(match command {
        "DEL" => (&[], false),
        "SET" | "SETNX" | "APPEND" => (&[Any], false),
        "EXPIRE" => (&[SECONDS], false),
        "PEXPIRE" => (&[MILLIS], false),
        "INCRBY" => (&[INTEGER], false),
        "INCRBYFLOAT" => (&[Number], false),
        "HSET" => (&[Any, Any], true),
        "HSETNX" => (&[Any, Any], false),
        "HINCRBY" => (&[Any, INTEGER], false),
        "HINCRBYFLOAT" => (&[Any, Number], false),
        "HDEL" | "LPUSH" | "RPUSH" | "SADD" | "SREM" | "ZREM" => (&[Any], true),
        "LTRIM" => (&[INTEGER, INTEGER], false),
        "LREM" => (&[INTEGER, Any], false),
        "ZADD" => (&[Number, Any], true),
        "ZINCRBY" => (&[Number, Any], false),
        _ => return None,
    })
}

impl Effect {
    /// The command in any case of letters.
    pub fn new(command: &str, key: &str, arguments: Vec<Vec<u8>>) -> Result<Self, Invalid> {
        let own = Self { command: command.to_ascii_uppercase(), key: key.to_owned(), arguments };
        own.check().map_err(|why| Invalid(format!("the effect {} on {key:?}: {why}", own.command)))?;
        Ok(own)
    }

    fn check(&self) -> Result<(), String> {
        let Some((words, repeat)) = words_of(&self.command) else {
            return Err(
                "expected one of the commands of the wire reference (SET, HINCRBY, SADD ...)".to_owned()
            );
        };
        let (count, most) = (self.arguments.len(), limits::EFFECT_WORDS_MAX);
        if repeat && (count == 0 || count % words.len() > 0 || count > most) {
            let size = words.len();
            return Err(format!(
                "expected {size} arguments or a multiple of that, {most} at most, got {count}"
            ));
        }
        if !repeat && count != words.len() {
            return Err(format!("expected {} arguments, got {count}", words.len()));
        }
        for (argument, word) in self.arguments.iter().zip(words.iter().cycle()) {
            let text = String::from_utf8_lossy(argument);
            match *word {
                Word::Integer(most) if !is_integer(&text, most) => {
                    return Err(format!(
                        "expected an integer from -{most} to {most}, without a plus or leading zeros, got {text:?}"
                    ));
                }
                Number if !is_number(&text) => {
                    return Err(format!("expected a finite decimal number, got {text:?}"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// As the server reads it: no plus, no leading zeros, no minus zero.
fn is_integer(text: &str, most: i64) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_plain = text == "0" || digits.starts_with(|first: char| ('1'..='9').contains(&first));
    is_plain && text.parse().is_ok_and(|number: i64| number.unsigned_abs() <= most.unsigned_abs())
}

/// One that is too small to be told from 0 is none: the server refuses it.
fn is_number(text: &str) -> bool {
    let is_decimal = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    let is_zero = || text.split(['e', 'E']).next().is_some_and(|digits| !digits.contains(|c| c > '0'));
    is_decimal && text.parse().is_ok_and(|number: f64| number.is_finite() && (number != 0.0 || is_zero()))
}

#[cfg(test)]
mod tests {
    use super::super::handler::Context;

    fn error(command: &str, arguments: &[&str]) -> String {
        let mut ctx = Context::default();
        let error = ctx.effect(command, "k", arguments).err().map(|error| error.to_string());
        assert_eq!(ctx.effects.len(), usize::from(error.is_none()), "what is refused is not recorded");
        error.unwrap_or_default()
    }

    #[test]
    fn what_the_server_would_refuse_is_refused_where_it_is_recorded() {
        for text in ["0", "-1", "7", "9200000000000000000"] {
            assert_eq!(error("hincrby", &["sku", text]), "");
        }
        for text in ["", "-0", "+1", "01", "-", "1.0", " 1", "9223372036854775807", "99999999999999999999"] {
            for words in [("HINCRBY", &["sku", text][..]), ("INCRBY", &[text]), ("LTRIM", &["0", text])] {
                assert!(error(words.0, words.1).ends_with(&format!("got {text:?}")), "{words:?}");
            }
        }
        assert_eq!(
            error("PEXPIRE", &["9000000000000001"]),
            "the effect PEXPIRE on \"k\": expected an integer from -9000000000000000 to 9000000000000000, without a plus \
             or leading zeros, got \"9000000000000001\""
        );
        assert_eq!(error("EXPIRE", &["9000000000000"]), "");
        assert_ne!(error("EXPIRE", &["9000000000001"]), "");
        assert_ne!(error("LREM", &["x", "0"]), "");
        for text in ["0", "-.5", "+1e3", "0e9", "5."] {
            assert_eq!(error("ZADD", &["1", "a", text, "b"]), "");
        }
        for text in ["", ".", "nan", "inf", "1e400", "1e-400", "0x1", "1 "] {
            assert_ne!(error("ZADD", &["1", "a", text, "b"]), "", "{text}");
        }
    }

    #[test]
    fn an_effect_has_a_command_of_the_wire_and_as_many_arguments_as_it_takes() {
        assert!(error("FLUSHALL", &[]).contains("expected one of the commands"));
        assert!(
            error("HSET", &["a"])
                .ends_with("expected 2 arguments or a multiple of that, 7900 at most, got 1")
        );
        assert!(error("SET", &["a", "NX"]).ends_with("expected 1 arguments, got 2"));
        assert_eq!(error("SADD", &vec!["a"; 7_900]), "");
        assert!(error("SADD", &vec!["a"; 7_901]).ends_with("7900 at most, got 7901"));
        assert_ne!(error("SADD", &[]), "");
        assert_eq!(error("DEL", &[]), "");
    }
}
