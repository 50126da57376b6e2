//! What the compiler made of the kernels: read from the PTX that the engine carries, so no GPU and no compiler is needed.

use std::collections::BTreeMap;

use cuda_std::kernel::{self, Kernel};
use ntransformer::ptx::{MODULES, module};

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

fn entry<K: Kernel>() -> Entry {
    let ptx = module(K::MODULE).unwrap_or_else(|| panic!("no module {}", K::MODULE));
    entries(ptx).remove(K::NAME).unwrap_or_else(|| panic!("no entry {} in {}", K::NAME, K::MODULE))
}

#[test]
fn modules_are_complete_and_run_from_sm_80_on() {
    for (name, ptx) in MODULES {
        assert!(ptx.lines().any(|line| line == ".target sm_80"), "{name}: made for another GPU");
        for (number, line) in ptx.lines().enumerate().map(|(i, line)| (i + 1, line.trim())) {
            assert!(!line.starts_with(".extern .func"), "{name}.ptx:{number}: not in the module: {line}");
            // All is inlined, and a panic is a trap on the spot: no core::panicking, no core::fmt.
            assert!(!line.contains(".func") && !line.starts_with("call"), "{name}.ptx:{number}: a function: {line}");
            assert!(
                !line.starts_with(".file ") && !line.starts_with(".loc "),
                "{name}.ptx:{number}: names a path: {line}"
            );
        }
    }
}

#[test]
fn kernels_and_entries_are_the_same_with_the_same_parameters() {
    let mut ours = BTreeMap::new();
    for kernel in kernel::all() {
        let params: Vec<_> = kernel.params.iter().map(|param| (*param).to_owned()).collect();
        assert!(ours.insert((kernel.module, kernel.name), params).is_none(), "two kernels are named {}", kernel.name);
    }
    let mut theirs = BTreeMap::new();
    for (module, ptx) in MODULES {
        theirs.extend(entries(ptx).into_iter().map(|(name, entry)| ((*module, name), entry.params)));
    }
    assert!(ours.len() > 30, "the list of kernels is not that of the gpu crate: {ours:?}");
    assert_eq!(ours, theirs);
}

#[test]
fn kernels_keep_their_values_in_registers() {
    for (module, ptx) in MODULES {
        for (name, entry) in entries(ptx) {
            let local = entry.body.iter().find(|line| line.starts_with(".local"));
            assert!(local.is_none(), "{module}.ptx: {name} uses local memory: {}", local.unwrap());
        }
    }
}

// With rustc's JumpThreading pass on, these were seen with rustc 1.96: two barriers, three barriers, and two votes, each
// copied into the two arms of a branch that threads of one warp take both of.
#[test]
fn barriers_are_neither_copied_nor_lost() {
    assert_eq!(entry::<gpu::probe::barrier_between_equal_tests>().count("bar.sync"), 1);
    assert_eq!(entry::<gpu::probe::barrier_in_a_loop>().count("bar.sync"), 2);
}

#[test]
fn kernels_have_the_collectives_of_their_source() {
    for (_, ptx) in MODULES {
        for (name, entry) in entries(ptx) {
            // A block's sum over its warps, once; a fence between loads and products, once in the unrolled loop.
            if name.starts_with("gemv_") || name.starts_with("gemm_") {
                assert_eq!((entry.count("bar.sync"), entry.count("bar.warp.sync")), (1, 1), "{name}");
            }
        }
    }
    assert_eq!(entry::<gpu::ops::rms_norm>().count("bar.sync"), 1);
    // One of the block's warps, two around the last block's flag.
    assert_eq!(entry::<gpu::ops::argmax>().count("bar.sync"), 3);
    // Two around that flag, then: before sorting, between steps of two kinds, and after it.
    for kernel in [entry::<gpu::ops::top_k_floor>(), entry::<gpu::ops::top_k>()] {
        assert_eq!((kernel.count("bar.sync"), kernel.count("bar.warp.sync")), (5, 1));
    }
    assert_eq!(entry::<gpu::ops::attention>().count("bar.sync"), 1);
}

#[test]
fn votes_and_shuffles_stay_where_the_whole_warp_is() {
    assert_eq!(entry::<gpu::probe::vote_between_equal_tests>().count("vote.sync.ballot.b32"), 1);
    let shuffles = entry::<gpu::probe::shuffle_before_a_branch>();
    assert_eq!(shuffles.count("shfl.sync.bfly.b32"), 5);
    let last = shuffles.body.iter().rposition(|line| line.starts_with("shfl")).unwrap();
    assert!(last < shuffles.position("@%p"), "a shuffle sank below the branch");
}

#[test]
fn accesses_and_arithmetic_are_the_instructions_they_should_be() {
    let wide = entry::<gpu::probe::wide_load_and_fma>();
    assert_eq!((wide.count("ld.global.v4.b32"), wide.count("ld.")), (1, 1 + wide.count("ld.param")));
    assert_eq!((wide.count("fma.rn.f32"), wide.count("mul.rn.f32"), wide.count("st.global")), (4, 0, 1));
    // Shared memory is accessed as such, not through generic addresses.
    let shared = entry::<gpu::probe::barrier_between_equal_tests>();
    assert_eq!((shared.count("st.shared"), shared.count("ld.shared")), (1, 1));
    assert_eq!((shared.count("st.global"), shared.count("ld.global")), (1, 1));
}
