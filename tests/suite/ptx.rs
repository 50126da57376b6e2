//! What the compiler made of the kernels: read from the PTX that the engine carries, so no GPU and no compiler is needed.

use std::collections::{BTreeMap, BTreeSet};

use cuda_std::kernel::{self, Kernel};
use ntransformer::ptx::{VARIANTS, Variant, module};

/// An entry: the types of its parameters, and its lines up to the closing brace.
struct Entry {
    params: Vec<String>,
    body: Vec<&'static str>,
}

impl Entry {
    /// How many instructions begin with `mnemonic`, predicated or not.
    fn count(&self, mnemonic: &str) -> usize {
        let instruction = |line: &&&str| match line.strip_prefix('@') {
            Some(rest) => {
                rest.split_once(char::is_whitespace).is_some_and(|(_, rest)| rest.trim().starts_with(mnemonic))
            }
            None => line.starts_with(mnemonic),
        };
        self.body.iter().filter(instruction).count()
    }

    /// The line that the first such instruction is on.
    fn position(&self, mnemonic: &str) -> usize {
        self.body.iter().position(|line| line.starts_with(mnemonic)).unwrap_or_else(|| panic!("no {mnemonic}"))
    }
}

/// The entries of a module by name.
fn entries(ptx: &'static str) -> BTreeMap<&'static str, Entry> {
    let mut entries = BTreeMap::new();
    let mut lines = ptx.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix(".visible .entry ") else { continue };
        let name = name.split('(').next().unwrap();
        // `.param .u64 .ptr .align 1 add_param_0,`
        let params = if line.ends_with("()") {
            Vec::new()
        } else {
            let declarations = lines.by_ref().take_while(|line| !line.starts_with(')'));
            let of = |line: &str| {
                let words: Vec<_> = line
                    .split_whitespace()
                    .skip(1)
                    .take_while(|word| word.starts_with('.') && *word != ".align")
                    .collect();
                words.join(" ")
            };
            declarations.map(of).collect()
        };
        let body = lines
            .by_ref()
            .skip_while(|line| *line != "{")
            .skip(1)
            .take_while(|line| *line != "}")
            .filter(|l| !l.is_empty())
            .collect();
        entries.insert(name, Entry { params, body });
    }
    entries
}

/// The file that a variant is kept in.
fn file(variant: &Variant) -> String {
    format!("sm_{}/{}.ptx", variant.sm, variant.module)
}

/// The architectures that there are variants for.
fn architectures() -> BTreeSet<u32> {
    VARIANTS.iter().map(|variant| variant.sm).collect()
}

/// A kernel's entry in each variant of its module.
fn each<K: Kernel>() -> Vec<Entry> {
    let variants: Vec<_> = VARIANTS.iter().filter(|variant| variant.module == K::MODULE).collect();
    assert_eq!(variants.len(), architectures().len(), "variants of {}", K::MODULE);
    let entry = |variant: &Variant| entries(variant.ptx).remove(K::NAME);
    variants.iter().map(|v| entry(v).unwrap_or_else(|| panic!("no entry {} in {}", K::NAME, file(v)))).collect()
}

#[test]
fn modules_are_complete_and_of_their_architecture() {
    for variant in VARIANTS {
        let (name, target) = (file(variant), format!(".target sm_{}", variant.sm));
        assert!(variant.ptx.lines().any(|line| line == target), "{name}: made for another GPU");
        // The PTX that the oldest supported drivers read: those of CUDA 11.4, and 12.0 for Hopper and younger GPUs.
        let version = if variant.sm < 90 { ".version 7.4" } else { ".version 8.0" };
        assert!(variant.ptx.lines().any(|line| line == version), "{name}: made for other drivers");
        for (number, line) in variant.ptx.lines().enumerate().map(|(i, line)| (i + 1, line.trim())) {
            assert!(!line.starts_with(".extern .func"), "{name}:{number}: not in the module: {line}");
            // All is inlined, and a panic is a trap on the spot: no core::panicking, no core::fmt.
            assert!(!line.contains(".func") && !line.starts_with("call"), "{name}:{number}: a function: {line}");
            assert!(!line.starts_with(".file ") && !line.starts_with(".loc "), "{name}:{number}: names a path: {line}");
        }
    }
}

