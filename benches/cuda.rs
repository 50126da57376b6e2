//! Matrix times vector on a GPU, and what it is measured by.

use gpu::gemv::{self, Matrix, NONE, Product, Share, WeightKernels, WeightVisitor};
use ntransformer::device::{
    DeviceError,
    cuda::{
        bandwidth::{self, seconds},
        driver::{Driver, Properties},
        emulator::EmulatorDriver,
    },
};
use quant::TensorType;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::{
    Part, Result, Selection, Shape, attention, boundary, bytes_of,
    report::{COLUMNS, Report},
    timing::median,
};

/// Matrices of models of 8B (q and out; q, k and v; gate or up; gate and up; down; head) and 70B parameters (q, k and v; out;
/// gate and up; down).
pub const SHAPES: [Shape; 10] = [
    (4096, 4096),
    (6144, 4096),
    (14336, 4096),
    (28672, 4096),
    (4096, 14336),
    (128256, 4096),
    (10240, 8192),
    (8192, 8192),
    (57344, 8192),
    (8192, 28672),
];
/// As much as an emulator computes in a moment.
pub const TINY: [Shape; 2] = [(64, 256), (32, 512)];
/// Weights that are gone over before the same ones come again, in sizes of the L2 cache.
const ROTATION: usize = 4;
/// Copies of a matrix at least.
const COPIES: usize = 2;
/// Weights that the launches of one recording go over, in the same sizes: some GB, so that what it takes to start it is little.
const RECORDED: usize = 80;
/// Random weights, again and again: what the values are does not matter, but zeros would run faster.
const PATTERN: usize = 16 << 20;
/// Bytes of a transfer from pinned RAM: from 16 MiB on, transfers run at the link's full speed.
const UPLOAD: usize = 64 << 20;

/// An emulator with a cache so small that it is soon gone over.
pub fn emulator() -> EmulatorDriver {
    let properties = *EmulatorDriver::new(0).properties();
    EmulatorDriver::with_properties(7, Properties { l2_bytes: 4 << 10, ..properties })
}

/// What can be measured on a GPU, as far as it is selected: matrices of these shapes, attention over these contexts, so many blocks
/// that meet.
pub fn measure<D: Driver>(
    driver: &D,
    (usual, contexts, blocks): (&[Shape], &[u32], u32),
    selection: &Selection,
    report: &mut Report,
) -> Result<()> {
    let name = driver.name();
    let read = bandwidth::read(driver)?;
    let copied = copy(driver, read.bytes / 4)?;
    let link = link(driver)?;
    report.add(name, "read", read.bytes, read.seconds);
    report.add(name, "copy", read.bytes / 2, copied);
    report.add(name, "link", UPLOAD, link);
    println!(
        "{name}: reads {:.1} GB/s ({} MiB, {} blocks of {} threads), copies {:.1} (read and written), takes {:.1} from pinned RAM",
        read.rate() / 1e9,
        read.bytes >> 20,
        read.blocks,
        read.threads,
        (read.bytes / 2) as f64 / copied / 1e9,
        UPLOAD as f64 / link / 1e9,
    );
    if selection.part(Part::Gpu) || selection.part(Part::Emulator) {
        println!("matrix times vector, weights not in the L2 cache, {}:", how(driver)?);
        for shapes in selection.shapes(usual).chunks(COLUMNS) {
            let mut table = report.table(name, "gemv", &names(shapes), read.rate());
            for &ty in selection.types() {
                table.row(ty.name());
                let weights = Weights::new(driver, ty, shapes)?;
                for &shape in shapes {
                    table.cell(ty.name(), bytes_of(ty, shape), weights.gemv(shape)?);
                }
            }
        }
    }
    if selection.part(Part::Attention) || selection.part(Part::Emulator) {
        attention::measure(driver, contexts, read.rate(), report)?;
    }
    if selection.part(Part::Boundary) || selection.part(Part::Emulator) {
        boundary::measure(driver, blocks, report)?;
    }
    Ok(())
}

