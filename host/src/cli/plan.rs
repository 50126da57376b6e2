//! `ntransformer --plan`: what would be placed where, and how fast that would be.

use std::io::{self, Write};

use bytesize::ByteSize;
use serde_json::{Value, json};

use super::open::ModelArgs;
use crate::{
    engine::{ModelFile, Placement},
    pack::TensorId,
    stream::plan::{Access, Bound, Prediction, RamAccess, Tier, Unknown},
};

/// Prints the plan to stdout: a table, or JSON.
pub fn run(model: &ModelArgs, context: Option<usize>, as_json: bool) -> anyhow::Result<()> {
    let file = model.open(context)?;
    let placement = model.plan(&file, 1)?;
    let text = if as_json { format!("{:#}\n", json(&file, &placement)) } else { table(&placement) };
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// The plan for people.
pub fn table(placement: &Placement) -> String {
    let Placement { plan, inputs, .. } = placement;
    let size = |bytes: u64| ByteSize(bytes).to_string();
    let mut lines = Vec::new();
    let pcie = placement.pcie.map_or(String::new(), |link| format!(", {link}"));
    let (free, total) = (size(placement.vram.free), size(placement.vram.total));
    lines.push(format!("{}{pcie}: {free} of {total} are free", placement.device));
    if !placement.others.is_empty() {
        let others: Vec<_> = placement.others.iter().map(ToString::to_string).collect();
        lines.push(format!("held by others: {}", others.join(", ")));
    }
    lines.push(String::new());

    let tier = |(tier, tensors, bytes): (Tier, Vec<TensorId>, u64)| {
        [tier_name(placement, tier), tensors.len().to_string(), size(bytes), layers(placement, tier)]
    };
    let names = ["weights", "tensors", "size", "layers"].map(str::to_owned);
    lines.extend(aligned(&[names].into_iter().chain(placement.tiers().into_iter().map(tier)).collect::<Vec<_>>()));
    lines.push(String::new());

    let matrices = [("matrices that stay", plan.resident_bytes), ("ring for those that do not", plan.ring_bytes)];
    let fixed = inputs.fixed.iter().map(|fixed| (fixed.what, fixed.bytes));
    let parts = matrices.into_iter().chain(fixed).filter(|(_, bytes)| *bytes > 0);
    let parts = parts.chain([("all", plan.vram_bytes())]).map(|(what, bytes)| [what.to_owned(), size(bytes)]);
    let names = ["device memory", "size"].map(str::to_owned);
    lines.extend(aligned(&[names].into_iter().chain(parts).collect::<Vec<_>>()));
    let (limit, least, full) = (size(inputs.vram), size(plan.vram_least), size(plan.vram_full));
    lines.push(format!("{limit} may be used; the least is {least}, and {full} hold all of it"));
    lines.push(String::new());

    if plan.streams() {
        let (ram, limit) = (size(plan.ram_bytes), size(inputs.ram));
        if plan.zero_copies() && inputs.access == RamAccess::Auto {
            lines.push("no ring to copy through has room: kernels read in RAM (zero-copy), which is slower, above all for prompts".into());
        }
        let staging = match plan.staging_bytes {
            0 => String::new(),
            bytes => format!(", and {} for what is read from disk", size(bytes)),
        };
        lines.push(format!("page-locked RAM: {ram}{staging}; {limit} may be used"));
    }
    lines.extend(prediction(placement));
    lines.push(String::new());
    lines.join("\n")
}

/// How many layers' worth of matrices are in a tier.
fn layers(placement: &Placement, tier: Tier) -> String {
    match placement.layers(|of| of == tier) {
        0.0 => "-".into(),
        layers => format!("{layers:.1}"),
    }
}

fn tier_name(placement: &Placement, tier: Tier) -> String {
    let name = match tier {
        Tier::Vram { .. } => "on the device",
        Tier::Ram { access: Access::Copy, .. } => "in RAM, streamed",
        Tier::Ram { access: Access::ZeroCopy, .. } => "in RAM, zero-copy",
        Tier::Disk { .. } => match &placement.drive {
            Some(drive) => return format!("on the drive {drive}, streamed"),
            None => "on disk, streamed",
        },
        Tier::Mapped { .. } => "read in the file's map",
    };
    name.to_owned()
}

/// Lines of columns, of which the first is text.
fn aligned<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let cell = |(column, cell): (usize, &String)| match column {
        0 => format!("{cell:<width$}", width = width(0)),
        _ => format!("  {cell:>width$}", width = width(column)),
    };
    rows.iter().map(|row| row.iter().enumerate().map(cell).collect()).collect()
}

