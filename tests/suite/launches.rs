//! How the kernels of a pass are launched: which run beside each other, how they share a GPU, and which are clusters.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use cuda_std::kernel::Grid;
use gpu::{
    attention,
    gemv::{self, APART, BESIDE, OVERLAPPING, Room, Share, WeightKernels, WeightVisitor},
};
use ntransformer::{
    cli::synth::{Quant, Shape},
    device::{
        Attn, Batch, Device, Dims, Linear, Tensor, Transfer,
        cuda::{
            CudaDevice,
            driver::{Driver, Properties},
            emulator::EmulatorDriver,
        },
    },
    engine::{DeviceChoice, LoadOptions, Runner, Session},
    gguf::{Gguf, Value, Writer},
    model::Model,
};
use quant::TensorType::{self, Q4_K, Q5_K, Q6_K};

use super::{
    models,
    replay::{PASSES, Recorder, golden},
    synth,
};

/// A launch as a [`Recorder`] sees it, recorded or not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    pub kernel: &'static str,
    pub grid: Grid,
    /// Of a product: [`gemv::Product::overlap`].
    pub overlap: Option<u32>,
}

/// What a [`Recorder`] has launched, in order.
pub type Log = Rc<RefCell<Vec<Seen>>>;

/// An H100's or H200's.
fn large() -> Properties {
    Properties {
        multiprocessors: 132,
        shared_per_block: 227 << 10,
        shared_per_multiprocessor: 228 << 10,
        ..*EmulatorDriver::new(0).properties()
    }
}

/// The grid of a product of one token with a norm.
struct Expected {
    room: Room,
    groups: usize,
    cols: usize,
}

impl WeightVisitor for Expected {
    type Out = Grid;

    fn visit<F: WeightKernels>(self) -> Grid {
        let Expected { room, groups, cols } = self;
        gemv::launch::<F::Weights>(room, groups as u32, cols as u32, 1, 1, true).expect("it fits").grid
    }
}

/// The products that queries, keys and values of these types take, in a model as wide as `hidden`: each one's overlap and grid.
fn projections(types: [TensorType; 3], hidden: usize, dependent: bool) -> (Dims, Vec<(Option<u32>, Grid)>) {
    let recorder = Recorder::over(EmulatorDriver::with_properties(0, large())).0.with_dependent_launch(dependent);
    let log = recorder.log();
    let mut dev = CudaDevice::new(recorder);
    let tiny = Model::new(synth::model(Shape::Tiny, Quant::pure(TensorType::Q4_0), 0), None, 64).unwrap();
    let dims = Dims { hidden, ..tiny.config.dims };
    dev.prepare(&dims, 1).unwrap();
    let tensor = |ty: TensorType, rows: usize, cols: usize| {
        let bytes = rows * ty.row_bytes(cols).unwrap();
        let buf = dev.alloc("weights", bytes).unwrap();
        dev.write(&buf, 0, &vec![0; bytes]).unwrap();
        Tensor { buf, offset: 0, ty, rows, cols }
    };
    let linear = |ty, rows, cols| Linear { weight: tensor(ty, rows, cols), bias: None };
    let weights = Attn {
        norm: tensor(TensorType::F32, 1, hidden),
        q: linear(types[0], dims.q_width(), hidden),
        k: linear(types[1], dims.kv_width(), hidden),
        v: linear(types[2], dims.kv_width(), hidden),
        q_norm: None,
        k_norm: None,
        out: linear(Q4_K, 1, 256),
        post_norm: None,
        q_rotation: 0,
        k_rotation: 0,
        window: None,
    };
    let (mut x, mut q, mut kv) = (dev.residual(1).unwrap(), dev.act(1, dims.q_width()).unwrap(), dev.kv().unwrap());
    dev.load(&vec![1.0; hidden], &mut x).unwrap();
    log.borrow_mut().clear();
    let batch = Batch { tokens: vec![0], positions: vec![0], ..Batch::default() };
    dev.qkv(&weights, &x, &batch, &mut kv, &mut q).unwrap();
    let found = log.borrow().iter().map(|seen| (seen.overlap, seen.grid)).collect();
    (dims, found)
}

/// In a wide model products are apart, and those of an x that another product has come first for are beside that one, in what room it
/// leaves; in a narrow one, or where no kernel starts before another's end, they take turns.
#[test]
fn products_of_the_same_x_are_beside_each_other() {
    let wide = [APART, BESIDE, BESIDE].into_iter().zip([Share::Whole, Share::Small, Share::Small]);
    let turns = [OVERLAPPING; 3].into_iter().zip([Share::Small, Share::Large, Share::Small]);
    let (wide, turns): (Vec<_>, Vec<_>) = (wide.collect(), turns.collect());
    // 4096 and 8192 are those that were measured.
    let ways = [(8192, true, wide), (4096, true, turns.clone()), (2048, true, turns.clone()), (8192, false, turns)];
    for (hidden, dependent, way) in ways {
        for (types, together) in [
            ([Q4_K, Q4_K, Q6_K], &[&[0, 1][..], &[2]][..]),
            ([Q4_K, Q5_K, Q6_K], &[&[0], &[1], &[2]]),
            ([Q6_K, Q4_K, Q6_K], &[&[0, 2], &[1]]),
            ([Q4_K; 3], &[&[0, 1, 2]]),
        ] {
            let (dims, found) = projections(types, hidden, dependent);
            let rows = [dims.q_width(), dims.kv_width(), dims.kv_width()];
            let expected: Vec<_> = together
                .iter()
                .zip(&way)
                .map(|(matrices, &(overlap, share))| {
                    let groups = matrices.iter().map(|&m| rows[m].div_ceil(gemv::ROWS)).sum();
                    let launch = Expected { room: large().room(share), groups, cols: hidden };
                    (Some(overlap), gemv::visit(types[matrices[0]], launch))
                })
                .collect();
            assert_eq!(found, expected, "{types:?}, {hidden} columns, dependent launches: {dependent}");
        }
    }
}

