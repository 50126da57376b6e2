//! Which matrix is where, decided before anything is loaded. Pure: numbers in, numbers out.
//!
//! Device memory is filled first, then RAM; what is left stays in the model's files. Whatever is streamed is spread evenly over a
//! pass (`spread`), so that neither the link nor the disk idles while resident layers are computed.

mod prediction;
mod spread;

pub use prediction::{Bound, Load, Prediction, Rates, Unknown};
pub use spread::most;

use std::str::FromStr;

use super::{
    ring::{self, Buffers},
    staging::LOADING,
};
use crate::pack::{TENSOR_ALIGN, TensorId};

/// What page-locked memory is a multiple of.
const PAGE: u64 = 4096;

/// The least and the most page-locked memory through which matrices on disk go to the device: reads of 1 to 4 MiB, each in flight or on its
/// way to the device.
pub(super) const STAGING: (u64, u64) = (16 << 20, 64 << 20);

/// A matrix: what residency is decided for. Vectors always are on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Which tensor.
    pub tensor: TensorId,
    /// Its name in the file.
    pub name: String,
    /// What is computed at once: the layer's number, or the number of layers for the head.
    pub group: usize,
    /// Its bytes.
    pub bytes: u64,
}

/// Device memory that is taken whatever the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// For tables and messages, e.g. `KV cache`.
    pub what: &'static str,
    /// Its bytes.
    pub bytes: u64,
}

/// How the device gets at a matrix in RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// It is copied into the ring in each pass.
    Copy,
    /// Whatever computes with it reads it over the link, where it is.
    ZeroCopy,
}

impl Access {
    /// `copy` or `zero-copy`.
    pub fn name(self) -> &'static str {
        match self {
            Access::Copy => "copy",
            Access::ZeroCopy => "zero-copy",
        }
    }
}

/// Which access a plan may choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RamAccess {
    /// Copies, which are faster, where there is room for the ring; else none.
    #[default]
    Auto,
    /// This one.
    Only(Access),
}

impl FromStr for RamAccess {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(RamAccess::Auto),
            "copy" => Ok(RamAccess::Only(Access::Copy)),
            "zero-copy" => Ok(RamAccess::Only(Access::ZeroCopy)),
            _ => Err("expected auto, copy or zero-copy".into()),
        }
    }
}

/// Where a matrix is between passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// In the memory of this device.
    Vram {
        /// Its index.
        device: usize,
    },
    /// In RAM, from where it gets to this device in each pass.
    Ram {
        /// Its index.
        device: usize,
        /// How it gets there.
        access: Access,
    },
    /// In the model's file, from where it is read and copied to this device in each pass.
    Disk {
        /// Its index.
        device: usize,
    },
    /// In the file's map, where a device that computes in host memory reads it.
    Mapped {
        /// Its index.
        device: usize,
    },
}

impl Tier {
    /// `vram`, `ram`, `disk` or `mapped`.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Vram { .. } => "vram",
            Tier::Ram { .. } => "ram",
            Tier::Disk { .. } => "disk",
            Tier::Mapped { .. } => "mapped",
        }
    }

    /// The index of the device that computes with what is in this tier.
    pub fn device(self) -> usize {
        match self {
            Tier::Vram { device } | Tier::Ram { device, .. } | Tier::Disk { device } | Tier::Mapped { device } => {
                device
            }
        }
    }

    /// How the device gets at what is in RAM.
    pub fn access(self) -> Option<Access> {
        match self {
            Tier::Ram { access, .. } => Some(access),
            _ => None,
        }
    }

    /// Whether it crosses the link in each pass.
    pub fn is_streamed(self) -> bool {
        matches!(self, Tier::Ram { .. } | Tier::Disk { .. })
    }

    /// Whether it is read over the link where it is in RAM.
    pub fn is_zero_copy(self) -> bool {
        self.access() == Some(Access::ZeroCopy)
    }

    /// Whether it is copied to the device in each pass, and so goes through the ring.
    pub fn is_copied(self) -> bool {
        self.is_streamed() && !self.is_zero_copy()
    }
}

