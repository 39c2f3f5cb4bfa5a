//! The scan that never guesses: one thread, every record by the exact rules, in file order.

use super::*;

/// Adds what is found from byte `from` on, where a record begins; returns all of it and the length of the file.
pub(super) fn exact(table: &Table<'_>, mut totals: Totals, from: u64) -> Result<(Totals, u64), ScanError> {
    let mut last = LastId::default();
    let mut records = Records::new(from, table.wanted(), table.header.crlf);
    // A record may lie in several blocks; its hash is carried on from each to the next.
    let mut open = Xxh3::new();
    let walked = for_blocks::<Stop<ScanError>>(table.file, (from, u64::MAX), |offset, block| {
        let fed = records.feed(block, |record| {
            let id = table.id_of(&record, &mut last)?;
            let end = (record.end - offset) as usize;
            if record.start >= offset {
                let mut digest = Digest::default();
                digest.push(&block[(record.start - offset) as usize..end]);
                totals.add_run(id, 1, digest, (record.start, record.end));
            } else {
                open.update(&block[..end]);
                totals.append(&[found(id, &record, &open)]);
            }
            Ok(())
        });
        fed.map_err(Stop::Bad)?;
        if let Some(rest) = records.rest() {
            if rest.start >= offset {
                open.reset();
            }
            open.update(&block[(rest.start.max(offset) - offset) as usize..]);
        }
        Ok(true)
    });
    let bytes = walked.map_err(|stop| match stop {
        Stop::Io(source) => ScanError::Read { file: table.path.into(), source },
        Stop::Bad(error) => error,
    })?;
    if let Some(rest) = records.rest() {
        table.check_rest(&rest)?;
        let id = table.id_of(&rest, &mut last)?;
        totals.append(&[found(id, &rest, &open)]);
    }
    Ok((totals, bytes))
}

fn found(id: i64, record: &Record<'_>, hash: &Xxh3) -> Found {
    let mut digest = Digest::default();
    digest.push_hash(hash.digest());
    Found { id, rows: 1, start: record.start, end: record.end, bytes: record.end - record.start, digest }
}

impl Table<'_> {
    fn id_of(&self, record: &Record<'_>, last: &mut LastId) -> Result<i64, ScanError> {
        let (file, byte) = (self.path.to_path_buf(), record.start);
        if record.fields <= self.column {
            let (line, fields, needed) = (line_of(self.file, byte), record.fields, self.column + 1);
            return Err(ScanError::ShortRecord { file, line, byte, fields, needed });
        }
        last.read(record.id).ok_or_else(|| {
            let line = line_of(self.file, byte);
            ScanError::BadId { file, line, byte, value: shown(record.id) }
        })
    }

    /// A last record without its newline is whole if it looks whole.
    fn check_rest(&self, rest: &Record<'_>) -> Result<(), ScanError> {
        let wanted = self.header.fields.len();
        let reason = if rest.in_quotes {
            "a quote is never closed".to_owned()
        } else if rest.fields < wanted {
            format!("{} of {wanted} fields, and no newline", rest.fields)
        } else {
            return Ok(());
        };
        let (file, byte) = (self.path.to_path_buf(), rest.start);
        Err(ScanError::CutOff { file, line: line_of(self.file, byte), byte, reason })
    }
}
