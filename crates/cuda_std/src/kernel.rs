//! What `#[kernel]` makes of a function, for the code that launches it.

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
    pub params: &'static [&'static str],
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
}

impl Grid {
    /// `x` by `y` blocks of `threads` threads.
    pub const fn new(x: u32, y: u32, threads: u32) -> Self {
        Grid { blocks: [x, y, 1], threads: [threads, 1, 1] }
    }
}

/// A value that can be a kernel parameter as it is: plain bits, same size and alignment on host and device.
pub trait Param: Copy {
    /// What PTX declares the parameter as.
    const PTX: &'static str;
}
impl<T> Param for *const T {
    const PTX: &'static str = ".u64 .ptr";
}
impl<T> Param for *mut T {
    const PTX: &'static str = ".u64 .ptr";
}
impl Param for u32 {
    const PTX: &'static str = ".u32";
}
impl Param for i32 {
    const PTX: &'static str = ".u32";
}
impl Param for u64 {
    const PTX: &'static str = ".u64";
}
impl Param for f32 {
    const PTX: &'static str = ".f32";
}

/// A tuple of [`Param`]s.
pub trait Args: Copy {
    /// [`Param::PTX`] of each, in order.
    const PTX: &'static [&'static str];

    /// Calls `f` with the address of each parameter in order, as `cuLaunchKernel` wants them.
    fn each(&self, f: &mut dyn FnMut(*const core::ffi::c_void));
}

macro_rules! args {
    ($($name:ident)*) => {
        impl<$($name: Param),*> Args for ($($name,)*) {
            const PTX: &'static [&'static str] = &[$($name::PTX),*];

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
