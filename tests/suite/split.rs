//! Models in several files: the same model as in one file, and what can be wrong with the parts.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use ntransformer::{
    cli::synth::{Quant, Shape},
    engine::DeviceChoice,
    gguf::{Gguf, GgufFault, Writer},
    model::Model,
};
use quant::TensorType;

use crate::{models, setup, synth};

/// What a part says of itself.
struct Stated {
    no: u16,
    count: u16,
    tensors: i32,
}

/// A part with the tensors `range` of `gguf`; the first has the metadata too, as `llama-gguf-split` makes it.
fn part(gguf: &Gguf, stated: &Stated, range: std::ops::Range<usize>) -> Vec<u8> {
    let mut writer = Writer::new();
    if stated.no == 0 {
        for (key, value) in gguf.metadata().iter() {
            writer.set_value(key, value).unwrap();
        }
    }
    writer.set("split.no", &stated.no).unwrap();
    writer.set("split.count", &stated.count).unwrap();
    writer.set("split.tensors.count", &stated.tensors).unwrap();
    let tensors = &gguf.tensors()[range];
    for tensor in tensors {
        writer.tensor(&tensor.name, &tensor.dims, tensor.ty).unwrap();
    }
    let mut data = writer.begin(Vec::new()).unwrap();
    tensors.iter().for_each(|tensor| data.write(gguf.bytes(tensor)).unwrap());
    data.finish().unwrap()
}

/// A folder with a model in parts.
pub struct Parts {
    folder: tempfile::TempDir,
    count: u16,
}

impl Parts {
    /// Cuts the tensors of `gguf` at `cuts`, ascending.
    pub fn new(gguf: &Gguf, cuts: &[usize]) -> Self {
        let all = gguf.tensors().len();
        let parts = Parts { folder: tempfile::tempdir().unwrap(), count: cuts.len() as u16 + 1 };
        let (starts, ends) = ([&[0], cuts].concat(), [cuts, &[all]].concat());
        for ((no, start), end) in (0..).zip(starts).zip(ends) {
            let stated = Stated { no, count: parts.count, tensors: all as i32 };
            fs::write(parts.path(no + 1), part(gguf, &stated, start..end)).unwrap();
        }
        parts
    }

    /// Of part `number`, from 1.
    pub fn path(&self, number: u16) -> PathBuf {
        self.folder.path().join(format!("model-{number:05}-of-{:05}.gguf", self.count))
    }

    /// The message when part `given` is opened; it has to name the file of part `named`, and no other.
    #[track_caller]
    fn error(&self, given: u16, named: u16) -> String {
        let message = Gguf::open(&self.path(given)).expect_err("the parts do not fit together").to_string();
        let start = format!("{}: ", self.path(named).display());
        message.strip_prefix(&start).unwrap_or_else(|| panic!("{message:?} does not start with {start}")).to_owned()
    }
}

fn model() -> Arc<Gguf> {
    synth::model(Shape::Tiny, Quant::pure(TensorType::Q8_0), 6)
}

/// Three parts, of which `llama-gguf-split --no-tensor-in-first-split` would leave the first without tensors.
fn three() -> (Arc<Gguf>, Parts) {
    let gguf = model();
    let parts = Parts::new(&gguf, &[0, 17]);
    (gguf, parts)
}

#[test]
fn any_part_opens_all() {
    let whole = model();
    for cuts in [&[][..], &[20], &[5, 9], &[0, 17]] {
        let parts = Parts::new(&whole, cuts);
        for given in 1..=parts.count {
            let split = Gguf::open(&parts.path(given)).unwrap();
            assert_eq!(split.name(), parts.path(1).to_str().unwrap());
            let lengths: Vec<_> = (1..=parts.count).map(|n| fs::metadata(parts.path(n)).unwrap().len()).collect();
            assert_eq!(split.parts().iter().map(|part| part.bytes().len() as u64).collect::<Vec<_>>(), lengths);
            assert_eq!(split.file_bytes(), lengths.iter().sum::<u64>());
            assert_eq!(split.metadata().str("general.name").unwrap(), whole.metadata().str("general.name").unwrap());
            assert_eq!(split.tensors().len(), whole.tensors().len());
            for (index, (found, expected)) in split.tensors().iter().zip(whole.tensors()).enumerate() {
                assert_eq!((&found.name, &found.dims, found.ty), (&expected.name, &expected.dims, expected.ty));
                assert_eq!(found.part, cuts.iter().filter(|&&cut| index >= cut).count());
                assert!(split.bytes(found) == whole.bytes(expected), "{}", found.name);
                let (start, file) = (split.tensor_file_offset(found) as usize, split.part(found).bytes());
                assert!(file[start..].starts_with(whole.bytes(expected)), "{}", found.name);
            }
        }
    }
}

