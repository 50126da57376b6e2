//! What fits onto a multiprocessor beside each other.

use gpu::gemv::{self, Share, WeightKernels, WeightVisitor};
use quant::TensorType;

/// The sizes of an H100 or H200.
fn room(share: Share) -> gemv::Room {
    let (block, multiprocessor) = (227 << 10, 228 << 10);
    gemv::Room { multiprocessors: 132, block, multiprocessor, reserved: 1 << 10, cluster: 8, share }
}

/// Shared memory of a multiprocessor that the launch of a product of `cols` columns in `F` takes.
struct Taken(Share, u32);

impl WeightVisitor for Taken {
    type Out = u32;

    fn visit<F: WeightKernels>(self) -> u32 {
        let Taken(share, cols) = self;
        let launch = gemv::launch::<F::Weights>(room(share), 4096, cols, 1, 1, false).expect("it fits");
        // With what the GPU takes for each block.
        launch.grid.shared + (1 << 10)
    }
}

#[test]
fn no_two_products_that_are_apart_fit_on_a_multiprocessor() {
    for ty in TensorType::ALL.iter().copied().filter(|ty| 4096 % ty.block_elems() == 0) {
        let taken = |share, cols| gemv::visit(ty, Taken(share, cols));
        for cols in [256, 4096, 8192, 14336] {
            assert!(2 * taken(Share::Whole, cols) > 228 << 10, "{ty}, {cols} columns");
        }
        let turns = taken(Share::Small, 4096) + taken(Share::Large, 4096);
        assert!(turns <= 228 << 10, "{ty}: large and small launches take {turns} bytes together");
    }
}

/// Bytes of shared memory that a block of attention of heads of up to 128 has on such a GPU, from its PTX.
fn attention_bytes() -> u32 {
    let bytes = |module: &str, name: &str| {
        let ptx = ntransformer::ptx::module(module, (9, 0)).unwrap();
        let line = ptx.lines().find(|line| line.starts_with(".shared") && line.contains(name)).expect("an array");
        line.split(['[', ']']).nth(1).unwrap().parse::<u32>().unwrap()
    };
    bytes("attention_64", " DECODE_64[").max(bytes("attention_128", " DECODE_128["))
}

#[test]
fn attention_fits_beside_a_large_and_a_small_product() {
    let attention = attention_bytes() + (1 << 10);
    for ty in TensorType::ALL.iter().copied().filter(|ty| 4096 % ty.block_elems() == 0) {
        let taken = |share, cols| gemv::visit(ty, Taken(share, cols));
        // No larger than it must be.
        let large = taken(Share::Large, 256);
        for cols in [1024, 2048, 4096] {
            let left = (228 << 10) - large - taken(Share::Small, cols);
            assert!(attention <= left, "{ty}, {cols} columns: {left} bytes are left, and attention takes {attention}");
        }
    }
}
