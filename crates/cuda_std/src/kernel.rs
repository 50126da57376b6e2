//! What `#[kernel]` makes of a function, for the code that launches it.

use core::fmt;

/// A kernel as the host sees it: its name in the PTX, the module that holds it, and the types of its arguments.
///
/// `#[kernel]` implements it for an empty enum of the function's own name, so `gpu::ops::rms_norm` is both the function and
/// this type, and a launch is checked against the very signature that the kernel was compiled from.
pub trait Kernel {
    /// The entry's name in the PTX.
    const NAME: &'static str;
    /// The PTX module that the entry is in: the kernel crate's feature of that name.
    const MODULE: &'static str;
    /// Whether it orders itself after the kernel before it ([`crate::grid`]), and fetches beforehand what no kernel writes.
    /// Else it waits at its start.
    const PREFETCH: bool = false;
    /// The arguments, as a tuple in declaration order. Pointers are device addresses.
    type Args: Args;

    /// Runs one thread's worth of the kernel on the host, under the [`crate::host::Machine`] of the calling thread.
    ///
    /// # Safety
    /// As for the kernel itself: every pointer must be valid for what the kernel does with it.
    #[cfg(not(target_arch = "nvptx64"))]
    unsafe fn run(args: Self::Args);
}

/// A kernel as a value: every `#[kernel]` of the program is in [`all`].
#[cfg(not(target_arch = "nvptx64"))]
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// [`Kernel::NAME`].
    pub name: &'static str,
    /// [`Kernel::MODULE`].
    pub module: &'static str,
    /// [`Kernel::PREFETCH`].
    pub prefetch: bool,
    /// [`Args::PTX`].
    pub params: &'static [Declaration],
}

#[cfg(not(target_arch = "nvptx64"))]
impl Entry {
    /// The entry of `K`.
    pub const fn of<K: Kernel>() -> Self {
        Entry { name: K::NAME, module: K::MODULE, prefetch: K::PREFETCH, params: <K::Args as Args>::PTX }
    }
}

#[cfg(not(target_arch = "nvptx64"))]
inventory::collect!(Entry);

/// Every kernel of the crates that this program is linked from, in no particular order.
#[cfg(not(target_arch = "nvptx64"))]
pub fn all() -> impl Iterator<Item = &'static Entry> {
    inventory::iter::<Entry>()
}

/// A launch's geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks along x, y, z.
    pub blocks: [u32; 3],
    /// Threads of a block along x, y, z.
    pub threads: [u32; 3],
    /// Bytes of dynamic shared memory of a block, beside the kernel's `shared_array!`s.
    pub shared: u32,
    /// Blocks of a [cluster](crate::cluster) along x, y, z, divisors of `blocks`; 1 each for none.
    pub cluster: [u32; 3],
}

impl Grid {
    /// `x` by `y` blocks of `threads` threads, without dynamic shared memory.
    pub const fn new(x: u32, y: u32, threads: u32) -> Self {
        Grid { blocks: [x, y, 1], threads: [threads, 1, 1], shared: 0, cluster: [1; 3] }
    }

    /// The same with `bytes` bytes of dynamic shared memory in each block (`dynamic_shared!`).
    pub const fn with_shared(self, bytes: u32) -> Self {
        Grid { shared: bytes, ..self }
    }

    /// The same in clusters of `blocks` blocks along x, y, z.
    pub const fn with_cluster(self, blocks: [u32; 3]) -> Self {
        Grid { cluster: blocks, ..self }
    }
}

/// How an entry declares a parameter in PTX. As text: `.u32`, or `.align 8 .b8[24]` for a struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declaration {
    /// A number or an address, by the words of its type.
    Scalar(&'static str),
    /// A struct: bytes.
    Struct {
        /// Its alignment.
        align: usize,
        /// Its size.
        bytes: usize,
    },
}

impl fmt::Display for Declaration {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Declaration::Scalar(words) => f.write_str(words),
            Declaration::Struct { align, bytes } => write!(f, ".align {align} .b8[{bytes}]"),
        }
    }
}

/// A value that can be a kernel parameter as it is.
///
/// A struct of several values implements it with nothing in the body: `unsafe impl Param for Tables {}`. Such a struct is a
/// constant to the kernel, which should not index an array in it by a variable: that copies the array to local memory. Nor
/// does the compiler know that the pointers in it point to global memory, as it does of a parameter that is a pointer: it
/// loads through them with generic addresses.
///
/// # Safety
/// The type is plain bits, of the same layout on host and device: a number, a pointer, or a `#[repr(C)]` struct of those
/// that has no padding (the driver copies all of its bytes). The alignment is at most 16.
pub unsafe trait Param: Copy {
    /// What PTX declares the parameter as; `PTX` of a struct need not be given.
    const PTX: Declaration = Declaration::Struct { align: align_of::<Self>(), bytes: size_of::<Self>() };
}

macro_rules! scalars {
    ($($type:ty = $words:literal)*) => {$(
        // SAFETY: a number is plain bits, and both sides are little-endian machines of 64 bits.
        unsafe impl Param for $type {
            const PTX: Declaration = Declaration::Scalar($words);
        }
    )*};
}
scalars!(u32 = ".u32" i32 = ".u32" u64 = ".u64" f32 = ".f32");

// SAFETY: an address is plain bits, 8 bytes on both sides.
unsafe impl<T> Param for *const T {
    const PTX: Declaration = Declaration::Scalar(".u64 .ptr");
}
// SAFETY: as above.
unsafe impl<T> Param for *mut T {
    const PTX: Declaration = Declaration::Scalar(".u64 .ptr");
}

/// A tuple of [`Param`]s.
pub trait Args: Copy {
    /// [`Param::PTX`] of each, in order.
    const PTX: &'static [Declaration];

    /// Calls `f` with the address of each parameter in order, as the driver's launch wants them.
    fn each(&self, f: &mut dyn FnMut(*const core::ffi::c_void));
}

macro_rules! args {
    ($($name:ident)*) => {
        impl<$($name: Param),*> Args for ($($name,)*) {
            const PTX: &'static [Declaration] = &[$($name::PTX),*];

            #[allow(non_snake_case, unused_variables)]
            fn each(&self, f: &mut dyn FnMut(*const core::ffi::c_void)) {
                let ($($name,)*) = self;
                $(f(($name as *const $name).cast());)*
            }
        }
    };
}
args!();
args!(A);
args!(A B);
args!(A B C);
args!(A B C D);
args!(A B C D E);
args!(A B C D E F);
args!(A B C D E F G);
args!(A B C D E F G H);
args!(A B C D E F G H I);
args!(A B C D E F G H I J);
args!(A B C D E F G H I J K);
args!(A B C D E F G H I J K L);
args!(A B C D E F G H I J K L M);
args!(A B C D E F G H I J K L M N);
args!(A B C D E F G H I J K L M N O);
args!(A B C D E F G H I J K L M N O P);
