use super::*;
use crate::table::record::tests::{hostile, oracle};
use proptest::prelude::*;
use std::io::Write;

fn written(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn scanned(bytes: &[u8], block: usize) -> Result<InputIndex, ScanError> {
    scan_in_blocks(written(bytes).path(), block)
}

/// By the documented formula, record by record.
fn digest<'a>(records: impl Iterator<Item = &'a [u8]>) -> u64 {
    let factor = 0x9e37_79b9_7f4a_7c15u64;
    records.fold(0u64, |digest, record| {
        digest.wrapping_mul(factor).wrapping_add(xxhash_rust::xxh3::xxh3_64(record))
    })
}

/// The same answer from the `csv` crate; `Err` is the byte of the record at fault.
fn expected(bytes: &[u8]) -> Result<InputIndex, u64> {
    let records = oracle(bytes);
    let names: Vec<String> = records[0].2.iter().map(|f| String::from_utf8_lossy(f).into_owned()).collect();
    let column = names.iter().position(|n| n == "data_id").ok_or(0u64)?;
    let mut ids: BTreeMap<i64, (u64, Vec<(u64, u64)>)> = BTreeMap::new();
    for (start, end, fields) in &records[1..] {
        let text = String::from_utf8_lossy(fields.get(column).ok_or(*start)?).into_owned();
        let text = text.trim_matches([' ', '\t']);
        let id = text.strip_suffix(".0").unwrap_or(text).parse::<i64>().map_err(|_| *start)?;
        let entry = ids.entry(id).or_default();
        entry.0 += 1;
        entry.1.push((*start, *end));
    }
    let of = |(id, (rows, spans)): (i64, (u64, Vec<(u64, u64)>))| {
        let digest = digest(spans.iter().map(|(s, e)| &bytes[*s as usize..*e as usize]));
        let adjacent = spans.windows(2).all(|w| w[0].1 == w[1].0);
        let span = adjacent.then(|| (spans[0].0, spans[spans.len() - 1].1));
        IdRows { id, rows, span, digest }
    };
    let rows = records.len() as u64 - 1;
    Ok(InputIndex { header: names, ids: ids.into_iter().map(of).collect(), rows, bytes: bytes.len() as u64 })
}

