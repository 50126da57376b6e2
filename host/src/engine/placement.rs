//! From a model, a machine and the user's wishes to a plan of what is placed where; before anything is loaded.

use std::{collections::HashSet, env};

use bytesize::ByteSize;
use quant::TensorType;

use super::{EngineError, LoadOptions};
use crate::{
    device::Device,
    model::Model,
    pack::{Image, TENSOR_ALIGN, TensorId},
    platform::{self, Holder, PcieLink},
    stream::{
        Reads, disk_rate,
        plan::{Access, Fixed, Inputs, Plan, PlanError, RamAccess, Rates, Tier, Unit, plan},
        ring::Buffers,
    },
};

/// Tokens that one pass takes at most. More tokens use the weights better but need more activations: at 512, an 8B
/// model's take 85 MB.
const MAX_BATCH: usize = 512;

/// What others may hold of a device's memory before it is worth a word.
const WORTH_TELLING: u64 = 256 << 20;

/// At most so many layers of average size on the device, and in RAM.
const MAX_VRAM_LAYERS: &str = "GPUNVME_MAX_VRAM_LAYERS";
const MAX_RAM_LAYERS: &str = "GPUNVME_MAX_RAM_LAYERS";

const ADVICE: &str =
    "use a shorter context (-c), a smaller model, another --device, or a larger --vram-budget if one is set";

/// A plan, and what it was made from.
#[derive(Clone, Debug)]
pub struct Placement {
    /// The plan.
    pub plan: Plan,
    /// What the planner was given.
    pub inputs: Inputs,
    /// The tensors that are on the device whatever the plan, and their bytes there: vectors, and a table of embeddings that is
    /// also the output matrix.
    pub always: Vec<(TensorId, u64)>,
    /// The tensors that the host reads where the file is mapped, such as the table of embeddings.
    pub host: Vec<(TensorId, u64)>,
    /// The types of all matrices that the device computes with.
    pub types: Vec<TensorType>,
    /// The KV cache's bytes.
    pub kv: u64,
    /// The bytes of activations and of what else computing takes.
    pub activations: u64,
    /// Tokens of one pass at most.
    pub max_batch: usize,
    /// Rows of logits of one pass at most.
    pub max_wanted: usize,
    /// The drive that what is on disk is read from by our own driver, if it is.
    pub drive: Option<String>,
    /// The device's name.
    pub device: String,
    /// Memory of the device that nobody uses, and all of it.
    pub vram: crate::device::MemoryInfo,
    /// The link that the device is attached to, where that is known.
    pub pcie: Option<PcieLink>,
    /// Who else holds memory of the device, if it is worth a word.
    pub others: Vec<Holder>,
}

