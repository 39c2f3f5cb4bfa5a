use super::*;
use crate::table::record::tests::{hostile, oracle, reopened};
use proptest::prelude::*;
use std::io::Write;

fn read(bytes: &[u8]) -> ShardFacts {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    read_shard(file.path()).unwrap()
}

fn number(field: Option<&Vec<u8>>) -> Option<i64> {
    let text = String::from_utf8_lossy(field?).into_owned();
    let text = text.trim_matches([' ', '\t']);
    text.strip_suffix(".0").unwrap_or(text).parse().ok()
}

/// The last of `records` is in quotes at the end of `bytes`.
fn in_quotes(bytes: &[u8], records: &[(u64, u64, Vec<Vec<u8>>)]) -> bool {
    records.last().is_some_and(|(start, ..)| reopened(&[&bytes[*start as usize..], b"\n"].concat()))
}

fn has_ended(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\n") && !in_quotes(bytes, &oracle(bytes))
}

/// The same facts by way of the `csv` crate.
fn expected(bytes: &[u8]) -> ShardFacts {
    let mut facts =
        ShardFacts { len: bytes.len() as u64, crc: crc32fast::hash(bytes), ..ShardFacts::default() };
    let mut records = oracle(bytes);
    let open = in_quotes(bytes, &records);
    let cut = if bytes.ends_with(b"\n") && !open { None } else { records.pop() };
    if records.is_empty() {
        return facts;
    }
    let (_, body, names) = records.remove(0);
    let names: Vec<String> = names.iter().map(|f| String::from_utf8_lossy(f).into_owned()).collect();
    let column = names.iter().position(|n| n == "data_id");
    let width = names.len();
    facts.body = body;
    facts.header = Some(names);
    let Some(column) = column else {
        facts.malformed = Some(Malformed { byte: 0, line: 1, reason: String::new() });
        return facts;
    };
    for (start, end, fields) in records {
        let id = number(fields.get(column)).filter(|_| fields.len() == width);
        let Some(id) = id else {
            let line = 1 + bytes[..start as usize].iter().filter(|b| **b == b'\n').count() as u64;
            facts.malformed = Some(Malformed { byte: start, line, reason: String::new() });
            return facts;
        };
        match facts.runs.last_mut() {
            Some(run) if run.id == id => (run.end, run.rows) = (end, run.rows + 1),
            _ => facts.runs.push(IdRun { id, start, end, rows: 1 }),
        }
    }
    if let Some((start, _, fields)) = cut {
        let id = number(fields.get(column));
        facts.tail = Some(Tail {
            start,
            closed_id: id.filter(|_| fields.len() > column + 1),
            whole_id: id.filter(|_| fields.len() == width && !open),
        });
    }
    facts
}

fn without_reason(mut facts: ShardFacts) -> ShardFacts {
    if let Some(malformed) = &mut facts.malformed {
        assert!(!malformed.reason.is_empty());
        malformed.reason.clear();
    }
    facts
}

/// About 1 KiB (there are four of them) with everything that may stand in a field.
fn sample(header: &str, end: &str, row: impl Fn(i64, &str) -> String) -> Vec<u8> {
    let texts = [
        "plain",
        "\"a, b\"",
        "\"x\n\r\ny\"",
        "\"say \"\"no\"\"\"",
        "lone\rcr",
        "世界é",
        "",
        "\"\"",
        "q\"uote",
        "\"shut\"open",
    ];
    let mut text = format!("{header}{end}");
    let mut n = 0usize;
    while text.len() < 1024 {
        let id = [3, 3, 3, 10, 10, 11][n % 6] + 20 * (n as i64 / 6);
        text.push_str(&row(id, texts[n * 7 % 10]));
        text.push_str(end);
        if n.is_multiple_of(17) {
            text.push_str(end);
        }
        n += 1;
    }
    text.into_bytes()
}

#[test]
fn every_cut_leaves_exactly_the_records_that_ended() {
    let samples = [
        sample("data_id,token_id,text", "\n", |id, t| format!("{id},7,{t}")),
        sample("token_id,data_id,text", "\r\n", |id, t| format!("7,{id},{t}")),
        sample("text,data_id", "\r\n", |id, t| format!("{t},\"{id}\"")),
        sample("\u{feff}\"text\",\"data_id\",z", "\n", |id, t| format!("{t}, {id}.0,\r")),
    ];
    for bytes in samples {
        for cut in 0..=bytes.len() {
            let part = &bytes[..cut];
            assert_eq!(read(part), without_reason(expected(part)), "cut at {cut}");
        }
        assert!(expected(&bytes).malformed.is_none(), "the sample itself is good");
    }
}

#[test]
fn what_no_worker_writes_is_named() {
    let facts = read(b"data_id,t\n1,2\n\"a\nb\",3\n1,2\n");
    let malformed = facts.malformed.unwrap();
    assert_eq!((malformed.byte, malformed.line), (14, 3));
    assert_eq!(malformed.reason, "data_id \"a\\nb\" is not an integer");
    assert_eq!(facts.runs.len(), 1);
    assert_eq!(read(b"data_id,t\n1\n").malformed.unwrap().reason, "1 fields where the header has 2");
    let facts = read(b"id,t\n1\n");
    assert!(facts.malformed.unwrap().reason.contains("id, t") && facts.header.is_some());
    assert!(matches!(read_shard(Path::new("/nowhere.csv")), Err(ShardError::Open { .. })));
}

#[test]
fn a_record_over_many_blocks_is_one() {
    let text = "x".repeat(3 << 20);
    let bytes = format!("data_id,t\n1,\"{text}\n\"\n2,{text}\n2,\"{text}");
    let facts = read(bytes.as_bytes());
    assert_eq!(facts.runs.iter().map(|r| (r.id, r.rows)).collect::<Vec<_>>(), [(1, 1), (2, 1)]);
    assert_eq!(facts.tail.unwrap(), Tail { start: facts.runs[1].end, closed_id: Some(2), whole_id: None });
    assert_eq!(facts.crc, crc32fast::hash(bytes.as_bytes()));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn any_bytes_have_the_facts_that_the_csv_crate_sees(tail in hostile(40), start in 0usize..4) {
        let start: &[u8] = [&b""[..], b"data_id,a\n", b"a,data_id\r\n", b"data_id\n"][start];
        let bytes = [start, &tail[..]].concat();
        prop_assert_eq!(without_reason(read(&bytes)), expected(&bytes));
    }

    #[test]
    fn rows_are_counted_wherever_the_bytes_are_cut(bytes in hostile(60), size in 1usize..9) {
        let mut counter = RowCounter::new();
        for (n, part) in bytes.chunks(size).enumerate() {
            counter.update(part);
            let seen = &bytes[..(n * size + part.len())];
            let ended = oracle(seen).len() as u64 - u64::from(!has_ended(seen) && !oracle(seen).is_empty());
            prop_assert_eq!(counter.rows(), ended.saturating_sub(1));
        }
    }
}
