//! How weights lie in memory.
//!
//! An [`Image`] is a group of tensors (a layer, the head) as one run of bytes. It is what a device
//! buffer or a RAM tier holds; only this module and the kernels know what is inside. Today the layout of a matrix
//! is GGUF's own: rows of blocks, one after the other. [`raw`] is how a whole model lies on a drive without a file system.

pub mod raw;

use std::{borrow::Cow, ops::Range, sync::Arc};

use quant::TensorType;

use crate::gguf::{Gguf, GgufError, Part};

/// Where tensors start in an image: a multiple of this, in bytes. It suits 16-byte loads and a GPU's 128-byte lines.
pub const TENSOR_ALIGN: usize = 256;

/// A tensor of a model file, by its index in `Gguf::tensors()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TensorId(pub usize);

/// A tensor, or some of its outputs: rows of a matrix, elements of a vector. Files may fuse matrices that share their input.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorPart {
    /// Which tensor.
    pub tensor: TensorId,
    /// The outputs; none: all of them.
    pub outputs: Option<Range<usize>>,
}

impl From<TensorId> for TensorPart {
    fn from(tensor: TensorId) -> Self {
        TensorPart { tensor, outputs: None }
    }
}

/// A tensor's place in an image.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Which tensor.
    pub id: TensorId,
    /// Its type in the image.
    pub ty: TensorType,
    /// Number of rows; 1 for a vector.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
    /// Its bytes in the image.
    pub range: Range<usize>,
    /// Its type in the file.
    stored: TensorType,
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
            tensors.push(Placed { id, ty, rows, cols, range: start..bytes, stored });
        }
        Ok(Image { name, tensors, bytes: bytes.next_multiple_of(TENSOR_ALIGN) })
    }

    /// For messages, e.g. `layer 3`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Length in bytes, a multiple of [`TENSOR_ALIGN`].
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of the tensors alone, without the gaps between them.
    pub fn tensor_bytes(&self) -> usize {
        self.tensors.iter().map(|tensor| tensor.range.len()).sum()
    }

    /// The tensors in the order of their places.
    pub fn tensors(&self) -> &[Placed] {
        &self.tensors
    }
}

impl Placed {
    /// The tensor's bytes as its image holds them.
    pub fn data<'a>(&self, gguf: &'a Gguf) -> Cow<'a, [u8]> {
        self.converted(Cow::Borrowed(gguf.bytes(&gguf.tensors()[self.id.0])))
    }

    /// The same, read from the file rather than from its map.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&self, gguf: &Gguf) -> Result<Vec<u8>, GgufError> {
        let info = &gguf.tensors()[self.id.0];
        let mut bytes = vec![0; info.bytes as usize];
        gguf.read(info, 0, &mut bytes)?;
        Ok(self.converted(Cow::Owned(bytes)).into_owned())
    }

    fn converted<'a>(&self, stored: Cow<'a, [u8]>) -> Cow<'a, [u8]> {
        if self.ty == self.stored {
            return stored;
        }
        let mut floats = vec![0.0f32; self.cols];
        quant::decode_row(self.stored, &stored, &mut floats).expect("the reader checked the tensor's length");
        Cow::Owned(floats.iter().flat_map(|f| f.to_le_bytes()).collect())
    }

    /// The file that holds these very bytes and their range in it, if there is one.
    pub fn file_range(&self, gguf: &Gguf) -> Option<(Arc<Part>, Range<usize>)> {
        let info = &gguf.tensors()[self.id.0];
        let start = gguf.tensor_file_offset(info) as usize;
        (self.ty == self.stored).then(|| (gguf.part(info).clone(), start..start + self.range.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Writer;

    /// Not by way of the map: to touch pages of it that are gone would end this process.
    #[test]
    fn what_is_read_is_read_from_the_file() {
        let mut writer = Writer::new();
        writer.tensor("plain", &[4], TensorType::F32).unwrap().tensor("half", &[4], TensorType::F16).unwrap();
        let mut data = writer.begin(Vec::new()).unwrap();
        data.write(&[1f32, 2.0, 3.0, 4.0].map(f32::to_le_bytes).concat()).unwrap();
        data.write(&[0x3c00u16, 0x4000, 0x4200, 0x4400].map(u16::to_le_bytes).concat()).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), data.finish().unwrap()).unwrap();

        let gguf = Gguf::open(file.path()).unwrap();
        let image = Image::new("vectors".into(), &gguf, &[TensorId(0), TensorId(1)]).unwrap();
        for placed in image.tensors() {
            assert_eq!(placed.read(&gguf).unwrap(), [1f32, 2.0, 3.0, 4.0].map(f32::to_le_bytes).concat());
            assert_eq!(placed.read(&gguf).unwrap(), *placed.data(&gguf));
        }
        file.as_file().set_len(0).unwrap();
        for (placed, name) in image.tensors().iter().zip(["plain", "half"]) {
            let message = placed.read(&gguf).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains("shorter since it was opened"), "{message}");
        }
    }
}
