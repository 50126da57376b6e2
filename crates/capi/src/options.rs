//! What can be set, for loading and for generating: objects with setters, so that settings can be added without breaking
//! programs that were compiled before.

use std::ffi::c_char;

use ntransformer::{EngineOptions, GenerateOptions};

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
        unsafe { object_mut(options, "options") }?.0.load.vram_budget = Some(bytes).filter(|&bytes| bytes > 0);
        Ok(())
    })
}

/// How a prompt is continued.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Default)]
pub struct nt_generation(pub(crate) GenerateOptions);

/// New settings: up to as many tokens as the context holds, temperature 0.8, top-k 40, top-p 0.95, and a random seed. To be
/// freed with nt_generation_free().
#[unsafe(no_mangle)]
pub extern "C" fn nt_generation_new() -> *mut nt_generation {
    Box::into_raw(Box::default())
}

/// Frees settings; null is ignored.
///
/// # Safety
/// `generation` is null or from nt_generation_new(), and not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generation_free(generation: *mut nt_generation) {
    if !generation.is_null() {
        // SAFETY: from Box::into_raw, and freed once: the caller's promise.
        drop(unsafe { Box::from_raw(generation) });
    }
}

/// New tokens at most.
///
/// # Safety
/// `generation` is null or from nt_generation_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generation_set_max_tokens(generation: *mut nt_generation, tokens: usize) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { object_mut(generation, "generation") }?.0.max_new = Some(tokens);
        Ok(())
    })
}

/// Randomness, 0 or more; 0 always takes the most likely token.
///
/// # Safety
/// `generation` is null or from nt_generation_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generation_set_temperature(generation: *mut nt_generation, temperature: f32) -> nt_status {
    guard(|| {
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(Failure::argument(format!("temperature {temperature}: expected a number, 0 or more")));
        }
        // SAFETY: the caller's promise.
        unsafe { object_mut(generation, "generation") }?.0.sampling.temperature = temperature;
        Ok(())
    })
}

/// Chooses among the k most likely tokens only; 0 for all.
///
/// # Safety
/// `generation` is null or from nt_generation_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generation_set_top_k(generation: *mut nt_generation, k: usize) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { object_mut(generation, "generation") }?.0.sampling.top_k = k;
        Ok(())
    })
}

/// Chooses among the most likely tokens that have probability p together, above 0 and up to 1; 1 for all.
///
/// # Safety
/// `generation` is null or from nt_generation_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generation_set_top_p(generation: *mut nt_generation, p: f32) -> nt_status {
    guard(|| {
        if !(0.0 < p && p <= 1.0) {
            return Err(Failure::argument(format!("top_p {p}: expected a number above 0 and up to 1")));
        }
        // SAFETY: the caller's promise.
        unsafe { object_mut(generation, "generation") }?.0.sampling.top_p = p;
        Ok(())
    })
}

/// The same seed gives the same text on the same device.
///
/// # Safety
/// `generation` is null or from nt_generation_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generation_set_seed(generation: *mut nt_generation, seed: u64) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { object_mut(generation, "generation") }?.0.sampling.seed = seed;
        Ok(())
    })
}

/// Adds a text that ends the answer before it: `len` bytes, or NT_ZERO_TERMINATED.
///
/// # Safety
/// `generation` is null or from nt_generation_new(); `stop` is null or has `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generation_add_stop(
    generation: *mut nt_generation,
    stop: *const c_char,
    len: usize,
) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let (generation, stop) = unsafe { (object_mut(generation, "generation")?, utf8(stop, len, "stop")?) };
        if stop.is_empty() {
            return Err(Failure::argument("stop is empty: every text has it"));
        }
        generation.0.stop.push(stop.to_owned());
        Ok(())
    })
}