/// A name is bytes: the parts of a model whose name is not UTF-8 are found all the same.
#[test]
fn names_need_not_be_utf_8() {
    let (whole, parts) = three();
    let name = |number: u16| {
        let name = [b"caf\xe9-", format!("{number:05}-of-00003.gguf").as_bytes()].concat();
        parts.path(number).with_file_name(OsStr::from_bytes(&name))
    };
    (1..=3).for_each(|number| fs::rename(parts.path(number), name(number)).unwrap());
    for given in 1..=3 {
        assert_eq!(Gguf::open(&name(given)).unwrap().tensors().len(), whole.tensors().len());
    }
    fs::remove_file(name(2)).unwrap();
    let message = Gguf::open(&name(1)).unwrap_err().to_string();
    assert!(message.contains("-00002-of-00003.gguf"), "{message}");
}

/// Streamed on every device, and where the CPU has the files mapped: the logits are those of the model in one file, to the bit.
#[test]
fn a_split_model_computes_the_same() {
    let (whole, parts) = three();
    let split = Arc::new(Gguf::open(&parts.path(1)).unwrap());
    let files: HashSet<usize> = split.tensors().iter().map(|tensor| tensor.part).collect();
    assert_eq!(files.len(), 2, "the tensors are in two files");
    let passes: [&[u32]; 2] = [&[5, 301], &[77]];
    for device in models::devices() {
        let mut resident = models::open(device, &whole, None);
        let expected = models::logits_of_passes(&mut *resident, passes);
        let check = |budget: Option<u64>| {
            let mut runner = models::open(device, &split, budget);
            assert_eq!(runner.memory().streamed_per_pass > 0, budget.is_some());
            assert_eq!(runner.memory().mapped, split.file_bytes());
            let found = models::logits_of_passes(&mut *runner, passes);
            assert!(found.iter().zip(&expected).all(|(f, e)| f.to_bits() == e.to_bits()), "{device:?} {budget:?}");
        };
        check(Some(models::budget(&*resident, &whole, 1)));
        if device == DeviceChoice::Cpu {
            check(None);
        }
    }
}

#[test]
fn a_missing_part_is_named() {
    let (_, parts) = three();
    fs::remove_file(parts.path(2)).unwrap();
    for given in [1, 3] {
        let message = parts.error(given, 2);
        assert!(message.starts_with("cannot be read: No such file"), "{message}");
        assert!(
            message.contains("it is part 2 of 3 of a split model: all of them have to be in one folder"),
            "{message}"
        );
    }
}

#[test]
fn a_truncated_part_is_named() {
    let (_, parts) = three();
    let bytes = fs::read(parts.path(2)).unwrap();
    for len in [bytes.len() - 1, bytes.len() / 2, 20, 0] {
        fs::write(parts.path(2), &bytes[..len]).unwrap();
        let message = parts.error(1, 2);
        let fault = if len == 0 { "is not a GGUF file" } else { "" };
        assert!(message.contains(fault) && message.contains("it is part 2 of 3"), "{len}: {message}");
    }
}

#[test]
fn parts_under_other_names_are_named() {
    let (_, parts) = three();
    let [second, third] = [2, 3].map(|number| fs::read(parts.path(number)).unwrap());
    // Swapped: whoever gives one of them gets told its right name.
    fs::write(parts.path(2), &third).unwrap();
    fs::write(parts.path(3), &second).unwrap();
    let message = parts.error(1, 2);
    assert!(message.starts_with("by its metadata it is part 3 of 3: rename it, or get it again"), "{message}");
    let message = parts.error(3, 3);
    assert!(message.contains("it is part 2 of 3") && message.contains("-00002-of-00003.gguf: rename it"), "{message}");
    // The second twice.
    fs::write(parts.path(2), &second).unwrap();
    assert!(parts.error(2, 3).starts_with("by its metadata it is part 2 of 3"));
    // A file that is no part.
    fs::write(parts.path(3), synth_bytes()).unwrap();
    assert!(parts.error(1, 3).starts_with("by its metadata it is no part of a split model"));
    // A name that leads nowhere.
    let elsewhere = parts.folder.path().join("first.gguf");
    fs::rename(parts.path(1), &elsewhere).unwrap();
    let message = Gguf::open(&elsewhere).unwrap_err().to_string();
    assert!(message.contains("first.gguf: ") && message.contains("end in -00001-of-00003.gguf"), "{message}");
}

fn synth_bytes() -> Vec<u8> {
    let gguf = model();
    gguf.parts()[0].bytes().to_vec()
}

