//! Holds what nobody should have to remember: layers, sizes, banned calls, and the claims that the documents make.
//! Every check is a function from text to complaints, and is shown to find a planted violation.

use auto_scheduler::cli::Cli;
use auto_scheduler::error::ExitCode;
use clap::CommandFactory;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What a module may import, lowest layer first: only what stands above it in this table.
const LAYERS: [(&str, &[&str]); 16] = [
    ("types", &[]),
    ("core", &["types"]),
    ("ports", &["types"]),
    ("error", &["ports"]),
    ("messages", &["types", "core", "ports"]),
    ("table", &["types"]),
    ("settle", &["types", "core", "ports"]),
    ("os", &["types", "core", "ports", "table"]),
    ("shim", &["types", "os"]),
    ("actors", &["types", "core", "ports", "messages", "settle"]),
    ("cli", &["error"]),
    ("config", &["core", "error", "cli"]),
    ("preflight", &["types", "core", "ports", "error", "table", "settle", "os", "config"]),
    ("summary", &["types"]),
    (
        "app",
        &[
            "types",
            "core",
            "ports",
            "error",
            "messages",
            "settle",
            "os",
            "actors",
            "config",
            "preflight",
            "summary",
        ],
    ),
    ("status", &["types", "core", "ports", "error", "table", "os", "config", "preflight", "app"]),
];
/// `main` starts things and knows nothing else.
const MAIN_IMPORTS: [&str; 8] = ["app", "cli", "config", "error", "shim", "status", "summary", "types"];

/// Calls and crates that have no place in a file whose path starts like this; tests excluded.
const BANNED: [(&str, &[&str]); 5] = [
    (
        "src/",
        &[
            ".unwrap()",
            ".expect(",
            "panic!",
            "todo!",
            "unimplemented!",
            "unreachable!",
            "dbg!",
            "Command::new(\"sh\"",
            "Command::new(\"bash\"",
        ],
    ),
    (
        "src/core/",
        &[
            "Instant::now",
            "SystemTime",
            "Timestamp::now",
            "std::fs",
            "std::io",
            "std::env",
            "std::process",
            "std::thread",
            "actix",
            "tokio",
            "tracing",
            "rustix",
            "rand::",
        ],
    ),
    ("src/types", &["Instant::now", "SystemTime", "std::fs", "std::env", "actix", "tokio", "rustix"]),
    ("src/shim/", &["actix", "tokio", "async "]),
    ("src/actors/", &["rustix", "std::process", "std::net", "nvml_wrapper", "Command::new"]),
];
/// Calls that have a place in these folders or files alone.
const CONFINED: [(&str, &[&str]); 5] = [
    ("thread::sleep", &["src/os/"]),
    ("Command::new", &["src/os/", "src/shim/"]),
    ("process::exit", &["src/main.rs"]),
    ("std::fs", &["src/os/", "src/shim/", "src/table/", "src/preflight.rs", "src/status.rs"]),
    ("tokio::spawn", &[]),
];

