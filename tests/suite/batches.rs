//! What the CUDA device refuses before a kernel trusts it, on the emulator.

use ntransformer::device::{
    Activation, Batch, Device, Dims, Epilogue, Linear, Pairing, Rotation, Tensor, Transfer,
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
        rotations: 2,
        activation: Activation::Silu,
        embedding_scale: 1.0,
        attention_scale: 0.25,
        attention_cap: None,
        logit_cap: None,
        eps: 1e-5,
        context: 20,
    };
    let mut device = CudaDevice::new(EmulatorDriver::new(0));
    device.prepare(&dims, TOKENS).unwrap();
    device
}

fn batch() -> Batch {
    let rotation = Rotation { cos: vec![0.5; TOKENS * 4], sin: vec![0.5; TOKENS * 4] };
    Batch {
        tokens: vec![0, 9, 5],
        positions: vec![0, 19, 7],
        rotations: vec![rotation.clone(), rotation],
        want: vec![2],
    }
}

/// What is wrong with a batch.
type Change = fn(&mut Batch);

#[test]
fn a_batch_out_of_range_is_refused() {
    let mut device = device();
    let mut x = device.residual(TOKENS).unwrap();
    device.begin(&batch(), None, &mut x).unwrap();
    let changes: [(&str, Change); 10] = [
        ("a token", |b| b.tokens[1] = 10),
        ("a position", |b| b.positions[2] = 20),
        ("a far position", |b| b.positions[0] = u32::MAX),
        ("a row", |b| b.want[0] = 3),
        ("too few positions", |b| b.positions.truncate(2)),
        ("too few cosines", |b| b.rotations[0].cos.truncate(11)),
        ("too few sines", |b| b.rotations[1].sin.truncate(11)),
        ("too few rotations", |b| b.rotations.truncate(1)),
        ("too many rotations", |b| b.rotations.push(Rotation::default())),
        ("too many tokens", |b| {
            b.tokens.push(1);
            b.positions.push(1);
            for rotation in &mut b.rotations {
                rotation.cos.extend([0.0; 4]);
                rotation.sin.extend([0.0; 4]);
            }
        }),
    ];
    for (what, change) in changes {
        let mut batch = batch();
        change(&mut batch);
        assert!(device.begin(&batch, None, &mut x).is_err(), "{what}");
    }
    for (what, embeddings) in [("too few embeddings", TOKENS * 32 - 1), ("too many embeddings", TOKENS * 32 + 1)] {
        assert!(device.begin(&batch(), Some(&vec![1.0; embeddings]), &mut x).is_err(), "{what}");
    }
    let mut elsewhere = device.act(TOKENS, 32).unwrap();
    assert!(device.begin(&batch(), None, &mut elsewhere).is_err(), "a residual stream elsewhere");
    assert!(device.residual(TOKENS + 1).is_err(), "a residual stream of more tokens");
}

#[test]
fn a_stage_takes_the_batch_that_was_begun() {
    let mut device = device();
    let (mut kv, k, v) = (device.kv().unwrap(), device.act(TOKENS, 16).unwrap(), device.act(TOKENS, 16).unwrap());
    assert!(device.append(&batch(), &k, &v, &mut kv).is_err(), "nothing was begun");
    let mut x = device.residual(TOKENS).unwrap();
    device.begin(&batch(), None, &mut x).unwrap();
    device.append(&batch(), &k, &v, &mut kv).unwrap();
    let mut shorter = batch();
    shorter.tokens.pop();
    assert!(device.append(&shorter, &k, &v, &mut kv).is_err(), "another batch");
    let mut heads = device.act(TOKENS, 32).unwrap();
    device.load(&[1.0; 96], &mut heads).unwrap();
    device.rope(&batch(), 1, 2, &mut heads).unwrap();
    assert!(device.rope(&batch(), 2, 2, &mut heads).is_err(), "a rotation that the batch does not have");
    let mut y = device.act(TOKENS, 32).unwrap();
    assert!(device.attention(&batch(), Some(0), &heads, &kv, &mut y).is_err(), "a window without positions");
}

#[test]
fn vectors_are_f32_and_of_the_right_length() {
    let mut device = device();
    let buf = device.alloc("weights", 4096).unwrap();
    device.write(&buf, 0, &[0; 4096]).unwrap();
    let tensor = |ty, rows, cols| Tensor { buf: buf.clone(), offset: 0, ty, rows, cols };
    let (mut x, mut y) = (device.act(TOKENS, 32).unwrap(), device.act(TOKENS, 32).unwrap());
    device.load(&[1.0; 96], &mut x).unwrap();
    device.rms_norm(&tensor(TensorType::F32, 1, 32), TOKENS, &x, &mut y, Epilogue::Store).unwrap();
    assert!(device.rms_norm(&tensor(TensorType::F16, 1, 32), TOKENS, &x, &mut y, Epilogue::Store).is_err(), "halves");

    let linear = |bias| Linear { weight: tensor(TensorType::Q8_0, 8, 32), bias: Some(bias) };
    let mut product = |bias| device.matmul(&linear(bias), 1, &x, &mut y, Epilogue::Store);
    product(tensor(TensorType::F32, 1, 8)).unwrap();
    assert!(product(tensor(TensorType::F32, 1, 7)).is_err(), "a bias that is too short");
    assert!(product(tensor(TensorType::F16, 1, 8)).is_err(), "a bias of halves");
}
