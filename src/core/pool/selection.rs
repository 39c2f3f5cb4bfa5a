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
pub fn resolve(selection: &GpuSelection, snapshot: &GpuSnapshot) -> Result<Option<Vec<String>>, String> {
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
pub fn visible(value: &str, snapshot: &GpuSnapshot) -> Vec<String> {
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
