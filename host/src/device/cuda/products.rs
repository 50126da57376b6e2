//! Products of matrices and activations: launches of `gpu::gemv`.

use cuda_std::kernel::Kernel;
use gpu::gemv::{self, Launch, Matrix, NONE, Product, Room, Share, WeightKernels, WeightVisitor, Weights};

use super::{CudaAct, CudaBuf, CudaDevice, count, driver::Driver};
use crate::device::{Activation, Device, DeviceError, Epilogue, Linear, Result, Tensor};

/// Matrices of a launch at most.
const MATRICES: usize = 3;

/// A matrix on the device, and where its product goes.
type Output<'a, D> = (&'a Linear<Tensor<CudaBuf<D>>>, &'a CudaAct<D>);

/// No matrix.
const NO_MATRIX: Matrix = Matrix { offset: 0, bias: NONE, y: std::ptr::null_mut(), rows: 0, reserved: 0 };

impl<D: Driver> CudaDevice<D> {
    /// y\[t\] = W x\[t\] + b for each of the `outputs` and `n` tokens, or added to y\[t\]; x goes through an RMSNorm where its
    /// weights are given. Matrices of one type share a launch.
    pub(super) fn multiply(
        &self,
        norm: Option<&Tensor<CudaBuf<D>>>,
        n: usize,
        x: &CudaAct<D>,
        outputs: &[Output<'_, D>],
        epilogue: Epilogue,
    ) -> Result<()> {
        let mut left = outputs.to_vec();
        // Products with a norm come after ones without, and the other way round.
        let mut turn = norm.is_none();
        let mut beside = false;
        while let Some((first, _)) = left.first().copied() {
            let ty = first.weight.ty;
            let (together, others): (Vec<_>, Vec<_>) = left.into_iter().partition(|(w, _)| w.weight.ty == ty);
            for outputs in together.chunks(MATRICES) {
                let mut product = self.product(norm, n, x, outputs)?;
                product.accumulate = u32::from(epilogue == Epilogue::Residual);
                let mut share = if n == 1 { self.share(turn) } else { turns(turn) };
                // A product of the same x runs beside the one before it: it depends on nothing else, and takes what room that left.
                if beside && product.overlap == gemv::APART && epilogue == Epilogue::Store {
                    (product.overlap, share) = (gemv::BESIDE, Share::Small);
                }
                beside = true;
                let launch = || gemv::visit(ty, Multiply { driver: &*self.driver, product, share });
                self.labelled(|| operand(outputs), launch)?;
                turn = !turn;
            }
            left = others;
        }
        Ok(())
    }

    /// Whether a token's kernels start with the ones before them, and not apart.
    pub(super) fn overlap(&self) -> bool {
        self.dims().hidden < gemv::WIDE || !self.driver.dependent_launch()
    }

    /// How a product of one token shares the multiprocessors.
    fn share(&self, large: bool) -> Share {
        if self.overlap() { turns(large) } else { Share::Whole }
    }

    /// y = activation(gate x + b) (up x + b) of one token, with matrices of one type; x goes through an RMSNorm.
    pub(super) fn gated(
        &self,
        norm: &Tensor<CudaBuf<D>>,
        x: &CudaAct<D>,
        gate: &Linear<Tensor<CudaBuf<D>>>,
        up: &Linear<Tensor<CudaBuf<D>>>,
        y: &CudaAct<D>,
    ) -> Result<()> {
        if (gate.weight.ty, gate.weight.rows) != (up.weight.ty, up.weight.rows) {
            return Err(DeviceError::Unsupported("a gate and an up projection that are not alike".into()));
        }
        let mut product = self.product(Some(norm), 1, x, &[(gate, y), (up, y)])?;
        product.activation = match self.dims().activation {
            Activation::Silu => gemv::SILU,
            Activation::GeluTanh => gemv::GELU,
        };
        let share = self.share(false);
        let launch = || gemv::visit(gate.weight.ty, Gated { driver: &*self.driver, product, share });
        self.labelled(|| operand(&[(gate, y), (up, y)]), launch)
    }

    /// What the kernels are told of matrices of one type, after checking that everything is inside its buffer.
    fn product(
        &self,
        norm: Option<&Tensor<CudaBuf<D>>>,
        n: usize,
        x: &CudaAct<D>,
        outputs: &[Output<'_, D>],
    ) -> Result<Product> {
        let Tensor { buf, cols, ty, .. } = &outputs[0].0.weight;
        // From the buffer that the kernels get the home of. Other matrices of the product may be in another one, as where some of a layer
        // are streamed: they are as far from it as their addresses are. (Such a buffer's home is not looked up.)
        let offset = |w: &Tensor<CudaBuf<D>>| {
            let distance = D::address(&w.buf.mem).wrapping_sub(D::address(&buf.mem));
            distance.wrapping_add(w.offset as u64)
        };
        let vector = |w: Option<&Tensor<CudaBuf<D>>>, len: usize| {
            w.map_or(Ok(NONE), |w| Self::vector(w, len).map(|_| offset(w)))
        };
        let mut matrices = [NO_MATRIX; MATRICES];
        for (matrix, (w, y)) in matrices.iter_mut().zip(outputs) {
            Self::weight(&w.weight)?;
            if w.weight.cols != *cols {
                let (found, cols) = (w.weight.cols, *cols);
                return Err(DeviceError::Unsupported(format!("matrices of {cols} and of {found} columns at once")));
            }
            *matrix = Matrix {
                offset: offset(&w.weight),
                bias: vector(w.bias.as_ref(), w.weight.rows)?,
                y: y.ptr("a matrix's output", n * w.weight.rows)?,
                rows: count("rows of a matrix", w.weight.rows)?,
                reserved: 0,
            };
        }
        // The kernels number the rows of all matrices.
        count("rows of matrices", outputs.iter().map(|(w, _)| w.weight.rows).sum())?;
        let row_bytes = count("bytes of a row", ty.row_bytes(*cols).expect("the weights were checked"))?;
        Ok(Product {
            home: D::address(&buf.home) as *const u64,
            x: x.ptr("a matrix's input", n * cols)?,
            norm: vector(norm, *cols)?,
            matrices,
            cols: count("columns of a matrix", *cols)?,
            row_bytes,
            tokens: count("tokens", n)?,
            piece_blocks: 0,
            stage_bytes: 0,
            stages: 0,
            accumulate: 0,
            activation: 0,
            eps: self.dims().eps,
            stride: row_bytes,
            overlap: if n > 1 || self.overlap() { gemv::OVERLAPPING } else { gemv::APART },
            align: 0,
        })
    }

    /// Whether rows of these matrices fit into a block's shared memory: without, there are products only, nothing fused with them.
    pub(super) fn fit<'a>(&self, matrices: impl IntoIterator<Item = &'a Linear<Tensor<CudaBuf<D>>>>) -> bool {
        let room = self.driver.properties().room(Share::Small);
        matrices.into_iter().all(|w| gemv::visit(w.weight.ty, Fit { room, cols: w.weight.cols }))
    }
}

/// Whether a row of so many columns fits into a block's shared memory, beside a column of activations.
struct Fit {
    room: Room,
    cols: usize,
}

impl WeightVisitor for Fit {
    type Out = bool;

