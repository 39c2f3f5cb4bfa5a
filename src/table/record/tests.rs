use super::*;
use crate::table::field::unquoted;
use proptest::prelude::*;

/// What the `csv` crate makes of a table: per record its start, its end and its fields, the header first.
pub(crate) fn oracle(bytes: &[u8]) -> Vec<(u64, u64, Vec<Vec<u8>>)> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .terminator(csv::Terminator::Any(b'\n'))
        .from_reader(bytes);
    let mut raw = Vec::new();
    let mut record = csv::ByteRecord::new();
    while reader.read_byte_record(&mut record).unwrap() {
        let fields: Vec<Vec<u8>> = record.iter().map(<[u8]>::to_vec).collect();
        raw.push((record.position().unwrap().byte(), reader.position().byte(), fields));
    }
    let mut crlf = None;
    let mut records = Vec::new();
    let total = raw.len();
    for (n, (mut start, end, mut fields)) in raw.into_iter().enumerate() {
        // The position of a record does not count the empty lines and the mark before it.
        if start == 0 && bytes.starts_with(BOM) {
            start = 3;
        }
        while bytes[start as usize] == b'\n' {
            start += 1;
        }
        let record = &bytes[start as usize..end as usize];
        let line_end = record.strip_suffix(b"\n").unwrap_or(record);
        // Only the last record can end inside quotes, where the byte before the end is not a field's last one.
        let last = fields.last_mut().unwrap();
        let with_return = line_end.last() == Some(&b'\r') && (n + 1 < total || !reopened(record));
        if crlf.unwrap_or(true) && with_return {
            assert_eq!(last.pop(), Some(b'\r'));
            if line_end.len() == 1 && record.len() == 2 {
                continue;
            }
        }
        crlf.get_or_insert(with_return);
        records.push((start, end, fields));
    }
    records
}

/// Whether the end of the record lies inside quotes: a byte appended to it does not end it.
pub(crate) fn reopened(record: &[u8]) -> bool {
    // The line before keeps a byte order mark from being one.
    let mut more = b"x\n".to_vec();
    more.extend_from_slice(record.strip_suffix(b"\n").unwrap_or(record));
    more.extend_from_slice(b"\nx\n");
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .terminator(csv::Terminator::Any(b'\n'))
        .from_reader(&more[..]);
    let mut record = csv::ByteRecord::new();
    reader.read_byte_record(&mut record).unwrap();
    reader.read_byte_record(&mut record).unwrap();
    reader.position().byte() == more.len() as u64
}

/// Bytes that meet every rule often.
pub(crate) fn hostile(max: usize) -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => Just(&b","[..]),
        4 => Just(&b"\""[..]),
        3 => Just(&b"\n"[..]),
        2 => Just(&b"\r\n"[..]),
        2 => Just(&b"\r"[..]),
        2 => Just(&b"\"\""[..]),
        4 => Just(&b"a"[..]),
        3 => Just(&b"12"[..]),
        1 => Just("é世".as_bytes()),
        1 => Just(&b" "[..]),
        1 => Just(&b"\xff"[..]),
        1 => Just(BOM),
    ];
    proptest::collection::vec(piece, 0..max).prop_map(|pieces| pieces.concat())
}

type Seen = (u64, u64, usize, Vec<u8>, Vec<u8>, bool);

fn read_in_blocks(bytes: &[u8], cuts: &[usize], wanted: Wanted) -> Vec<Seen> {
    let skipped = if bytes.starts_with(BOM) { 3 } else { 0 };
    let mut records = Records { wanted, ..Records::from_header() };
    records.at = skipped as u64;
    let mut seen: Vec<Seen> = Vec::new();
    let mut from = skipped;
    for cut in cuts.iter().copied().chain([bytes.len()]) {
        let to = cut.clamp(from, bytes.len());
        let kept = records.feed(&bytes[from..to], |r| {
            seen.push((r.start, r.end, r.fields, r.id.to_vec(), r.token.to_vec(), r.lone_cr));
            Ok::<(), ()>(())
        });
        assert!(kept.is_ok());
        from = to;
    }
    if let Some(r) = records.rest() {
        seen.push((r.start, r.end, r.fields, r.id.to_vec(), r.token.to_vec(), r.lone_cr));
    }
    seen
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn records_and_fields_are_those_of_the_csv_crate(
        bytes in hostile(60),
        cuts in proptest::collection::vec(0usize..120, 0..6),
    ) {
        let mut cuts = cuts;
        cuts.sort_unstable();
        let wanted = Wanted { id: 0, token: 1 };
        let blocks = read_in_blocks(&bytes, &cuts, wanted);
        let single: Vec<usize> = (0..bytes.len()).collect();
        prop_assert_eq!(&blocks, &read_in_blocks(&bytes, &single, wanted));
        let expected = oracle(&bytes);
        prop_assert_eq!(blocks.len(), expected.len());
        for (seen, (start, end, fields)) in blocks.iter().zip(&expected) {
            prop_assert_eq!((seen.0, seen.1, seen.2), (*start, *end, fields.len()));
            prop_assert_eq!(unquoted(&seen.3).to_vec(), fields[0].clone());
            prop_assert_eq!(unquoted(&seen.4).to_vec(), fields.get(1).cloned().unwrap_or_default());
            let record = &bytes[*start as usize..*end as usize];
            let crlf = blocks.first().is_some_and(|r| bytes[..r.1 as usize].ends_with(b"\r\n"));
            if record.ends_with(b"\n") && !reopened(record) {
                let text = &record[..record.len() - 1];
                let text = if crlf { text.strip_suffix(b"\r").unwrap_or(text) } else { text };
                let raw: Vec<Vec<u8>> = raw_fields(text).iter().map(|f| unquoted(f).into_owned()).collect();
                prop_assert_eq!(&raw, fields);
            }
        }
    }

    #[test]
    fn a_header_is_the_first_record(bytes in hostile(40)) {
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
        let header = Header::read(&file).unwrap();
        let expected = oracle(&bytes);
        let names = |fields: &[Vec<u8>]| -> Vec<String> {
            fields.iter().map(|f| String::from_utf8_lossy(f).into_owned()).collect()
        };
        prop_assert_eq!(header.as_ref().map(|h| h.fields.clone()), expected.first().map(|r| names(&r.2)));
        prop_assert_eq!(header.map(|h| h.body), expected.first().map(|r| r.1));
    }
}

#[test]
fn a_header_over_many_reads_is_whole() {
    let mut bytes = vec![b'x'; 200_000];
    bytes.extend_from_slice(b",data_id\r\n1,2\r\n");
    let file = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
    let header = Header::read(&file).unwrap().unwrap();
    assert!(header.ended && header.crlf && header.column("data_id") == Some(1));
    assert_eq!(header.body, 200_010);
}