#[test]
fn a_gpu_gets_the_youngest_variant_that_runs_on_it() {
    assert_eq!(architectures(), BTreeSet::from([80, 90]));
    let target = |capability| module("ops", capability).and_then(|ptx| ptx.lines().find(|l| l.starts_with(".target")));
    for (capability, expected) in [((8, 0), "sm_80"), ((8, 9), "sm_80"), ((9, 0), "sm_90"), ((12, 0), "sm_90")] {
        assert_eq!(target(capability), Some(format!(".target {expected}").as_str()), "{capability:?}");
    }
    assert_eq!(target((7, 5)), None);
    assert_eq!(module("unheard_of", (8, 0)), None);
}

#[test]
fn kernels_and_entries_are_the_same_with_the_same_parameters() {
    let mut ours = BTreeMap::new();
    for kernel in kernel::all() {
        let params: Vec<_> = kernel.params.iter().map(|param| (*param).to_owned()).collect();
        assert!(ours.insert((kernel.module, kernel.name), params).is_none(), "two kernels are named {}", kernel.name);
    }
    assert!(ours.len() > 30, "the list of kernels is not that of the gpu crate: {ours:?}");
    for sm in architectures() {
        let mut theirs = BTreeMap::new();
        for variant in VARIANTS.iter().filter(|variant| variant.sm == sm) {
            let params = entries(variant.ptx).into_iter().map(|(name, entry)| ((variant.module, name), entry.params));
            theirs.extend(params);
        }
        assert_eq!(ours, theirs, "sm_{sm}");
    }
}

#[test]
fn kernels_keep_their_values_in_registers() {
    for variant in VARIANTS {
        for (name, entry) in entries(variant.ptx) {
            let local = entry.body.iter().find(|line| line.starts_with(".local"));
            assert!(local.is_none(), "{}: {name} uses local memory: {}", file(variant), local.unwrap());
        }
    }
}

// With rustc's JumpThreading pass on, these were seen with rustc 1.96: two barriers, three barriers, and two votes, each
// copied into the two arms of a branch that threads of one warp take both of.
#[test]
fn barriers_are_neither_copied_nor_lost() {
    for entry in each::<gpu::probe::barrier_between_equal_tests>() {
        assert_eq!(entry.count("bar.sync"), 1);
    }
    for entry in each::<gpu::probe::barrier_in_a_loop>() {
        assert_eq!(entry.count("bar.sync"), 2);
    }
}

#[test]
fn kernels_have_the_collectives_of_their_source() {
    for variant in VARIANTS {
        for (name, entry) in entries(variant.ptx) {
            // A block's sum over its warps, once; a fence between loads and products, once in the unrolled loop.
            if name.starts_with("gemv_") || name.starts_with("gemm_") {
                assert_eq!((entry.count("bar.sync"), entry.count("bar.warp.sync")), (1, 1), "{name}");
            }
        }
    }
    let ops = [each::<gpu::ops::rms_norm>(), each::<gpu::ops::argmax>(), each::<gpu::ops::attention>()];
    for entry in ops.iter().flatten() {
        assert_eq!(entry.count("bar.sync"), 1);
    }
}

#[test]
fn votes_and_shuffles_stay_where_the_whole_warp_is() {
    for votes in each::<gpu::probe::vote_between_equal_tests>() {
        assert_eq!(votes.count("vote.sync.ballot.b32"), 1);
    }
    for shuffles in each::<gpu::probe::shuffle_before_a_branch>() {
        assert_eq!(shuffles.count("shfl.sync.bfly.b32"), 5);
        let last = shuffles.body.iter().rposition(|line| line.starts_with("shfl")).unwrap();
        assert!(last < shuffles.position("@%p"), "a shuffle sank below the branch");
    }
}

#[test]
fn accesses_and_arithmetic_are_the_instructions_they_should_be() {
    for wide in each::<gpu::probe::wide_load_and_fma>() {
        assert_eq!((wide.count("ld.global.v4.b32"), wide.count("ld.")), (1, 1 + wide.count("ld.param")));
        assert_eq!((wide.count("fma.rn.f32"), wide.count("mul.rn.f32"), wide.count("st.global")), (4, 0, 1));
    }
    // Shared memory is accessed as such, not through generic addresses.
    for shared in each::<gpu::probe::barrier_between_equal_tests>() {
        assert_eq!((shared.count("st.shared"), shared.count("ld.shared")), (1, 1));
        assert_eq!((shared.count("st.global"), shared.count("ld.global")), (1, 1));
    }
}
