//! Tensor infos: name, shape, type and place of each tensor.

use super::{GgufFault, cursor::Cursor};
use quant::TensorType;
use std::fmt;

/// GGUF allows names of at most 64 bytes.
const MAX_NAME: u64 = 64;
/// GGUF allows at most 4 dimensions.
const MAX_DIMS: u32 = 4;

/// ggml's types that the engine does not compute with: id, name, elements in a block, bytes of a block.
const OTHER_TYPES: &[(u32, &str, u64, u64)] = &[
    (9, "Q8_1", 32, 40),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
];

/// A tensor's type as the file states it (`ggml_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GgmlType {
    /// A type that the engine computes with.
    Supported(TensorType),
    /// Any other, by its id: such a tensor can be listed, not computed with.
    Other(u32),
}

impl GgmlType {
    /// The type with this `ggml_type` id.
    pub fn from_id(id: u32) -> Self {
        TensorType::from_ggml(id).map_or(Self::Other(id), Self::Supported)
    }

    /// The `ggml_type` id.
    pub fn id(self) -> u32 {
        match self {
            Self::Supported(ty) => ty.ggml_id(),
            Self::Other(id) => id,
        }
    }

    /// Elements and bytes of a block; `None` for an id that ggml had not given out when this was written.
    fn block(self) -> Option<(u64, u64)> {
        match self {
            Self::Supported(ty) => Some((ty.block_elems() as u64, ty.block_bytes() as u64)),
            Self::Other(id) => OTHER_TYPES.iter().find(|row| row.0 == id).map(|&(_, _, elems, bytes)| (elems, bytes)),
        }
    }
}

impl From<TensorType> for GgmlType {
    fn from(ty: TensorType) -> Self {
        Self::Supported(ty)
    }
}

/// The type's usual name, such as `Q4_K`; `type 77` for an unknown one.
impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Supported(ty) => f.pad(ty.name()),
            Self::Other(id) => match OTHER_TYPES.iter().find(|row| row.0 == *id) {
                Some((_, name, ..)) => f.pad(name),
                None => f.pad(&format!("type {id}")),
            },
        }
    }
}

/// The supported types' names, for messages.
pub(super) fn supported_names() -> String {
    TensorType::ALL.iter().map(|ty| ty.name()).collect::<Vec<_>>().join(" ")
}

/// A tensor of a GGUF file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// The name, such as `blk.0.attn_q.weight`; unique in the file.
    pub name: String,
    /// The shape in ggml's order: `dims[0]` is the length of a row, in elements. One to four, none of them 0.
    pub dims: Vec<u64>,
    /// The type.
    pub ty: GgmlType,
    /// The file that holds the data, by its index in [`super::Gguf::parts`]; 0 unless the model is split.
    pub part: usize,
    /// Where the data starts, in bytes from the start of that file's data section.
    pub offset: u64,
    /// The data's size in bytes. For a type of unknown block size: all bytes up to the next tensor or the file's end.
    pub bytes: u64,
}

impl TensorInfo {
    /// The length of a row, in elements.
    pub fn cols(&self) -> u64 {
        self.dims[0]
    }

    /// The number of rows: the product of all dimensions but the first.
    pub fn rows(&self) -> u64 {
        self.dims[1..].iter().product()
    }

    /// The number of elements.
    pub fn elems(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Describes a tensor whose data starts at `offset`; `bytes` is 0 where the type's block size is unknown.
    pub(super) fn new(name: &str, dims: &[u64], ty: GgmlType, offset: u64) -> Result<Self, GgufFault> {
        let (tensor, dims) = (name.to_owned(), dims.to_vec());
        if dims.is_empty() || dims.len() > MAX_DIMS as usize {
            return Err(GgufFault::Dimensions { tensor, count: dims.len() as u32 });
        }
        if let Some(index) = dims.iter().position(|&dim| dim == 0) {
            return Err(GgufFault::ZeroDimension { tensor, index, dims });
        }
        let elems = dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
        let Some(elems) = elems else { return Err(GgufFault::TensorTooLarge { tensor, dims }) };
        let bytes = match ty.block() {
            None => 0,
            Some((block, _)) if !dims[0].is_multiple_of(block) => {
                return Err(GgufFault::PartialBlock { tensor, ty, cols: dims[0], block });
            }
            Some((block, block_bytes)) => match (elems / block).checked_mul(block_bytes) {
                Some(bytes) => bytes,
                None => return Err(GgufFault::TensorTooLarge { tensor, dims }),
            },
        };
        Ok(Self { name: tensor, dims, ty, part: 0, offset, bytes })
    }

    /// Reads one info: name, dimensions, type, offset.
    pub(super) fn read(cur: &mut Cursor<'_>) -> Result<Self, GgufFault> {
        let name = cur.name(MAX_NAME, "a tensor's name")?;
        let count = cur.u32("a tensor's number of dimensions")?;
        if count > MAX_DIMS {
            return Err(GgufFault::Dimensions { tensor: name.to_owned(), count });
        }
        let dims = (0..count).map(|_| cur.u64("a tensor's dimension")).collect::<Result<Vec<_>, _>>()?;
        let ty = GgmlType::from_id(cur.u32("a tensor's type")?);
        let offset = cur.u64("a tensor's offset")?;
        Self::new(name, &dims, ty, offset)
    }

    /// Checks that the data lies inside the file's data section, which starts at `data_start` of a file of `len` bytes.
    pub(super) fn check_place(&self, data_start: u64, len: u64, alignment: u64) -> Result<(), GgufFault> {
        if !self.offset.is_multiple_of(alignment) {
            let tensor = self.name.clone();
            return Err(GgufFault::Misaligned { tensor, offset: self.offset, alignment });
        }
        let start = data_start.saturating_add(self.offset);
        let end = start.saturating_add(self.bytes);
        if end > len {
            return Err(GgufFault::TensorTruncated { tensor: self.name.clone(), start, end, len });
        }
        Ok(())
    }

    /// Whether the type's block size is unknown, so that [`Self::bytes`] is only a bound.
    pub(super) fn size_unknown(&self) -> bool {
        self.ty.block().is_none()
    }
}
