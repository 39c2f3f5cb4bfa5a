//! Where records and fields end: a record ends at `\n` outside quotes only, a lone `\r` is data, a quote opens a
//! field only as its first byte. The tests hold this to the `csv` crate, byte for byte.
//!
//! Two readers of the same rules: [`whole`] walks a record that lies in memory, fast; [`Open`] goes byte by byte
//! and can stop anywhere. [`Records`] uses the first and falls back to the second where a block cuts a record, so
//! memory never depends on how long a record is.

use super::blocks::{BLOCK, read_full};
use super::field::{MAX_NUMBER, parsed};
use memchr::memchr;
use std::fs::File;
use std::io;

/// No such column.
pub(crate) const ABSENT: usize = usize::MAX;

const BOM: &[u8] = b"\xef\xbb\xbf";

/// A header longer than this is taken for a file that is not a CSV table.
const MAX_HEADER: usize = 4 << 20;

/// The positions of the columns whose bytes are wanted; `ABSENT` for none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) id: usize,
    pub(crate) token: usize,
}

impl Wanted {
    pub(crate) const NOTHING: Self = Self { id: ABSENT, token: ABSENT };
}

/// One record; offsets are bytes of the file.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub(crate) start: u64,
    /// After its `\n`, or the end of the input.
    pub(crate) end: u64,
    pub(crate) fields: usize,
    /// The wanted fields as they stand in the file, quotes included; empty where the record is too short. Long ones
    /// may be cut (no number is that long).
    pub(crate) id: &'a [u8],
    pub(crate) token: &'a [u8],
    /// False for the rest of a file after its last record end.
    pub(crate) ended: bool,
    /// Stands inside quotes.
    pub(crate) in_quotes: bool,
    /// Some field holds a `\r` outside quotes as data.
    pub(crate) lone_cr: bool,
}

/// One record in memory; offsets are into the buffer.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) end: usize,
    pub(crate) fields: usize,
    pub(crate) id: (usize, usize),
    pub(crate) token: (usize, usize),
    pub(crate) lone_cr: bool,
    /// A quote stands where it is plain data, so counting quotes does not tell what is inside of them.
    pub(crate) stray_quote: bool,
    blank: bool,
    ends_in_crlf: bool,
}

impl Whole {
    /// An empty line; no record.
    pub(crate) fn is_blank(&self) -> bool {
        self.blank
    }
}

const SPECIAL: [bool; 256] = {
    let mut table = [false; 256];
    table[b',' as usize] = true;
    table[b'\n' as usize] = true;
    table[b'\r' as usize] = true;
    table[b'"' as usize] = true;
    table
};

/// The first byte at or after `at` that can mean something outside quotes.
#[inline(always)]
fn special(buf: &[u8], at: usize) -> Option<usize> {
    buf.get(at..)?.iter().position(|b| SPECIAL[usize::from(*b)]).map(|n| at + n)
}

/// The first `wanted` in `bytes`. Fields are short and their lengths vary, so the first eight bytes are searched without a
/// branch per byte: one that guesses wrong costs more than the search. Source: "Determine if a word has a zero byte",
/// Bit Twiddling Hacks.
#[inline(always)]
pub(super) fn find_near(wanted: u8, bytes: &[u8]) -> Option<usize> {
    if let Some(first) = bytes.first_chunk() {
        let zeroed = u64::from_le_bytes(*first) ^ u64::from_le_bytes([wanted; 8]);
        let marks = zeroed.wrapping_sub(u64::from_le_bytes([1; 8])) & !zeroed & u64::from_le_bytes([0x80; 8]);
        if marks != 0 {
            return Some(marks.trailing_zeros() as usize / 8);
        }
    }
    memchr(wanted, bytes)
}

/// The byte after the closing quote of a field whose text begins at `at`; `None` if that is not certain yet.
#[inline(always)]
fn after_quotes(buf: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let rest = buf.get(at..)?;
        at += find_near(b'"', rest)? + 1;
        if *buf.get(at)? != b'"' {
            return Some(at);
        }
        at += 1;
    }
}