/// The model, said to be trained for `context` tokens.
fn with_context(gguf: &Gguf, context: u32) -> Arc<Gguf> {
    let mut writer = Writer::new();
    for (key, value) in gguf.metadata().iter() {
        let value = if key.ends_with(".context_length") { Value::U32(context) } else { value };
        writer.set_value(key, value).unwrap();
    }
    for tensor in gguf.tensors() {
        writer.tensor(&tensor.name, &tensor.dims, gguf.supported_type(tensor).unwrap()).unwrap();
    }
    let mut data = writer.begin(Vec::new()).unwrap();
    gguf.tensors().iter().for_each(|tensor| data.write(gguf.bytes(tensor)).unwrap());
    Arc::new(Gguf::from_vec("a long context", data.finish().unwrap()).unwrap())
}

/// A model on an emulated GPU of 16 multiprocessors with clusters of up to `cluster` blocks, and what it launches.
fn session(gguf: &Arc<Gguf>, context: usize, cluster: u32, numbers: bool) -> (Session<CudaDevice<Recorder>>, Log) {
    let properties = Properties { multiprocessors: 16, cluster, ..*EmulatorDriver::new(0).properties() };
    let recorder = Recorder::over(EmulatorDriver::with_properties(0, properties)).0;
    let recorder = if numbers { recorder.with_numbers() } else { recorder };
    let (log, model) = (recorder.log(), Model::new(gguf.clone(), Some(context), context).unwrap());
    let options = LoadOptions { wanted: 2, ..Default::default() };
    (Session::load(CudaDevice::new(recorder), model, &options, &mut |_| ()).unwrap(), log)
}

/// The clusters of attention's launches over the cache.
fn clusters(log: &Log) -> Vec<[u32; 3]> {
    let decodes = |seen: &&Seen| seen.kernel.starts_with("attention_decode_");
    log.borrow().iter().filter(decodes).map(|seen| seen.grid.cluster).collect()
}

/// A GPU of as many multiprocessors as the models' attention has use for computes what the CPU does, in clusters of blocks.
#[test]
fn attention_in_clusters_is_right() {
    // Of one, two and one KV heads: blocks on 16 multiprocessors, in clusters of eight at most.
    for name in ["llama-head-dim", "llama-gqa-tied", "gemma2"] {
        let gguf = golden(name);
        let (mut session, log) = session(&gguf, 64, 8, false);
        let found = models::logits_of_passes(&mut session, PASSES);
        let expected = models::logits_of_passes(&mut *models::open(DeviceChoice::Cpu, &gguf, None), PASSES);
        let apart = models::difference(&found, &expected);
        assert!(apart < models::ROUNDING, "{name}: {apart:e}");
        // Computed and recorded, in two layers each.
        assert_eq!(clusters(&log), [[1, 8, 1]; 4], "{name}");
    }
}

/// Up to [`attention::SHORT`] positions before the token's, attention's blocks are clusters; beyond, they are not, and what was recorded
/// of the one is not replayed for the other. The positions before are those that happen to be in memory.
#[test]
fn attention_of_few_positions_is_in_clusters() {
    const CONTEXT: usize = attention::SHORT as usize + 12;
    let short = attention::SHORT as usize;
    let gguf = with_context(&golden("llama-gqa-tied"), CONTEXT as u32);
    let ((mut session, log), (mut without, none)) =
        (session(&gguf, CONTEXT, 8, true), session(&gguf, CONTEXT, 1, true));
    for position in short - 2..short + 5 {
        log.borrow_mut().clear();
        for session in [&mut session, &mut without] {
            session.pass(&[position as u32 % 100], position, 1).unwrap();
        }
        let apart = models::difference(&session.logits().unwrap(), &without.logits().unwrap());
        assert!(apart < models::ROUNDING, "position {position}: {apart:e}");
        // Two layers: computed, recorded, and then replayed, of either kind.
        let expected = match position {
            _ if position < short => vec![[1, 8, 1]; 2],
            _ if position == short + 1 || position == short + 2 => vec![[1, 1, 1]; 2],
            _ => vec![],
        };
        assert_eq!(clusters(&log), expected, "position {position}");
    }
    assert!(clusters(&none).iter().all(|&cluster| cluster == [1, 1, 1]));
}
