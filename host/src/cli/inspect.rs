//! `ntransformer inspect`: what is in a GGUF file.

use crate::gguf::{Gguf, Part, TensorInfo, Value};
use serde_json::{Map, Value as Json, json};
use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
};

/// Arguments of `ntransformer inspect`.
#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    /// The GGUF file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Print JSON, with arrays in full.
    #[arg(long)]
    pub json: bool,
}

/// Prints metadata, tensors, and bytes by type and by layer to standard output.
///
/// # Errors
/// If the file is no sound GGUF file, or the output cannot be written.
pub fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let gguf = Gguf::open(&args.file)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    if args.json {
        serde_json::to_writer_pretty(&mut out, &to_json(&gguf))?;
        writeln!(out)?;
    } else {
        print(&gguf, &mut out)?;
    }
    out.flush()?;
    Ok(())
}

/// A tensor's layer: `blk.N`, or `rest` for those outside of layers. Sorts by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    Block(u32),
    Rest,
}

impl Layer {
    fn of(tensor: &str) -> Self {
        let number = tensor.strip_prefix("blk.").and_then(|rest| rest.split('.').next());
        number.and_then(|n| n.parse().ok()).map_or(Self::Rest, Self::Block)
    }
}

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Block(n) => f.pad(&format!("blk.{n}")),
            Self::Rest => f.pad("rest"),
        }
    }
}

/// Number and bytes of the tensors of each group. Sums saturate, since tensors may overlap in a hostile file.
fn totals<K: Ord>(tensors: &[TensorInfo], key: impl Fn(&TensorInfo) -> K) -> BTreeMap<K, (u64, u64)> {
    let mut groups = BTreeMap::new();
    for tensor in tensors {
        let (count, bytes): &mut (u64, u64) = groups.entry(key(tensor)).or_default();
        *count += 1;
        *bytes = bytes.saturating_add(tensor.bytes);
    }
    groups
}

fn total_bytes(gguf: &Gguf) -> u64 {
    gguf.tensors().iter().fold(0, |sum, tensor| sum.saturating_add(tensor.bytes))
}

fn print(gguf: &Gguf, out: &mut impl Write) -> io::Result<()> {
    let (metadata, tensors) = (gguf.metadata(), gguf.tensors());
    writeln!(out, "{}: GGUF version {}", gguf.name(), gguf.version())?;
    let split = gguf.parts().len() > 1;
    if split {
        writeln!(out, "\nparts ({})", gguf.parts().len())?;
        for (number, part) in (1..).zip(gguf.parts()) {
            writeln!(out, "  {number}  {:>15} bytes  {}", part.bytes().len(), part.name())?;
        }
    }

    writeln!(out, "\nmetadata ({} entries)", metadata.len())?;
    for (key, value) in metadata.iter() {
        writeln!(out, "  {} = {}", key.escape_debug(), abbreviated(value))?;
    }

    let file = if split { "its part" } else { "the file" };
    writeln!(out, "\ntensors ({}); shape: row length first; offset: in {file}", tensors.len())?;
    let shape = |tensor: &TensorInfo| tensor.dims.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
    let name_width = tensors.iter().map(|t| t.name.len()).max().unwrap_or(0);
    let shape_width = tensors.iter().map(|t| shape(t).len()).max().unwrap_or(0);
    for tensor in tensors {
        let part = if split { format!(" of part {}", tensor.part + 1) } else { String::new() };
        writeln!(
            out,
            "  {:name_width$}  {:8} {:shape_width$}  {:>13} bytes at {}{part}",
            tensor.name.escape_debug().to_string(),
            tensor.ty,
            shape(tensor),
            tensor.bytes,
            gguf.tensor_file_offset(tensor),
        )?;
    }

    writeln!(out, "\nbytes by type")?;
    for (ty, (count, bytes)) in totals(tensors, |t| t.ty) {
        writeln!(out, "  {ty:8} {count:>6} tensors {bytes:>15} bytes")?;
    }
    writeln!(out, "\nbytes by layer")?;
    for (layer, (count, bytes)) in totals(tensors, |t| Layer::of(&t.name)) {
        writeln!(out, "  {layer:8} {count:>6} tensors {bytes:>15} bytes")?;
    }
    writeln!(out, "\ntotal    {:>6} tensors {:>15} bytes", tensors.len(), total_bytes(gguf))
}

