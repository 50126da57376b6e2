//! What the compiler made of the kernels: read from the PTX that the engine carries, so no GPU and no compiler is needed.

use std::collections::{BTreeMap, BTreeSet};

use cuda_std::kernel::{self, Kernel};
use gpu::gemv::{WeightKernels, WeightVisitor, Weights};
use ntransformer::ptx::{VARIANTS, Variant, module};

/// An entry: the types of its parameters, and its lines up to the closing brace.
struct Entry {
    params: Vec<String>,
    body: Vec<&'static str>,
}

/// A line without its predicate.
fn unpredicated(line: &'static str) -> &'static str {
    match line.strip_prefix('@') {
        Some(rest) => rest.split_once(char::is_whitespace).map_or("", |(_, instruction)| instruction.trim()),
        None => line,
    }
}

/// The state space that an instruction accesses, `generic` where it names none; `None` where it accesses no memory.
fn space(line: &'static str) -> Option<&'static str> {
    let mut parts = unpredicated(line).split_whitespace().next()?.split('.');
    if !["ld", "st", "atom", "red"].contains(&parts.next()?) {
        return None;
    }
    let spaces = ["global", "shared", "local", "param", "const"];
    let found = parts.find_map(|part| spaces.into_iter().find(|space| part.split("::").next() == Some(space)));
    Some(found.unwrap_or("generic"))
}

impl Entry {
    /// The instructions in order, without their predicates.
    fn instructions(&self) -> impl Iterator<Item = &'static str> {
        self.body.iter().copied().map(unpredicated)
    }

    /// How many instructions begin with `mnemonic`, predicated or not.
    fn count(&self, mnemonic: &str) -> usize {
        self.instructions().filter(|line| line.starts_with(mnemonic)).count()
    }

    /// The lines of the shortest loop that has an instruction of each of `kinds`; none where there is no such loop.
    fn inner_loop(&self, kinds: &[&str]) -> &[&'static str] {
        let label = |line: &str| self.body.iter().position(|other| other.strip_suffix(':') == Some(line));
        let target = |line: &'static str| {
            let line = unpredicated(line).strip_prefix("bra")?;
            label(line.rsplit(char::is_whitespace).next()?.trim_end_matches(';'))
        };
        let back = |(end, line)| target(line).filter(|start| *start < end).map(|start| &self.body[start..end]);
        let ranges = self.body.iter().copied().enumerate().filter_map(back);
        let has = |range: &&[&'static str]| {
            kinds.iter().all(|kind| range.iter().any(|line| unpredicated(line).starts_with(kind)))
        };
        ranges.filter(has).min_by_key(|range| range.len()).unwrap_or(&[])
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
        // `.param .u64 .ptr .align 1 add_param_0,` or `.param .align 8 .b8 add_param_0[24],`
        let params = if line.ends_with("()") {
            Vec::new()
        } else {
            let declarations = lines.by_ref().take_while(|line| !line.starts_with(')'));
            let of = |line: &str| {
                let words: Vec<_> = line.trim_end_matches(',').split_whitespace().skip(1).collect();
                let (name, ty) = words.split_last().expect("a name");
                match name.split_once('[') {
                    Some((_, length)) => format!("{}[{length}", ty.join(" ")),
                    // What a pointer's target is aligned to is not part of the parameter's own type.
                    None => ty.split(|word| *word == ".align").next().unwrap_or_default().join(" "),
                }
            };
            declarations.map(of).collect()
        };
        // Assembly in the source may have blocks of its own.
        let mut depth = 0;
        let open = |line: &&str| {
            depth += line.matches('{').count();
            depth -= line.matches('}').count();
            depth > 0
        };
        let body = lines.by_ref().skip_while(|line| *line != "{").take_while(open).skip(1);
        let body = body.filter(|line| !line.is_empty()).collect();
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
        let params: Vec<_> = kernel.params.iter().map(|param| param.to_string()).collect();
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

/// What the PTX says of each entry's launches: its lines between the parameters and the body.
fn directives(ptx: &'static str) -> BTreeMap<&'static str, Vec<&'static str>> {
    let mut found = BTreeMap::new();
    let mut lines = ptx.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix(".visible .entry ") else { continue };
        let before = lines.by_ref().take_while(|line| *line != "{").filter(|line| line.starts_with(".m"));
        found.insert(name.split('(').next().unwrap(), before.collect());
    }
    found
}

/// Warps of a block that multiplies one column by a matrix of the type of this name in lower case.
fn warps(name: &str) -> u32 {
    struct Warps;
    impl WeightVisitor for Warps {
        type Out = u32;
        fn visit<F: WeightKernels>(self) -> u32 {
            F::Weights::WARPS
        }
    }
    let ty = quant::TensorType::ALL.iter().copied().find(|ty| ty.to_string().to_lowercase() == name);
    gpu::gemv::visit(ty.unwrap_or_else(|| panic!("a tensor type named {name}")), Warps)
}

/// `cuda_std::thread::launch_bounds` and `max_registers` have become directives, without which products and attention spill, or do not
/// fit onto a multiprocessor beside each other.
#[test]
fn kernels_have_the_bounds_of_their_source() {
    let mut bounded = 0;
    for variant in VARIANTS {
        assert!(!variant.ptx.contains("launch_bounds") && !variant.ptx.contains("max_registers"), "{}", file(variant));
        for (name, found) in directives(variant.ptx) {
            let of_products;
            let expected: &[&str] = match name.split_once('_') {
                // Nothing runs beside it there.
                Some(("attention", _)) if variant.sm < 90 => &[],
                Some(("gemv" | "glu", ty)) => {
                    of_products = format!(".maxntid {}, 1, 1", 32 * warps(ty));
                    &[of_products.as_str(), ".minnctapersm 2"]
                }
                Some(("gemv4" | "gemv8", _)) => &[".maxntid 256, 1, 1", ".minnctapersm 1"],
                Some(("attention", "decode_64" | "decode_128")) => &[".maxntid 128, 1, 1", ".maxnreg 208"],
                Some(("attention", "decode_256" | "decode_any")) => &[".maxntid 128, 1, 1", ".maxnreg 255"],
                _ => &[],
            };
            assert_eq!(found, expected, "{}: {name}", file(variant));
            bounded += usize::from(!expected.is_empty());
        }
    }
    let types = quant::TensorType::ALL.len();
    assert_eq!(bounded, architectures().len() * 4 * types + 4, "products of each type, and attention on sm_90");
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
            // Behind the activations, which floats read in one of two ways. A warp's barriers: behind the making of those for copies, and
            // behind the use of a stage.
            let barriers = match name.split_once('_') {
                Some(("gemv" | "gemv4" | "gemv8" | "glu", "f32" | "f16" | "bf16")) => 2,
                Some(("gemv" | "gemv4" | "gemv8" | "glu", _)) => 1,
                _ => continue,
            };
            let found = (entry.count("bar.sync"), entry.count("bar.warp.sync"));
            assert_eq!(found, (barriers, 2), "{}: {name}", file(variant));
        }
    }
    for entry in [each::<gpu::ops::rms_norm>(), each::<gpu::ops::attention>()].iter().flatten() {
        assert_eq!(entry.count("bar.sync"), 1);
    }
    // One of the block's warps, two around the last block's flag.
    for entry in each::<gpu::ops::argmax>() {
        assert_eq!(entry.count("bar.sync"), 3);
    }
    // Two around that flag, then: before sorting, between steps of two kinds, and after it.
    for entry in [each::<gpu::ops::top_k_floor>(), each::<gpu::ops::top_k>()].iter().flatten() {
        assert_eq!((entry.count("bar.sync"), entry.count("bar.warp.sync")), (5, 1));
    }
}