fn table() -> impl Strategy<Value = Vec<u8>> {
    let id = prop_oneof![
        20 => (0i64..4).prop_map(|id| id.to_string()),
        2 => (0i64..4).prop_map(|id| format!("\"{id}\"")),
        2 => (0i64..4).prop_map(|id| format!(" {id}.0 ")),
        1 => Just("\"2\" ".to_owned()),
        1 => Just("-9223372036854775808".to_owned()),
    ];
    let text = prop_oneof![
        6 => Just("text".to_owned()),
        2 => Just("\"a,\n\"\"b\"\"\r\n\"".to_owned()),
        1 => Just("lone\rreturn".to_owned()),
        1 => Just("\"quoted\"tail".to_owned()),
        1 => Just("5\" disk".to_owned()),
        1 => Just("\u{4e16}\u{e9}".to_owned()),
        1 => Just(String::new()),
    ];
    let row =
        (text.clone(), id, text, 0..12u8).prop_map(|(a, id, b, blank)| (format!("{a},{id},{b}"), blank == 0));
    (proptest::collection::vec(row, 1..40), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(rows, crlf, bom, cut)| {
            let end = if crlf { "\r\n" } else { "\n" };
            let mut text = if bom { "\u{feff}".to_owned() } else { String::new() };
            text.push_str(&format!("x,data_id,y{end}"));
            for (row, blank) in rows {
                text.push_str(&row);
                text.push_str(end);
                if blank {
                    text.push_str(end);
                }
            }
            if cut && text.ends_with('\n') {
                text.truncate(text.len() - end.len());
            }
            text.into_bytes()
        },
    )
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

proptest! {
    #![proptest_config(config(1500))]

    #[test]
    fn every_table_is_indexed_as_the_csv_crate_reads_it(bytes in table(), block in 1usize..200) {
        let expected = expected(&bytes).unwrap();
        prop_assert_eq!(&scanned(&bytes, block).unwrap(), &expected);
        prop_assert_eq!(&scanned(&bytes, BLOCK).unwrap(), &expected);
    }

    #[test]
    fn any_bytes_are_indexed_or_refused_at_the_right_record(tail in hostile(40), block in 1usize..64) {
        let mut bytes = b"data_id,b\n1,2\n".to_vec();
        bytes.extend_from_slice(&tail);
        match (scanned(&bytes, block), expected(&bytes)) {
            (Ok(index), expected) => prop_assert_eq!(Ok(index), expected),
            (Err(ScanError::BadId { byte, .. } | ScanError::ShortRecord { byte, .. }), expected) => {
                prop_assert_eq!(expected, Err(byte));
            }
            // Reading to the end of the file is not asked of the csv crate here, so only the place is compared.
            (Err(ScanError::CutOff { byte, .. }), _) => {
                prop_assert_eq!(oracle(&bytes).last().map(|r| r.0), Some(byte));
            }
            (Err(other), _) => prop_assert!(false, "{other}"),
        }
    }
}

#[test]
fn every_fault_names_its_place() {
    let fault = |bytes: &str| scanned(bytes.as_bytes(), 16).unwrap_err();
    assert!(matches!(fault(""), ScanError::Empty { .. }));
    assert!(matches!(fault("\n\r\n"), ScanError::Empty { .. }));
    assert!(matches!(fault("data_id,\"x\n1,2\n"), ScanError::HeaderCut { .. }));
    assert!(matches!(fault("data_id,x\n"), ScanError::NoRows { .. }));
    assert!(matches!(fault("data_id,x"), ScanError::NoRows { .. }));
    let ScanError::NoIdColumn { columns, .. } = fault("id,\"a b\"\r\n1,2\r\n") else { panic!() };
    assert_eq!(columns, ["id", "a b"]);
    for (id, shown) in [("abc", "abc"), ("", ""), ("1.5", "1.5"), ("NaN", "NaN"), ("\"x\"\"y\"", "x\"y")] {
        let ScanError::BadId { line, byte, value, .. } = fault(&format!("x,data_id\n\"a\nb\",1\nq,{id}\n"))
        else {
            panic!("{id}")
        };
        assert_eq!((line, byte, value.as_str()), (4, 18, shown));
    }
    let ScanError::ShortRecord { line, fields, needed, .. } = fault("x,data_id\na,1\nb\n") else { panic!() };
    assert_eq!((line, fields, needed), (3, 1, 2));
    let ScanError::CutOff { line, byte, .. } = fault("x,data_id,y\na,1,2\na,1") else { panic!() };
    assert_eq!((line, byte), (3, 18));
    assert!(matches!(fault("x,data_id,y\na,1,2\na,1,\"b\n"), ScanError::CutOff { line: 3, .. }));
    let missing = scan_input(Path::new("/nowhere/at/all.csv")).unwrap_err();
    assert!(matches!(missing, ScanError::Open { .. }) && missing.to_string().contains("/nowhere/at/all.csv"));
}

/// Prints MB/s; `cargo test --release scan_speed -- --ignored --nocapture`, `SCAN_FILE` names the table.
#[test]
#[ignore = "measures, asserts nothing"]
fn scan_speed() {
    let Ok(path) = std::env::var("SCAN_FILE") else { return };
    for _ in 0..5 {
        let start = std::time::Instant::now();
        let index = scan_input(Path::new(&path)).unwrap();
        let secs = start.elapsed().as_secs_f64();
        println!(
            "{} rows, {} ids, {secs:.3} s, {:.0} MB/s",
            index.rows,
            index.ids.len(),
            index.bytes as f64 / secs / 1e6
        );
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find(|l| l.starts_with("VmHWM")).unwrap());
}
