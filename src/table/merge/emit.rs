//! Writing what was surveyed.

use super::super::blocks::{BLOCK, Stop, for_blocks, read_exact, shorter};
use super::super::field::unquoted;
use super::super::record::{Record, Records, Wanted, raw_fields};
use super::survey::{Step, Survey};
use super::*;
use crc32fast::Hasher;

/// The records of one id are held in memory up to this many bytes; beyond, only their places are.
const IN_MEMORY: u64 = 8 << 20;

/// A segment whose rows lie all over it is held whole up to this many bytes, else it is a system call per row.
const SCATTERED_IN_MEMORY: u64 = 32 << 20;

/// The output: gathers small writes, and knows length and CRC of everything.
pub(super) struct Sink<'a> {
    out: &'a mut dyn Write,
    buf: Vec<u8>,
    crc: Hasher,
    bytes: u64,
}

impl<'a> Sink<'a> {
    pub(super) fn new(out: &'a mut dyn Write) -> Self {
        Self { out, buf: Vec::with_capacity(BLOCK / 4), crc: Hasher::new(), bytes: 0 }
    }

    /// Writes the header as its file has it, with `\r\n` behind it if `crlf`.
    pub(super) fn write_header(&mut self, header: &Header, crlf: bool) -> Result<(), MergeError> {
        self.push(&header.raw)?;
        self.push(if crlf { b"\r\n" } else { b"\n" })
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), MergeError> {
        if self.buf.len() + bytes.len() > BLOCK / 4 {
            self.flush()?;
        }
        if bytes.len() >= BLOCK / 4 {
            return self.write(bytes);
        }
        self.buf.extend_from_slice(bytes);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), MergeError> {
        self.crc.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes).map_err(|source| MergeError::Write { source })
    }

    fn flush(&mut self) -> Result<(), MergeError> {
        let mut buf = std::mem::take(&mut self.buf);
        self.write(&buf)?;
        buf.clear();
        self.buf = buf;
        Ok(())
    }

    /// Returns length and CRC.
    pub(super) fn finish(mut self) -> Result<(u64, u32), MergeError> {
        self.flush()?;
        self.out.flush().map_err(|source| MergeError::Write { source })?;
        Ok((self.bytes, self.crc.finalize()))
    }
}

/// Writes one segment; returns in how many of its records a field had to be quoted.
pub(super) fn emit(survey: &Survey<'_>, sink: &mut Sink<'_>) -> Result<u64, MergeError> {
    let (Some(table), Some(file)) = (survey.table, survey.file.as_ref()) else { return Ok(0) };
    let source =
        Source { table, file, window: window(survey, file).map_err(|source| table.read_error(source))? };
    let mut quoted = 0;
    for step in &survey.steps {
        let done = match step {
            Step::Copy(start, end) => source.copy((*start, *end), sink),
            Step::Records { runs, sort } => source.emit_records(runs, *sort, sink).map(|n| quoted += n),
        };
        done.map_err(|stop| match stop {
            Stop::Io(source) => table.read_error(source),
            Stop::Bad(error) => error,
        })?;
    }
    Ok(quoted)
}

/// The bytes around all steps and where they begin, if there are so many steps that one large read is cheaper.
fn window(survey: &Survey<'_>, file: &File) -> io::Result<Option<(u64, Vec<u8>)>> {
    let pieces = survey.steps.iter().flat_map(Step::spans);
    let (count, start, end) = pieces.fold((0u64, u64::MAX, 0), |(count, start, end), span| {
        (count + 1, start.min(span.0), end.max(span.1))
    });
    let len = end.saturating_sub(start);
    if len > SCATTERED_IN_MEMORY || len / count.max(1) > BLOCK as u64 / 16 {
        return Ok(None);
    }
    let mut bytes = vec![0; len as usize];
    read_exact(file, &mut bytes, start)?;
    Ok(Some((start, bytes)))
}

/// One record's place in the output and in the file.
struct Place {
    token: Token,
    start: u64,
    end: u64,
    edit: bool,
}

/// Where a segment's bytes come from.
struct Source<'a> {
    table: &'a Table<'a>,
    file: &'a File,
    window: Option<(u64, Vec<u8>)>,
}

