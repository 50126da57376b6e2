//! What can be set for loading: an object with setters, so that settings can be added without breaking programs that were
//! compiled before. generation.rs is the same for generating.

use std::{
    ffi::c_char,
    num::{NonZeroU32, NonZeroUsize},
};

use ntransformer::{Buffers, EngineOptions};

use crate::{
    Failure, guard,
    input::{object_mut, utf8},
    nt_status,
};

/// The length of a text that ends with a zero byte; cbindgen.toml has it for the header.
/// cbindgen:ignore
pub const NT_ZERO_TERMINATED: usize = usize::MAX;

/// How a model is loaded.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Default)]
pub struct nt_options(pub(crate) EngineOptions);

/// New options, with the first GPU if there is one, else the CPU; a context of what the model was trained for, 4096 at most;
/// and no streaming. To be freed with nt_options_free().
#[unsafe(no_mangle)]
pub extern "C" fn nt_options_new() -> *mut nt_options {
    Box::into_raw(Box::default())
}

/// Frees options; null is ignored. Engines that were loaded with them are not affected.
///
/// # Safety
/// `options` is null or from nt_options_new(), and not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_options_free(options: *mut nt_options) {
    if !options.is_null() {
        // SAFETY: from Box::into_raw, and freed once: the caller's promise.
        drop(unsafe { Box::from_raw(options) });
    }
}

/// Where to compute: "auto", "cpu", "cuda", "cuda:N", or "emulator" (the GPU kernels without a GPU: slow, for tests).
///
/// # Safety
/// `options` is null or from nt_options_new(); `device` is null or zero-terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_options_set_device(options: *mut nt_options, device: *const c_char) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let (options, device) =
            unsafe { (object_mut(options, "options")?, utf8(device, NT_ZERO_TERMINATED, "device")?) };
        options.0.device = device.parse().map_err(|e| Failure::argument(format!("device {device:?}: {e}")))?;
        Ok(())
    })
}

/// Tokens of prompt and answer together; 0 for what nt_options_new() says.
///
/// # Safety
/// `options` is null or from nt_options_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_options_set_context(options: *mut nt_options, tokens: usize) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { object_mut(options, "options") }?.0.context = Some(tokens).filter(|&tokens| tokens > 0);
        Ok(())
    })
}

/// Whether layers that do not fit into device memory are kept in RAM, and streamed through it.
///
/// # Safety
/// `options` is null or from nt_options_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_options_set_streaming(options: *mut nt_options, streaming: bool) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { object_mut(options, "options") }?.0.load.streaming = streaming;
        Ok(())
    })
}

/// Device memory to use at most, in bytes; 0 for what is free.
///
/// # Safety
/// `options` is null or from nt_options_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_options_set_vram_budget(options: *mut nt_options, bytes: u64) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { object_mut(options, "options") }?.0.load.vram_budget =
            Some(bytes).filter(|&bytes| bytes > 0).map(Into::into);
        Ok(())
    })
}

/// RAM to use at most for layers that are streamed, in bytes; the others are streamed from the model's file. UINT64_MAX for what is
/// available, but for a reserve, which new options say.
///
/// # Safety
/// `options` is null or from nt_options_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_options_set_ram_budget(options: *mut nt_options, bytes: u64) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { object_mut(options, "options") }?.0.load.ram_budget =
            Some(bytes).filter(|&bytes| bytes < u64::MAX).map(Into::into);
        Ok(())
    })
}

/// Layers that streamed ones have room for in device memory; 0 for as many as keep the link busy.
///
/// # Safety
/// `options` is null or from nt_options_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_options_set_n_buffers(options: *mut nt_options, layers: usize) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { object_mut(options, "options") }?.0.load.buffers =
            NonZeroUsize::new(layers).map_or(Buffers::Auto, Buffers::Count);
        Ok(())
    })
}

/// Slows the link to the device down to this many bytes a second, to see what another machine would do; 0 leaves it as it is.
///
/// # Safety
/// `options` is null or from nt_options_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_options_set_link_limit(options: *mut nt_options, bytes_per_second: f64) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let options = unsafe { object_mut(options, "options") }?;
        if !(bytes_per_second.is_finite() && bytes_per_second >= 0.0) {
            return Err(Failure::argument(format!(
                "a link limit is {bytes_per_second}: expected bytes a second, or 0"
            )));
        }
        options.0.load.link_limit = Some(bytes_per_second).filter(|&limit| limit > 0.0);
        Ok(())
    })
}