/// Plans how `model` is placed on `dev`.
///
/// # Errors
/// When the memory does not suffice, with what would and who else uses it; an environment variable that is no number; a drive that
/// `reads` cannot read.
pub fn plan_for<D: Device>(
    dev: &mut D,
    model: &Model,
    options: &LoadOptions,
    reads: &dyn Reads,
) -> Result<Placement, EngineError> {
    let dims = &model.config.dims;
    let max_batch = dims.context.min(MAX_BATCH);
    let max_wanted = options.wanted.clamp(1, max_batch);
    let weights = Weights::new(model)?;
    let kv = (model.config.layers as u64).saturating_mul(dims.kv_bytes());
    // x, norm and wanted rows; q and y; k and v; gate and up; the rotations; tokens, positions, want.
    let width =
        3 * dims.hidden + 2 * dims.q_width() + 2 * dims.kv_width() + 2 * dims.ffn + dims.rotations * dims.rope_dims + 3;
    let floats = (max_batch * width + max_wanted * dims.vocab) * size_of::<f32>();
    let activations = floats as u64 + dev.workspace(dims, max_batch, max_wanted);

    let limits = [layers(MAX_VRAM_LAYERS)?, layers(MAX_RAM_LAYERS)?];
    let streamed = [
        (limits[0].is_some(), MAX_VRAM_LAYERS),
        (limits[1].is_some(), MAX_RAM_LAYERS),
        (options.ram_budget.is_some(), "--ram-budget"),
        (options.buffers != Buffers::default(), "--n-buffers"),
        (options.ram_access != RamAccess::default(), "--ram-access"),
    ];
    let given: Vec<_> = streamed.into_iter().filter(|(given, _)| *given).map(|(_, name)| name).collect();
    if !options.streaming && !given.is_empty() {
        (options.announce)(&format!("of no effect without --streaming: {}", given.join(", ")));
    }
    let [max_vram_layers, max_ram_layers] = limits.map(|limit| limit.filter(|_| options.streaming));
    // A budget asks for streaming even of weights that could be read where they are mapped.
    let in_place = dev.in_place() && options.vram_budget.is_none() && max_vram_layers.is_none();
    let vram = dev.memory()?;
    let usable = vram.free.saturating_sub(dev.headroom());
    // Where the operating system does not say how much RAM there is, the allocation will.
    let ram = platform::memory().ok();
    let usable_ram = platform::spare_memory();
    let within = |budget: Option<super::Budget>, total: u64, usable: u64| {
        budget.map_or(usable, |budget| budget.of(total).min(usable))
    };
    let is_matrix = |id: &TensorId| model.gguf.tensors()[id.0].rows() > 1;
    let on_disk = model.gguf.in_files();
    let always: u64 = if in_place { 0 } else { weights.always.iter().map(|(_, bytes)| on_device(*bytes)).sum() };
    let fixed = [("KV cache", kv), ("activations", activations), ("vectors and shared tables", always)];
    let inputs = Inputs {
        units: weights.units,
        layers: model.config.layers,
        fixed: fixed.into_iter().filter(|(_, bytes)| *bytes > 0).map(|(what, bytes)| Fixed { what, bytes }).collect(),
        device: dev.index(),
        vram: within(options.vram_budget, vram.total, usable),
        ram: within(options.ram_budget, ram.map_or(u64::MAX, |ram| ram.total), usable_ram),
        max_vram_layers,
        max_ram_layers,
        buffers: options.buffers,
        access: access(options)?,
        streaming: options.streaming,
        on_disk,
        in_place,
        loads: on_disk && !dev.in_place(),
        fixed_matrices: weights.always.iter().filter(|(id, _)| is_matrix(id)).map(|(_, bytes)| on_device(*bytes)).sum(),
        rates: Rates::default(),
    };
    let pci = dev.pci_address();
    let others = || {
        let holders = pci.as_deref().map(platform::holders).unwrap_or_default();
        if holders.iter().map(|holder| holder.bytes).sum::<u64>() < WORTH_TELLING { Vec::new() } else { holders }
    };
    let mut plan = plan(&inputs).map_err(|e| {
        let matrices: u64 = inputs.units.iter().map(|unit| unit.bytes).sum();
        let others = others();
        does_not_fit(e, &inputs, dev.name(), dims.context, [matrices + always, kv, activations], &others)
    })?;
    dev.limit_link(options.link_limit);
    let rates = rates(dev, model, &plan, reads)?;
    plan.prediction = plan.load.predict(&rates);
    Ok(Placement {
        plan,
        inputs: Inputs { rates, ..inputs },
        always: weights.always,
        host: weights.host,
        types: weights.types,
        kv,
        activations,
        max_batch,
        max_wanted,
        drive: reads.drive().map(str::to_owned),
        device: dev.name().to_owned(),
        vram,
        pcie: pci.as_deref().and_then(platform::pcie_link),
        others: others(),
    })
}

/// The access that is allowed: only copies can be slowed down.
fn access(options: &LoadOptions) -> Result<RamAccess, EngineError> {
    match (options.ram_access, options.link_limit) {
        (RamAccess::Only(Access::ZeroCopy), Some(_)) => Err(EngineError::LinkLimit),
        (_, Some(_)) => Ok(RamAccess::Only(Access::Copy)),
        (access, None) => Ok(access),
    }
}

/// Bytes of a tensor in device memory.
fn on_device(bytes: u64) -> u64 {
    bytes.next_multiple_of(TENSOR_ALIGN as u64)
}

/// The number in an environment variable, if it is set.
fn layers(variable: &'static str) -> Result<Option<usize>, EngineError> {
    let Some(value) = env::var_os(variable).filter(|value| !value.is_empty()) else { return Ok(None) };
    let number = value.to_str().and_then(|text| text.parse().ok());
    let wrong = || EngineError::Variable { variable, value: value.to_string_lossy().into_owned() };
    number.map(Some).ok_or_else(wrong)
}

/// The rates that the plan's prediction depends on, measured now: some 100 ms if all of them are.
///
/// # Errors
/// A drive that was asked for and cannot be read, or holds something else.
fn rates<D: Device>(dev: &mut D, model: &Model, plan: &Plan, reads: &dyn Reads) -> Result<Rates, EngineError> {
    Ok(Rates {
        link: if plan.load.link_bytes > 0 { dev.link_rate().ok() } else { None },
        zero_copy: if plan.load.zero_copy_bytes > 0 { dev.zero_copy_rate().ok().flatten() } else { None },
        disk: if plan.load.disk_bytes > 0 { disk_rate(model, reads)? } else { None },
        vram: None,
    })
}

/// A model's tensors, sorted by what happens to them.
struct Weights {
    units: Vec<Unit>,
    always: Vec<(TensorId, u64)>,
    host: Vec<(TensorId, u64)>,
    types: Vec<TensorType>,
}

