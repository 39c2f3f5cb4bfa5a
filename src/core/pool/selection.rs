//! Which GPUs a user means: `--gpus`, and an inherited CUDA_VISIBLE_DEVICES.

use crate::types::{GpuFacts, GpuSnapshot};
use std::collections::BTreeSet;

/// What `--gpus` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum GpuSelection {
    /// Whatever NVML finds.
    #[default]
    Auto,
    /// This many simulated GPUs.
    Simulated(u32),
    /// Only these.
    Listed(Vec<GpuName>),
}

/// One GPU as a user writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GpuName {
    /// NVML's index, in PCI order.
    Index(u32),
    /// A UUID or an unambiguous beginning of one.
    Uuid(String),
}

impl GpuName {
    fn parse(text: &str) -> Option<Self> {
        if text.starts_with("GPU-") || text.starts_with("MIG-") {
            return Some(Self::Uuid(text.to_owned()));
        }
        // `parse` alone would take `+1`.
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        if digits { text.parse().ok().map(Self::Index) } else { None }
    }

    fn find<'a>(&self, snapshot: &'a GpuSnapshot) -> Result<&'a GpuFacts, String> {
        let found: Vec<&GpuFacts> = snapshot.gpus.iter().filter(|facts| self.matches(facts)).collect();
        match (found.as_slice(), self) {
            ([one], _) => Ok(one),
            ([], Self::Index(index)) => {
                Err(format!("there is no GPU {index}; this machine has {}", inventory(snapshot)))
            }
            ([], Self::Uuid(uuid)) => {
                Err(format!("there is no GPU {uuid}; this machine has {}", inventory(snapshot)))
            }
            (several, _) => {
                let names: Vec<&str> = several.iter().map(|facts| facts.uuid.as_str()).collect();
                Err(format!("{self} could be any of {}; write more of it", names.join(", ")))
            }
        }
    }

    fn matches(&self, facts: &GpuFacts) -> bool {
        match self {
            Self::Index(index) => facts.ordinal == *index,
            Self::Uuid(uuid) => facts.uuid.starts_with(uuid.as_str()),
        }
    }
}

impl std::fmt::Display for GpuName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Index(index) => index.fmt(f),
            Self::Uuid(uuid) => uuid.fmt(f),
        }
    }
}

/// Reads `auto`, `sim:N`, `0,1,...` or `UUID,...`; indices and UUIDs may be mixed.
pub fn parse_selection(text: &str) -> Result<GpuSelection, String> {
    let text = text.trim();
    if text == "auto" {
        return Ok(GpuSelection::Auto);
    }
    if let Some(count) = text.strip_prefix("sim:") {
        return match count.parse() {
            Ok(count @ 1..=1024) => Ok(GpuSelection::Simulated(count)),
            _ => Err(format!("`{text}`: write sim:N with N from 1 to 1024")),
        };
    }
    let mut names = Vec::new();
    for entry in text.split(',').map(str::trim) {
        let name = GpuName::parse(entry).ok_or_else(|| {
            format!("`{entry}` is no GPU: write auto, sim:N, indices like 0,1 or UUIDs like GPU-5a1f...")
        })?;
        if names.contains(&name) {
            return Err(format!("GPU {name} is named twice"));
        }
        names.push(name);
    }
    Ok(GpuSelection::Listed(names))
}

/// The UUIDs a selection means on this machine, in PCI order; `None` for all of them. Every name must exist.
fn resolve(selection: &GpuSelection, snapshot: &GpuSnapshot) -> Result<Option<Vec<String>>, String> {
    let GpuSelection::Listed(names) = selection else { return Ok(None) };
    let mut found = BTreeSet::new();
    for name in names {
        let facts = name.find(snapshot)?;
        found.insert((facts.ordinal, facts.uuid.clone()));
    }
    Ok(Some(found.into_iter().map(|(_, uuid)| uuid).collect()))
}

/// The UUIDs that an inherited CUDA_VISIBLE_DEVICES leaves visible, read as CUDA reads it: the first entry that
/// names no GPU ends the list, so the empty string and `-1` hide all. Indices are taken in PCI order.
fn visible(value: &str, snapshot: &GpuSnapshot) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for entry in value.split(',').map(str::trim) {
        let Some(Ok(facts)) = GpuName::parse(entry).map(|name| name.find(snapshot)) else { break };
        if !found.contains(&facts.uuid) {
            found.push(facts.uuid.clone());
        }
    }
    found
}

/// What may be leased: the selection, narrowed by an inherited CUDA_VISIBLE_DEVICES unless GPUs are simulated.
pub fn allowed(
    selection: &GpuSelection,
    inherited: Option<&str>,
    snapshot: &GpuSnapshot,
) -> Result<Option<BTreeSet<String>>, String> {
    let listed = resolve(selection, snapshot)?;
    let inherited = inherited.filter(|_| !matches!(selection, GpuSelection::Simulated(_)));
    let Some(value) = inherited else { return Ok(listed.map(|uuids| uuids.into_iter().collect())) };
    let visible: BTreeSet<String> = visible(value, snapshot).into_iter().collect();
    let all = || snapshot.gpus.iter().map(|facts| facts.uuid.clone()).collect();
    let narrowed: BTreeSet<String> =
        listed.unwrap_or_else(all).into_iter().filter(|uuid| visible.contains(uuid)).collect();
    if narrowed.is_empty() && !snapshot.gpus.is_empty() {
        return Err(format!("the inherited CUDA_VISIBLE_DEVICES=`{value}` leaves no GPU to use"));
    }
    Ok(Some(narrowed))
}