/// Seconds of one of `launches` launches, which the engine would make one after the other: from a recording, where the driver
/// can make one.
pub fn time<D: Driver>(driver: &D, launches: usize, launch: impl Fn(usize) -> Result<()>) -> Result<f64> {
    let all = || (0..launches).try_for_each(&launch);
    // What the first launch loads is not for the recording.
    launch(0)?;
    let graph = driver.capture(&mut || all())?;
    let again = || match &graph {
        // SAFETY: recorded by this driver, over memory that the closure keeps alive.
        Some(graph) => unsafe { driver.replay(graph) },
        None => all(),
    };
    median(launches, |calls| seconds(driver, || (0..calls / launches).try_for_each(|_| again())))
}

/// How [`time`] launches.
fn how<D: Driver>(driver: &D) -> Result<&'static str> {
    let recorded = driver.capture(&mut || Ok(()))?.is_some();
    Ok(match (recorded, driver.dependent_launch()) {
        (true, true) => "launched from a CUDA graph, with programmatic dependent launch",
        (true, false) => "launched from a CUDA graph, without programmatic dependent launch",
        (false, true) => "launched one by one, with programmatic dependent launch",
        (false, false) => "launched one by one, without programmatic dependent launch",
    })
}

pub fn names(shapes: &[Shape]) -> Vec<String> {
    shapes.iter().map(|(rows, cols)| format!("{rows}x{cols}")).collect()
}

pub fn random_blocks(ty: TensorType, bytes: usize) -> Vec<u8> {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut blocks = vec![0; bytes];
    quant::fill_random(ty, &mut || rng.random(), 0.02, &mut blocks).expect("whole blocks");
    blocks
}

/// Seconds of a copy of `bytes` bytes on the device.
fn copy<D: Driver>(driver: &D, bytes: usize) -> Result<f64> {
    let (from, to) = (driver.alloc("a copy", bytes)?, driver.alloc("a copy", bytes)?);
    median(1, |calls| seconds(driver, || (0..calls).try_for_each(|_| driver.copy(&from, &to, bytes))))
}

/// Seconds of a transfer from pinned RAM to the device.
fn link<D: Driver>(driver: &D) -> Result<f64> {
    let (from, to) = (driver.pinned("a transfer", UPLOAD)?, driver.alloc("a transfer", UPLOAD)?);
    median(1, |calls| {
        let start = std::time::Instant::now();
        let mut end = None;
        for _ in 0..calls {
            end = Some(driver.upload(&from, 0..UPLOAD, &to, 0, None)?);
        }
        end.iter().try_for_each(|end| driver.host_waits(end))?;
        Ok(start.elapsed().as_secs_f64())
    })
}

/// Random weights of one type, enough for some shapes, and the vectors that they are multiplied with.
struct Weights<'a, D: Driver> {
    driver: &'a D,
    ty: TensorType,
    w: D::Mem,
    /// Holds the address of `w`.
    home: D::Mem,
    x: D::Mem,
    y: D::Mem,
}

impl<'a, D: Driver> Weights<'a, D> {
    fn new(driver: &'a D, ty: TensorType, shapes: &[Shape]) -> Result<Self> {
        let largest = |of: &dyn Fn(Shape) -> usize| shapes.iter().map(|&shape| of(shape)).max().unwrap_or(0);
        let w = driver.alloc("weights", largest(&|shape| copies(driver, bytes_of(ty, shape)) * stride(ty, shape)))?;
        fill(driver, &w, ty)?;
        let home = driver.alloc("an address", size_of::<u64>())?;
        driver.write(&home, 0, &D::address(&w).to_le_bytes())?;
        let x: Vec<u8> = (0..largest(&|(_, cols)| cols)).flat_map(|i| (0.5 + (i % 7) as f32).to_le_bytes()).collect();
        let (x_mem, y) = (driver.alloc("x", x.len())?, driver.alloc("y", 4 * largest(&|(rows, _)| rows))?);
        driver.write(&x_mem, 0, &x)?;
        Ok(Weights { driver, ty, w, home, x: x_mem, y })
    }

