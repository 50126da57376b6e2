//! What is read once: weights that stay on the device, and RAM that every pass copies from.

use std::{borrow::Cow, ops::Range, sync::Arc};

use readahead::{Input, Options, Piece, ReadError, Target};

use super::{
    lent::Lent,
    place::{Progress, view},
    reads::Reading,
    staging::{LOADING, Staging},
};
use crate::{
    device::{Device, DeviceError, Transfer, Weight},
    gguf::Part,
    model::Model,
    pack::{Image, Placed, TensorId},
};

/// The model's files, to read from.
pub(super) fn inputs(model: &Model) -> Result<Vec<Input>, DeviceError> {
    let input = |part: &Arc<Part>| {
        let opened = part.path().zip(part.file());
        let (path, file) =
            opened.ok_or_else(|| DeviceError::Unsupported(format!("{} is in memory, not in a file", part.name())))?;
        let file = file.try_clone().map_err(|e| DeviceError::Unsupported(format!("{}: {e}", part.name())))?;
        Ok(Input { path: path.to_owned(), file })
    };
    model.gguf.parts().iter().map(input).collect()
}

/// The file, as an index into the model's, and the range in it that hold a matrix.
pub(super) fn in_file(model: &Model, placed: &Placed) -> (usize, Range<usize>) {
    let (_, range) = placed.file_range(&model.gguf).expect("matrices lie in the file as they are");
    (model.gguf.tensors()[placed.id.0].part, range)
}

/// Device memory that is to hold a tensor.
pub(super) struct Resident<B> {
    pub group: usize,
    pub placed: Placed,
    pub buf: B,
}

/// Brings all of `residents` to the device. Matrices go through page-locked buffers: threads read into those that are free while the link
/// copies from others, and none waits for another.
///
/// # Errors
/// The device's and those of reading, with the group; [`DeviceError::Cancelled`].
pub(super) fn fill_device<D: Transfer>(
    dev: &D,
    model: &Model,
    residents: Vec<Resident<D::Buf>>,
    reading: &Reading<'_>,
    progress: Progress<'_>,
) -> Result<(), DeviceError> {
    let files = model.gguf.in_files();
    let (read, rest): (Vec<_>, Vec<_>) = residents.into_iter().partition(|it| files && it.placed.rows > 1);
    for Resident { group, placed, buf } in rest {
        reading.wanted()?;
        // Not by way of the file's map, which ends the process where the file was truncated.
        let bytes = if files { placed.read(&model.gguf).map(Cow::Owned) } else { Ok(placed.data(&model.gguf)) };
        let bytes = bytes.map_err(|e| DeviceError::Source(e.into()));
        let written = bytes.and_then(|bytes| dev.write(&buf, placed.range.start, &bytes));
        written.map_err(|e| e.in_group(group, model.config.layers))?;
        progress(placed.range.len() as u64);
    }
    if read.is_empty() {
        return Ok(());
    }
    let (mut pieces, mut places) = (Vec::new(), Vec::new());
    for (index, it) in read.iter().enumerate() {
        let (file, range) = in_file(model, &it.placed);
        for piece in Piece::cut(file, range.start as u64, range.len() as u64, LOADING.piece) {
            places.push((index, it.placed.range.start + piece.offset as usize - range.start));
            pieces.push(piece);
        }
    }
    let lengths: Vec<u64> = pieces.iter().map(|piece| piece.len as u64).collect();
    // By way of the page cache, so that the next start finds it there.
    let source = reading.reads.once(inputs(model)?, true)?;
    let options = Options { once: true, ..reading.reads.options() };
    let bytes = LOADING.bytes().min(lengths.iter().sum());
    let mut staging = Staging::start(dev, source, pieces, bytes, options, reading.cancel.clone())?;
    let mut end = None;
    for (piece, (index, offset)) in places.into_iter().enumerate() {
        reading.wanted()?;
        let Resident { group, buf, .. } = &read[index];
        let copied = staging.upload(dev, piece, true, buf, offset, None);
        end = copied.map_err(|e| e.in_group(*group, model.config.layers))?;
        progress(lengths[piece]);
    }
    end.map_or(Ok(()), |end| dev.host_waits(&end))
}