/// The indices of a list that is taken as given because there is no NVML to ask.
pub fn given(names: &[GpuName]) -> Result<Vec<u32>, String> {
    names
        .iter()
        .map(|name| match name {
            GpuName::Index(index) => Ok(*index),
            GpuName::Uuid(uuid) => Err(format!(
                "without NVML there is no telling which GPU {uuid} is; name GPUs by index, as in --gpus 0,1"
            )),
        })
        .collect()
}

fn inventory(snapshot: &GpuSnapshot) -> String {
    if snapshot.gpus.is_empty() {
        return "none".to_owned();
    }
    let names: Vec<String> =
        snapshot.gpus.iter().map(|facts| format!("{} ({})", facts.ordinal, facts.uuid)).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(ordinal: u32, uuid: &str) -> GpuFacts {
        GpuFacts {
            ordinal,
            uuid: uuid.to_owned(),
            name: String::new(),
            pci_bus_id: String::new(),
            total_bytes: 0,
            free_bytes: 0,
            used_bytes: 0,
            processes: None,
            locked: false,
            fault: None,
        }
    }

    #[test]
    fn selections_are_read_and_mistakes_named() {
        use GpuName::{Index, Uuid};
        for (text, expected) in [
            ("auto", GpuSelection::Auto),
            ("sim:4", GpuSelection::Simulated(4)),
            ("0, 2", GpuSelection::Listed(vec![Index(0), Index(2)])),
            ("GPU-ab,3", GpuSelection::Listed(vec![Uuid("GPU-ab".to_owned()), Index(3)])),
        ] {
            assert_eq!(parse_selection(text), Ok(expected), "{text}");
        }
        for (text, complaint) in [
            ("", "`` is no GPU"),
            ("0,,1", "`` is no GPU"),
            ("sim:0", "with N from 1 to 1024"),
            ("sim:x", "with N from 1 to 1024"),
            ("all", "`all` is no GPU"),
            ("+1", "`+1` is no GPU"),
            ("-1", "`-1` is no GPU"),
            ("0,0", "GPU 0 is named twice"),
            ("99999999999", "is no GPU"),
        ] {
            let error = parse_selection(text).expect_err(text);
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }

    fn uuids(names: &[&str]) -> GpuSnapshot {
        let gpus = names.iter().zip(0..).map(|(name, ordinal)| gpu(ordinal, name)).collect();
        GpuSnapshot { gpus, distances: Vec::new() }
    }

    #[test]
    fn listed_gpus_must_exist_and_be_unambiguous() {
        let snapshot = uuids(&["GPU-aa1", "GPU-aa2", "GPU-b"]);
        let resolved = |text: &str| resolve(&parse_selection(text)?, &snapshot);
        let found = |names: &[&str]| Ok(Some(names.iter().map(|name| (*name).to_owned()).collect()));
        assert_eq!(resolved("auto"), Ok(None));
        assert_eq!(resolved("2,GPU-aa1"), found(&["GPU-aa1", "GPU-b"]));
        assert_eq!(resolved("0,GPU-aa1"), found(&["GPU-aa1"]));
        let inventory = "this machine has 0 (GPU-aa1), 1 (GPU-aa2), 2 (GPU-b)";
        assert_eq!(resolved("7"), Err(format!("there is no GPU 7; {inventory}")));
        assert_eq!(resolved("GPU-c"), Err(format!("there is no GPU GPU-c; {inventory}")));
        assert_eq!(
            resolved("GPU-aa"),
            Err("GPU-aa could be any of GPU-aa1, GPU-aa2; write more of it".to_owned())
        );
        assert_eq!(given(&[GpuName::Index(3)]), Ok(vec![3]));
        assert!(given(&[GpuName::Uuid("GPU-b".to_owned())]).is_err());
    }

    #[test]
    fn cuda_visible_devices_ends_at_its_first_invalid_entry() {
        let snapshot = uuids(&["GPU-aa1", "GPU-aa2", "GPU-b"]);
        for (value, expected) in [
            ("", vec![]),
            ("-1", vec![]),
            ("0,1", vec!["GPU-aa1", "GPU-aa2"]),
            ("2,0", vec!["GPU-b", "GPU-aa1"]),
            ("0,-1,1", vec!["GPU-aa1"]),
            ("1,9,0", vec!["GPU-aa2"]),
            ("GPU-b,GPU-aa,0", vec!["GPU-b"]),
            ("NoDevFiles", vec![]),
            ("0,0,2", vec!["GPU-aa1", "GPU-b"]),
        ] {
            assert_eq!(visible(value, &snapshot), expected, "{value}");
        }
    }

    #[test]
    fn an_inherited_list_narrows_real_gpus_only() {
        let snapshot = uuids(&["GPU-a", "GPU-b", "GPU-c"]);
        let set = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>());
        let listed = parse_selection("1,2").expect("valid");
        let auto = GpuSelection::Auto;
        for (selection, inherited, expected) in [
            (&auto, None, Ok(None)),
            (&auto, Some("0,1"), Ok(set(&["GPU-a", "GPU-b"]))),
            (&listed, None, Ok(set(&["GPU-b", "GPU-c"]))),
            (&listed, Some("0,1"), Ok(set(&["GPU-b"]))),
            (&GpuSelection::Simulated(3), Some(""), Ok(None)),
            (&auto, Some(""), Err("the inherited CUDA_VISIBLE_DEVICES=`` leaves no GPU to use".to_owned())),
        ] {
            assert_eq!(allowed(selection, inherited, &snapshot), expected, "{selection:?} {inherited:?}");
        }
    }
}
