//! What the bytes of one field mean: unquoting, integers as pandas writes them, and the order of tokens.

use std::borrow::Cow;
use std::io::Read;

/// A field that is longer than this is no number; nothing keeps more of it than this.
pub(crate) const MAX_NUMBER: usize = 256;

/// The value of a field as it stands between its delimiters. A quote opens it only as its first byte; text after
/// the closing quote belongs to the value as it stands (the `csv` crate reads it so).
pub(crate) fn unquoted(raw: &[u8]) -> Cow<'_, [u8]> {
    if raw.first() != Some(&b'"') {
        return Cow::Borrowed(raw);
    }
    let body = &raw[1..];
    match memchr::memchr(b'"', body) {
        None => return Cow::Borrowed(body),
        Some(end) if end + 1 == body.len() => return Cow::Borrowed(&body[..end]),
        Some(_) => {}
    }
    Cow::Owned(parsed(raw).into_iter().next().unwrap_or_default())
}

/// The values of one record that is given without its line end.
pub(crate) fn parsed(raw: &[u8]) -> Vec<Vec<u8>> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .terminator(csv::Terminator::Any(b'\n'))
        .from_reader(b"-,".chain(raw));
    let mut record = csv::ByteRecord::new();
    match reader.read_byte_record(&mut record) {
        Ok(true) => record.iter().skip(1).map(<[u8]>::to_vec).collect(),
        // Memory does not fail to be read; no bytes are one empty field.
        _ => vec![Vec::new()],
    }
}

/// An integer as pandas may have written it: quoted, `12.0`, surrounded by spaces. `raw` is the field as it
/// stands in the file.
pub(crate) fn integer(raw: &[u8]) -> Option<i64> {
    let inner = match raw {
        [b'"', inner @ .., b'"'] => inner,
        plain => plain,
    };
    digits(inner).or_else(|| any_integer(raw))
}

/// Nearly every number there is, at a tenth of the cost of the general case.
#[inline]
fn digits(text: &[u8]) -> Option<i64> {
    if text.is_empty() || text.len() > 18 {
        return None;
    }
    text.iter().try_fold(0i64, |number, byte| {
        let digit = byte.wrapping_sub(b'0');
        (digit <= 9).then(|| number * 10 + i64::from(digit))
    })
}

fn any_integer(raw: &[u8]) -> Option<i64> {
    if raw.len() > MAX_NUMBER {
        return None;
    }
    let value = unquoted(raw);
    let text = std::str::from_utf8(&value).ok()?.trim_matches([' ', '\t']);
    let digits = match text.split_once('.') {
        Some((whole, zeros)) if !zeros.is_empty() && zeros.bytes().all(|b| b == b'0') => whole,
        Some(_) => return None,
        None => text,
    };
    digits.parse().ok()
}

/// A `token_id`'s place in its data_id: numbers by value, then everything else in file order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Token {
    /// Whole part and, as ordered bits, what is above it.
    Number(i64, u64),
    Other,
}

impl Token {
    /// Reads the field as it stands in the file.
    pub(crate) fn read(raw: &[u8]) -> Self {
        if let Some(whole) = integer(raw) {
            return Self::Number(whole, 0);
        }
        if raw.len() > MAX_NUMBER {
            return Self::Other;
        }
        let value = unquoted(raw);
        let number = std::str::from_utf8(&value)
            .ok()
            .and_then(|text| text.trim_matches([' ', '\t']).parse::<f64>().ok());
        match number {
            // The bits of non-negative floats are ordered like the floats; `as` saturates, which keeps the order.
            Some(n) if n.is_finite() => Self::Number(n.floor() as i64, (n - n.floor()).to_bits()),
            _ => Self::Other,
        }
    }
}

/// Remembers the last data_id: neighbouring records mostly carry the same bytes, and comparing is cheaper than
/// parsing.
#[derive(Default)]
pub(crate) struct LastId {
    raw: Vec<u8>,
    id: i64,
}

impl LastId {
    pub(crate) fn read(&mut self, raw: &[u8]) -> Option<i64> {
        if raw == self.raw.as_slice() && !raw.is_empty() {
            return Some(self.id);
        }
        let id = integer(raw)?;
        self.raw.clear();
        self.raw.extend_from_slice(raw);
        self.id = id;
        Some(id)
    }
}

/// A field for an error message: lossy, and cut where it would flood the terminal.
pub(crate) fn shown(raw: &[u8]) -> String {
    let value = unquoted(raw);
    let text = String::from_utf8_lossy(&value);
    let mut cut: String = text.chars().take(60).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_as_pandas_writes_them() {
        for (raw, id) in [
            ("12", 12),
            ("12.0", 12),
            ("-3.000", -3),
            (" 7 ", 7),
            ("\"7\"", 7),
            ("\" 7.0 \"", 7),
            ("\"7\" ", 7),
            ("+5", 5),
            ("-0", 0),
            ("007", 7),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(integer(raw.as_bytes()), Some(id), "{raw:?}");
        }
        for raw in [
            "",
            " ",
            "\"\"",
            "abc",
            "1.5",
            "1.",
            ".0",
            "NaN",
            "nan",
            "inf",
            "1e3",
            "9223372036854775808",
            "1 2",
            " \"7\"",
            "7\r",
            "-",
        ] {
            assert_eq!(integer(raw.as_bytes()), None, "{raw:?}");
        }
    }

    #[test]
    fn tokens_are_ordered_by_value_and_words_come_last() {
        let order = ["-1.5", "-1", "-0.5", "0", "1.0", "1.25", "1.5", "2", "1e3", "99999999999999999999"];
        let read: Vec<_> = order.iter().map(|t| Token::read(t.as_bytes())).collect();
        assert!(read.windows(2).all(|w| w[0] < w[1]), "{read:?}");
        for word in ["", "x", "NaN", "inf"] {
            assert_eq!(Token::read(word.as_bytes()), Token::Other);
        }
        assert!(read.iter().all(|t| *t < Token::Other));
    }
}
