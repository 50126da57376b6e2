//! From images to weights on a device.

use crate::{
    device::{DeviceError, SharedBytes, Tensor, Transfer, Weight},
    gguf::Gguf,
    pack::{Image, Placed, TensorId},
};

/// Told of bytes that were loaded, in portions. One of 0 begins it; once more, if a new plan is carried out.
pub type Progress<'a> = &'a mut dyn FnMut(u64);

/// The tensors of one image on a device.
pub(super) struct Views<B> {
    pub tensors: Vec<(TensorId, Tensor<B>)>,
    /// Device memory that was taken for them.
    pub bytes: u64,
    /// The memory, if it has to be filled.
    pub buf: Option<B>,
}

/// The tensor at `offset` in `buf`.
pub(super) fn view<B>(placed: &Placed, buf: B, offset: usize) -> Tensor<B> {
    Tensor { buf, offset, ty: placed.ty, rows: placed.rows, cols: placed.cols }
}

/// Takes device memory for `image`, to stay, or finds it in the model file's map where the device computes there.
pub(super) fn place<D: Transfer>(dev: &D, gguf: &Gguf, image: &Image) -> Result<Views<D::Buf>, DeviceError> {
    if dev.in_place() {
        let tensors = image.tensors().iter().map(|placed| share(dev, gguf, placed)).collect::<Result<_, _>>()?;
        return Ok(Views { tensors, bytes: 0, buf: None });
    }
    let buf = dev.alloc(image.name(), image.bytes())?;
    let tensors = image.tensors().iter().map(|t| (t.id, view(t, buf.clone(), t.range.start))).collect();
    Ok(Views { tensors, bytes: image.bytes() as u64, buf: Some(buf) })
}

/// A tensor where the file's map has it. One that needs converting gets memory of its own: those are a few vectors.
fn share<D: Transfer>(dev: &D, gguf: &Gguf, placed: &Placed) -> Result<(TensorId, Weight<D>), DeviceError> {
    let Some((part, range)) = placed.file_range(gguf) else {
        let data = placed.data(gguf);
        let buf = dev.alloc("a converted tensor", data.len())?;
        dev.write(&buf, 0, &data)?;
        return Ok((placed.id, view(placed, buf, 0)));
    };
    let bytes = SharedBytes::new(part, range.start, range.end).expect("the reader checked the tensor's place");
    Ok((placed.id, view(placed, dev.share(bytes)?, 0)))
}