/// Walks the record that begins at `start`; `None` if it does not end in `buf`.
#[inline]
pub(crate) fn whole(buf: &[u8], start: usize, wanted: Wanted, crlf: bool) -> Option<Whole> {
    let mut found = Whole {
        end: 0,
        fields: 0,
        id: (0, 0),
        token: (0, 0),
        lone_cr: false,
        stray_quote: false,
        blank: false,
        ends_in_crlf: false,
    };
    let mut at = start;
    let mut returns = 0;
    loop {
        let from = at;
        if *buf.get(at)? == b'"' {
            at = after_quotes(buf, at + 1)?;
        }
        let delimiter = loop {
            at = special(buf, at)?;
            match buf[at] {
                b'"' => found.stray_quote = true,
                b'\r' => returns += 1,
                other => break other,
            }
            at += 1;
        };
        let mut to = at;
        if delimiter == b'\n' && at > from && buf[at - 1] == b'\r' {
            found.ends_in_crlf = true;
            if crlf {
                to -= 1;
                returns -= 1;
            }
        }
        if found.fields == wanted.id {
            found.id = (from, to);
        } else if found.fields == wanted.token {
            found.token = (from, to);
        }
        found.fields += 1;
        at += 1;
        if delimiter == b'\n' {
            found.end = at;
            found.lone_cr = returns > 0;
            found.blank = found.fields == 1 && from == to;
            return Some(found);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    FieldStart,
    Plain,
    Quoted,
    /// After a quote inside quotes: the closing one, or the first of two.
    QuoteInQuotes,
}

/// A record of which the end has not been seen yet.
#[derive(Debug, Default)]
struct Open {
    state: State,
    /// Bytes so far.
    len: u64,
    field: usize,
    id: Vec<u8>,
    token: Vec<u8>,
    returns: u64,
    last: u8,
}

impl Open {
    /// Takes one byte; true if it ended the record.
    fn step(&mut self, byte: u8, wanted: Wanted) -> bool {
        self.len += 1;
        let outside = self.state != State::Quoted;
        if outside && byte == b'\n' {
            return true;
        }
        if outside && byte == b',' {
            self.state = State::FieldStart;
            self.field += 1;
            self.last = byte;
            return false;
        }
        self.state = match (self.state, byte) {
            (State::FieldStart | State::QuoteInQuotes, b'"') => State::Quoted,
            (State::Quoted, b'"') => State::QuoteInQuotes,
            (State::Quoted, _) => State::Quoted,
            _ => State::Plain,
        };
        if self.state == State::Plain && byte == b'\r' {
            self.returns += 1;
        }
        // Room for a number, a `\r` and one byte more by which a cut field is seen to be no number.
        if self.field == wanted.id && self.id.len() < MAX_NUMBER + 2 {
            self.id.push(byte);
        } else if self.field == wanted.token && self.token.len() < MAX_NUMBER + 2 {
            self.token.push(byte);
        }
        self.last = byte;
        false
    }

    fn ends_in_return(&self) -> bool {
        self.state == State::Plain && self.last == b'\r'
    }

    /// The record as far as it is known, taking what was seen for all of it.
    fn record(&self, start: u64, ended: bool, wanted: Wanted, crlf: bool) -> Record<'_> {
        let cut = usize::from(crlf && self.ends_in_return());
        let without_return =
            |bytes: &'_ [u8], column| if self.field == column { bytes.len() - cut } else { bytes.len() };
        Record {
            start,
            end: start + self.len,
            fields: self.field + 1,
            id: &self.id[..without_return(&self.id, wanted.id)],
            token: &self.token[..without_return(&self.token, wanted.token)],
            ended,
            in_quotes: self.state == State::Quoted,
            lone_cr: self.returns > cut as u64,
        }
    }

    /// An empty line (its `\n` counted in `len`).
    fn is_blank(&self, crlf: bool) -> bool {
        self.len == 1 || (self.len == 2 && crlf && self.ends_in_return())
    }

    fn clear(&mut self) {
        self.id.clear();
        self.token.clear();
        *self = Self {
            id: std::mem::take(&mut self.id),
            token: std::mem::take(&mut self.token),
            ..Self::default()
        };
    }
}

/// Cuts a stream of bytes, given block by block, into records. Empty lines are none.
pub(crate) struct Records {
    wanted: Wanted,
    /// `None` until the first record was seen; its line end then decides.
    crlf: Option<bool>,
    /// Where the next byte lies in the file.
    at: u64,
    open: Open,
}

impl Records {
    /// For bytes from `at` on, which is the start of a record (or of an empty line).
    pub(crate) fn new(at: u64, wanted: Wanted, crlf: bool) -> Self {
        Self { wanted, crlf: Some(crlf), at, open: Open::default() }
    }

    /// For bytes from the header on: its line end decides whether `\r\n` ends the others.
    pub(crate) fn from_header() -> Self {
        Self { wanted: Wanted::NOTHING, crlf: None, at: 0, open: Open::default() }
    }

    /// Takes the next bytes and calls `each` for the records that end in them, up to the first error.
    pub(crate) fn feed<E>(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(Record<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut pos = 0;
        if self.open.len > 0 {
            pos = self.step_until_end(bytes, &mut each)?;
        }
        while pos < bytes.len() {
            let Some(found) = whole(bytes, pos, self.wanted, self.crlf.unwrap_or(true)) else {
                self.step_until_end(&bytes[pos..], &mut each)?;
                break;
            };
            let start = self.at;
            self.at += (found.end - pos) as u64;
            pos = found.end;
            if found.blank {
                continue;
            }
            self.crlf.get_or_insert(found.ends_in_crlf);
            each(Record {
                start,
                end: self.at,
                fields: found.fields,
                id: &bytes[found.id.0..found.id.1],
                token: &bytes[found.token.0..found.token.1],
                ended: true,
                in_quotes: false,
                lone_cr: found.lone_cr,
            })?;
        }
        Ok(())
    }

    /// Byte by byte to the end of the open record; returns how many bytes it took.
    fn step_until_end<E>(
        &mut self,
        bytes: &[u8],
        each: &mut impl FnMut(Record<'_>) -> Result<(), E>,
    ) -> Result<usize, E> {
        let Some(last) = bytes.iter().position(|b| self.open.step(*b, self.wanted)) else {
            self.at += bytes.len() as u64;
            return Ok(bytes.len());
        };
        self.at += last as u64 + 1;
        let start = self.at - self.open.len;
        let crlf = self.crlf.unwrap_or(true);
        if !self.open.is_blank(crlf) {
            self.crlf.get_or_insert(self.open.ends_in_return());
            each(self.open.record(start, true, self.wanted, crlf))?;
        }
        self.open.clear();
        Ok(last + 1)
    }

    /// What follows the last record end, if anything does, taking the end of the input for the end of the record.
    pub(crate) fn rest(&self) -> Option<Record<'_>> {
        if self.open.len == 0 {
            return None;
        }
        let start = self.at - self.open.len;
        Some(self.open.record(start, false, self.wanted, self.crlf.unwrap_or(true)))
    }
}

/// The raw fields of one record that is given without its line end.
pub(crate) fn raw_fields(record: &[u8]) -> Vec<&[u8]> {
    let mut fields = Vec::new();
    let mut at = 0;
    loop {
        let from = at;
        if record.get(at) == Some(&b'"') {
            // Without a byte behind it, the last quote closes the field or the field was never closed.
            at = after_quotes(record, at + 1).unwrap_or(record.len());
        }
        let Some(comma) = memchr(b',', &record[at..]) else {
            fields.push(&record[from..]);
            return fields;
        };
        fields.push(&record[from..at + comma]);
        at += comma + 1;
    }
}

/// The first record of a table.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    pub(crate) fields: Vec<String>,
    /// As it stands in the file, without byte order mark and line end.
    pub(crate) raw: Vec<u8>,
    /// Its line ends in `\r\n`, so a `\r` before a record's `\n` is not data in this file.
    pub(crate) crlf: bool,
    /// It has its `\n`.
    pub(crate) ended: bool,
    /// The file ends inside its quotes, or it is far too long: no header at all.
    pub(crate) torn: bool,
    /// The first byte after it.
    pub(crate) body: u64,
}

impl Header {
    /// Reads it from the start of a file, past a byte order mark and empty lines; `None` if there is no record.
    pub(crate) fn read(file: &File) -> io::Result<Option<Self>> {
        let mut buf = vec![0; BLOCK / 16];
        let (mut found, mut got);
        loop {
            got = read_full(file, &mut buf, 0)?;
            found = Self::parse(&buf[..got], got == buf.len());
            let is_cut = found.as_ref().is_none_or(|h| !h.ended);
            if !is_cut || got < buf.len() || buf.len() >= MAX_HEADER {
                return Ok(found);
            }
            let larger = buf.len() * 8;
            buf.resize(larger, 0);
        }
    }

    /// `more`: these are not all bytes of the file.
    fn parse(bytes: &[u8], more: bool) -> Option<Self> {
        let skipped = if bytes.starts_with(BOM) { BOM.len() } else { 0 };
        let mut header = None;
        let mut records = Records::from_header();
        records.at = skipped as u64;
        // The first record stops the walk.
        let stopped = records.feed(&bytes[skipped..], |record| {
            header = Some((record.start as usize, record.end as usize));
            Err(())
        });
        if let (Err(()), Some((start, end))) = (stopped, header) {
            let crlf = records.crlf == Some(true);
            return Some(Self::of(&bytes[start..end - 1 - usize::from(crlf)], crlf, true, false, end));
        }
        let rest = records.rest()?;
        let raw = &bytes[rest.start as usize..];
        let crlf = !rest.in_quotes && raw.last() == Some(&b'\r');
        Some(Self::of(
            &raw[..raw.len() - usize::from(crlf)],
            crlf,
            false,
            more || rest.in_quotes,
            bytes.len(),
        ))
    }

    fn of(raw: &[u8], crlf: bool, ended: bool, torn: bool, body: usize) -> Self {
        let name = |field: &Vec<u8>| String::from_utf8_lossy(field).into_owned();
        let fields = parsed(raw).iter().map(name).collect();
        Self { fields, raw: raw.to_vec(), crlf, ended, torn, body: body as u64 }
    }

    pub(crate) fn column(&self, name: &str) -> Option<usize> {
        self.fields.iter().position(|field| field == name)
    }
}

#[cfg(test)]
pub(super) mod tests;
