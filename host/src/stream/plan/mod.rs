//! Which matrix is where, decided before anything is loaded. Pure: numbers in, numbers out.
//!
//! Device memory is filled first, then RAM; what is left stays in the model's files. Whatever is streamed is spread evenly over a
//! pass (`spread`), so that neither the link nor the disk idles while resident layers are computed.

mod prediction;
mod spread;

pub use prediction::{Bound, Load, Prediction, Rates, Unknown};
pub use spread::most;

use super::ring::{self, Buffers};
use crate::pack::{TENSOR_ALIGN, TensorId};

/// What page-locked memory is a multiple of.
const PAGE: u64 = 4096;

/// The most and the least page-locked memory through which matrices on disk go to the device: reads of 1 to 4 MiB, eight of them
/// in flight and as many on their way to the device.
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

/// Where a matrix is between passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// In the memory of this device.
    Vram {
        /// Its index.
        device: usize,
    },
    /// In RAM, from where it is copied to this device in each pass.
    Ram {
        /// Its index.
        device: usize,
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
            Tier::Vram { device } | Tier::Ram { device } | Tier::Disk { device } | Tier::Mapped { device } => device,
        }
    }

    /// Whether it has to be copied to the device in each pass.
    pub fn is_streamed(self) -> bool {
        matches!(self, Tier::Ram { .. } | Tier::Disk { .. })
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
    /// Matrices that do not fit may be streamed.
    pub streaming: bool,
    /// The model is in files, so that matrices may be streamed from there.
    pub on_disk: bool,
    /// The device reads weights where the file is mapped: they take no memory of their own.
    pub in_place: bool,
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
    /// The ring that streamed matrices go through; 0 where none is streamed.
    pub ring_bytes: u64,
    /// Page-locked RAM of matrices that are streamed from there.
    pub ram_bytes: u64,
    /// Page-locked RAM that matrices on disk go through; 0 where none is there.
    pub staging_bytes: u64,
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

/// Which units stay on the device, and the ring for the others.
struct Resident {
    stays: Vec<bool>,
    ring: u64,
}

impl<'a> Planner<'a> {
    fn new(inputs: &'a Inputs) -> Self {
        let sum = |total: u64, fixed: &Fixed| total.saturating_add(fixed.bytes);
        let fixed = inputs.fixed.iter().fold(0, sum);
        Planner { inputs, bytes: inputs.units.iter().map(placed).collect(), fixed }
    }

    fn plan(&self) -> Result<Plan, PlanError> {
        let Inputs { device, vram, in_place, streaming, .. } = *self.inputs;
        let all: u64 = self.bytes.iter().sum();
        let (least, full) = match in_place {
            true => (self.fixed, self.fixed),
            false => (self.least(), self.fixed.saturating_add(all)),
        };
        let need = if streaming { least } else { full };
        if need > vram {
            return Err(PlanError::Vram { need, limit: vram, least });
        }
        if in_place {
            return Ok(self.finish(vec![Tier::Mapped { device }; self.bytes.len()], 0, least, full));
        }
        let Resident { stays, ring } = self.resident();
        let in_ram = self.in_ram(&stays)?;
        let tier = |(stays, in_ram)| match (stays, in_ram) {
            (true, _) => Tier::Vram { device },
            (false, true) => Tier::Ram { device },
            (false, false) => Tier::Disk { device },
        };
        Ok(self.finish(stays.into_iter().zip(in_ram).map(tier).collect(), ring, least, full))
    }

    /// The least device memory: everything goes through the ring, or everything stays.
    fn least(&self) -> u64 {
        let ring = ring::least(&self.groups(&vec![false; self.bytes.len()]));
        self.fixed.saturating_add(ring.min(self.bytes.iter().sum()))
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
    fn resident(&self) -> Resident {
        let Inputs { streaming, max_vram_layers, .. } = *self.inputs;
        if !streaming {
            // All of it fits, or there would have been an error.
            return Resident { stays: vec![true; self.bytes.len()], ring: 0 };
        }
        let cap = self.of_layers(max_vram_layers);
        let room = self.inputs.vram - self.fixed;
        let layers: Vec<usize> = (0..self.bytes.len()).filter(|&i| !self.is_head(i)).collect();
        let bytes: Vec<u64> = layers.iter().map(|&i| self.bytes[i]).collect();
        for head in [true, false] {
            let with = |of_layers: &[bool]| {
                let mut stays = vec![head; self.bytes.len()];
                layers.iter().zip(of_layers).for_each(|(&i, &stay)| stays[i] = stay);
                stays
            };
            let taken = |stays: &[bool]| {
                stays.iter().zip(&self.bytes).filter(|(stays, _)| **stays).map(|(_, b)| b).sum::<u64>()
            };
            let left = |of_layers: &[bool]| {
                let stays = with(of_layers);
                room.checked_sub(taken(&stays).saturating_add(self.ring(&stays)))
            };
            if let Some(of_layers) = most(&bytes, cap, left) {
                let stays = with(&of_layers);
                let ring = self.ring(&stays);
                return Resident { stays, ring };
            }
            // Not even with no layer resident: a smaller ring.
            let stays = with(&vec![false; layers.len()]);
            let ring = room.saturating_sub(taken(&stays));
            if taken(&stays) <= room && ring::least(&self.groups(&stays)) <= ring {
                return Resident { stays, ring };
            }
        }
        unreachable!("the least device memory is there")
    }

    /// The units, of those that do not stay on the device, that are streamed from RAM.
    fn in_ram(&self, stays: &[bool]) -> Result<Vec<bool>, PlanError> {
        let Inputs { ram, max_ram_layers, on_disk, .. } = *self.inputs;
        let streamed: Vec<usize> = (0..stays.len()).filter(|&i| !stays[i]).collect();
        let page = |&i: &usize| self.inputs.units[i].bytes.next_multiple_of(PAGE);
        let bytes: Vec<u64> = streamed.iter().map(page).collect();
        let need: u64 = bytes.iter().sum();
        let cap = self.of_layers(max_ram_layers);
        let kept = if need <= ram.min(cap) {
            vec![true; streamed.len()]
        } else if !on_disk {
            return Err(PlanError::Ram { need, limit: ram.min(cap) });
        } else {
            let limit = ram.saturating_sub(staging(ram));
            let taken = |kept: &[bool]| kept.iter().zip(&bytes).filter(|(kept, _)| **kept).map(|(_, b)| b).sum();
            most(&bytes, cap, |kept| limit.checked_sub(taken(kept))).expect("none of them takes no room")
        };
        let mut in_ram = vec![false; stays.len()];
        streamed.iter().zip(kept).for_each(|(&i, kept)| in_ram[i] = kept);
        Ok(in_ram)
    }

    fn finish(&self, tiers: Vec<Tier>, ring_bytes: u64, vram_least: u64, vram_full: u64) -> Plan {
        let sum = |of: fn(Tier) -> bool, bytes: &dyn Fn(usize) -> u64| -> u64 {
            tiers.iter().enumerate().filter(|(_, tier)| of(**tier)).map(|(i, _)| bytes(i)).sum()
        };
        let stored = |i: usize| self.inputs.units[i].bytes;
        let on_disk = |tier| matches!(tier, Tier::Disk { .. });
        let load = Load {
            link_bytes: sum(Tier::is_streamed, &stored),
            disk_bytes: sum(on_disk, &stored),
            weight_bytes: sum(|_| true, &stored),
            ring_bytes,
            largest_group: ring::least(&self.groups(&tiers.iter().map(|tier| !tier.is_streamed()).collect::<Vec<_>>())),
        };
        Plan {
            fixed_bytes: self.fixed,
            resident_bytes: sum(|tier| matches!(tier, Tier::Vram { .. }), &|i| self.bytes[i]),
            ring_bytes,
            ram_bytes: sum(|tier| matches!(tier, Tier::Ram { .. }), &|i| stored(i).next_multiple_of(PAGE)),
            staging_bytes: if tiers.iter().any(|&tier| on_disk(tier)) { staging(self.inputs.ram) } else { 0 },
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
