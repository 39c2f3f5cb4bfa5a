//! What can be refused before a row is read: coverage, headers, and where spans begin.

use super::super::blocks::{for_blocks, line_of};
use super::super::record::{ABSENT, Records, Wanted};
use super::*;

/// The ids named in one message.
const SHOWN: usize = 10;

/// All segments in ascending order of their ids, if they are disjoint and cover `planned`.
pub(super) fn cover<'a>(sources: &'a [MergeSource], planned: &[i64]) -> Result<Vec<Part<'a>>, MergeError> {
    if let Some(pair) = planned.windows(2).find(|pair| pair[0] >= pair[1]) {
        return Err(MergeError::PlanOrder { left: pair[0], right: pair[1] });
    }
    let of = |(source, from): (usize, &'a MergeSource)| {
        from.segments.iter().map(move |segment| Part { source, segment })
    };
    let mut parts: Vec<Part<'a>> = sources.iter().enumerate().flat_map(of).collect();
    parts.sort_by_key(|part| part.segment.ids);
    let file = |part: &Part<'_>| sources[part.source].path.clone();
    if let Some(part) = parts.iter().find(|part| part.segment.ids.0 > part.segment.ids.1) {
        return Err(MergeError::Inverted { file: file(part), ids: part.segment.ids });
    }
    if let Some(pair) = parts.windows(2).find(|pair| pair[0].segment.ids.1 >= pair[1].segment.ids.0) {
        let (left, right) = (&pair[0], &pair[1]);
        return Err(MergeError::Overlap {
            left: file(left),
            left_ids: left.segment.ids,
            right: file(right),
            right_ids: right.segment.ids,
        });
    }
    let mut missing = planned.iter().copied().filter(|id| {
        let at = parts.partition_point(|part| part.segment.ids.1 < *id);
        parts.get(at).is_none_or(|part| part.segment.ids.0 > *id)
    });
    let ids: Vec<i64> = missing.by_ref().take(SHOWN).collect();
    if !ids.is_empty() {
        return Err(MergeError::Missing { count: ids.len() + missing.count(), ids });
    }
    Ok(parts)
}

/// Reads every header and proves that every span begins where a record begins.
pub(super) fn open_all(sources: &[MergeSource]) -> Result<Tables<'_>, MergeError> {
    let mut all = Tables { tables: Vec::new(), first: None, crlf: false };
    let mut first_path: Option<&Path> = None;
    for source in sources {
        let mut spans: Vec<(u64, u64)> =
            source.segments.iter().flat_map(|s| s.spans.iter().copied()).collect();
        if spans.is_empty() {
            all.tables.push(None);
            continue;
        }
        spans.sort_unstable();
        let path = source.path.as_path();
        let file = open(path)?;
        let read_error = |source| MergeError::Read { file: path.into(), source };
        let header = Header::read(&file).map_err(read_error)?.filter(|header| header.ended);
        let header = header.ok_or_else(|| MergeError::NoHeader { file: path.into() })?;
        let len = file.metadata().map_err(read_error)?.len();
        let id = header.column("data_id").ok_or_else(|| MergeError::NoIdColumn { file: path.into() })?;
        if let (Some(first), Some(first_path)) = (&all.first, first_path) {
            same_header(first_path, first, path, &header)?;
        }
        let table = Table {
            path,
            fields: header.fields.len(),
            crlf: header.crlf,
            id,
            token: header.column("token_id").unwrap_or(ABSENT),
            len,
        };
        check_starts(&table, &file, header.body, &spans)?;
        all.crlf |= header.crlf;
        all.tables.push(Some(table));
        if all.first.is_none() {
            (all.first, first_path) = (Some(header), Some(path));
        }
    }
    Ok(all)
}

fn same_header(first_path: &Path, first: &Header, path: &Path, header: &Header) -> Result<(), MergeError> {
    if first.fields == header.fields {
        return Ok(());
    }
    let pairs = first.fields.iter().zip(&header.fields);
    let at = pairs.take_while(|(left, right)| left == right).count();
    let name = |header: &Header| header.fields.get(at).cloned().unwrap_or_else(|| "(no field)".to_owned());
    Err(MergeError::HeaderDiffers {
        first: first_path.into(),
        other: path.into(),
        field: at + 1,
        left: name(first),
        right: name(header),
    })
}

/// A record begins behind the header and behind every record; what lies between the spans is walked to find out
/// where. The survey does the same inside of them.
fn check_starts(table: &Table<'_>, file: &File, body: u64, spans: &[(u64, u64)]) -> Result<(), MergeError> {
    let mut before: Option<(u64, u64)> = None;
    for span in spans {
        if span.0 > span.1 || span.0 < body || span.1 > table.len {
            return Err(MergeError::OutOfFile { file: table.path.into(), span: *span, body, len: table.len });
        }
        let from = match before {
            Some(left) if left.1 > span.0 => {
                return Err(MergeError::SpansOverlap { file: table.path.into(), left, right: *span });
            }
            Some(left) => left.1,
            None => body,
        };
        let mut records = Records::new(from, Wanted::NOTHING, table.crlf);
        for_blocks::<io::Error>(file, (from, span.0), |_, bytes| {
            let Ok(()) = records.feed(bytes, |_| Ok::<(), std::convert::Infallible>(()));
            Ok(true)
        })
        .map_err(|source| table.read_error(source))?;
        if records.rest().is_some() {
            return Err(MergeError::NotAtRecord {
                file: table.path.into(),
                line: line_of(file, span.0),
                byte: span.0,
            });
        }
        before = Some(*span);
    }
    Ok(())
}