/// What host, drive and kernel share is read and written as such, and in order: docs/nvme.md has the reasons.
#[test]
fn a_reader_of_drives_orders_what_it_shares() {
    for entry in each::<gpu::nvme::read_list>() {
        let lines: Vec<_> = entry.instructions().filter(|line| !line.starts_with("//")).collect();
        let of = |mnemonic: &str| -> Vec<usize> {
            (0..lines.len()).filter(|&line| lines[line].starts_with(mnemonic)).collect()
        };
        let (fences, loads, stores) = (of("fence.acq_rel.sys;"), of("ld.volatile"), of("st.volatile"));
        // Loads: stop word, phase tag, the rest of a completion. Stores: tail, status, head, two of what is outstanding, the report.
        assert_eq!((fences.len(), loads.len(), stores.len(), of("nanosleep").len()), (3, 3, 6, 1));
        // Commands | tail; completion's tag | its rest, the status, the head; all | the report's number.
        let order = [
            fences[0], stores[0], loads[0], loads[1], fences[1], loads[2], stores[1], stores[2], stores[3], stores[4],
            fences[2], stores[5],
        ];
        assert!(order.is_sorted(), "{order:?}");
        // What the other lanes have written or read is behind the fence, too.
        assert!(fences.iter().all(|&fence| lines[fence - 1].starts_with("bar.warp.sync")));
        // It takes nothing that the products beside it want.
        assert!(!lines.iter().any(|line| space(line) == Some("shared")), "shared memory");
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
    // Eight reads of sixteen bytes before the first is used, and the loop of what is left.
    for read in each::<gpu::bench::read>() {
        let (load, fence) = ("ld.global.nc.L1::no_allocate.v4.u32", read.position("bar.warp.sync"));
        assert_eq!(read.body[..fence].iter().filter(|line| line.starts_with(load)).count(), 8);
        assert_eq!((read.count("ld.global"), read.count(load)), (9, 9));
    }
    // Shared memory is accessed as such, not through generic addresses.
    for shared in each::<gpu::probe::barrier_between_equal_tests>() {
        assert_eq!((shared.count("st.shared"), shared.count("ld.shared")), (1, 1));
        assert_eq!((shared.count("st.global"), shared.count("ld.global")), (1, 1));
    }
}

/// What is wrong with how a kernel orders itself after the one before it (`cuda_std::grid`).
fn order_faults(sm: u32, prefetch: bool, entry: &Entry) -> Vec<&'static str> {
    let mut faults = Vec::new();
    if sm < 90 {
        let unknown = entry.count("griddepcontrol") > 0;
        faults.extend(unknown.then_some("an instruction that the architecture does not have"));
        return faults;
    }
    faults.extend((entry.count("griddepcontrol.launch_dependents") == 0).then_some("no launch_dependents"));
    let Some(wait) = entry.instructions().position(|line| line == "griddepcontrol.wait;") else {
        faults.push("no wait");
        return faults;
    };
    let global = |line: &'static str| ["global", "generic"].contains(&space(line).unwrap_or_default());
    let before = || entry.instructions().take(wait);
    if prefetch {
        faults
            .extend(before().any(|line| global(line) && !line.starts_with("ld")).then_some("a write before the wait"));
    } else {
        faults.extend(before().any(global).then_some("an access before the wait"));
        let branches = before().any(|line| line.starts_with("bra") || line.starts_with("ret") || line.ends_with(':'));
        faults.extend(branches.then_some("a wait that not every thread reaches"));
        faults.extend(before().any(|line| line.starts_with("cp.")).then_some("a copy before the wait"));
    }
    faults
}