#[test]
fn parts_of_different_models_are_refused() {
    let (whole, parts) = three();
    let all = whole.tensors().len();
    let write = |number: u16, tensors: usize, range| {
        let stated = Stated { no: number - 1, count: 3, tensors: tensors as i32 };
        fs::write(parts.path(number), part(&whole, &stated, range)).unwrap();
    };
    // One tensor less than all parts state.
    write(3, all, 17..all - 1);
    let message = parts.error(2, 1);
    assert!(
        message
            .contains(&format!("has {all} tensors in all parts (split.tensors.count), but the parts have {}", all - 1))
    );
    // A part that states another number of them.
    write(3, all + 1, 17..all);
    let message = parts.error(1, 3);
    assert!(message.contains("is of another model than") && message.contains(&format!("counts {} tensors", all + 1)));
    // As many, but one twice.
    write(3, all, 16..all - 1);
    assert!(parts.error(1, 3).contains("occurs twice"));
    // Another number of parts.
    fs::write(parts.path(3), part(&whole, &Stated { no: 2, count: 4, tensors: all as i32 }, 17..all)).unwrap();
    assert!(parts.error(1, 3).starts_with("by its metadata it is part 3 of 4"));
    assert!(parts.error(3, 3).contains("-00003-of-00004.gguf"));
    // An impossible one.
    fs::write(parts.path(3), part(&whole, &Stated { no: 3, count: 3, tensors: all as i32 }, 17..all)).unwrap();
    assert!(parts.error(3, 3).contains("split.no 3 of split.count 3, which is impossible"));
}

#[test]
fn a_part_in_memory_is_alone() {
    let (_, parts) = three();
    let error = Gguf::from_vec("memory", fs::read(parts.path(2)).unwrap()).unwrap_err();
    assert!(matches!(*error.fault, GgufFault::PartAlone { number: 2, count: 3 }), "{error}");
}

fn run(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(setup::ntransformer()).args(args).output().unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// The commands take a part for the model: the demo model tells the same story, and `inspect` says what is where.
#[test]
fn commands_take_parts() {
    let demo = ntransformer::demo::gguf().unwrap();
    let parts = Parts::new(&demo, &[20, 40]);
    let story = |model: &[&str]| {
        let (code, text) = run(&[model, &["--device", "cpu", "-q", "-n", "24", "--seed", "5"]].concat());
        assert_eq!(code, Some(0), "{text}");
        text
    };
    let expected = story(&[]);
    assert!(expected.split_whitespace().count() > 10, "{expected:?}");
    let second = parts.path(2);
    let second = second.to_str().unwrap();
    assert_eq!(story(&["-m", second]), expected);
    let (_, said) = run(&["-m", second, "--device", "cpu", "-n", "1"]);
    assert!(said.contains(" in 3 files)"), "{said}");

    let (_, text) = run(&["inspect", second]);
    for number in 1..=3 {
        let (path, tensor) = (parts.path(number), &demo.tensors()[20 * (number as usize - 1)].name);
        let line = text.lines().find(|line| line.contains(&format!("{tensor} "))).unwrap();
        assert!(line.ends_with(&format!(" of part {number}")), "{line}");
        assert!(text.contains(&format!("bytes  {}\n", path.display())), "{text}");
    }
    let (_, json) = run(&["inspect", "--json", second]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["parts"][1]["file"], second);
    assert_eq!(json["parts"][1]["bytes"], fs::metadata(Path::new(second)).unwrap().len());
    assert_eq!((&json["tensors"][0]["part"], &json["tensors"][40]["part"]), (&1.into(), &3.into()));

    fs::remove_file(parts.path(3)).unwrap();
    let (code, message) = run(&["-m", second, "-q"]);
    assert_eq!(code, Some(1));
    assert!(message.starts_with("error: ") && message.contains("-00003-of-00003.gguf: cannot be read"), "{message}");
}

/// What the progress bar is told adds up to what it was told to expect, wherever the weights go.
#[test]
fn progress_adds_up() {
    let (gguf, _) = three();
    for (device, budget) in models::devices().into_iter().flat_map(|device| [(device, false), (device, true)]) {
        let streamed = budget.then(|| models::budget(&*models::open(device, &gguf, None), &gguf, 1));
        let expected = ntransformer::engine::load_bytes(&Model::new(gguf.clone(), None, 64).unwrap()).unwrap();
        let (mut told, mut calls) = (0, 0);
        models::open_with(device, &gguf, None, streamed, &mut |bytes| (told, calls) = (told + bytes, calls + 1));
        assert_eq!(told, expected, "{device:?}, {budget}");
        assert!(calls >= 4, "{device:?}: {calls} calls");
    }
}