/// What is decided from.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// All matrices, in the order of a pass.
    pub units: Vec<Unit>,
    /// How many layers there are. Units of the group of this number are the head's.
    pub layers: usize,
    /// What else is on the device.
    pub fixed: Vec<Fixed>,
    /// The device's index.
    pub device: usize,
    /// Device memory to use at most, in bytes.
    pub vram: u64,
    /// RAM to use at most, in bytes.
    pub ram: u64,
    /// So many layers of average size on the device at most. None: as many as fit.
    pub max_vram_layers: Option<usize>,
    /// So many layers of average size in RAM at most. None: as many as fit.
    pub max_ram_layers: Option<usize>,
    /// The ring's size.
    pub buffers: Buffers,
    /// How the device gets at matrices in RAM.
    pub access: RamAccess,
    /// Matrices that do not fit may be streamed.
    pub streaming: bool,
    /// The model is in files, so that matrices may be streamed from there.
    pub on_disk: bool,
    /// The device reads weights where the file is mapped: they take no memory of their own.
    pub in_place: bool,
    /// What stays on the device is read from files when the model is loaded, by way of page-locked RAM.
    pub loads: bool,
    /// Bytes of matrices that stay on the device whatever the plan, and are among what is `fixed`.
    pub fixed_matrices: u64,
    /// How fast bytes travel.
    pub rates: Rates,
}

/// Where everything goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The tier of each unit.
    pub tiers: Vec<Tier>,
    /// Device memory that is taken whatever the plan.
    pub fixed_bytes: u64,
    /// Device memory of resident matrices, as they lie there.
    pub resident_bytes: u64,
    /// The ring that copied matrices go through; 0 where none is copied.
    pub ring_bytes: u64,
    /// Page-locked RAM of matrices that are streamed from there.
    pub ram_bytes: u64,
    /// Page-locked RAM that matrices on disk go through; 0 where none is there.
    pub staging_bytes: u64,
    /// Page-locked RAM that matrices which stay on the device come through when they are loaded, at most, and that is given back then.
    pub loading_bytes: u64,
    /// The least device memory that this model runs in.
    pub vram_least: u64,
    /// The device memory that holds all of it.
    pub vram_full: u64,
    /// What a token makes travel.
    pub load: Load,
    /// How long a token takes, if the rates that this depends on are known.
    pub prediction: Result<Prediction, Unknown>,
}

impl Plan {
    /// All device memory.
    pub fn vram_bytes(&self) -> u64 {
        self.fixed_bytes + self.resident_bytes + self.ring_bytes
    }

    /// Whether anything is streamed.
    pub fn streams(&self) -> bool {
        self.tiers.iter().any(|tier| tier.is_streamed())
    }

    /// Whether anything is read over the link where it is in RAM.
    pub fn zero_copies(&self) -> bool {
        self.tiers.iter().any(|tier| tier.is_zero_copy())
    }
}

/// Why there is no plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The device's memory does not suffice.
    #[error("{need} bytes of device memory are needed and {limit} may be used")]
    Vram {
        /// What this way of placing needs: all of the model, or the least that streaming takes.
        need: u64,
        /// What may be used.
        limit: u64,
        /// The least that streaming takes.
        least: u64,
    },
    /// RAM does not suffice, and the model is in no file to stream from.
    #[error("{need} bytes of RAM are needed and {limit} may be used")]
    Ram {
        /// The streamed matrices' bytes.
        need: u64,
        /// What may be used.
        limit: u64,
    },
}

/// Makes the plan.
///
/// # Errors
/// When what has to be in a memory does not fit into it.
pub fn plan(inputs: &Inputs) -> Result<Plan, PlanError> {
    Planner::new(inputs).plan()
}

/// Bytes of a matrix in device memory.
fn placed(unit: &Unit) -> u64 {
    unit.bytes.next_multiple_of(TENSOR_ALIGN as u64)
}

struct Planner<'a> {
    inputs: &'a Inputs,
    /// Of each unit, in device memory.
    bytes: Vec<u64>,
    fixed: u64,
}

impl<'a> Planner<'a> {
    fn new(inputs: &'a Inputs) -> Self {
        let sum = |total: u64, fixed: &Fixed| total.saturating_add(fixed.bytes);
        let fixed = inputs.fixed.iter().fold(0, sum);
        Planner { inputs, bytes: inputs.units.iter().map(placed).collect(), fixed }
    }

    fn plan(&self) -> Result<Plan, PlanError> {
        let Inputs { device, vram, in_place, streaming, .. } = *self.inputs;
        let (least, full) = match in_place {
            true => (self.fixed, self.fixed),
            false => {
                let least = self.accesses().map(|access| self.least(access)).min();
                (least.expect("there is a way at least"), self.fixed.saturating_add(self.bytes.iter().sum()))
            }
        };
        let need = if streaming { least } else { full };
        if need > vram {
            return Err(PlanError::Vram { need, limit: vram, least });
        }
        let all = |tier| vec![tier; self.bytes.len()];
        let tiers = match (in_place, streaming) {
            (true, _) => all(Tier::Mapped { device }),
            // All of it fits, or there would have been an error.
            (false, false) => all(Tier::Vram { device }),
            (false, true) => self.streamed()?,
        };
        Ok(self.finish(tiers, least, full))
    }

