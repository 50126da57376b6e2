//! Matrix times vector on the CPU.

use std::hint::black_box;

use ntransformer::device::{Device, Epilogue, Linear, Tensor, Transfer, cpu::CpuDevice};
use quant::TensorType;
use rayon::prelude::*;

use crate::{
    Result, Selection, Shape, bytes_of, cuda,
    report::{COLUMNS, Report},
    timing::{elapsed, median},
};

/// Few: the CPU takes its time.
const SHAPES: [Shape; 2] = [(4096, 4096), (4096, 14336)];
/// A matrix that fits into a core's cache, in every type but F32.
const CACHED: Shape = (128, 4096);
/// Weights that are gone over before the same ones come again: more than any cache holds.
const ROTATION: usize = 512 << 20;

pub fn measure(selection: &Selection, report: &mut Report) -> Result<()> {
    let device = CpuDevice::new();
    let read = {
        let bytes = vec![1u8; ROTATION];
        let sum = |part: &[u8]| part.as_chunks().0.iter().fold(0, |sum: u64, &word| sum ^ u64::from_ne_bytes(word));
        let mut read = || {
            black_box(bytes.par_chunks(1 << 18).map(sum).reduce(|| 0, |a, b| a ^ b));
            Ok(())
        };
        median(1, |calls| elapsed(&mut read, calls))?
    };
    println!("{}: a plain read runs at {:.1} GB/s", device.name(), ROTATION as f64 / read / 1e9);
    report.add(device.name(), "read", ROTATION, read);
    for shapes in selection.shapes(&SHAPES).chunks(COLUMNS) {
        let mut table = report.table(device.name(), "gemv", &cuda::names(shapes), ROTATION as f64 / read);
        for &ty in selection.types() {
            table.row(ty.name());
            for &shape in shapes {
                table.cell(ty.name(), bytes_of(ty, shape), gemv(ty, shape, ROTATION)?);
            }
        }
    }
    // Without the memory: what one core computes, of weights in its cache.
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread can be started");
    println!("one core of it, weights in its cache, {}x{}:", CACHED.0, CACHED.1);
    for &ty in selection.types() {
        let seconds = one.install(|| gemv(ty, CACHED, 0))?;
        println!("{:<7}{:>10.1} GB/s", ty.name(), bytes_of(ty, CACHED) as f64 / seconds / 1e9);
    }
    Ok(())
}

/// Seconds of a product, with `rotation` bytes of weights gone over before the same ones come again.
fn gemv(ty: TensorType, (rows, cols): Shape, rotation: usize) -> Result<f64> {
    let mut device = CpuDevice::new();
    let bytes = bytes_of(ty, (rows, cols));
    let copies = rotation.div_ceil(bytes).max(1);
    let buf = device.alloc("weights", copies * bytes)?;
    let blocks = cuda::random_blocks(ty, bytes);
    (0..copies).try_for_each(|i| device.write(&buf, i * bytes, &blocks))?;
    let (mut x, mut y) = (device.act(1, cols)?, device.act(1, rows)?);
    device.load(&vec![0.5; cols], &mut x)?;
    let mut turn = 0;
    let mut multiply = || {
        turn = (turn + 1) % copies;
        let weight = Tensor { buf: buf.clone(), offset: turn * bytes, ty, rows, cols };
        device.matmul(&Linear { weight, bias: None }, 1, &x, &mut y, Epilogue::Store)
    };
    median(1, |calls| elapsed(&mut multiply, calls))
}
