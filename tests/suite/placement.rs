//! `--plan`: what the command says it would place where, on devices that need no GPU.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use ntransformer::{
    cli::synth::{Quant, Shape, write},
    demo,
    gguf::Gguf,
};
use serde_json::Value;

use crate::setup;

fn run(args: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(setup::ntransformer());
    command.args(args).arg("--plan").envs(environment.iter().copied());
    command.output().unwrap()
}

/// The plan as JSON, after checking what holds for any.
#[track_caller]
fn plan(args: &[&str], environment: &[(&str, &str)]) -> Value {
    let output = run(&[args, &["--json"]].concat(), environment);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    let n = |key: &str| plan[key].as_u64().unwrap_or_else(|| panic!("{key} in {plan:#}"));
    assert!(n("vram_least_bytes") <= n("vram_bytes") && n("vram_bytes") <= n("vram_limit_bytes"), "{plan:#}");
    let fixed: u64 = plan["fixed_bytes"].as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap()).sum();
    assert_eq!(n("vram_bytes"), fixed + n("resident_bytes") + n("ring_bytes"));
    plan
}

/// Bytes and number of tensors of a tier.
fn tier(plan: &Value, name: &str) -> (u64, usize) {
    let tiers = plan["tiers"].as_array().unwrap();
    let found = tiers.iter().find(|tier| tier["tier"] == name);
    found.map_or((0, 0), |tier| (tier["bytes"].as_u64().unwrap(), tier["tensors"].as_array().unwrap().len()))
}

/// A small model in a file.
pub struct Small {
    _folder: tempfile::TempDir,
    pub path: PathBuf,
}

impl Small {
    fn new() -> Self {
        Self::of("Q8_0")
    }

    pub fn of(quant: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("small.gguf");
        let quant = quant.parse::<Quant>().unwrap();
        write(Shape::Tiny, quant, 1, &demo::gguf().unwrap(), &path, &mut |_, _| ()).unwrap();
        Small { _folder: folder, path }
    }

