//! What the CUDA device refuses before a kernel trusts it, on the emulator.

use ntransformer::device::{
    Batch, Device, Dims, Epilogue, Linear, Pairing, Tensor, Transfer,
    cuda::{CudaDevice, emulator::EmulatorDriver},
};
use quant::TensorType;

type Emulated = CudaDevice<EmulatorDriver>;

const TOKENS: usize = 3;

fn device() -> Emulated {
    let dims = Dims {
        hidden: 32,
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
        ffn: 64,
        vocab: 10,
        rope_dims: 8,
        pairing: Pairing::Half,
        eps: 1e-5,
        context: 20,
    };
    let mut device = CudaDevice::new(EmulatorDriver::new(0));
    device.prepare(&dims, TOKENS).unwrap();
    device
}

fn batch() -> Batch {
    let angles = vec![0.5; TOKENS * 4];
    Batch { tokens: vec![0, 9, 5], positions: vec![0, 19, 7], cos: angles.clone(), sin: angles, want: vec![2] }
}

/// What is wrong with a batch.
type Change = fn(&mut Batch);

#[test]
fn a_batch_out_of_range_is_refused() {
    let mut device = device();
    device.begin(&batch()).unwrap();
    let changes: [(&str, Change); 8] = [
        ("a token", |b| b.tokens[1] = 10),
        ("a position", |b| b.positions[2] = 20),
        ("a far position", |b| b.positions[0] = u32::MAX),
        ("a row", |b| b.want[0] = 3),
        ("too few positions", |b| b.positions.truncate(2)),
        ("too few cosines", |b| b.cos.truncate(11)),
        ("too few sines", |b| b.sin.truncate(11)),
        ("too many tokens", |b| {
            b.tokens.push(1);
            b.positions.push(1);
            b.cos.extend([0.0; 4]);
            b.sin.extend([0.0; 4]);
        }),
    ];
    for (what, change) in changes {
        let mut batch = batch();
        change(&mut batch);
        assert!(device.begin(&batch).is_err(), "{what}");
    }
}

#[test]
fn a_stage_takes_the_batch_that_was_begun() {
    let mut device = device();
    let (mut kv, k, v) = (device.kv().unwrap(), device.act(TOKENS, 16).unwrap(), device.act(TOKENS, 16).unwrap());
    assert!(device.append(&batch(), &k, &v, &mut kv).is_err(), "nothing was begun");
    device.begin(&batch()).unwrap();
    device.append(&batch(), &k, &v, &mut kv).unwrap();
    let mut shorter = batch();
    shorter.tokens.pop();
    assert!(device.append(&shorter, &k, &v, &mut kv).is_err(), "another batch");
}

#[test]
fn vectors_are_f32_and_of_the_right_length() {
    let mut device = device();
    let buf = device.alloc("weights", 4096).unwrap();
    device.write(&buf, 0, &[0; 4096]).unwrap();
    let tensor = |ty, rows, cols| Tensor { buf: buf.clone(), offset: 0, ty, rows, cols };
    let (mut x, mut y) = (device.act(TOKENS, 32).unwrap(), device.act(TOKENS, 32).unwrap());
    device.load(&[1.0; 96], &mut x).unwrap();
    device.rms_norm(&tensor(TensorType::F32, 1, 32), TOKENS, &x, &mut y).unwrap();
    assert!(device.rms_norm(&tensor(TensorType::F16, 1, 32), TOKENS, &x, &mut y).is_err(), "halves");

    let linear = |bias| Linear { weight: tensor(TensorType::Q8_0, 8, 32), bias: Some(bias) };
    let mut product = |bias| device.matmul(&linear(bias), 1, &x, &mut y, Epilogue::Store);
    product(tensor(TensorType::F32, 1, 8)).unwrap();
    assert!(product(tensor(TensorType::F32, 1, 7)).is_err(), "a bias that is too short");
    assert!(product(tensor(TensorType::F16, 1, 8)).is_err(), "a bias of halves");
}
