//! Shared memory.

/// A static array in the block's shared memory: `shared_array!(NAME: [f32; 128])` gives a `*mut f32` to its first element.
///
/// `NAME` names the array in the PTX and must be unique in the module. It is declared by `global_asm!` at module scope:
/// declared inside an `asm!` block it would be duplicated with the block wherever the compiler copies it, and ptxas refuses
/// two arrays of one name. The content is undefined at first. Element types are plain numbers.
#[macro_export]
macro_rules! shared_array {
    ($name:ident: [$ty:ty; $len:expr]) => {{
        #[cfg(target_arch = "nvptx64")]
        let pointer: *mut $ty = {
            // `global_asm!` is an item and no statement: it needs a module around it.
            mod declaration {
                #[allow(unused_imports)]
                use super::*;
                ::core::arch::global_asm!(
                    concat!(".shared .align 16 .b8 ", stringify!($name), "[{}];"),
                    const ($len) * ::core::mem::size_of::<$ty>()
                );
            }
            // SAFETY: the array is declared above.
            unsafe { $crate::shared_address!($name: $ty) }
        };
        #[cfg(not(target_arch = "nvptx64"))]
        let pointer: *mut $ty = {
            static KEY: u8 = 0;
            let _ = stringify!($name);
            $crate::host_shared(&raw const KEY, ($len) * ::core::mem::size_of::<$ty>(), 16).cast()
        };
        pointer
    }};
}

/// The block's dynamic shared memory, as many bytes as the launch asks for: `dynamic_shared!(NAME: [f32])` gives a `*mut f32`
/// to its start, 16-byte aligned.
///
/// `NAME` names it in the PTX as in [`shared_array!`]. All such names of a kernel are the same memory, undefined at first.
#[macro_export]
macro_rules! dynamic_shared {
    ($name:ident: [$ty:ty]) => {{
        #[cfg(target_arch = "nvptx64")]
        let pointer: *mut $ty = {
            mod declaration {
                ::core::arch::global_asm!(concat!(".extern .shared .align 16 .b8 ", stringify!($name), "[];"));
            }
            // SAFETY: the array is declared above.
            unsafe { $crate::shared_address!($name: $ty) }
        };
        #[cfg(not(target_arch = "nvptx64"))]
        let pointer: *mut $ty = {
            let _ = stringify!($name);
            $crate::host_dynamic_shared().cast()
        };
        pointer
    }};
}

/// For [`shared_array!`] and [`dynamic_shared!`] alone: the generic address of the array that is called `$name` in the PTX.
#[cfg(target_arch = "nvptx64")]
#[doc(hidden)]
#[macro_export]
macro_rules! shared_address {
    ($name:ident: $ty:ty) => {{
        let address: u64;
        ::core::arch::asm!(
            concat!("mov.u64 {0}, ", stringify!($name), ";"), "cvta.shared.u64 {0}, {0};",
            out(reg64) address, options(pure, nomem, nostack)
        );
        $crate::in_shared_memory(address as *mut $ty)
    }};
}