    fn visit<F: WeightKernels>(self) -> bool {
        let cols = u32::try_from(self.cols).ok();
        cols.is_some_and(|cols| gemv::launch::<F::Weights>(self.room, 1, cols, 1, 1, false).is_some())
    }
}

/// The shares of products that take turns.
fn turns(large: bool) -> Share {
    if large { Share::Large } else { Share::Small }
}

/// What the matrices of a launch are together, `Q8_0 6144x4096`, and their bytes.
fn operand<D: Driver>(outputs: &[Output<'_, D>]) -> (String, u64) {
    let Tensor { ty, cols, .. } = &outputs[0].0.weight;
    let rows: usize = outputs.iter().map(|(w, _)| w.weight.rows).sum();
    (format!("{ty} {rows}x{cols}"), ty.row_bytes(*cols).map_or(0, |bytes| (bytes * rows) as u64))
}

/// Launches `K`, `columns` columns at a time, and says whether the GPU has the shared memory for it.
///
/// # Safety
/// As for the kernel.
unsafe fn launch<F: WeightKernels, K: Kernel<Args = (Product,)>>(
    driver: &impl Driver,
    product: Product,
    groups: u32,
    columns: u32,
    share: Share,
) -> Result<bool> {
    let room = driver.properties().room(share);
    let (cols, tokens, normed) = (product.cols, product.tokens, product.norm != NONE);
    let Some(launch) = gemv::launch::<F::Weights>(room, groups, cols, tokens, columns, normed) else {
        return Ok(false);
    };
    let Launch { grid, piece_blocks, stage_bytes, stages, align } = launch;
    let product = Product { piece_blocks, stage_bytes, stages, align, ..product };
    // SAFETY: the caller's promise.
    unsafe { driver.launch::<K>(grid, (product,)) }.map(|()| true)
}

fn too_wide<F: WeightKernels>(driver: &impl Driver, product: &Product) -> DeviceError {
    let (ty, cols, has) = (F::TYPE, product.cols, driver.properties().shared_per_block);
    DeviceError::Unsupported(format!(
        "{}: a {ty} matrix of {cols} columns needs more than the {has} bytes of shared memory that a block can have here; \
         --device cpu computes it",
        driver.name()
    ))
}

/// Launches the products of a tensor type.
struct Multiply<'a, D> {
    driver: &'a D,
    product: Product,
    share: Share,
}

impl<D: Driver> WeightVisitor for Multiply<'_, D> {
    type Out = Result<()>;