/// A value on one line: long strings are cut, and of arrays only the first elements are shown.
fn abbreviated(value: Value<'_>) -> String {
    const SHOWN_CHARS: usize = 200;
    const SHOWN_ELEMS: usize = 6;
    match value {
        Value::String(bytes) => {
            // Cut before decoding: a string may be as long as the file.
            let head = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * SHOWN_CHARS)]);
            let cut: String = head.chars().take(SHOWN_CHARS).collect();
            match cut.len() < bytes.len() {
                true => format!("{cut:?}... ({} bytes)", bytes.len()),
                false => format!("{cut:?}"),
            }
        }
        Value::Array(array) => {
            let shown: Vec<_> = array.iter().take(SHOWN_ELEMS).map(abbreviated).collect();
            let more = if array.len() > SHOWN_ELEMS { ", ..." } else { "" };
            format!("[{}{more}] ({} x {})", shown.join(", "), array.len(), array.elem())
        }
        Value::F32(v) => v.to_string(),
        Value::F64(v) => v.to_string(),
        Value::Bool(v) => v.to_string(),
        _ => value.integer().unwrap_or_default().to_string(),
    }
}

fn to_json(gguf: &Gguf) -> Json {
    let tensor = |tensor: &TensorInfo| {
        json!({
            "name": tensor.name,
            "type": tensor.ty.to_string(),
            "dims": tensor.dims,
            "bytes": tensor.bytes,
            "part": tensor.part + 1,
            "offset": gguf.tensor_file_offset(tensor),
        })
    };
    let group = |(name, (count, bytes)): (String, (u64, u64))| (name, json!({ "tensors": count, "bytes": bytes }));
    let by_type = totals(gguf.tensors(), |t| t.ty).into_iter().map(|(ty, sum)| group((ty.to_string(), sum)));
    let by_layer =
        totals(gguf.tensors(), |t| Layer::of(&t.name)).into_iter().map(|(layer, sum)| group((layer.to_string(), sum)));
    let part = |part: &Arc<Part>| json!({ "file": part.name(), "bytes": part.bytes().len() });
    json!({
        "file": gguf.name(),
        "version": gguf.version(),
        "parts": gguf.parts().iter().map(part).collect::<Vec<_>>(),
        "metadata": gguf.metadata().iter().map(|(key, value)| (key.to_owned(), value_to_json(value))).collect::<Map<_, _>>(),
        "tensors": gguf.tensors().iter().map(tensor).collect::<Vec<_>>(),
        "bytes_by_type": by_type.collect::<Map<_, _>>(),
        "bytes_by_layer": by_layer.collect::<Map<_, _>>(),
        "total_bytes": total_bytes(gguf),
    })
}

/// JSON has no infinities and no NaN: those become strings, as do a string's invalid bytes U+FFFD.
fn value_to_json(value: Value<'_>) -> Json {
    let float = |v: f64| serde_json::Number::from_f64(v).map_or_else(|| Json::from(v.to_string()), Json::from);
    match value {
        Value::String(bytes) => String::from_utf8_lossy(bytes).into(),
        Value::Array(array) => array.iter().map(value_to_json).collect(),
        // By way of its shortest decimal, so that 1e-5 stays 1e-5.
        Value::F32(v) => float(v.to_string().parse().unwrap_or(f64::from(v))),
        Value::F64(v) => float(v),
        Value::Bool(v) => v.into(),
        Value::U64(v) => v.into(),
        _ => i64::try_from(value.integer().unwrap_or_default()).unwrap_or_default().into(),
    }
}
