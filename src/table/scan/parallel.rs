//! The fast scan: two threads, and a guess about quotes that each of them checks.

use super::*;

/// The guess does not hold for this file, or it holds something that only the exact scan may judge.
#[derive(Debug)]
pub(super) struct GaveUp;

/// Without a record end in this many bytes, quotes are not what they seem.
const MAX_CARRY: usize = 4 << 20;

/// Ids in one block that make it a table in random order.
const MANY_IDS: usize = 256;

const THREADS: u64 = 2;

/// How far one thread may run ahead of the other, so that results waiting for their turn stay few.
const MAX_AHEAD: u64 = 2 * THREADS;

/// Returns what was found and the byte after the last record that has its newline.
pub(super) fn speculative(table: &Table<'_>, block: usize) -> Result<(Totals, u64), GaveUp> {
    let body = table.header.body;
    let cursor = Mutex::new(Cursor { at: body, offset: body, carry: Vec::new(), taken: 0, done: false });
    let merged = Merged { state: Mutex::default(), turn: Condvar::new() };
    std::thread::scope(|scope| {
        for _ in 1..THREADS {
            scope.spawn(|| work(table, &cursor, &merged, block));
        }
        work(table, &cursor, &merged, block);
    });
    let cursor = cursor.into_inner().unwrap_or_else(PoisonError::into_inner);
    let state = merged.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    if state.gave_up || state.next != cursor.taken {
        return Err(GaveUp);
    }
    Ok((state.totals, cursor.offset))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The next bytes to hand out.
struct Cursor {
    /// Where the next read begins.
    at: u64,
    /// Where `carry` begins: after the last record end handed out.
    offset: u64,
    carry: Vec<u8>,
    taken: u64,
    done: bool,
}

/// Whole records, if the guess is right.
struct Block {
    number: u64,
    offset: u64,
    len: usize,
    has_quotes: bool,
}

impl Cursor {
    /// Reads the next block into `buf`; `None` at the end of the file.
    fn take(&mut self, table: &Table<'_>, buf: &mut Vec<u8>, size: usize) -> Result<Option<Block>, GaveUp> {
        if self.done {
            return Ok(None);
        }
        let mut filled = self.carry.len();
        buf.resize(buf.len().max(filled + size), 0);
        buf[..filled].copy_from_slice(&self.carry);
        loop {
            if filled > MAX_CARRY.max(size) {
                return Err(GaveUp);
            }
            buf.resize(buf.len().max(filled + size), 0);
            let got = read_full(table.file, &mut buf[filled..filled + size], self.at).map_err(|_| GaveUp)?;
            self.at += got as u64;
            filled += got;
            self.done = got < size;
            let quotes = memchr::memchr_iter(b'"', &buf[..filled]).count();
            let end = last_end(&buf[..filled], quotes % 2 == 1);
            if end.is_none() && !self.done {
                continue;
            }
            let len = end.unwrap_or(0);
            self.carry.clear();
            self.carry.extend_from_slice(&buf[len..filled]);
            let block = Block { number: self.taken, offset: self.offset, len, has_quotes: quotes > 0 };
            self.offset += len as u64;
            self.taken += 1;
            return Ok(Some(block));
        }
    }
}

/// The byte after the last newline outside quotes, given whether the end of `bytes` is inside.
fn last_end(bytes: &[u8], mut inside: bool) -> Option<usize> {
    let mut end = bytes.len();
    loop {
        end = match inside {
            true => memchr::memrchr(b'"', &bytes[..end])?,
            false => memchr::memrchr2(b'"', b'\n', &bytes[..end])?,
        };
        if bytes[end] == b'\n' {
            return Some(end + 1);
        }
        inside = !inside;
    }
}

/// What all threads found, in file order.
#[derive(Default)]
struct MergedState {
    totals: Totals,
    /// The block whose turn it is.
    next: u64,
    /// Blocks that were done before their turn.
    waiting: BTreeMap<u64, Vec<Found>>,
    gave_up: bool,
}

impl MergedState {
    fn take_turn(&mut self, found: &[Found]) {
        self.totals.append(found);
        self.next += 1;
    }

    fn next_waiting(&mut self) -> Option<Vec<Found>> {
        self.waiting.remove(&self.next)
    }
}

struct Merged {
    state: Mutex<MergedState>,
    turn: Condvar,
}

impl Merged {
    fn give_up(&self) {
        lock(&self.state).gave_up = true;
        self.turn.notify_all();
    }

    /// Takes over one block's findings; false once somebody gave up.
    fn add(&self, number: u64, found: &[Found]) -> bool {
        let mut state = lock(&self.state);
        while number > state.next + MAX_AHEAD && !state.gave_up {
            state = self.turn.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if number == state.next {
            state.take_turn(found);
            while let Some(found) = state.next_waiting() {
                state.take_turn(&found);
            }
            self.turn.notify_all();
        } else {
            state.waiting.insert(number, found.to_vec());
        }
        !state.gave_up
    }
}

fn work(table: &Table<'_>, cursor: &Mutex<Cursor>, merged: &Merged, size: usize) {
    let mut buf = Vec::new();
    let mut found = Totals::default();
    let mut size = size;
    loop {
        let taken = lock(cursor).take(table, &mut buf, size);
        let block = match taken {
            Ok(Some(block)) => block,
            Ok(None) => return,
            Err(GaveUp) => return merged.give_up(),
        };
        found.clear();
        let bytes = &buf[..block.len];
        let read = if block.has_quotes {
            quoted_block(table, bytes, block.offset, &mut found)
        } else {
            plain_block(table, bytes, block.offset, &mut found)
        };
        if read.is_err() {
            return merged.give_up();
        }
        if !merged.add(block.number, &found.ids) {
            return;
        }
        // Where every block holds many ids, merging costs as much as reading; larger blocks make it rare.
        if found.ids.len() > MANY_IDS && size < MAX_CARRY {
            size *= 4;
        }
    }
}

/// Neighbouring records of one id.
struct Run {
    id: i64,
    rows: u64,
    start: usize,
    digest: Digest,
}

impl Run {
    fn new(id: i64, start: usize) -> Self {
        Self { id, rows: 0, start, digest: Digest::default() }
    }

    #[inline]
    fn add(&mut self, record: &[u8]) {
        self.rows += 1;
        self.digest.push(record);
    }

    fn close(&mut self, end: usize, offset: u64, found: &mut Totals) {
        if self.rows > 0 {
            let place = (offset + self.start as u64, offset + end as u64);
            found.add_run(self.id, self.rows, self.digest, place);
            self.rows = 0;
        }
    }
}

/// Whole records without a quote among them: every newline ends a record, every comma a field.
fn plain_block(table: &Table<'_>, bytes: &[u8], offset: u64, found: &mut Totals) -> Result<(), GaveUp> {
    let crlf = table.header.crlf;
    let mut run = Run::new(0, 0);
    let mut last: &[u8] = b"";
    let mut start = 0;
    for newline in memchr::memchr_iter(b'\n', bytes) {
        let mut line = &bytes[start..newline];
        if crlf && let Some(text) = line.strip_suffix(b"\r") {
            line = text;
        }
        if line.is_empty() {
            run.close(start, offset, found);
            start = newline + 1;
            continue;
        }
        for _ in 0..table.column {
            line = &line[find_near(b',', line).ok_or(GaveUp)? + 1..];
        }
        let same =
            run.rows > 0 && line.starts_with(last) && matches!(line.get(last.len()), None | Some(b','));
        if !same {
            run.close(start, offset, found);
            let (id, len) = leading_id(line)?;
            last = &line[..len];
            run = Run::new(id, start);
        }
        run.add(&bytes[start..=newline]);
        start = newline + 1;
    }
    run.close(start, offset, found);
    Ok(())
}

/// The id that the field at the start of `line` holds, and the field's length.
#[inline]
fn leading_id(line: &[u8]) -> Result<(i64, usize), GaveUp> {
    // A few digits are parsed faster than their end is found.
    let mut id = 0;
    for (len, byte) in line.iter().take(18).enumerate() {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            if *byte == b',' && len > 0 {
                return Ok((id, len));
            }
            break;
        }
        id = id * 10 + i64::from(digit);
    }
    let len = memchr::memchr(b',', line).unwrap_or(line.len());
    Ok((integer(&line[..len]).ok_or(GaveUp)?, len))
}

/// Whole records by the exact rules, unless a quote shows that they may be none.
fn quoted_block(table: &Table<'_>, bytes: &[u8], offset: u64, found: &mut Totals) -> Result<(), GaveUp> {
    let mut run = Run::new(0, 0);
    let mut last = LastId::default();
    let mut start = 0;
    while start < bytes.len() {
        let record = whole(bytes, start, table.wanted(), table.header.crlf).ok_or(GaveUp)?;
        if record.stray_quote {
            return Err(GaveUp);
        }
        if record.is_blank() {
            run.close(start, offset, found);
        } else {
            if record.fields <= table.column {
                return Err(GaveUp);
            }
            let id = last.read(&bytes[record.id.0..record.id.1]).ok_or(GaveUp)?;
            if run.rows == 0 || id != run.id {
                run.close(start, offset, found);
                run = Run::new(id, start);
            }
            run.add(&bytes[start..record.end]);
        }
        start = record.end;
    }
    run.close(start, offset, found);
    Ok(())
}