    fn visit<F: WeightKernels>(self) -> Result<()> {
        let Multiply { driver, product, share } = self;
        let groups = gemv::row_groups(&product.matrices);
        // SAFETY: `product` checked every extent against its buffer. Alignment: activations start where an allocation does; a
        // buffer of weights is a multiple of 16 long (`alloc`), and a tensor in it is at a multiple of `TENSOR_ALIGN`, or
        // rows further on. Homes are written where their buffer is made, before anything is launched.
        unsafe {
            let done = match product.tokens {
                1 => launch::<F, F::Gemv>(driver, product, groups, 1, share)?,
                2..=4 => launch::<F, F::Gemv4>(driver, product, groups, 4, share)?,
                _ => {
                    launch::<F, F::Gemv8>(driver, product, groups, 8, share)?
                        || launch::<F, F::Gemv4>(driver, product, groups, 4, share)?
                }
            };
            // A column alone needs the least.
            if done || launch::<F, F::Gemv>(driver, product, groups, 1, share)? {
                return Ok(());
            }
        }
        self.in_pieces::<F>()
    }
}

impl<D: Driver> Multiply<'_, D> {
    /// Multiplies a matrix whose rows do not fit: piece by piece, each of which adds to y what its columns of x make, and token by
    /// token. That takes the bits of a token's results from it alone, as everywhere.
    fn in_pieces<F: WeightKernels>(self) -> Result<()> {
        let Multiply { driver, product, mut share } = self;
        let (cols, tokens) = (product.cols as usize, product.tokens as usize);
        // The norm is one over all columns. Kernels take from the number of columns how rows of floats and x are aligned: pieces of 32
        // are at multiples of 16 bytes, and so must all rows be.
        let possible = product.norm == NONE && cols.is_multiple_of(<F::Weights as Weights>::ELEMS);
        let room = driver.properties().room(share);
        let piece = gemv::piece_cols::<F::Weights>(room, product.cols).filter(|_| possible);
        let piece = piece.ok_or_else(|| too_wide::<F>(driver, &product))? as usize;
        for token in 0..tokens {
            for first in (0..cols).step_by(piece) {
                let len = piece.min(cols - first);
                let part = |matrix: Matrix| match matrix.rows {
                    0 => matrix,
                    rows => Matrix {
                        offset: matrix.offset + (first / F::ELEMS * F::BYTES) as u64,
                        bias: if first == 0 { matrix.bias } else { NONE },
                        y: matrix.y.wrapping_add(token * rows as usize),
                        ..matrix
                    },
                };
                let part = Product {
                    x: product.x.wrapping_add(token * cols + first),
                    matrices: product.matrices.map(part),
                    // Both are parts of numbers that fit.
                    cols: len as u32,
                    row_bytes: (len / F::ELEMS * F::BYTES) as u32,
                    tokens: 1,
                    accumulate: if first == 0 { product.accumulate } else { 1 },
                    // A later piece reads what the one before it wrote.
                    overlap: if product.overlap == gemv::BESIDE { gemv::APART } else { product.overlap },
                    ..product
                };
                let groups = gemv::row_groups(&part.matrices);
                // SAFETY: parts of what `product` checked, whole blocks of weights; x begins at a multiple of 16 bytes, as
                // do rows of floats, since `piece` and `cols` are multiples of 16 bytes of them.
                if !unsafe { launch::<F, F::Gemv>(driver, part, groups, 1, share)? } {
                    return Err(too_wide::<F>(driver, &product));
                }
                share = share.next();
            }
        }
        Ok(())
    }
}

/// Launches the gated linear unit of a tensor type.
struct Gated<'a, D> {
    driver: &'a D,
    product: Product,
    share: Share,
}

impl<D: Driver> WeightVisitor for Gated<'_, D> {
    type Out = Result<()>;

    fn visit<F: WeightKernels>(self) -> Result<()> {
        let Gated { driver, product, share } = self;
        // SAFETY: as for `Multiply`; the two matrices are alike.
        match unsafe { launch::<F, F::Glu>(driver, product, product.matrices[0].rows, 1, share)? } {
            true => Ok(()),
            false => Err(too_wide::<F>(driver, &product)),
        }
    }
}
