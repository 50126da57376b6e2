//! Products beside each other, as a layer's are.

use gpu::gemv::{self, APART, BESIDE, Matrix, NONE, Product, SILU, Share, WeightKernels, WeightVisitor};
use ntransformer::device::cuda::driver::Driver;
use rand::Rng;

use super::{
    case::{EPS, Image, NO_MATRIX, assert_same, fitted},
    types_and_cols,
};
use crate::kernels::{Lab, pointer, to_bytes};

/// Rounds of products that follow each other as a layer's do: one adds to x, three multiply x, of which the first is apart and takes
/// longer than the others, which are beside the one before them, and the last multiplies what those three give.
struct Rounds<'a, 'd, D: Driver> {
    lab: &'a mut Lab<'d, D>,
    cols: usize,
    normed: bool,
}

/// How rounds are launched.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// Each product when the one before it is done, and none beside another.
    OneByOne,
    Launched,
    Captured,
}

impl<D: Driver> WeightVisitor for Rounds<'_, '_, D> {
    type Out = ();

    fn visit<F: WeightKernels>(self) {
        const INPUTS: usize = 256;
        const RESULTS: usize = 16;
        let Rounds { lab, cols, normed } = self;
        let (rounds, rows) = if lab.driver.is_emulated() { (3, [195, 29, 32]) } else { (100, [4000, 40, 56]) };
        let starts = [0, rows[0], rows[0] + rows[1]];
        let width = rows.iter().sum::<usize>();

        let mut image = Image::default();
        let norm = if normed { image.add(&to_bytes(&lab.floats(cols))) } else { NONE };
        let mut weights = |rows: usize, cols: usize| {
            let mut bytes = vec![0; rows * F::TYPE.row_bytes(cols).unwrap()];
            quant::fill_random(F::TYPE, &mut || lab.rng.random(), 1.0, &mut bytes).unwrap();
            image.add(&bytes)
        };
        let first = weights(cols, INPUTS);
        let beside = rows.map(|rows| weights(rows, cols));
        let last = weights(RESULTS, width);
        let (_image, home) = image.upload(lab);
        let [inputs, start] = [INPUTS, cols].map(|len| lab.floats(len));
        let inputs = lab.input(&inputs);

        // The product of `x` with the matrix of so many rows and columns at `offset`, to `y`.
        let product = |(offset, rows, cols): (u64, usize, usize), x: *const f32, y: *mut f32| {
            let row_bytes = F::TYPE.row_bytes(cols).unwrap() as u32;
            Product {
                home: pointer::<D, _>(&home),
                x,
                norm: NONE,
                matrices: [Matrix { offset, y, rows: rows as u32, ..NO_MATRIX }, NO_MATRIX, NO_MATRIX],
                cols: cols as u32,
                row_bytes,
                tokens: 1,
                piece_blocks: 0,
                stage_bytes: 0,
                stages: 0,
                accumulate: 0,
                activation: SILU,
                eps: EPS,
                stride: row_bytes,
                overlap: APART,
                align: 0,
            }
        };
        let launch = |product: Product| {
            let share = if product.overlap == BESIDE { Share::Small } else { Share::Whole };
            let room = lab.driver.properties().room(share);
            let (grid, product) = fitted::<F>(room, product, gemv::row_groups(&product.matrices), 1);
            lab.launch::<F::Gemv>(grid, (product,));
        };
        let results_of = |way: Way| {
            let (x, y) = (lab.output(&start), lab.poisoned::<f32>(width));
            let results = lab.poisoned::<f32>(rounds * RESULTS);
            let mut pass = || {
                for round in 0..rounds {
                    let launch = |product: Product| {
                        launch(product);
                        if way == Way::OneByOne {
                            lab.read::<f32>(&x);
                        }
                    };
                    let sum = product((first, cols, INPUTS), pointer::<D, _>(&inputs), x.pointer());
                    launch(Product { accumulate: 1, ..sum });
                    for i in 0..3 {
                        let overlap = if i > 0 && way != Way::OneByOne { BESIDE } else { APART };
                        let y = y.pointer::<f32>().wrapping_add(starts[i]);
                        launch(Product { norm, overlap, ..product((beside[i], rows[i], cols), x.pointer(), y) });
                    }
                    let result = results.pointer::<f32>().wrapping_add(round * RESULTS);
                    launch(product((last, RESULTS, width), y.pointer(), result));
                }
                Ok(())
            };
            match way {
                Way::Captured => {
                    if let Some(graph) = lab.driver.capture(&mut pass).unwrap() {
                        // SAFETY: this driver's, and the buffers are alive.
                        unsafe { lab.driver.replay(&graph) }.unwrap();
                    }
                }
                Way::OneByOne | Way::Launched => pass().unwrap(),
            }
            lab.read::<f32>(&results)
        };

        let expected = results_of(Way::OneByOne);
        let mut each = expected.chunks_exact(RESULTS);
        let (one, other) = (each.next().unwrap(), each.next_back().unwrap());
        assert!(expected.iter().all(|value| value.is_finite()) && one != other, "{}: {expected:?}", F::TYPE);
        for way in [Way::Launched, Way::Captured] {
            let place = |i: usize| format!("{} of {cols} columns, {way:?}, round {}", F::TYPE, i / RESULTS);
            assert_same(&results_of(way), &expected, place);
        }
    }
}

/// Products that do not wait for the one before them find the x that was there before it, leave alone what is read beside them, and
/// whoever waits for them waits for that one too: what comes of many rounds is, to the bit, what comes of one product at a time.
pub fn gemv_beside<D: Driver>(lab: &mut Lab<D>) {
    for (i, (ty, cols)) in types_and_cols().filter(|(_, cols)| [33, 256, 1280, 4352].contains(cols)).enumerate() {
        gemv::visit(ty, Rounds { lab, cols, normed: i % 2 == 0 });
    }
}