const MOST_LINES_OF_CODE: usize = 400;
const MOST_LINES_OF_A_FUNCTION: usize = 70;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    let bytes = fs::read(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Every file below `folder`, as a path from the repository's root, build output and hidden folders left out.
fn files_below(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).expect("a folder").flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if ["target", "output", ".git", "__pycache__"].contains(&name.as_str()) {
            } else if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(root()).expect("below").to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

/// Production code by path: comments blanked, test modules cut out, test files left out. String contents stay only if
/// `strings`.
fn production(strings: bool) -> BTreeMap<String, String> {
    let names: Vec<String> = files_below("src").into_iter().filter(|name| name.ends_with(".rs")).collect();
    let tests: BTreeSet<String> = names.iter().flat_map(|name| test_files(name, &read(name))).collect();
    let kept = names.into_iter().filter(|name| !tests.contains(name));
    kept.map(|name| (name.clone(), without_tests(&code(&read(&name), strings)))).collect()
}

/// Rust with comments blanked and, unless `strings`, the contents of literals too. Lines stay where they are.
fn code(text: &str, strings: bool) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::new();
    let mut at = 0;
    let mut copy = |range: std::ops::Range<usize>, keep: bool| {
        out.extend(chars[range].iter().map(|c| if keep || *c == '\n' { *c } else { ' ' }));
    };
    while at < chars.len() {
        let from = at;
        let rest = |ahead: usize| chars.get(from + ahead).copied().unwrap_or(' ');
        let in_word = from > 0 && (chars[from - 1].is_alphanumeric() || chars[from - 1] == '_');
        let hashes = chars[from + 1..].iter().take_while(|c| **c == '#').count();
        if rest(0) == '/' && rest(1) == '/' {
            at += chars[at..].iter().position(|c| *c == '\n').unwrap_or(chars.len() - at);
            copy(from..at, false);
        } else if rest(0) == 'r' && !in_word && rest(1 + hashes) == '"' {
            let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            at += 2 + hashes;
            while at < chars.len() && !chars[at..].starts_with(&end) {
                at += 1;
            }
            at = (at + end.len()).min(chars.len());
            copy(from..at, strings);
        } else if rest(0) == '"' || (rest(0) == '\'' && (rest(1) == '\\' || rest(2) == '\'')) {
            at += 1;
            while at < chars.len() && chars[at] != rest(0) {
                at += if chars[at] == '\\' { 2 } else { 1 };
            }
            at = (at + 1).min(chars.len());
            copy(from..at, strings && rest(0) == '"');
        } else {
            at += 1;
            copy(from..at, true);
        }
    }
    out
}

/// Byte position behind the item that begins at or after `from`: its closing brace or its semicolon.
fn end_of_item(code: &str, from: usize) -> usize {
    let mut depth = 0;
    for (at, c) in code[from..].char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            ';' if depth == 0 => return from + at + 1,
            '{' if depth == 0 => return end_of_braces(code, from + at),
            _ => {}
        }
    }
    code.len()
}

fn end_of_braces(code: &str, from: usize) -> usize {
    let mut depth = 0;
    for (at, c) in code[from..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return from + at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut code = code.to_owned();
    while let Some(at) = code.find(MARK) {
        let end = end_of_item(&code, at + MARK.len());
        let blank: String = code[at..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        code.replace_range(at..end, &blank);
    }
    code
}

/// Files that exist for tests only, by the `#[cfg(test)] mod name;` in `name`'s text.
fn test_files(name: &str, text: &str) -> Vec<String> {
    let path = Path::new(name);
    let folder = path.parent().unwrap_or(Path::new(""));
    let is_root = ["mod.rs", "lib.rs", "main.rs"].iter().any(|root| path.ends_with(root));
    let below = if is_root { folder.to_path_buf() } else { path.with_extension("") };
    let found = text.split("#[cfg(test)]").skip(1).filter_map(|rest| {
        let item: String = rest.split(';').next()?.split_whitespace().collect::<Vec<_>>().join(" ");
        let (path_attribute, declared) = match item.strip_prefix("#[path = \"") {
            Some(rest) => rest.split_once("\"] ").map(|(path, rest)| (Some(path), rest))?,
            None => (None, item.as_str()),
        };
        let (_, module) = declared.rsplit_once("mod ")?;
        Some(path_attribute.map_or_else(|| below.join(format!("{module}.rs")), |path| folder.join(path)))
    });
    found.map(|path| path.to_string_lossy().into_owned()).collect()
}

/// `src/actors/worker.rs` is `["actors", "worker"]`.
fn module_of(name: &str) -> Vec<&str> {
    let path = name.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/').collect()
}

/// Every path that starts at the crate's root, `super` resolved, groups taken apart.
fn imports(name: &str, code: &str) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    for start in ["crate::", "auto_scheduler::", "super::"] {
        for (at, _) in code.match_indices(start) {
            if code[..at].ends_with(|c: char| c.is_alphanumeric() || "_:$".contains(c)) {
                continue;
            }
            let mut rest = &code[at..];
            let mut base: Vec<String> = Vec::new();
            if start == "super::" {
                base = module_of(name).into_iter().map(str::to_owned).collect();
                while let Some(outer) = rest.strip_prefix("super::") {
                    base.pop();
                    rest = outer;
                }
            } else {
                rest = &rest[start.len()..];
            }
            branches(&base, rest, &mut found);
        }
    }
    found
}

/// Follows one use tree; returns what stands behind it.
fn branches<'a>(base: &[String], text: &'a str, found: &mut BTreeSet<Vec<String>>) -> &'a str {
    let mut text = text.trim_start();
    if let Some(group) = text.strip_prefix('{') {
        text = group;
        loop {
            text = branches(base, text, found).trim_start();
            match text.strip_prefix(',') {
                Some(more) => text = more,
                None => return text.strip_prefix('}').unwrap_or(text),
            }
            if let Some(end) = text.trim_start().strip_prefix('}') {
                return end;
            }
        }
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let mut path = base.to_vec();
    path.push(text[..end].to_owned());
    match text[end..].strip_prefix("::") {
        Some(more) => branches(&path, more, found),
        None => {
            found.insert(path);
            &text[end..]
        }
    }
}