#[test]
fn every_kernel_waits_for_the_one_before_it() {
    let kernels: BTreeMap<_, _> = kernel::all().map(|kernel| (kernel.name, kernel)).collect();
    for variant in VARIANTS {
        for (name, entry) in entries(variant.ptx) {
            let faults = order_faults(variant.sm, kernels[name].prefetch, &entry);
            assert!(faults.is_empty(), "{}: {name} has {}", file(variant), faults.join(", "));
        }
    }
}

#[test]
fn accesses_stay_on_their_side_of_the_wait() {
    let entry = entries(module("probe", (9, 0)).unwrap()).remove(gpu::probe::load_before_the_wait::NAME).unwrap();
    let loads: Vec<_> = entry.body.iter().enumerate().filter(|(_, line)| line.starts_with("ld.global")).collect();
    let wait = entry.position("griddepcontrol.wait");
    assert_eq!(loads.iter().map(|(line, _)| *line < wait).collect::<Vec<_>>(), [true, false]);
}

/// The entry of PTX that is one kernel with these lines.
fn kernel_of(lines: &str) -> Entry {
    let ptx = format!(".visible .entry kernel()\n{{\n{lines}\n}}\n");
    entries(ptx.leak()).remove("kernel").unwrap()
}

#[test]
fn kernels_that_do_not_wait_are_seen() {
    let start = "griddepcontrol.launch_dependents;\ngriddepcontrol.wait;";
    let load = "ld.global.b32 %r1, [%rd1];";
    for (sm, prefetch, lines, expected) in [
        (90, false, format!("ld.param.b64 %rd1, [kernel_param_0];\n{start}\n{load}"), &[][..]),
        (90, true, format!("{load}\n@%p1 bra $L__BB0_2;\n$L__BB0_2:\n{start}\nst.global.b32 [%rd1], %r1;"), &[]),
        (80, false, load.to_owned(), &[]),
        (80, false, start.to_owned(), &["an instruction that the architecture does not have"]),
        (90, false, "griddepcontrol.wait;".to_owned(), &["no launch_dependents"]),
        (90, true, "griddepcontrol.launch_dependents;".to_owned(), &["no wait"]),
        (90, false, format!("{load}\n{start}"), &["an access before the wait"]),
        (90, false, format!("@%p1 ld.b32 %r1, [%rd1];\n{start}"), &["an access before the wait"]),
        (90, false, format!("@%p1 bra $L__BB0_2;\n{start}\n$L__BB0_2:"), &["a wait that not every thread reaches"]),
        (90, false, format!("cp.async.wait_all;\n{start}"), &["a copy before the wait"]),
        (90, true, format!("atom.global.add.u32 %r1, [%rd1], 1;\n{start}"), &["a write before the wait"]),
    ] {
        assert_eq!(order_faults(sm, prefetch, &kernel_of(&lines)), expected, "sm_{sm}: {lines}");
    }
}