/// Page-locked memory of groups, and what belongs there.
pub(super) struct Rams<P> {
    memory: Vec<P>,
    images: Vec<(usize, Image)>,
}

impl<P> Default for Rams<P> {
    fn default() -> Self {
        Rams { memory: Vec::new(), images: Vec::new() }
    }
}

impl<P: AsMut<[u8]>> Rams<P> {
    /// Its number.
    pub fn add(&mut self, memory: P, group: usize, image: &Image) -> usize {
        self.memory.push(memory);
        self.images.push((group, image.clone()));
        self.memory.len() - 1
    }

    /// Their tensors, where the device reads them over the link.
    ///
    /// # Errors
    /// Those of [`Rams::filled`], and the device's.
    pub fn zero_copied<D: Device<Pinned = P>>(
        self,
        dev: &D,
        model: &Model,
        reading: &Reading<'_>,
        progress: Progress<'_>,
    ) -> Result<Vec<(TensorId, Weight<D>)>, DeviceError> {
        let images = self.images.clone();
        let mut tensors = Vec::new();
        for (memory, (group, image)) in self.filled(model, reading, progress)?.into_iter().zip(&images) {
            let buf = dev.zero_copy(memory).map_err(|e| e.in_group(*group, model.config.layers))?;
            tensors.extend(image.tensors().iter().map(|t| (t.id, view(t, buf.clone(), t.range.start))));
        }
        Ok(tensors)
    }

    /// All of them, with what belongs there: read at full depth, past the page cache but for what that has.
    ///
    /// # Errors
    /// Those of reading, with the group; [`DeviceError::Cancelled`].
    pub fn filled(
        mut self,
        model: &Model,
        reading: &Reading<'_>,
        progress: Progress<'_>,
    ) -> Result<Vec<P>, DeviceError> {
        if !model.gguf.in_files() {
            for (memory, (_, image)) in self.memory.iter_mut().zip(&self.images) {
                for placed in image.tensors() {
                    reading.wanted()?;
                    memory.as_mut()[placed.range.clone()].copy_from_slice(&placed.data(&model.gguf));
                    progress(placed.range.len() as u64);
                }
            }
            return Ok(self.memory);
        }
        if self.memory.is_empty() {
            return Ok(self.memory);
        }
        let mut lent = Lent::new(self.memory);
        let mut targets = Vec::new();
        for (index, (_, image)) in self.images.iter().enumerate() {
            let ranges = image.tensors().iter().map(|placed| placed.range.clone());
            // SAFETY: page-locked memory does not move. The tensors of an image do not overlap, and nobody else has the memory before
            // all reads have come back.
            let lent = unsafe { lent.lend(index, AsMut::as_mut, ranges) };
            for (placed, dst) in image.tensors().iter().zip(lent) {
                let (file, range) = in_file(model, placed);
                targets.push(Target { file, offset: range.start as u64, dst });
            }
        }
        let source = reading.reads.once(inputs(model)?, false)?;
        let mut told = 0;
        let filled = readahead::fill(source, &targets, &reading.reads.options(), &reading.cancel, &mut |done| {
            if done > told {
                progress(done - told);
                told = done;
            }
        });
        drop(targets);
        let images = &self.images;
        filled.map_err(|e| match (group_of(model, images, &e), e) {
            (_, ReadError::Cancelled) => DeviceError::Cancelled,
            (Some(group), e) => DeviceError::from(e).in_group(group, model.config.layers),
            (None, e) => e.into(),
        })?;
        Ok(lent.into_inner())
    }
}

/// The group whose bytes could not be read.
fn group_of(model: &Model, images: &[(usize, Image)], error: &ReadError) -> Option<usize> {
    let (name, offset) = error.place()?;
    let holds = |placed: &Placed| {
        let (part, range) = placed.file_range(&model.gguf).expect("matrices lie in the file as they are");
        range.contains(&(offset as usize)) && part.path().is_some_and(|path| path.display().to_string() == name)
    };
    images.iter().find(|(_, image)| image.tensors().iter().any(holds)).map(|(group, _)| *group)
}