    /// The ways in which the device may get at matrices in RAM, the preferred one first.
    fn accesses(&self) -> impl Iterator<Item = Access> + use<> {
        let allowed = match self.inputs.access {
            RamAccess::Auto => [Some(Access::Copy), Some(Access::ZeroCopy)],
            RamAccess::Only(access) => [Some(access), None],
        };
        allowed.into_iter().flatten()
    }

    /// The tiers where what does not fit is streamed. There is the least device memory that this takes.
    fn streamed(&self) -> Result<Vec<Tier>, PlanError> {
        let Inputs { device, vram, .. } = *self.inputs;
        let access = self.accesses().find(|&access| self.least(access) <= vram).expect("the least is there");
        let stays = self.resident(access);
        let in_ram = self.in_ram(&stays)?;
        let tier = |(stays, in_ram)| match (stays, in_ram) {
            (true, _) => Tier::Vram { device },
            (false, true) => Tier::Ram { device, access },
            (false, false) => Tier::Disk { device },
        };
        Ok(stays.into_iter().zip(in_ram).map(tier).collect())
    }

    /// The least device memory: everything that needs the ring goes through it, or everything stays.
    fn least(&self, access: Access) -> u64 {
        let none = vec![false; self.bytes.len()];
        let ring = if self.needs_ring(&none, access) { ring::least(&self.groups(&none)) } else { 0 };
        self.fixed.saturating_add(ring.min(self.bytes.iter().sum()))
    }

    /// Whether any of what does not stay has to go through a ring. Without copies from RAM that is what RAM has no room for; how much of
    /// which layers, is decided later, so room is left for a ring as if all of it were copied.
    fn needs_ring(&self, stays: &[bool], access: Access) -> bool {
        access == Access::Copy || self.in_ram_bytes(stays) > self.ram_limit()
    }

    /// For each group the bytes of the units that do not stay.
    fn groups(&self, stays: &[bool]) -> Vec<Vec<u64>> {
        let mut groups = vec![Vec::new(); self.inputs.layers + 1];
        for ((unit, &bytes), _) in self.inputs.units.iter().zip(&self.bytes).zip(stays).filter(|(_, stays)| !**stays) {
            groups[unit.group].push(bytes);
        }
        groups
    }

    /// The ring for what does not stay. One that holds more than that would be of no use.
    fn ring(&self, stays: &[bool]) -> u64 {
        let groups = self.groups(stays);
        let streamed = groups.iter().flatten().sum();
        ring::capacity(&groups, self.inputs.buffers).min(streamed)
    }

    /// Device memory of units of which that is said.
    fn taken(&self, units: &[bool]) -> u64 {
        units.iter().zip(&self.bytes).filter(|(taken, _)| **taken).map(|(_, bytes)| bytes).sum()
    }

    fn is_head(&self, unit: usize) -> bool {
        self.inputs.units[unit].group == self.inputs.layers
    }

    /// Bytes of so many layers of average size.
    fn of_layers(&self, count: Option<usize>) -> u64 {
        let layers: u64 = (0..self.bytes.len()).filter(|&i| !self.is_head(i)).map(|i| self.bytes[i]).sum();
        match count {
            // Also a quotient's remainder is no reason to stream anything.
            Some(count) if count < self.inputs.layers => layers / self.inputs.layers as u64 * count as u64,
            _ => u64::MAX,
        }
    }

    /// The units that stay on the device: the head, unless nothing else makes it fit, and as many bytes of the layers as there
    /// is room for beside the ring.
    fn resident(&self, access: Access) -> Vec<bool> {
        let cap = self.of_layers(self.inputs.max_vram_layers);
        let room = self.inputs.vram - self.fixed;
        let layers: Vec<usize> = (0..self.bytes.len()).filter(|&i| !self.is_head(i)).collect();
        let bytes: Vec<u64> = layers.iter().map(|&i| self.bytes[i]).collect();
        for head in [true, false] {
            let with = |of_layers: &[bool]| {
                let mut stays = vec![head; self.bytes.len()];
                layers.iter().zip(of_layers).for_each(|(&i, &stay)| stays[i] = stay);
                stays
            };
            let left = |of_layers: &[bool]| {
                let stays = with(of_layers);
                let ring = if self.needs_ring(&stays, access) { self.ring(&stays) } else { 0 };
                room.checked_sub(self.taken(&stays).saturating_add(ring))
            };
            if let Some(of_layers) = most(&bytes, cap, left) {
                return with(&of_layers);
            }
            // Not even with no layer resident: a smaller ring.
            let stays = with(&vec![false; layers.len()]);
            if self.taken(&stays).saturating_add(ring::least(&self.groups(&stays))) <= room {
                return stays;
            }
        }
        unreachable!("the least device memory is there")
    }

