//! What a pass starts from, in device memory: one block, which one copy fills.

use std::rc::Rc;

use gpu::attention;

use super::{Driver, bytes_of, fused::Attention, sample::Choice};
use crate::device::{Batch, DeviceError, Dims, Result};

/// What the parts of the block are aligned to, in bytes: kernels may read 16 at once.
const ALIGN: usize = 16;

/// Where the parts of the block are for a pass over `n` tokens, in bytes. The residual stream is first, `[n x hidden]`: it is
/// in the same place for every `n`, so the block is where it stays during the pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// `[n]` u32 each.
    pub tokens: usize,
    pub positions: usize,
    pub want: usize,
    /// `[rotations x n x rope_dims / 2]` f32 each, one rotation after the other.
    pub cos: usize,
    pub sin: usize,
    pub end: usize,
}

impl Layout {
    fn new(dims: &Dims, n: usize) -> Self {
        let mut end = 0;
        let mut part = |elements: usize| {
            let start = end;
            end += (elements * 4).next_multiple_of(ALIGN);
            start
        };
        part(n * dims.hidden);
        let angles = dims.rotations * n * (dims.rope_dims / 2);
        let [tokens, positions, want] = [(); 3].map(|()| part(n));
        let [cos, sin] = [(); 2].map(|()| part(angles));
        Layout { tokens, positions, want, cos, sin, end }
    }
}

/// The block, and what it holds at present.
pub(super) struct Pass<D: Driver> {
    pub dims: Dims,
    pub block: Rc<D::Mem>,
    pub max_tokens: usize,
    pub choice: Choice<D::Mem>,
    pub attention: Attention<D>,
    /// What the block becomes, before it is copied.
    host: Vec<u8>,
    layout: Layout,
    /// Tokens of the batch that the block holds, and how many of them are wanted.
    begun: (usize, usize),
    /// As [`Pass::is_short`].
    short: bool,
}

impl<D: Driver> Pass<D> {
    /// Room for passes of up to `max_tokens` tokens.
    pub fn new(driver: &D, dims: &Dims, max_tokens: usize) -> Result<Self> {
        let bytes = Layout::new(dims, max_tokens).end;
        Ok(Pass {
            dims: dims.clone(),
            block: Rc::new(driver.alloc("what a pass starts from", bytes.max(ALIGN))?),
            max_tokens,
            choice: Choice::new(driver, dims, max_tokens)?,
            attention: Attention::new(driver, dims)?,
            host: Vec::new(),
            layout: Layout::default(),
            begun: (0, 0),
            short: false,
        })
    }

    /// Checks all that kernels will trust: ids, positions and indices inside their ranges, one of each per token.
    fn check(&self, batch: &Batch) -> Result<()> {
        let (dims, n) = (&self.dims, batch.len());
        let below = |values: &[u32], limit: usize| values.iter().all(|&v| (v as usize) < limit);
        let angles = n * (dims.rope_dims / 2);
        let lengths = n <= self.max_tokens
            && batch.want.len() <= n
            && (batch.positions.len(), batch.rotations.len()) == (n, dims.rotations)
            && batch.rotations.iter().all(|r| (r.cos.len(), r.sin.len()) == (angles, angles));
        let ranges = below(&batch.tokens, dims.vocab) && below(&batch.positions, dims.context) && below(&batch.want, n);
        if lengths && ranges {
            return Ok(());
        }
        Err(DeviceError::Unsupported("a batch whose tokens, positions or rows are out of range".into()))
    }

    /// Brings the batch to the device, and the residual stream's first values where they are given: in one copy.
    pub fn begin(&mut self, driver: &D, batch: &Batch, embeddings: Option<&[f32]>) -> Result<()> {
        self.begun = (0, 0);
        self.check(batch)?;
        let layout = Layout::new(&self.dims, batch.len());
        self.host.clear();
        self.host.resize(layout.end, 0);
        let mut put = |at: usize, bytes: &[u8]| self.host[at..at + bytes.len()].copy_from_slice(bytes);
        if let Some(values) = embeddings {
            if values.len() != batch.len() * self.dims.hidden {
                let (found, n) = (values.len(), batch.len());
                return Err(DeviceError::Unsupported(format!("{found} numbers as the embeddings of {n} tokens")));
            }
            put(0, bytes_of(values));
        }
        put(layout.tokens, bytes_of(&batch.tokens));
        put(layout.positions, bytes_of(&batch.positions));
        put(layout.want, bytes_of(&batch.want));
        for (i, rotation) in batch.rotations.iter().enumerate() {
            let before = i * size_of_val(&rotation.cos[..]);
            put(layout.cos + before, bytes_of(&rotation.cos));
            put(layout.sin + before, bytes_of(&rotation.sin));
        }
        let start = if embeddings.is_some() { 0 } else { layout.tokens };
        driver.write(&self.block, start, &self.host[start..])?;
        self.layout = layout;
        self.begun = (batch.len(), batch.want.len());
        self.short = self.attention.has_short() && batch.positions.iter().all(|&position| position <= attention::SHORT);
        Ok(())
    }

    /// Whether attention is launched in another way, where there is one: none of the batch's positions is beyond [`attention::SHORT`].
    pub fn is_short(&self) -> bool {
        self.short
    }

    /// What the block holds, after checking that it was filled for a batch of as many tokens.
    pub fn begun(&self, batch: &Batch) -> Result<Inputs> {
        if self.begun != (batch.len(), batch.want.len()) {
            return Err(DeviceError::Unsupported("a stage of another batch than the one that was begun".into()));
        }
        let start = D::address(&self.block);
        let u32s = |at: usize| (start + at as u64) as *const u32;
        let f32s = |at: usize| (start + at as u64) as *const f32;
        let Layout { tokens, positions, want, cos, sin, .. } = self.layout;
        Ok(Inputs {
            tokens: u32s(tokens),
            positions: u32s(positions),
            want: u32s(want),
            cos: f32s(cos),
            sin: f32s(sin),
            angles: batch.len() * (self.dims.rope_dims / 2),
            rotations: self.dims.rotations,
        })
    }
}

/// Device addresses of what a pass starts from.
pub(super) struct Inputs {
    /// `[n]` each.
    pub tokens: *const u32,
    pub positions: *const u32,
    pub want: *const u32,
    cos: *const f32,
    sin: *const f32,
    /// Angles of one rotation.
    angles: usize,
    rotations: usize,
}

impl Inputs {
    /// Cosines and sines of rotation `index`, `[n x rope_dims / 2]` each.
    pub fn rotation(&self, index: usize) -> Result<(*const f32, *const f32)> {
        if index >= self.rotations {
            return Err(DeviceError::Unsupported(format!("rotation {index} of a batch with {}", self.rotations)));
        }
        Ok((self.cos.wrapping_add(index * self.angles), self.sin.wrapping_add(index * self.angles)))
    }
}