impl Weights {
    fn new(model: &Model) -> Result<Self, EngineError> {
        let images = (0..model.config.layers).map(|i| model.layer_image(i));
        let images: Vec<Image> = images.chain([model.head_image()]).collect::<Result<_, _>>()?;
        let (mut units, mut always, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        for (group, image) in images.iter().enumerate() {
            for placed in image.tensors().iter().filter(|placed| seen.insert(placed.id)) {
                let bytes = placed.range.len() as u64;
                // Embeddings are looked up in the output matrix where they are the same, which no ring could offer.
                if placed.rows == 1 || (model.tied() && placed.id == model.tensors.embedding) {
                    always.push((placed.id, bytes));
                } else {
                    let name = model.gguf.tensors()[placed.id.0].name.clone();
                    units.push(Unit { tensor: placed.id, name, group, bytes });
                }
            }
        }
        let tensors = model.gguf.tensors().iter().enumerate().map(|(i, info)| (TensorId(i), info.bytes));
        let host = tensors.filter(|(id, _)| !seen.contains(id)).collect();
        let matrices = || images.iter().flat_map(Image::tensors).filter(|placed| placed.rows > 1);
        let types = TensorType::ALL.iter().copied().filter(|&ty| matrices().any(|placed| placed.ty == ty)).collect();
        Ok(Weights { units, always, host, types })
    }
}

/// `bytes` are those of the weights, the KV cache and the activations.
fn does_not_fit(
    error: PlanError,
    inputs: &Inputs,
    device: &str,
    context: usize,
    bytes: [u64; 3],
    others: &[Holder],
) -> EngineError {
    let [weights, kv, activations] = bytes.map(ByteSize);
    let (device, need, limit, advice) = match error {
        PlanError::Vram { need, limit, least } => {
            let advice = match (inputs.streaming, least <= limit) {
                (false, true) => format!("use --streaming, which needs {} at least", ByteSize(least)),
                (false, false) if least < need => {
                    format!("even --streaming needs {} at least; {ADVICE}", ByteSize(least))
                }
                (true, _) => {
                    let copies = match inputs.access {
                        RamAccess::Only(Access::Copy) => {
                            " and copied (--link-limit and --ram-access copy rule out less)"
                        }
                        _ => "",
                    };
                    format!("this is the least, with everything streamed{copies}; {ADVICE}")
                }
                _ => ADVICE.to_owned(),
            };
            (device.to_owned(), need, limit, advice)
        }
        PlanError::Ram { need, limit } => {
            let advice = format!(
                "raise --ram-budget or {MAX_RAM_LAYERS} if one is set, close other programs, use a smaller model, or raise \
                 --vram-budget if one is set"
            );
            ("RAM, for the streamed layers".to_owned(), need, limit, advice)
        }
    };
    let held = match others {
        [] => String::new(),
        others => format!("; others hold {}", others.iter().map(Holder::to_string).collect::<Vec<_>>().join(", ")),
    };
    let (need, limit, advice) = (ByteSize(need), ByteSize(limit), advice + &held);
    EngineError::DoesNotFit { device, need, limit, weights, kv, activations, context, advice }
}

impl Placement {
    /// Measures how fast `dev` reads its memory, for the prediction of a plan that is to be shown. Loading a model goes without.
    pub fn measure_vram<D: Device>(&mut self, dev: &mut D) {
        self.inputs.rates.vram = dev.memory_rate().ok().flatten();
        self.plan.prediction = self.plan.load.predict(&self.inputs.rates);
    }

    /// The tiers in use, with their tensors, each tensor of the file in one of them, and their bytes there.
    pub fn tiers(&self) -> Vec<(Tier, Vec<TensorId>, u64)> {
        let device = self.inputs.device;
        let stays = if self.inputs.in_place { Tier::Mapped { device } } else { Tier::Vram { device } };
        let units = self.inputs.units.iter().zip(&self.plan.tiers).map(|(unit, &tier)| (tier, unit.tensor, unit.bytes));
        let always = self.always.iter().map(|&(id, bytes)| (stays, id, bytes));
        let host = self.host.iter().map(|&(id, bytes)| (Tier::Mapped { device }, id, bytes));
        let all: Vec<_> = units.chain(always).chain(host).collect();
        let mut tiers: Vec<Tier> = all.iter().map(|(tier, ..)| *tier).collect();
        tiers.sort_unstable();
        tiers.dedup();
        let of = |tier| {
            let mut tensors: Vec<_> =
                all.iter().filter(|(of, ..)| *of == tier).map(|&(_, id, bytes)| (id, bytes)).collect();
            tensors.sort_unstable_by_key(|(id, _)| id.0);
            let bytes = tensors.iter().map(|(_, bytes)| bytes).sum();
            (tier, tensors.into_iter().map(|(id, _)| id).collect(), bytes)
        };
        tiers.into_iter().map(of).collect()
    }

    /// How many layers of average size the layers' matrices are that are in a tier of which `of` says so.
    pub fn layers(&self, of: impl Fn(Tier) -> bool) -> f64 {
        let Inputs { units, layers, .. } = &self.inputs;
        let bytes = |of: &dyn Fn(Tier) -> bool| {
            let units = units.iter().zip(&self.plan.tiers).filter(|(unit, tier)| unit.group < *layers && of(**tier));
            units.map(|(unit, _)| unit.bytes).sum::<u64>() as f64
        };
        *layers as f64 * bytes(&of) / bytes(&|_| true).max(1.0)
    }

    /// The same of what no pass has to fetch, to a hundredth of a layer.
    pub fn resident_layers(&self) -> f64 {
        (self.layers(|tier| !tier.is_streamed()) * 100.0).round() / 100.0
    }
}