fn layer_faults(name: &str, code: &str) -> Vec<String> {
    let own = module_of(name);
    let known = LAYERS.iter().any(|(layer, _)| *layer == own[0]) || ["main", "lib"].contains(&own[0]);
    let mut faults = Vec::new();
    if !known {
        faults.push(format!("{name}: the module {} is in no layer; add it to LAYERS", own[0]));
    }
    let allowed: &[&str] =
        LAYERS.iter().find(|(layer, _)| *layer == own[0]).map_or(&MAIN_IMPORTS, |(_, allowed)| allowed);
    for path in imports(name, code) {
        let first = path[0].as_str();
        let is_module = LAYERS.iter().any(|(layer, _)| *layer == first);
        if is_module && first != own[0] && !allowed.contains(&first) {
            faults.push(format!("{name} imports crate::{}, which is not below {}", path.join("::"), own[0]));
        }
        let sibling = path.get(1).map(String::as_str).unwrap_or_default();
        let is_actor = root().join(format!("src/actors/{sibling}.rs")).exists();
        if own[0] == "actors" && first == "actors" && is_actor && own.get(1) != Some(&sibling) {
            faults.push(format!("{name} imports another actor, {sibling}; peers are recipients"));
        }
    }
    faults
}

/// What the table allows and no file of the module makes use of.
fn idle_allowances(files: &BTreeMap<String, String>) -> Vec<String> {
    let used: BTreeSet<(&str, String)> = files
        .iter()
        .flat_map(|(name, code)| {
            imports(name, code).into_iter().map(|path| (module_of(name)[0], path[0].clone()))
        })
        .collect();
    let allowed =
        LAYERS.iter().flat_map(|(layer, allowed)| allowed.iter().map(move |other| (*layer, *other)));
    let idle = allowed.filter(|(layer, other)| !used.contains(&(*layer, (*other).to_owned())));
    idle.map(|(layer, other)| format!("{layer} need not be allowed to import {other}")).collect()
}

fn order_faults(layers: &[(&str, &[&str])]) -> Vec<String> {
    let mut below = BTreeSet::new();
    let mut faults = Vec::new();
    for (layer, allowed) in layers {
        let wrong = allowed.iter().filter(|other| !below.contains(*other));
        faults
            .extend(wrong.map(|other| format!("{layer} may import {other}, which does not stand above it")));
        below.insert(*layer);
    }
    faults
}