impl Source<'_> {
    /// Calls `each` with the bytes of `span`, in blocks.
    fn read(
        &self,
        span: (u64, u64),
        mut each: impl FnMut(&[u8]) -> Result<(), MergeError>,
    ) -> Result<(), Stop<MergeError>> {
        if let Some((start, bytes)) = &self.window {
            return each(&bytes[(span.0 - start) as usize..(span.1 - start) as usize]).map_err(Stop::Bad);
        }
        let end = for_blocks::<Stop<MergeError>>(self.file, span, |_, bytes| {
            each(bytes).map_err(Stop::Bad).map(|()| true)
        })?;
        if end < span.1 { Err(Stop::Io(shorter())) } else { Ok(()) }
    }

    fn copy(&self, span: (u64, u64), sink: &mut Sink<'_>) -> Result<(), Stop<MergeError>> {
        self.read(span, |bytes| sink.push(bytes))
    }

    /// Writes the records of `runs` one by one; returns how many had a field quoted.
    fn emit_records(
        &self,
        runs: &[(u64, u64)],
        sort: bool,
        sink: &mut Sink<'_>,
    ) -> Result<u64, Stop<MergeError>> {
        let total: u64 = runs.iter().map(|run| run.1 - run.0).sum();
        let hold = self.window.is_none() && total <= IN_MEMORY;
        let mut held = Vec::new();
        let mut places = Vec::new();
        for run in runs {
            // Held records are addressed by their place in memory, which may well be above that in the file.
            let shift = match &self.window {
                Some((start, _)) => *start,
                None if hold => run.0.wrapping_sub(held.len() as u64),
                None => 0,
            };
            self.index(*run, shift, hold.then_some(&mut held), &mut places)?;
        }
        if sort {
            places.sort_by_key(|place| place.token);
        }
        let memory = self.window.as_ref().map(|window| &window.1[..]).or(hold.then_some(&held[..]));
        let mut scratch = Vec::new();
        let mut quoted = 0;
        for place in &places {
            let record = if let Some(memory) = memory {
                &memory[place.start as usize..place.end as usize]
            } else {
                scratch.resize((place.end - place.start) as usize, 0);
                read_exact(self.file, &mut scratch, place.start)?;
                &scratch[..]
            };
            if place.edit {
                let (edited, changed) = with_returns_quoted(record, self.table.crlf);
                quoted += u64::from(changed);
                sink.push(&edited).map_err(Stop::Bad)?;
            } else {
                sink.push(record).map_err(Stop::Bad)?;
            }
        }
        Ok(quoted)
    }

    /// Adds the places of the records of `run`, `shift` bytes lower, and their bytes to `held`.
    fn index(
        &self,
        run: (u64, u64),
        shift: u64,
        mut held: Option<&mut Vec<u8>>,
        places: &mut Vec<Place>,
    ) -> Result<(), Stop<MergeError>> {
        let wanted = Wanted { id: self.table.id, token: self.table.token };
        let mut records = Records::new(run.0, wanted, self.table.crlf);
        let mut add = |record: &Record<'_>| {
            let (start, end) = (record.start.wrapping_sub(shift), record.end.wrapping_sub(shift));
            let edit = record.lone_cr || !record.ended;
            places.push(Place { token: Token::read(record.token), start, end, edit });
        };
        self.read(run, |bytes| {
            if let Some(held) = &mut held {
                held.extend_from_slice(bytes);
            }
            records.feed(bytes, |record| {
                add(&record);
                Ok(())
            })
        })?;
        if let Some(rest) = records.rest() {
            add(&rest);
        }
        Ok(())
    }
}

/// The record with its newline, and with quotes around each field that holds a `\r` outside of quotes.
fn with_returns_quoted(record: &[u8], crlf: bool) -> (Vec<u8>, bool) {
    let text = record.strip_suffix(b"\n").unwrap_or(record);
    let text = if crlf { text.strip_suffix(b"\r").unwrap_or(text) } else { text };
    let line_end = if record.len() > text.len() { &record[text.len()..] } else { b"\n" };
    let mut edited = Vec::with_capacity(record.len() + 8);
    let mut changed = false;
    for (n, raw) in raw_fields(text).into_iter().enumerate() {
        if n > 0 {
            edited.push(b',');
        }
        if !has_bare_return(raw) {
            edited.extend_from_slice(raw);
            continue;
        }
        changed = true;
        edited.push(b'"');
        for byte in unquoted(raw).iter() {
            if *byte == b'"' {
                edited.push(b'"');
            }
            edited.push(*byte);
        }
        edited.push(b'"');
    }
    edited.extend_from_slice(line_end);
    if !edited.ends_with(b"\n") {
        edited.push(b'\n');
    }
    (edited, changed)
}

/// Whether a `\r` stands outside the quotes of this field.
fn has_bare_return(raw: &[u8]) -> bool {
    if raw.first() != Some(&b'"') {
        return memchr::memchr(b'\r', raw).is_some();
    }
    let mut at = 1;
    while let Some(quote) = memchr::memchr(b'"', &raw[at..]) {
        at += quote + 1;
        if raw.get(at) != Some(&b'"') {
            return memchr::memchr(b'\r', &raw[at..]).is_some();
        }
        at += 1;
    }
    false
}