/// What is missing in a matrix-vector product that reads ahead: the weights come by asynchronous copies, those of integer
/// types are multiplied four at a time, and the loop over a piece's blocks knows which memory it accesses.
fn gemv_faults(sm: u32, integer: bool, entry: &Entry) -> Vec<&'static str> {
    let inner = entry.inner_loop(if integer { &["dp4a", "ld.shared"] } else { &["fma.rn.f32", "ld.shared"] });
    let generic = inner.iter().any(|line| space(line) == Some("generic"));
    let copies = match sm {
        80 => entry.instructions().any(|line| line.starts_with("cp.async.cg.shared.global") && line.contains(", 16")),
        _ => entry.count("cp.async.bulk.") > 0,
    };
    let faults = [
        (integer && entry.count("dp4a") == 0).then_some("no dp4a"),
        inner.is_empty().then_some("no loop over blocks in shared memory"),
        generic.then_some("a generic access in a loop"),
        (!copies).then_some("no asynchronous copies of its architecture"),
    ];
    faults.into_iter().flatten().collect()
}

#[test]
fn matrix_vector_products_read_ahead() {
    let kernels = kernel::all().filter(|kernel| kernel.prefetch && kernel.name.starts_with("gemv_"));
    for kernel in kernels {
        let integer = !["f32", "f16", "bf16"].contains(&kernel.module);
        for variant in VARIANTS.iter().filter(|variant| variant.module == kernel.module) {
            let faults = gemv_faults(variant.sm, integer, &entries(variant.ptx)[kernel.name]);
            assert!(faults.is_empty(), "{}: {} has {}", file(variant), kernel.name, faults.join(", "));
        }
    }
}

#[test]
fn matrix_vector_products_that_do_not_read_ahead_are_seen() {
    let (wide, bulk) = ("cp.async.cg.shared.global [%r1], [%rd1], 16;", "cp.async.bulk.shared::cluster.global [%r1];");
    let copies = "no asynchronous copies of its architecture";
    let looped = |lines: &str| format!("$L__BB0_1:\n{{\n{lines}\n}}\n@%p1 bra $L__BB0_1;\nld.b32 %r1, [%rd1];");
    let (integers, floats) = (
        looped("ld.shared.b32 %r1, [%r2];\ndp4a.s32.s32 %r1, %r2, %r3, %r1;"),
        looped("ld.shared::cta.b32 %r1, [%r2];\nfma.rn.f32 %r1, %r2, %r3, %r1;"),
    );
    let generic =
        looped("ld.shared.b32 %r1, [%r2];\n@%p2 st.v2.b32 [%rd1], {%r1, %r2};\nfma.rn.f32 %r1, %r2, %r3, %r1;");
    let no_loop = "no loop over blocks in shared memory";
    for (sm, integer, lines, expected) in [
        (80, true, format!("{wide}\n{integers}"), &[][..]),
        (90, false, format!("{bulk}\n{floats}"), &[]),
        (90, true, format!("{bulk}\n{floats}"), &["no dp4a", no_loop]),
        (80, false, format!("{wide}\n{integers}"), &[no_loop]),
        (80, false, format!("{bulk}\n{floats}"), &[copies]),
        (80, false, format!("{}\n{floats}", wide.replace("16", "8").replace("cg", "ca")), &[copies]),
        (90, false, format!("{wide}\n{floats}"), &[copies]),
        (80, false, format!("{wide}\n{generic}"), &["a generic access in a loop"]),
    ] {
        assert_eq!(gemv_faults(sm, integer, &kernel_of(&lines)), expected, "sm_{sm}: {lines}");
    }
}