/// Code lines in all, and functions that are too long.
fn size_faults(name: &str, code: &str) -> Vec<String> {
    let lines = |text: &str| text.lines().filter(|line| !line.trim().is_empty()).count();
    let mut faults = Vec::new();
    if lines(code) > MOST_LINES_OF_CODE {
        faults.push(format!("{name} has {} lines of code (limit {MOST_LINES_OF_CODE})", lines(code)));
    }
    for (at, _) in code.match_indices("fn ") {
        let name_end = code[at + 3..].find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(0);
        if name_end == 0 || code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let long = lines(&code[at..end_of_item(code, at)]);
        if long > MOST_LINES_OF_A_FUNCTION {
            let function = &code[at + 3..at + 3 + name_end];
            faults.push(format!("{name}: {function} has {long} lines (limit {MOST_LINES_OF_A_FUNCTION})"));
        }
    }
    faults
}

fn banned_faults(name: &str, code: &str) -> Vec<String> {
    let banned = BANNED.iter().filter(|(place, _)| name.starts_with(place)).flat_map(|(_, calls)| *calls);
    let confined = CONFINED
        .iter()
        .filter(|(_, places)| !places.iter().any(|place| name.starts_with(place)))
        .map(|(call, _)| call);
    let calls: BTreeSet<&str> = banned.chain(confined).copied().collect();
    let mut faults = Vec::new();
    for call in calls {
        for (at, _) in code.match_indices(call) {
            let line = code[..at].lines().count().max(1);
            faults.push(format!("{name}:{line} has {call}"));
        }
    }
    faults
}

fn word_faults(name: &str, text: &str) -> Vec<String> {
    // In two parts, so that this file may hold them.
    let words =
        [["../sha", "red"], ["/wo", "rk/"], ["issue", " #"], ["/home", "/"]].map(|parts| parts.concat());
    let found = words.iter().filter(|word| text.to_lowercase().contains(*word));
    found.map(|word| format!("{name} speaks of {word}")).collect()
}

/// Rows of the first Markdown table whose first header cell is `first`.
fn table(document: &str, first: &str) -> Vec<Vec<String>> {
    let start = format!("| {first} |");
    let rows = document.lines().skip_while(|line| !line.starts_with(&start)).skip(2);
    rows.take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

fn exit_code_faults(readme: &str) -> Vec<String> {
    let said: Vec<(String, String)> =
        table(readme, "exit").into_iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    let meant: Vec<(String, String)> =
        ExitCode::ALL.iter().map(|code| (code.code().to_string(), code.sentence().to_owned())).collect();
    if said == meant { Vec::new() } else { vec![format!("README.md says {said:?}, the program {meant:?}")] }
}

/// Every `--flag` in the text, with hyphens.
fn flags_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_');
    let flags = words.filter_map(|word| word.strip_prefix("--"));
    flags
        .filter(|flag| flag.starts_with(|c: char| c.is_ascii_alphabetic()))
        .map(|flag| flag.replace('_', "-"))
        .collect()
}

fn flags_of(subcommand: Option<&str>) -> BTreeSet<String> {
    let cli = Cli::command();
    let chosen =
        cli.get_subcommands().filter(|command| subcommand.is_none_or(|name| command.get_name() == name));
    chosen
        .flat_map(|command| command.get_arguments())
        .filter_map(|flag| flag.get_long())
        .map(str::to_owned)
        .collect()
}

fn flag_faults(readme: &str) -> Vec<String> {
    let said = flags_in(readme);
    let (ours, worker) = (flags_of(None), read("examples/scripted_worker.py"));
    let foreign = [
        "help", "low", "high", "resume", "release", "locked", "path", "bench", "joblog", "api-key", "name",
        "secret",
    ];
    let unknown = said.iter().filter(|flag| {
        let of_worker = worker.contains(&format!("\"{flag}\":"));
        !ours.contains(*flag) && !of_worker && !foreign.contains(&flag.as_str())
    });
    let unsaid = flags_of(Some("run")).into_iter().filter(|flag| !said.contains(flag));
    let unknown = unknown.map(|flag| format!("README.md speaks of --{flag}, which nothing takes"));
    unknown.chain(unsaid.map(|flag| format!("README.md does not speak of --{flag}"))).collect()
}

