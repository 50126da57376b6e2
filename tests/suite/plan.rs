//! The plan: which matrix is in which tier. Properties over random models, and the models that users have.

use std::{collections::BTreeSet, num::NonZeroUsize};

use ntransformer::{
    cli::synth::{Quant, Shape},
    pack::TensorId,
    stream::{
        plan::{Access, Bound, Fixed, Inputs, Plan, PlanError, RamAccess, Rates, Tier, Unit, plan},
        ring::{self, Buffers},
    },
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

const GIB: u64 = 1 << 30;

const COPY: Access = Access::Copy;
const ZERO_COPY: Access = Access::ZeroCopy;

/// What an H200 and the disk beside it do (docs/performance.md).
const H200: Rates = Rates { link: Some(55.5e9), zero_copy: Some(49.5e9), disk: Some(0.96e9), vram: Some(4.67e12) };

/// The matrices of a model in the shape of a real one.
fn shape(shape: Shape, quant: &str) -> Inputs {
    let sizes = shape.sizes();
    let tensors = sizes.tensors(&quant.parse::<Quant>().unwrap(), sizes.vocab.unwrap());
    let group = |name: &str| match name.strip_prefix("blk.") {
        Some(rest) => Some(rest.split('.').next().unwrap().parse().unwrap()),
        None => (name == "output.weight").then_some(sizes.layers as usize),
    };
    let mut units = Vec::new();
    for (i, tensor) in tensors.iter().enumerate().filter(|(_, tensor)| tensor.dims.len() > 1) {
        let row = tensor.ty.row_bytes(tensor.dims[0] as usize).unwrap() as u64;
        let bytes = tensor.dims[1..].iter().product::<u64>() * row;
        let unit = |group| Unit { tensor: TensorId(i), name: tensor.name.clone(), group, bytes };
        units.extend(group(&tensor.name).map(unit));
    }
    inputs(units, sizes.layers as usize)
}

/// Room for everything, and half a GiB of other things.
fn inputs(units: Vec<Unit>, layers: usize) -> Inputs {
    Inputs {
        units,
        layers,
        fixed: vec![Fixed { what: "KV cache", bytes: GIB / 4 }, Fixed { what: "activations", bytes: GIB / 4 }],
        device: 0,
        vram: u64::MAX,
        ram: u64::MAX,
        max_vram_layers: None,
        max_ram_layers: None,
        buffers: Buffers::Auto,
        access: RamAccess::Auto,
        streaming: true,
        on_disk: true,
        in_place: false,
        loads: true,
        fixed_matrices: 0,
        rates: H200,
    }
}

/// A model of random sizes: mostly layers that are alike, as real ones have.
fn random(rng: &mut SmallRng) -> Inputs {
    let (layers, parts) = (rng.random_range(1..10), rng.random_range(1..7));
    let sizes: Vec<u64> = (0..parts).map(|_| rng.random_range(1..200 << 20)).collect();
    let mut units = Vec::new();
    for group in 0..layers {
        for &size in &sizes {
            let bytes = if rng.random_bool(0.2) { size + size / 2 } else { size };
            units.push(Unit { tensor: TensorId(units.len()), name: format!("blk.{group}.{size}"), group, bytes });
        }
    }
    if rng.random_bool(0.7) {
        let bytes = rng.random_range(1..600 << 20);
        units.push(Unit { tensor: TensorId(units.len()), name: "output.weight".into(), group: layers, bytes });
    }
    let mut inputs = inputs(units, layers);
    inputs.access = match rng.random_range(0..3) {
        0 => RamAccess::Only(COPY),
        1 => RamAccess::Only(ZERO_COPY),
        _ => RamAccess::Auto,
    };
    inputs.buffers = match rng.random_range(0..4) {
        0 => Buffers::Count(NonZeroUsize::new(rng.random_range(1..5)).unwrap()),
        _ => Buffers::Auto,
    };
    inputs
}

fn total(inputs: &Inputs) -> u64 {
    inputs.units.iter().map(|unit| unit.bytes).sum()
}

fn bytes(inputs: &Inputs, plan: &Plan, of: fn(Tier) -> bool) -> u64 {
    inputs.units.iter().zip(&plan.tiers).filter(|(_, tier)| of(**tier)).map(|(unit, _)| unit.bytes).sum()
}

fn is_vram(tier: Tier) -> bool {
    matches!(tier, Tier::Vram { .. })
}

fn is_ram(tier: Tier) -> bool {
    matches!(tier, Tier::Ram { .. })
}

fn is_disk(tier: Tier) -> bool {
    matches!(tier, Tier::Disk { .. })
}

/// The bytes of the matrices that are copied, by group.
fn copied(inputs: &Inputs, plan: &Plan) -> Vec<Vec<u64>> {
    let mut groups = vec![Vec::new(); inputs.layers + 1];
    for (unit, _) in inputs.units.iter().zip(&plan.tiers).filter(|(_, tier)| tier.is_copied()) {
        groups[unit.group].push(unit.bytes);
    }
    groups
}

/// What holds for every plan.
#[track_caller]
fn check(inputs: &Inputs, plan: &Plan) {
    assert_eq!(plan.tiers.len(), inputs.units.len(), "each unit has a tier");
    assert!(plan.tiers.iter().all(|tier| tier.device() == inputs.device));
    assert!(plan.vram_bytes() <= inputs.vram, "{} of {} bytes of device memory", plan.vram_bytes(), inputs.vram);
    assert_eq!(plan.fixed_bytes, inputs.fixed.iter().map(|fixed| fixed.bytes).sum::<u64>());
    // What the parts add up to: the padding of a matrix on the device is less than 256 bytes, of one in RAM less than a page.
    let resident = bytes(inputs, plan, is_vram);
    assert!((resident..=resident + 256 * inputs.units.len() as u64).contains(&plan.resident_bytes));
    let in_ram = bytes(inputs, plan, is_ram);
    assert!((in_ram..=in_ram + 4096 * inputs.units.len() as u64).contains(&plan.ram_bytes));
    assert!(plan.ram_bytes <= inputs.ram, "{} of {} bytes of RAM", plan.ram_bytes, inputs.ram);
    assert_eq!(plan.load.link_bytes, total(inputs) - resident);
    assert_eq!(plan.load.disk_bytes, total(inputs) - resident - in_ram);
    assert_eq!(plan.load.weight_bytes, total(inputs));
    // All that is in RAM is got at in one way, the one that was asked for.
    let accesses: BTreeSet<Access> = plan.tiers.iter().filter_map(|tier| tier.access()).collect();
    assert!(accesses.len() <= 1);
    if let (Some(&access), RamAccess::Only(asked)) = (accesses.first(), inputs.access) {
        assert_eq!(access, asked);
    }
    let zero_copy = accesses.contains(&ZERO_COPY);
    assert_eq!(plan.load.zero_copy_bytes, if zero_copy { in_ram } else { 0 });
    // Staging is there if something has to go through it, and a part of the RAM unless that is next to nothing.
    assert_eq!(plan.staging_bytes > 0, plan.load.disk_bytes > 0);
    assert!(plan.ram_bytes + plan.staging_bytes <= inputs.ram.max(16 << 20));
    // The ring holds what is computed at once, and no more than there is.
    let groups = copied(inputs, plan);
    assert!(plan.ring_bytes >= ring::least(&groups), "a ring of {}", plan.ring_bytes);
    assert!(plan.ring_bytes <= ring::capacity(&groups, inputs.buffers));
    assert_eq!(plan.ring_bytes > 0, !groups.iter().all(Vec::is_empty));
    assert_eq!(plan.zero_copies(), zero_copy);
    assert!(plan.vram_least <= plan.vram_full);
}

#[test]
fn every_plan_keeps_to_its_budgets() {
    let mut rng = SmallRng::seed_from_u64(1);
    let (mut made, mut refused) = (0, 0);
    for _ in 0..3000 {
        let mut inputs = random(&mut rng);
        let need = total(&inputs) + GIB / 2;
        inputs.vram = rng.random_range(GIB / 2..need + need / 4);
        inputs.ram = rng.random_range(0..need);
        inputs.on_disk = rng.random_bool(0.8);
        inputs.streaming = rng.random_bool(0.9);
        inputs.max_vram_layers = rng.random_bool(0.2).then(|| rng.random_range(0..12));
        inputs.max_ram_layers = rng.random_bool(0.2).then(|| rng.random_range(0..12));
        match plan(&inputs) {
            Ok(plan) => {
                check(&inputs, &plan);
                assert!(inputs.streaming || !plan.streams());
                assert!(inputs.on_disk || plan.load.disk_bytes == 0);
                made += 1;
            }
            Err(PlanError::Vram { need, limit, least }) => {
                assert!(need > limit && limit == inputs.vram && (least == need || !inputs.streaming));
                refused += 1;
            }
            Err(PlanError::Ram { need, limit }) => {
                assert!(need > limit && !inputs.on_disk);
                refused += 1;
            }
        }
    }
    assert!(made > 1000 && refused > 300, "{made} made, {refused} refused");
}

/// With all the room there is, everything stays, and nothing else is allocated; also without --streaming.
#[test]
fn what_fits_stays() {
    let mut rng = SmallRng::seed_from_u64(2);
    for _ in 0..300 {
        let mut inputs = random(&mut rng);
        for streaming in [true, false] {
            inputs.streaming = streaming;
            inputs.vram = u64::MAX;
            let full = plan(&inputs).unwrap().vram_full;
            inputs.vram = full;
            let fits = plan(&inputs).unwrap();
            assert!(!fits.streams() && fits.tiers.iter().all(|&tier| is_vram(tier)));
            assert_eq!((fits.ring_bytes, fits.ram_bytes, fits.staging_bytes), (0, 0, 0));
            assert_eq!(fits.vram_bytes(), full);
            inputs.vram = full - 1;
            match plan(&inputs) {
                Ok(less) => assert!(streaming && less.streams()),
                // A model of a single group has no less than all of it.
                Err(PlanError::Vram { need, limit, least }) => assert!(
                    need == full && limit == full - 1 && (!streaming || least == full),
                    "{need} of {limit}, least {least}"
                ),
                Err(e) => panic!("{e}"),
            }
        }
    }
}

/// The least that is told is the least that works.
#[test]
fn the_least_is_the_least() {
    let mut rng = SmallRng::seed_from_u64(3);
    for _ in 0..500 {
        let mut inputs = random(&mut rng);
        inputs.vram = 0;
        let Err(PlanError::Vram { least, .. }) = plan(&inputs) else { panic!("there is a plan for no memory") };
        inputs.vram = least;
        let with_least = plan(&inputs).unwrap();
        check(&inputs, &with_least);
        assert_eq!((with_least.vram_least, with_least.vram_bytes()), (least, least));
        inputs.vram = least - 1;
        assert!(matches!(plan(&inputs), Err(PlanError::Vram { need, .. }) if need == least));
        // There is no other way either: where all is copied, what is computed at once takes as much beside what is there anyway.
        if inputs.access != RamAccess::Only(COPY) {
            assert!(
                with_least.zero_copies() && least == GIB / 2,
                "there is RAM for all: nothing has to go through a ring"
            );
            continue;
        }
        let mut groups = vec![0; inputs.layers + 1];
        inputs.units.iter().for_each(|unit| groups[unit.group] += unit.bytes);
        assert!(least >= GIB / 2 + groups.iter().max().unwrap());
        assert!(least <= GIB / 2 + groups.iter().max().unwrap() + 256 * inputs.units.len() as u64);
    }
}

/// More memory never makes more bytes travel, but for where copies begin to have room; more RAM never makes more come from the disk.
#[test]
fn more_memory_is_never_worse() {
    let mut rng = SmallRng::seed_from_u64(4);
    for _ in 0..60 {
        let mut inputs = random(&mut rng);
        inputs.vram = 0;
        inputs.ram = rng.random_range(0..total(&inputs) + GIB / 2);
        let Err(PlanError::Vram { least, .. }) = plan(&inputs) else { panic!("there is a plan for no memory") };
        let full = total(&inputs) + GIB / 2;
        let step = ((full - least) / 60).max(1);
        let head =
            |plan: &Plan| inputs.units.iter().zip(&plan.tiers).all(|(u, t)| u.group < inputs.layers || is_vram(*t));
        let mut last: Option<(bool, bool, u64)> = None;
        for vram in (least..full + step).step_by(step as usize) {
            let plan = plan(&Inputs { vram, ..inputs.clone() }).unwrap();
            let (head, copies, now) = (head(&plan), !plan.zero_copies(), plan.load.link_bytes);
            if let Some((head_before, _, before)) = last.filter(|(_, copied, _)| *copied == copies) {
                assert!(head || !head_before, "the head left the device with more memory");
                assert!(head != head_before || now <= before, "{now} bytes travel, and {before} with less memory");
            }
            last = Some((head, copies, now));
        }
        inputs.vram = rng.random_range(least..full.max(least + 1));
        let mut last = u64::MAX;
        for ram in (0..full).step_by(step as usize) {
            let Ok(plan) = plan(&Inputs { ram, ..inputs.clone() }) else {
                assert!(last == u64::MAX, "with more RAM there is no plan any more");
                continue;
            };
            let disk = plan.load.disk_bytes;
            assert!(disk <= last);
            last = disk;
        }
    }
}

/// Device memory is filled: no layer's matrix that is streamed would fit into what is left, but for what the ring gave back.
#[test]
fn device_memory_is_filled() {
    let mut rng = SmallRng::seed_from_u64(5);
    let mut streaming = 0;
    for _ in 0..500 {
        let mut inputs = random(&mut rng);
        inputs.buffers = Buffers::Count(NonZeroUsize::MIN);
        let full = total(&inputs) + GIB / 2;
        inputs.vram = rng.random_range(GIB / 2..full);
        let Ok(plan) = plan(&inputs) else { continue };
        let mut groups = copied(&inputs, &plan);
        let zero_copied = inputs.units.iter().zip(&plan.tiers).filter(|(_, tier)| tier.is_zero_copy());
        zero_copied.for_each(|(unit, _)| groups[unit.group].push(unit.bytes));
        let Some(smallest) = groups[..inputs.layers].iter().flatten().min() else { continue };
        let largest = inputs.units.iter().map(|unit| unit.bytes).max().unwrap();
        let left = inputs.vram - plan.vram_bytes();
        assert!(left < smallest + largest + 512, "{left} bytes are left, and {smallest} are streamed");
        streaming += 1;
    }
    assert!(streaming > 200, "only {streaming} plans stream");
}

/// Real models: any stretch of layers has its share of what is streamed, to within two matrices (one that the spreading rounds, and
/// one that fills what is left), and of what comes from the disk, to within three. If the first layers stayed, it would be 50.
#[test]
fn streaming_is_spread_over_the_pass() {
    for (model, quant) in [(Shape::Llama70b, "Q4_K_M"), (Shape::Qwen32b, "Q4_K_M"), (Shape::Llama8b, "Q8_0")] {
        let mut inputs = shape(model, quant);
        let full = total(&inputs) + GIB / 2;
        for eighths in 2..8 {
            inputs.vram = full / 8 * eighths;
            inputs.ram = (full - inputs.vram) / 2;
            let plan = plan(&inputs).unwrap();
            check(&inputs, &plan);
            let layers: u64 = inputs.units.iter().filter(|u| u.group < inputs.layers).map(|u| u.bytes).sum();
            let largest = inputs.units.iter().filter(|u| u.group < inputs.layers).map(|u| u.bytes).max().unwrap();
            for (of, matrices) in [(Tier::is_streamed as fn(Tier) -> bool, 2.0), (is_disk, 3.0)] {
                let all = inputs.units.iter().zip(&plan.tiers).filter(|(u, t)| u.group < inputs.layers && of(**t));
                let travelling: u64 = all.map(|(unit, _)| unit.bytes).sum();
                let share = travelling as f64 / layers as f64;
                for from in 0..inputs.layers {
                    let (mut bytes, mut streamed) = (0, 0);
                    for (unit, tier) in
                        inputs.units.iter().zip(&plan.tiers).filter(|(u, _)| (from..inputs.layers).contains(&u.group))
                    {
                        bytes += unit.bytes;
                        streamed += if of(*tier) { unit.bytes } else { 0 };
                        let expected = share * bytes as f64;
                        assert!(
                            (streamed as f64 - expected).abs() < matrices * largest as f64,
                            "{quant} in {eighths} eighths: {streamed} from layer {from} to {}, not {expected}",
                            unit.name
                        );
                    }
                }
            }
        }
    }
}

/// RAM is read without copies where the ring does not fit: with less memory than the least that copies take, down to what is there anyway.
#[test]
fn without_room_for_a_ring_there_are_no_copies() {
    let mut rng = SmallRng::seed_from_u64(8);
    for _ in 0..300 {
        let mut inputs = Inputs { vram: 0, access: RamAccess::Only(COPY), ..random(&mut rng) };
        let Err(PlanError::Vram { least, .. }) = plan(&inputs) else { panic!("there is a plan for no memory") };
        inputs.access = RamAccess::Auto;
        inputs.vram = least;
        let copies = plan(&inputs).unwrap();
        assert!(!copies.zero_copies() && copies.vram_least < least, "copies are preferred");
        check(&inputs, &copies);
        inputs.vram = rng.random_range(GIB / 2..least);
        let none = plan(&inputs).unwrap();
        assert!(none.zero_copies() && none.ring_bytes == 0 && none.load.zero_copy_bytes == none.load.link_bytes);
        check(&inputs, &none);
        inputs.access = RamAccess::Only(COPY);
        assert!(matches!(plan(&inputs), Err(PlanError::Vram { need, .. }) if need == least));
    }
}

/// What RAM has no room for goes from the disk through a ring, beside what kernels read in RAM.
#[test]
fn without_copies_from_ram_the_ring_is_for_the_disk() {
    let mut rng = SmallRng::seed_from_u64(9);
    let mut three = 0;
    for _ in 0..1000 {
        let mut inputs = Inputs { access: RamAccess::Only(ZERO_COPY), ..random(&mut rng) };
        inputs.ram = rng.random_range(0..total(&inputs));
        inputs.vram = 0;
        let Err(PlanError::Vram { need, .. }) = plan(&inputs) else { panic!("there is a plan for no memory") };
        for vram in [need, need + rng.random_range(0..total(&inputs))] {
            inputs.vram = vram;
            let made = plan(&inputs).unwrap();
            check(&inputs, &made);
            let tiers = [is_vram, is_ram, is_disk].map(|of| bytes(&inputs, &made, of) > 0);
            three += usize::from(tiers == [true; 3]);
            // As much stays as where all is copied, at least.
            let copies = plan(&Inputs { access: RamAccess::Only(COPY), ..inputs.clone() }).unwrap();
            assert!(made.load.link_bytes <= copies.load.link_bytes && made.ring_bytes <= copies.ring_bytes);
        }
    }
    assert!(three > 100, "{three} plans with three tiers");
}

/// GPUNVME_MAX_VRAM_LAYERS and GPUNVME_MAX_RAM_LAYERS bound what is in a tier, in layers of average size.
#[test]
fn layers_can_be_counted() {
    let mut inputs = shape(Shape::Llama8b, "Q8_0");
    let layer = inputs.units.iter().filter(|u| u.group < 32).map(|u| u.bytes).sum::<u64>() / 32;
    let head = inputs.units.last().unwrap().bytes;
    for n in [0, 1, 16, 31] {
        inputs.max_vram_layers = Some(n);
        let capped = plan(&inputs).unwrap();
        check(&inputs, &capped);
        assert_eq!(capped.tiers.last(), Some(&Tier::Vram { device: 0 }), "the head is no layer");
        let resident = bytes(&inputs, &capped, is_vram) - head;
        // Of 32 equal layers of seven matrices, whole ones of both kinds may be left over.
        assert!(resident <= n as u64 * layer && resident + layer / 4 >= n as u64 * layer, "{resident} in {n} layers");
        assert_eq!(capped.load.disk_bytes, 0);
        for m in [0, 5] {
            let both = plan(&Inputs { max_ram_layers: Some(m), ..inputs.clone() }).unwrap();
            let in_ram = bytes(&inputs, &both, is_ram);
            assert!(in_ram <= m as u64 * layer && in_ram + layer / 4 >= (m as u64).min(32 - n as u64) * layer);
        }
    }
    for n in [32, 1000] {
        inputs.max_vram_layers = Some(n);
        assert!(!plan(&inputs).unwrap().streams(), "a cap of all layers is none");
    }
}

/// A device that reads weights where they are mapped needs memory only for the rest.
#[test]
fn weights_that_are_read_in_place() {
    let mut inputs = shape(Shape::Llama8b, "Q8_0");
    inputs.in_place = true;
    inputs.vram = GIB / 2;
    for streaming in [true, false] {
        inputs.streaming = streaming;
        let plan = plan(&inputs).unwrap();
        assert!(plan.tiers.iter().all(|&tier| tier == Tier::Mapped { device: 0 }));
        assert_eq!((plan.vram_bytes(), plan.vram_least, plan.vram_full), (GIB / 2, GIB / 2, GIB / 2));
        assert_eq!((plan.load.link_bytes, plan.ram_bytes, plan.staging_bytes), (0, 0, 0));
    }
    inputs.vram -= 1;
    assert!(plan(&inputs).is_err());
}

/// The seeds' machine: 16 GiB of device memory, 20 GiB of RAM, a disk.
#[test]
fn seventy_billion_parameters_in_three_tiers() {
    let mut inputs = shape(Shape::Llama70b, "Q4_K_M");
    (inputs.vram, inputs.ram) = (16 * GIB, 20 * GIB);
    let three = plan(&inputs).unwrap();
    check(&inputs, &three);
    // 39.0 GiB of matrices, 0.8 of them the head: all of both memories is used, and the rest is read from the disk.
    assert_eq!(total(&inputs) / (GIB / 10), 390);
    assert_eq!(three.tiers.last(), Some(&Tier::Vram { device: 0 }));
    assert!(inputs.vram - three.vram_bytes() < 128 << 20, "{} of VRAM are left", inputs.vram - three.vram_bytes());
    assert!(inputs.ram - three.ram_bytes - three.staging_bytes < 64 << 20);
    let disk = three.load.disk_bytes;
    assert!((3 * GIB..6 * GIB).contains(&disk), "{disk} bytes on disk");
    assert!(three.ring_bytes < GIB, "a ring of {}", three.ring_bytes);
    let prediction = three.prediction.clone().unwrap();
    assert_eq!(prediction.bound, Bound::Disk);
    assert!((prediction.seconds - disk as f64 / 0.96e9).abs() < 0.05);

    // With RAM for the rest, the link bounds.
    inputs.ram = 64 * GIB;
    let two = plan(&inputs).unwrap();
    assert_eq!((two.load.disk_bytes, two.staging_bytes), (0, 0));
    let prediction = two.prediction.clone().unwrap();
    assert_eq!(prediction.bound, Bound::Link);
    let link = two.load.link_bytes as f64 / 55.5e9;
    assert!((link..1.02 * link).contains(&prediction.seconds), "{prediction:?}, the link takes {link}");

    // In 8 GiB, and in the least there is; all of it resident is bounded by device memory.
    inputs.vram = 8 * GIB;
    check(&inputs, &plan(&inputs).unwrap());
    inputs.vram = two.vram_least;
    assert!(inputs.vram < 2 * GIB, "the least is {}", inputs.vram);
    check(&inputs, &plan(&inputs).unwrap());
    inputs.vram = u64::MAX;
    let all = plan(&inputs).unwrap().prediction.unwrap();
    assert_eq!(all.bound, Bound::Vram);
    assert!((all.seconds - total(&inputs) as f64 / (0.6 * 4.67e12)).abs() < 1e-9);
}