    /// Seconds of a product.
    fn gemv(&self, shape: Shape) -> Result<f64> {
        gemv::visit(self.ty, Gemv { weights: self, shape })
    }
}

/// Copies of `bytes` bytes that are gone over.
pub fn copies<D: Driver>(driver: &D, bytes: usize) -> usize {
    (ROTATION * driver.properties().l2_bytes as usize).div_ceil(bytes).max(COPIES)
}

/// Launches of a recording, where each reads `bytes` bytes of one of `copies` copies.
pub fn recorded<D: Driver>(driver: &D, bytes: usize, copies: usize) -> usize {
    (RECORDED * driver.properties().l2_bytes as usize / bytes).max(1).next_multiple_of(copies)
}

/// Fills `mem` with random blocks of `ty`.
pub fn fill<D: Driver>(driver: &D, mem: &D::Mem, ty: TensorType) -> Result<()> {
    let pattern = random_blocks(ty, PATTERN.min(D::len(mem)) / ty.block_bytes() * ty.block_bytes());
    let mut at = (0..D::len(mem)).step_by(pattern.len());
    at.try_for_each(|at| driver.write(mem, at, &pattern[..pattern.len().min(D::len(mem) - at)]))
}

/// Bytes from one copy of a matrix to the next, as tensors are aligned.
fn stride(ty: TensorType, shape: Shape) -> usize {
    bytes_of(ty, shape).next_multiple_of(256)
}

/// Measures the product of one shape.
struct Gemv<'a, 'b, D: Driver> {
    weights: &'a Weights<'b, D>,
    shape: Shape,
}

impl<D: Driver> WeightVisitor for Gemv<'_, '_, D> {
    type Out = Result<f64>;

    fn visit<F: WeightKernels>(self) -> Result<f64> {
        let Gemv { weights: Weights { driver, w, home, x, y, .. }, shape } = self;
        let (bytes, stride) = (bytes_of(F::TYPE, shape), stride(F::TYPE, shape));
        let copies = copies(*driver, bytes);
        assert!(copies * stride <= D::len(w), "the weights are enough for this shape");
        let y = D::address(y) as *mut f32;
        let none = Matrix { offset: 0, bias: NONE, y: std::ptr::null_mut(), rows: 0, reserved: 0 };
        let matrix = |offset| [Matrix { offset, y, rows: shape.0 as u32, ..none }, none, none];
        let cols = shape.1 as u32;
        // As in a pass of a model with such matrices, whose residual stream is as wide as the shorter side.
        let wide = shape.0.min(shape.1) >= gemv::WIDE;
        let shares = if wide { [Share::Whole; 2] } else { [Share::Small, Share::Large] };
        let overlap = if wide { gemv::APART } else { gemv::OVERLAPPING };
        let fit = |share| {
            let room = driver.properties().room(share);
            let fits = gemv::launch::<F::Weights>(room, gemv::row_groups(&matrix(0)), cols, 1, 1, false);
            fits.ok_or_else(|| DeviceError::Unsupported(format!("{} of {cols} columns", F::TYPE)))
        };
        let launches = [fit(shares[0])?, fit(shares[1])?];
        let launch = |turn: usize| {
            let gemv = launches[turn % 2];
            let product = Product {
                home: D::address(home) as *const u64,
                x: D::address(x) as *const f32,
                norm: NONE,
                matrices: matrix((turn % copies * stride) as u64),
                cols,
                row_bytes: (bytes / shape.0) as u32,
                tokens: 1,
                piece_blocks: gemv.piece_blocks,
                stage_bytes: gemv.stage_bytes,
                stages: gemv.stages,
                stride: (bytes / shape.0) as u32,
                align: gemv.align,
                accumulate: 0,
                activation: 0,
                eps: 1e-5,
                overlap,
            };
            // SAFETY: a matrix inside the weights, whose address is in `home`, and vectors at least as long as its sides.
            unsafe { driver.launch::<F::Gemv>(gemv.grid, (product,)) }
        };
        time(*driver, recorded(*driver, bytes, copies), launch)
    }
}