/// Names in backticks: every path of this repository exists, and so does every test.
fn reference_faults(name: &str, text: &str) -> Vec<String> {
    let all_code: String =
        files_below("src").iter().chain(&files_below("tests")).map(|name| read(name)).collect();
    let mut faults = Vec::new();
    for quoted in text.split('`').skip(1).step_by(2) {
        let is_path =
            ["src/", "tests/", "examples/", "benches/"].iter().any(|place| quoted.starts_with(place));
        if is_path && !quoted.contains(' ') && !root().join(quoted).exists() {
            faults.push(format!("{name} speaks of {quoted}, which does not exist"));
        }
        let words =
            quoted.split('_').filter(|word| !word.is_empty() && word.chars().all(char::is_alphanumeric));
        let is_test =
            words.count() >= 4 && quoted.chars().all(|c| c.is_ascii_lowercase() || "_0123456789".contains(c));
        if is_test && !all_code.contains(&format!("fn {quoted}(")) {
            faults.push(format!("{name} speaks of the test {quoted}, which does not exist"));
        }
    }
    faults
}

fn dependency_faults(architecture: &str, manifest: &str) -> Vec<String> {
    let said: BTreeSet<String> = table(architecture, "crate")
        .iter()
        .flat_map(|row| row[0].split(", ").map(|name| name.trim_matches('`').to_owned()).collect::<Vec<_>>())
        .collect();
    let sections = manifest.split("\n[").filter(|section| section.contains("dependencies]\n"));
    let entries = sections.flat_map(|section| section.lines().skip(1));
    let real: BTreeSet<String> = entries
        .filter_map(|line| Some(line.split_once(" = ")?.0.to_owned()))
        .filter(|name| !name.starts_with('#'))
        .collect();
    said.symmetric_difference(&real)
        .map(|name| format!("{name} is in Cargo.toml or in ARCHITECTURE.md, not in both"))
        .collect()
}

fn none(faults: Vec<String>) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn imports_go_one_way() {
    none(order_faults(&LAYERS));
    none(idle_allowances(&production(false)));
    none(production(false).iter().flat_map(|(name, code)| layer_faults(name, code)).collect());
}

#[test]
fn files_and_functions_are_small() {
    none(production(false).iter().flat_map(|(name, code)| size_faults(name, code)).collect());
}

#[test]
fn nothing_banned_is_called() {
    none(production(true).iter().flat_map(|(name, code)| banned_faults(name, code)).collect());
}

#[test]
fn no_unsafe_code() {
    for name in ["src/lib.rs", "src/main.rs"] {
        assert!(code(&read(name), false).contains("#![forbid(unsafe_code)]"), "{name}");
    }
}

#[test]
fn the_readme_says_what_the_program_does() {
    let readme = read("README.md");
    none(exit_code_faults(&readme));
    none(flag_faults(&readme));
    none(reference_faults("README.md", &readme));
}

#[test]
fn the_architecture_page_is_about_this_code() {
    let page = read("ARCHITECTURE.md");
    assert!((150..=200).contains(&page.lines().count()), "{} lines, not 150 to 200", page.lines().count());
    none(reference_faults("ARCHITECTURE.md", &page));
    none(dependency_faults(&page, &read("Cargo.toml")));
    let map =
        page.split("## Code map").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap_or_default();
    for name in production(false).keys().filter(|name| !name.ends_with("/lib.rs")) {
        let top = match module_of(name)[..] {
            [_, ..] if name.matches('/').count() > 1 => format!("src/{}/", module_of(name)[0]),
            _ => name.clone(),
        };
        assert!(map.contains(&format!("`{top}`")), "the code map does not speak of {top}");
    }
}