    fn args<'a>(&'a self, rest: &[&'a str]) -> Vec<&'a str> {
        [&["-m", self.path.to_str().unwrap(), "-c", "64"], rest].concat()
    }

    /// The least that it runs in, and what holds all of it.
    fn bounds(&self) -> (u64, u64) {
        let plan = plan(&self.args(&["--device", "emulator"]), &[]);
        (plan["vram_least_bytes"].as_u64().unwrap(), plan["vram_full_bytes"].as_u64().unwrap())
    }
}

/// Every tensor of the file is in one tier.
#[track_caller]
fn assert_whole(plan: &Value, path: &Path) {
    let gguf = Gguf::open(path).unwrap();
    let expected: BTreeSet<&str> = gguf.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    let lists = plan["tiers"].as_array().unwrap().iter().flat_map(|tier| tier["tensors"].as_array().unwrap());
    let listed: Vec<&str> = lists.map(|name| name.as_str().unwrap()).collect();
    assert_eq!(listed.len(), expected.len(), "a tensor is in two tiers, or in none");
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[test]
fn three_tiers_in_json() {
    let small = Small::new();
    let (least, full) = small.bounds();
    let budget = ((least + full) / 2).to_string();
    // As much RAM as reading from disk takes, and 1 MiB for matrices.
    let args = ["--device", "emulator", "--streaming", "--vram-budget", &budget, "--ram-budget", "17MiB"];
    let plan = plan(&small.args(&args), &[]);
    assert_whole(&plan, &small.path);
    assert_eq!(plan["vram_limit_bytes"].as_u64(), budget.parse().ok());
    assert_eq!(plan["ram_limit_bytes"], 17 << 20);
    let weights: u64 = ["vram", "ram", "disk", "mapped"].map(|name| tier(&plan, name).0).iter().sum();
    let file = Gguf::open(&small.path).unwrap();
    assert_eq!(weights, file.tensors().iter().map(|tensor| tensor.bytes).sum::<u64>());
    let (ram, disk) = (tier(&plan, "ram").0, tier(&plan, "disk").0);
    assert!(ram > 0, "{plan:#}");
    assert_eq!(plan["link_bytes_per_token"], ram + disk);
    assert_eq!(plan["disk_bytes_per_token"], disk);
    assert_eq!(plan["devices"][0]["name"], "emulator");

    // Without RAM, all that is streamed comes from the file.
    let args = ["--device", "emulator", "--streaming", "--vram-budget", &budget, "--ram-budget", "0"];
    let plan = super::placement::plan(&small.args(&args), &[]);
    assert_eq!((tier(&plan, "ram").0, tier(&plan, "disk").0), (0, ram + disk));
}

/// The whole of it, for a model and a machine that are always the same. NT_BLESS=1 writes it anew.
#[test]
fn json_of_a_small_model() {
    let small = Small::new();
    let args = ["--device", "emulator", "--streaming", "--vram-budget", "2500KiB", "--ram-budget", "1GiB"];
    let mut plan = plan(&small.args(&args), &[]);
    for key in ["free_bytes", "total_bytes"] {
        assert!(plan["devices"][0][key].take().as_u64() > Some(0));
    }
    for key in ["link_bytes_per_second", "predicted_seconds_per_token", "bound", "unknown_rates"] {
        plan[key].take();
    }
    let path = setup::root().join("tests/data/plan.json");
    if std::env::var_os("NT_BLESS").is_some() {
        std::fs::write(&path, format!("{plan:#}\n")).unwrap();
    }
    let expected: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(plan, expected, "{plan:#}");
}

#[test]
fn what_fits_is_resident() {
    let small = Small::new();
    let (_, full) = small.bounds();
    let full = full.to_string();
    for rest in [&["--streaming"][..], &[], &["--streaming", "--vram-budget", &full], &["--vram-budget", "100%"]] {
        let plan = plan(&small.args(&[&["--device", "emulator"], rest].concat()), &[]);
        assert_eq!((tier(&plan, "ram").1, tier(&plan, "disk").1), (0, 0), "{rest:?}");
        assert_eq!(plan["ring_bytes"].as_u64().unwrap() + plan["staging_bytes"].as_u64().unwrap(), 0);
        assert_eq!(plan["resident_layers"].as_f64(), plan["layers"].as_f64());
        assert_eq!(plan["vram_bytes"], plan["vram_full_bytes"]);
        // The emulator's speed says nothing about a GPU.
        assert_eq!(plan["predicted_seconds_per_token"], Value::Null);
        assert_eq!(plan["unknown_rates"], serde_json::json!(["vram"]));
    }
}

/// The CPU reads weights where the file is mapped, unless it is to play a device with less memory.
#[test]
fn on_the_cpu() {
    let small = Small::new();
    let mapped = plan(&small.args(&["--device", "cpu", "--streaming"]), &[]);
    assert_whole(&mapped, &small.path);
    assert_eq!(mapped["tiers"].as_array().unwrap().len(), 1);
    let file = Gguf::open(&small.path).unwrap();
    assert_eq!(tier(&mapped, "mapped").0, file.tensors().iter().map(|tensor| tensor.bytes).sum::<u64>());
    let budget = plan(&small.args(&["--device", "cpu", "--streaming", "--vram-budget", "2500KiB"]), &[]);
    assert!(tier(&budget, "vram").0 > 0 && tier(&budget, "ram").0 > 0, "{budget:#}");
    // What stays is the file's map also then.
    assert_eq!((budget["loading_bytes"].as_u64(), mapped["loading_bytes"].as_u64()), (Some(0), Some(0)), "{budget:#}");
}

/// It is said why a plan is one for the CPU although nobody asked for that.
#[test]
fn the_reason_for_the_device() {
    let small = Small::new();
    let output = run(&small.args(&[]), &[("NT_LIBCUDA", "/nonexistent/libcuda.so.1")]);
    let (table, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(table.starts_with("cpu ("), "{table}");
    assert!(said.contains("device: cpu (") && said.contains("(auto: no usable GPU: "), "{said}");
}

/// The least that is told is the least that is accepted.
#[test]
fn the_least_budget() {
    let small = Small::new();
    let (least, full) = small.bounds();
    let with = |budget: u64, streaming: &[&str]| {
        let budget = budget.to_string();
        run(&small.args(&[&["-q", "--device", "emulator", "--vram-budget", &budget], streaming].concat()), &[])
    };
    assert!(with(least, &["--streaming"]).status.success());
    let least_size = bytesize::ByteSize(least).to_string();
    for (budget, streaming, parts) in [
        (least - 1, &["--streaming"][..], &["this is the least"][..]),
        (least - 1, &[], &["even --streaming needs", &least_size]),
        (full - 1, &[], &["use --streaming, which needs", &least_size]),
    ] {
        let output = with(budget, streaming);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(output.stdout.is_empty() && message.starts_with("error: emulator: the model needs"), "{message}");
        for part in parts {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }
}

/// The built-in model is in no file: what is streamed has to fit into RAM.
#[test]
fn without_a_file() {
    let args = ["-q", "--device", "emulator", "-c", "128", "--streaming", "--vram-budget", "8MiB"];
    let output = run(&[&args[..], &["--ram-budget", "100KiB"]].concat(), &[]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("RAM") && message.contains("--ram-budget"), "{message}");
}

#[test]
fn layers_by_environment() {
    let small = Small::new();
    let args = small.args(&["--device", "emulator", "--streaming"]);
    let one = plan(&args, &[("GPUNVME_MAX_VRAM_LAYERS", "1")]);
    let gguf = Gguf::open(&small.path).unwrap();
    let matrices = || gguf.tensors().iter().filter(|tensor| tensor.name.starts_with("blk.") && tensor.rows() > 1);
    let layer = matrices().map(|tensor| tensor.bytes).sum::<u64>() / 4;
    // In a tier: of the layers' matrices, in layers of average size.
    let layers = |name: &str, plan: &Value| {
        let tier = plan["tiers"].as_array().unwrap().iter().find(|tier| tier["tier"] == name).unwrap();
        let names = tier["tensors"].as_array().unwrap();
        let there = matrices().filter(|tensor| names.iter().any(|name| name.as_str() == Some(&tensor.name)));
        there.map(|tensor| tensor.bytes).sum::<u64>() as f64 / layer as f64
    };
    assert!((0.7..=1.0).contains(&layers("vram", &one)), "{one:#}");
    assert!((3.0..3.3).contains(&layers("ram", &one)), "{one:#}");
    // Nothing is streamed where nobody asked for that, and a limit that cannot be kept is not passed over in silence.
    for (device, name) in [("emulator", "vram"), ("cpu", "mapped")] {
        let args = small.args(&["--device", device]);
        let whole = plan(&args, &[("GPUNVME_MAX_VRAM_LAYERS", "1")]);
        assert!(layers(name, &whole) >= 4.0, "{whole:#}");
        let args =
            small.args(&["--device", device, "--ram-budget", "1GiB", "--n-buffers", "2", "--ram-access", "copy"]);
        let said = String::from_utf8(run(&args, &[("GPUNVME_MAX_VRAM_LAYERS", "1")]).stderr).unwrap();
        let names = "GPUNVME_MAX_VRAM_LAYERS, --ram-budget, --n-buffers, --ram-access";
        assert!(said.contains(&format!("of no effect without --streaming: {names}\n")), "{device}: {said}");
        let said = String::from_utf8(run(&small.args(&["--device", device]), &[]).stderr).unwrap();
        assert!(!said.contains("of no effect"), "{device}: {said}");
    }
    let two = [("GPUNVME_MAX_VRAM_LAYERS", "0"), ("GPUNVME_MAX_RAM_LAYERS", "2")];
    let two = plan(&args, &two);
    assert_eq!(layers("vram", &two), 0.0, "{two:#}");
    assert!((1.7..=2.0).contains(&layers("ram", &two)) && layers("disk", &two) >= 2.0, "{two:#}");
    let output = run(&args, &[("GPUNVME_MAX_VRAM_LAYERS", "some")]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(message.contains("GPUNVME_MAX_VRAM_LAYERS is \"some\""), "{message}");
}

/// For people.
#[test]
fn a_table() {
    let small = Small::new();
    let output = run(&small.args(&["-q", "--device", "emulator", "--streaming", "--vram-budget", "2500KiB"]), &[]);
    assert!(output.status.success() && output.stderr.is_empty());
    let text = String::from_utf8(output.stdout).unwrap();
    for part in ["emulator", "on the device", "in RAM, streamed", "2.4 MiB may be used", "the least is", "a token: "] {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}