/// How what stays on disk is read: "auto", "io_uring" or "pread" past the page cache, or "page-cache".
///
/// # Safety
/// `options` is null or from nt_options_new(); `reads` is null or zero-terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_options_set_disk_reads(options: *mut nt_options, reads: *const c_char) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let (options, reads) =
            unsafe { (object_mut(options, "options")?, utf8(reads, NT_ZERO_TERMINATED, "disk reads")?) };
        options.0.load.disk_reads =
            reads.parse().map_err(|e| Failure::argument(format!("disk reads {reads:?}: {e}")))?;
        Ok(())
    })
}

/// How the device gets at what is in RAM: "copy", "zero-copy", or "auto", which copies unless there is no room for it.
///
/// # Safety
/// `options` is null or from nt_options_new(); `access` is null or zero-terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_options_set_ram_access(options: *mut nt_options, access: *const c_char) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let (options, access) =
            unsafe { (object_mut(options, "options")?, utf8(access, NT_ZERO_TERMINATED, "RAM access")?) };
        options.0.load.ram_access =
            access.parse().map_err(|e| Failure::argument(format!("RAM access {access:?}: {e}")))?;
        Ok(())
    })
}

/// The drive that what stays on disk is read from without the kernel, where the model was laid: "auto", the only one that is taken from
/// the kernel, or its PCI address, such as "0000:3b:00.0". Where this is not called, GPUNVME_PCI_BDF says it; without either, the
/// model's file is read.
///
/// # Safety
/// `options` is null or from nt_options_new(); `drive` is null or zero-terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_options_set_nvme(options: *mut nt_options, drive: *const c_char) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let (options, drive) = unsafe { (object_mut(options, "options")?, utf8(drive, NT_ZERO_TERMINATED, "drive")?) };
        let choice = drive.parse().map_err(|e| Failure::argument(format!("drive {drive:?}: {e}")))?;
        options.0.load.nvme.drive = Some(choice);
        Ok(())
    })
}

/// The logical block of that drive that the model begins at. Where this is not called, GPUNVME_GGUF_LBA says it; without either, it is 0.
///
/// # Safety
/// `options` is null or from nt_options_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_options_set_nvme_lba(options: *mut nt_options, lba: u64) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let options = unsafe { object_mut(options, "options") }?;
        options.0.load.nvme.lba = Some(lba);
        Ok(())
    })
}

/// The namespace of that drive that the model is on, from 1. Where this is not called, GPUNVME_NAMESPACE says it; without either, it is the one
/// that holds the model.
///
/// # Safety
/// `options` is null or from nt_options_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_options_set_nvme_namespace(options: *mut nt_options, id: u32) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let options = unsafe { object_mut(options, "options") }?;
        let id = NonZeroU32::new(id).ok_or_else(|| Failure::argument("namespaces are numbered from 1"))?;
        options.0.load.nvme.namespace = Some(id);
        Ok(())
    })
}

/// The GPU that the drive may write to, by its PCI address; it has to be the one that computes. Where this is not called,
/// GPUNVME_GPU_BDF says it; without either, CUDA does.
///
/// # Safety
/// `options` is null or from nt_options_new(); `gpu` is null or zero-terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_options_set_nvme_gpu(options: *mut nt_options, gpu: *const c_char) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let (options, gpu) = unsafe { (object_mut(options, "options")?, utf8(gpu, NT_ZERO_TERMINATED, "GPU")?) };
        options.0.load.nvme.gpu = Some(gpu.parse().map_err(|e| Failure::argument(format!("GPU: {e}")))?);
        Ok(())
    })
}

/// Who submits the commands to that drive: "cpu", as where this is not called, or "gpu", a kernel of the GPU that computes.
///
/// # Safety
/// `options` is null or from nt_options_new(); `who` is null or zero-terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_options_set_nvme_submit(options: *mut nt_options, who: *const c_char) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let (options, who) =
            unsafe { (object_mut(options, "options")?, utf8(who, NT_ZERO_TERMINATED, "who submits")?) };
        let who = who.parse().map_err(|e| Failure::argument(format!("who submits {who:?}: {e}")))?;
        options.0.load.nvme.submit = Some(who);
        Ok(())
    })
}