    /// Page-locked RAM of a unit.
    fn page_locked(&self, unit: usize) -> u64 {
        self.inputs.units[unit].bytes.next_multiple_of(PAGE)
    }

    /// Page-locked RAM of all units that do not stay.
    fn in_ram_bytes(&self, stays: &[bool]) -> u64 {
        (0..stays.len()).filter(|&i| !stays[i]).map(|i| self.page_locked(i)).sum()
    }

    /// RAM for matrices, where none has to go through it from disk.
    fn ram_limit(&self) -> u64 {
        self.inputs.ram.min(self.of_layers(self.inputs.max_ram_layers))
    }

    /// The units, of those that do not stay on the device, that are in RAM.
    fn in_ram(&self, stays: &[bool]) -> Result<Vec<bool>, PlanError> {
        let Inputs { ram, max_ram_layers, on_disk, .. } = *self.inputs;
        let (need, limit) = (self.in_ram_bytes(stays), self.ram_limit());
        if need <= limit {
            return Ok(stays.iter().map(|stays| !stays).collect());
        }
        if !on_disk {
            return Err(PlanError::Ram { need, limit });
        }
        let streamed: Vec<usize> = (0..stays.len()).filter(|&i| !stays[i]).collect();
        let bytes: Vec<u64> = streamed.iter().map(|&i| self.page_locked(i)).collect();
        let limit = ram.saturating_sub(staging(ram));
        let taken = |kept: &[bool]| kept.iter().zip(&bytes).filter(|(kept, _)| **kept).map(|(_, b)| b).sum();
        let kept = most(&bytes, self.of_layers(max_ram_layers), |kept| limit.checked_sub(taken(kept)));
        let mut in_ram = vec![false; stays.len()];
        streamed.iter().zip(kept.expect("none of them takes no room")).for_each(|(&i, kept)| in_ram[i] = kept);
        Ok(in_ram)
    }

    fn finish(&self, tiers: Vec<Tier>, vram_least: u64, vram_full: u64) -> Plan {
        let sum = |of: fn(Tier) -> bool, bytes: &dyn Fn(usize) -> u64| -> u64 {
            tiers.iter().enumerate().filter(|(_, tier)| of(**tier)).map(|(i, _)| bytes(i)).sum()
        };
        let stored = |i: usize| self.inputs.units[i].bytes;
        let on_disk = |tier| matches!(tier, Tier::Disk { .. });
        let resident_bytes = sum(|tier| matches!(tier, Tier::Vram { .. }), &|i| self.bytes[i]);
        // All else has a place of its own.
        let placed: Vec<bool> = tiers.iter().map(|tier| !tier.is_copied()).collect();
        let ring_bytes = self.ring(&placed).min(self.inputs.vram - self.fixed - resident_bytes);
        let load = Load {
            link_bytes: sum(Tier::is_streamed, &stored),
            zero_copy_bytes: sum(Tier::is_zero_copy, &stored),
            disk_bytes: sum(on_disk, &stored),
            weight_bytes: sum(|_| true, &stored),
            ring_bytes,
            largest_group: ring::least(&self.groups(&placed)),
        };
        Plan {
            fixed_bytes: self.fixed,
            resident_bytes,
            ring_bytes,
            ram_bytes: sum(|tier| matches!(tier, Tier::Ram { .. }), &|i| self.page_locked(i)),
            staging_bytes: if tiers.iter().any(|&tier| on_disk(tier)) { staging(self.inputs.ram) } else { 0 },
            loading_bytes: if self.inputs.loads {
                self.inputs.fixed_matrices.saturating_add(resident_bytes).min(LOADING.bytes())
            } else {
                0
            },
            vram_least,
            vram_full,
            prediction: load.predict(&self.inputs.rates),
            load,
            tiers,
        }
    }
}

/// Page-locked memory that matrices on disk go through. It is a part of the RAM that may be used, unless that is less than the
/// least of it.
fn staging(ram: u64) -> u64 {
    ram.clamp(STAGING.0, STAGING.1)
}
