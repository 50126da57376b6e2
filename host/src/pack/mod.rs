//! How weights lie in memory.
//!
//! An [`Image`] is a group of tensors (a layer, the head) as one run of bytes, cut into segments. It is what a device
//! buffer, a RAM tier or a drive holds; only this module and the kernels know what is inside. Today the layout of a matrix
//! is GGUF's own: rows of blocks, one after the other.

use std::{ops::Range, sync::Arc};

use quant::TensorType;

use crate::{
    device::{SharedBytes, Tensor, Transfer},
    gguf::{Gguf, GgufError, TensorInfo},
};

/// Where tensors start in an image: a multiple of this, in bytes. It suits 16-byte loads and a GPU's 128-byte lines.
pub const TENSOR_ALIGN: usize = 256;

/// What a segment's length is a multiple of: a page, so that any of them can be the target of a direct read.
pub const SEGMENT_ALIGN: usize = 4096;

/// The longest segment. Copies of 16 MiB already run at the link's full speed; 64 keeps the number of copies small.
pub const SEGMENT_BYTES: usize = 64 << 20;

/// A tensor of a model file, by its index in `Gguf::tensors()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TensorId(pub usize);

/// A tensor's place in an image.
#[derive(Clone, Debug)]
pub struct Placed {
    id: TensorId,
    ty: TensorType,
    rows: usize,
    cols: usize,
    range: Range<usize>,
}

/// A group of tensors as one run of bytes.
#[derive(Clone, Debug)]
pub struct Image {
    name: String,
    tensors: Vec<Placed>,
    bytes: usize,
}

impl Image {
    /// Lays the tensors `ids` of `gguf` out one after the other. Vectors become F32, the type that every kernel reads them
    /// in; matrices keep their type.
    ///
    /// # Errors
    /// When a tensor's type is not one that this engine computes with.
    pub fn new(name: String, gguf: &Gguf, ids: &[TensorId]) -> Result<Self, GgufError> {
        let (mut tensors, mut bytes) = (Vec::<Placed>::with_capacity(ids.len()), 0usize);
        for &id in ids {
            let info = &gguf.tensors()[id.0];
            let stored = gguf.supported_type(info)?;
            let (rows, cols) = (info.rows() as usize, info.cols() as usize);
            let ty = if rows == 1 { TensorType::F32 } else { stored };
            let len = if ty == stored { info.bytes as usize } else { cols * size_of::<f32>() };
            let start = bytes.next_multiple_of(TENSOR_ALIGN);
            bytes = start + len;
            tensors.push(Placed { id, ty, rows, cols, range: start..bytes });
        }
        Ok(Image { name, tensors, bytes: bytes.next_multiple_of(SEGMENT_ALIGN) })
    }

    /// For messages, e.g. `layer 3`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Length in bytes, a multiple of [`SEGMENT_ALIGN`].
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The image's segments in order, each a multiple of [`SEGMENT_ALIGN`] long.
    pub fn segments(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        (0..self.bytes).step_by(SEGMENT_BYTES).map(|start| start..self.bytes.min(start + SEGMENT_BYTES))
    }

    /// The tensor `id` of this image, as a view of the buffer that holds the image at its start.
    pub fn view<B: Clone>(&self, id: TensorId, buf: &B) -> Tensor<B> {
        let placed = self.tensors.iter().find(|t| t.id == id).expect("an image is asked for its own tensors");
        placed.view(buf.clone(), placed.range.start)
    }

    /// Calls `sink` with each tensor's bytes and their offset in the image.
    ///
    /// # Errors
    /// Those of `sink`.
    pub fn fill<E>(&self, gguf: &Gguf, mut sink: impl FnMut(usize, &[u8]) -> Result<(), E>) -> Result<(), E> {
        for placed in &self.tensors {
            let info = &gguf.tensors()[placed.id.0];
            match placed.convert(gguf, info) {
                Some(floats) => sink(placed.range.start, &floats)?,
                None => sink(placed.range.start, gguf.bytes(info))?,
            }
        }
        Ok(())
    }

    /// Views of the tensors where they are in the model file, on a device that computes there; the few that need converting
    /// get memory of their own.
    ///
    /// # Errors
    /// Those of the device.
    pub fn share<D: Transfer>(
        &self,
        gguf: &Arc<Gguf>,
        dev: &D,
    ) -> Result<Option<Vec<(TensorId, Tensor<D::Buf>)>>, crate::device::DeviceError> {
        let mut views = Vec::with_capacity(self.tensors.len());
        for placed in &self.tensors {
            let info = &gguf.tensors()[placed.id.0];
            let buf = match placed.convert(gguf, info) {
                Some(floats) => {
                    let buf = dev.alloc(&info.name, floats.len())?;
                    dev.write(&buf, 0, &floats)?;
                    buf
                }
                None => {
                    let start = gguf.tensor_file_offset(info) as usize;
                    let Some(bytes) = SharedBytes::new(gguf.clone(), start, start + info.bytes as usize) else {
                        return Ok(None);
                    };
                    let Some(buf) = dev.share(bytes) else { return Ok(None) };
                    buf
                }
            };
            views.push((placed.id, placed.view(buf, 0)));
        }
        Ok(Some(views))
    }
}

impl Placed {
    fn view<B>(&self, buf: B, offset: usize) -> Tensor<B> {
        Tensor { buf, offset, ty: self.ty, rows: self.rows, cols: self.cols }
    }

    /// The tensor's bytes in its image's type, where that is not the file's.
    fn convert(&self, gguf: &Gguf, info: &TensorInfo) -> Option<Vec<u8>> {
        let stored = gguf.supported_type(info).ok().filter(|&stored| stored != self.ty)?;
        let mut floats = vec![0.0f32; self.cols];
        quant::decode_row(stored, gguf.bytes(info), &mut floats).expect("the reader checked the tensor's length");
        Some(floats.iter().flat_map(|f| f.to_le_bytes()).collect())
    }
}