/// How long a token takes, and why.
fn prediction(placement: &Placement) -> [String; 2] {
    let (load, rates) = (&placement.plan.load, &placement.inputs.rates);
    let part = |bytes: u64, what: &str, rate: Option<f64>| match rate {
        _ if bytes == 0 => None,
        Some(rate) => Some(format!("{} {what} at {:.2} GB/s", ByteSize(bytes), rate / 1e9)),
        None => Some(format!("{} {what}", ByteSize(bytes))),
    };
    let travels = [
        part(load.weight_bytes, "of weights read", rates.vram),
        part(load.link_bytes - load.zero_copy_bytes, "over the link", rates.link),
        part(load.zero_copy_bytes, "over the link by zero-copy", rates.zero_copy),
        part(load.disk_bytes, "from disk", rates.disk),
    ];
    let name = |part: Bound| match part {
        Bound::Link => "the link",
        Bound::Disk => "the disk",
        Bound::Vram => "the device's memory",
    };
    let predicted = match &placement.plan.prediction {
        Ok(Prediction { seconds, bound, .. }) => {
            let time = if *seconds < 1.0 { format!("{:.2} ms", seconds * 1e3) } else { format!("{seconds:.2} s") };
            format!("{time} a token, {:.2} tokens/s, bounded by {}", seconds.recip(), name(*bound))
        }
        Err(Unknown(parts)) => {
            let parts: Vec<_> = parts.iter().map(|&part| name(part)).collect();
            format!("none, since it is not known how fast {} is", parts.join(" and "))
        }
    };
    let travels = travels.into_iter().flatten().collect::<Vec<_>>().join(", ");
    [format!("a token: {travels}"), format!("prediction: {predicted}")]
}

/// The plan for programs: sizes in bytes, times in seconds, rates in bytes a second.
fn json(file: &ModelFile, placement: &Placement) -> Value {
    let Placement { plan, inputs, .. } = placement;
    let name = |id: &TensorId| file.gguf().tensors()[id.0].name.clone();
    let tier = |(tier, tensors, bytes): (Tier, Vec<TensorId>, u64)| {
        json!({
            "tier": tier.name(),
            "device": tier.device(),
            "access": tier.access().map(Access::name),
            "bytes": bytes,
            "tensors": tensors.iter().map(name).collect::<Vec<_>>(),
        })
    };
    let prediction = plan.prediction.as_ref();
    json!({
        "model": file.config().name,
        "context": file.config().dims.context,
        "streaming": inputs.streaming,
        "devices": [{
            "device": inputs.device,
            "name": placement.device,
            "pcie": placement.pcie.map(|link| json!({ "generation": link.generation, "width": link.width })),
            "free_bytes": placement.vram.free,
            "total_bytes": placement.vram.total,
            "held_by_others": placement.others.iter().map(|holder| json!({
                "pid": holder.pid, "name": holder.name, "bytes": holder.bytes,
            })).collect::<Vec<_>>(),
        }],
        "vram_limit_bytes": inputs.vram,
        "vram_least_bytes": plan.vram_least,
        "vram_full_bytes": plan.vram_full,
        "vram_bytes": plan.vram_bytes(),
        "resident_bytes": plan.resident_bytes,
        "ring_bytes": plan.ring_bytes,
        "fixed_bytes": inputs.fixed.iter().map(|fixed| (fixed.what.to_owned(), fixed.bytes.into())).collect::<serde_json::Map<_, _>>(),
        "ram_limit_bytes": inputs.ram,
        "ram_bytes": plan.ram_bytes,
        "staging_bytes": plan.staging_bytes,
        "drive": placement.drive,
        "resident_layers": placement.resident_layers(),
        "layers": inputs.layers,
        "tiers": placement.tiers().into_iter().map(tier).collect::<Vec<_>>(),
        "weight_bytes_per_token": plan.load.weight_bytes,
        "link_bytes_per_token": plan.load.link_bytes,
        "zero_copy_bytes_per_token": plan.load.zero_copy_bytes,
        "disk_bytes_per_token": plan.load.disk_bytes,
        "link_bytes_per_second": inputs.rates.link,
        "zero_copy_bytes_per_second": inputs.rates.zero_copy,
        "disk_bytes_per_second": inputs.rates.disk,
        "vram_bytes_per_second": inputs.rates.vram,
        "predicted_seconds_per_token": prediction.ok().map(|prediction| prediction.seconds),
        "bound": prediction.ok().map(|prediction| prediction.bound.name()),
        "unknown_rates": prediction.err().map_or(Vec::new(), |Unknown(parts)| parts.iter().map(|part| part.name()).collect()),
    })
}