#[test]
fn the_product_speaks_of_itself_alone() {
    let texts =
        files_below("").into_iter().filter(|name| !name.ends_with(".csv") && !name.ends_with(".lock"));
    none(texts.flat_map(|name| word_faults(&name, &read(&name))).collect());
}

#[test]
fn every_check_finds_what_it_is_for() {
    let found = |faults: Vec<String>| assert!(!faults.is_empty());
    found(layer_faults("src/core/plan.rs", "use crate::{types::Piece, os::locks};"));
    found(layer_faults("src/core/plan.rs", "fn f() { crate::table::scan::scan() }"));
    found(layer_faults("src/core/pool/group.rs", "use super::super::super::ports;"));
    found(layer_faults("src/actors/merge.rs", "use super::{off_thread, worker::WorkerActor};"));
    found(layer_faults("src/actors/merge.rs", "use crate::os::files;"));
    found(layer_faults("src/shim/tree.rs", "use crate::core::plan;"));
    found(layer_faults("src/main.rs", "use auto_scheduler::{app, actors::merge};"));
    found(layer_faults("src/news.rs", ""));
    found(order_faults(&[("core", &["actors"]), ("actors", &[])]));
    none(layer_faults(
        "src/actors/merge.rs",
        "use super::off_thread; use crate::types::{self, state::RangeState};",
    ));

    let body =
        |lines| format!("fn small() {{}}\nfn long(x: [u8; 3]) -> u8 {{\n{}}}\n", "    f();\n".repeat(lines));
    found(size_faults("x.rs", &body(69)));
    none(size_faults("x.rs", &body(68)));
    found(size_faults("x.rs", &"const X: u8 = 1;\n".repeat(401)));

    for planted in
        ["a.unwrap();", "a.expect(b)", "panic!()", "todo!()", "Command::new(\"sh\")", "thread::sleep(d)"]
    {
        found(banned_faults("src/app.rs", planted));
    }
    found(banned_faults("src/core/x.rs", "let now = Instant::now();"));
    found(banned_faults("src/actors/merge.rs", "std::fs::write(a, b)"));
    none(banned_faults("src/os/locks.rs", "thread::sleep(d)"));

    let text = "a // .unwrap()\nlet s = \"panic!\"; let c = '\"'; let r = r#\"todo!\"#;\n#[cfg(test)]\nmod tests { a.unwrap() }\nb";
    let kept = without_tests(&code(text, false));
    assert_eq!(kept.split_whitespace().collect::<String>(), "alets=;letc=;letr=;b");
    assert_eq!(kept.lines().count(), text.lines().count());
    assert_eq!(test_files("src/core/pool.rs", "#[cfg(test)]\nmod search;"), ["src/core/pool/search.rs"]);
    assert_eq!(
        test_files("src/core/worker.rs", "#[cfg(test)]\n#[path = \"worker_tests.rs\"]\nmod tests;"),
        ["src/core/worker_tests.rs"]
    );

    found(word_faults("x", &["see ../sha", "red"].concat()));
    let readme = read("README.md");
    found(exit_code_faults(&readme.replace("| 75 |", "| 76 |")));
    found(exit_code_faults(&readme.replace("the merge or its proof failed", "no merge")));
    found(flag_faults(&format!("{readme} --no-such-flag")));
    found(flag_faults(&readme.replace("--top-p", "").replace("--top_p", "")));
    found(reference_faults("x", "see `src/nowhere.rs`"));
    found(reference_faults("x", "see `no_such_test_was_written`"));
    let (page, manifest) = (read("ARCHITECTURE.md"), read("Cargo.toml"));
    found(dependency_faults(&page.replace("| `rand` |", "| `dice` |"), &manifest));
    found(dependency_faults(&page, &manifest.replace("\nrand = ", "\nactix-web = \"4\"\nrand = ")));
}
