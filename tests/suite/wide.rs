//! Products of matrices whose rows do not fit into a block's shared memory.

use gpu::gemv::{self, Room, WeightKernels, WeightVisitor};
use ntransformer::{
    cli::synth::{Quant, Shape},
    device::{
        Device, DeviceError, Epilogue, Linear, Tensor, Transfer,
        cuda::{
            CudaDevice,
            driver::{Driver, Properties},
            emulator::EmulatorDriver,
        },
    },
    model::Model,
};
use quant::TensorType;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{reference, synth};

const ROWS: usize = 5;

/// Rounding in F32, relative to the sum of a product's magnitudes; what `kernels::gemv` allows.
const ROUNDING: f64 = 2e-6;

/// Bytes of shared memory without which a row of so many columns does not fit.
struct Least {
    cols: usize,
    room: Room,
}

impl WeightVisitor for Least {
    type Out = u32;

    fn visit<F: WeightKernels>(self) -> u32 {
        let launch = |block| gemv::launch::<F::Weights>(Room { block, ..self.room }, 1, self.cols as u32, 1, 1, false);
        (0..self.room.block).step_by(16).find(|&block| launch(block).is_some()).unwrap()
    }
}

fn properties() -> Properties {
    *EmulatorDriver::new(0).properties()
}

/// Bytes of shared memory without which a row of so many columns in `ty` does not fit.
fn least(ty: TensorType, cols: usize) -> u32 {
    gemv::visit(ty, Least { cols, room: properties().room(gemv::Share::Small) })
}

/// A product with a bias of `[tokens x cols]` activations, on a GPU whose blocks have `shared` bytes.
struct Case {
    ty: TensorType,
    cols: usize,
    weights: Vec<u8>,
    bias: Vec<f32>,
    /// What y was, where the product is added to it.
    y: Option<Vec<f32>>,
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

impl Case {
    fn run(&self, shared: u32, x: &[f32]) -> Result<Vec<f32>, DeviceError> {
        let (ty, cols, tokens) = (self.ty, self.cols, x.len() / self.cols);
        let properties =
            Properties { shared_per_block: shared, shared_per_multiprocessor: shared + 1024, ..properties() };
        let mut dev = CudaDevice::new(EmulatorDriver::with_properties(3, properties));
        let tiny = synth::model(Shape::Tiny, Quant::pure(TensorType::Q4_0), 0);
        dev.prepare(&Model::new(tiny, None, 64).unwrap().config.dims, tokens)?;
        let at = self.weights.len().next_multiple_of(256);
        let buf = dev.alloc("weights", at + 4 * ROWS)?;
        dev.write(&buf, 0, &self.weights)?;
        dev.write(&buf, at, &bytes(&self.bias))?;
        let bias = Tensor { buf: buf.clone(), offset: at, ty: TensorType::F32, rows: 1, cols: ROWS };
        let w = Linear { weight: Tensor { buf, offset: 0, ty, rows: ROWS, cols }, bias: Some(bias) };
        let (mut x_act, mut y_act) = (dev.act(tokens, cols)?, dev.act(tokens, ROWS)?);
        dev.load(x, &mut x_act)?;
        let poison = vec![f32::NAN; tokens * ROWS];
        dev.load(self.y.as_ref().map_or(&poison, |y| y), &mut y_act)?;
        let epilogue = if self.y.is_some() { Epilogue::Residual } else { Epilogue::Store };
        dev.matmul(&w, tokens, &x_act, &mut y_act, epilogue)?;
        dev.fetch(&y_act, tokens, ROWS)
    }
}

/// Such a product is computed in pieces, of which each adds to the result of those before it, whatever the type: the same but for
/// the order of the sums. The result for a token does not depend on others beside it.
#[test]
fn a_matrix_is_multiplied_in_pieces() {
    const TOKENS: usize = 3;
    let mut rng = SmallRng::seed_from_u64(8);
    let mut floats = |n: usize| (0..n).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
    let mut random = SmallRng::seed_from_u64(9);
    for (i, &ty) in TensorType::ALL.iter().enumerate() {
        let cols = 9 * 256;
        let mut weights = vec![0; ROWS * ty.row_bytes(cols).unwrap()];
        quant::fill_random(ty, &mut || random.random(), 1.0, &mut weights).unwrap();
        let y = (i % 2 == 0).then(|| floats(TOKENS * ROWS));
        let (x, case) = (floats(TOKENS * cols), Case { ty, cols, weights, bias: floats(ROWS), y });
        let whole = case.run(properties().shared_per_block, &x).unwrap();
        let mut values = vec![0.0; ROWS * cols];
        quant::decode_row(ty, &case.weights, &mut values).unwrap();
        // Just not enough, and enough for a third.
        for shared in [least(ty, cols) - 16, least(ty, cols / 3)] {
            let found = case.run(shared, &x).unwrap();
            for (k, (found, &whole)) in found.iter().zip(&whole).enumerate() {
                let (token, row) = (k / ROWS, k % ROWS);
                let sum = reference::dot(&values[row * cols..][..cols], &x[token * cols..][..cols]);
                let off = f64::from(found - whole).abs();
                let budget = ROUNDING * (sum.magnitude + 2.0);
                assert!(off <= budget, "{ty}, {shared} bytes, token {token}, row {row}: {found} instead of {whole}");
            }
            for (token, x) in x.chunks_exact(cols).enumerate() {
                let part = |values: &[f32]| values[token * ROWS..][..ROWS].to_vec();
                let alone = Case {
                    y: case.y.as_deref().map(part),
                    weights: case.weights.clone(),
                    bias: case.bias.clone(),
                    ..case
                };
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                let found = bits(&found[token * ROWS..][..ROWS]);
                assert_eq!(bits(&alone.run(shared, x).unwrap()), found, "{ty}, {shared} bytes, token {token}");
            }
        }
        // So little that no piece fits.
        let error = case.run(2048, &x).unwrap_err().to_string();
        assert!(error.contains(&format!("a {ty} matrix of {cols} columns")) && error.contains("2048 bytes"), "{error}");
    }
}

/// Rows of floats may have any length; those that do not all begin at multiples of 16 bytes are not cut, and that is said.
#[test]
fn odd_rows_are_not_cut() {
    let cols = 2301;
    let x: Vec<f32> = (0..cols).map(|i| (i % 7) as f32).collect();
    let case =
        Case { ty: TensorType::F32, cols, weights: bytes(&vec![0.5; ROWS * cols]), bias: vec![1.0; ROWS], y: None };
    let least = least(TensorType::F32, cols);
    assert_eq!(case.run(least, &x).unwrap(), [1.0 + 0.5 * x.iter().sum::<f32>(); ROWS]);
    let error = case.run(least - 16, &x).unwrap_err();
    assert!(matches!(error, DeviceError::Unsupported(_)), "{error}");
    assert!(error.to_string().contains("a F32 matrix of 2301 columns"), "{error}");
}
