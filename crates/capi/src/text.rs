//! Between text and tokens.

use std::ffi::c_char;

use ntransformer::EncodeOptions;

use crate::{
    Failure, guard,
    input::{elements, give, object, utf8},
    nt_engine, nt_status,
};

/// For nt_tokenize(): start with the BOS token if the model expects one, as a prompt has to.
pub const NT_TOKENIZE_BOS: u32 = 1;
/// For nt_tokenize(): special tokens that are written in the text become those tokens. Not for text that a user typed.
pub const NT_TOKENIZE_SPECIAL: u32 = 2;

/// The library's version, such as "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn nt_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The tokens of a text, `len` bytes of UTF-8 or NT_ZERO_TERMINATED. `flags` are NT_TOKENIZE_..., or 0.
///
/// Their number is given in `count`, also where `capacity` tokens are too few: then nothing is written to `tokens`, and the
/// answer is NT_STATUS_BUFFER, or NT_STATUS_OK where `tokens` is null, to ask for the number.
///
/// # Safety
/// `engine` is null or from nt_engine_load(), `text` null or of `len` bytes, `tokens` null or of `capacity` elements,
/// `count` null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_tokenize(
    engine: *const nt_engine,
    text: *const c_char,
    len: usize,
    flags: u32,
    tokens: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let (engine, text) = unsafe { (object(engine, "engine")?, utf8(text, len, "text")?.to_owned()) };
        if flags & !(NT_TOKENIZE_BOS | NT_TOKENIZE_SPECIAL) != 0 {
            return Err(Failure::argument(format!("flags {flags:#x}: some are unknown")));
        }
        let found = engine.ask(move |engine| {
            let tokenizer = engine.tokenizer();
            let bos = flags & NT_TOKENIZE_BOS != 0 && tokenizer.adds_bos();
            let options = EncodeOptions { bos, special: flags & NT_TOKENIZE_SPECIAL != 0 };
            tokenizer.encode(&text, options).map_err(|e| Failure::argument(e.to_string()))
        })?;
        // SAFETY: the caller's promise.
        unsafe { fill(&found, 0, tokens, capacity, count, "count") }
    })
}

/// The text of tokens, in UTF-8 and with a zero byte at its end. What is no character becomes U+FFFD.
///
/// Its length without the zero byte is given in `len`, also where `capacity` bytes, which includes the zero byte, are too
/// few: then nothing is written to `text`, and the answer is NT_STATUS_BUFFER, or NT_STATUS_OK where `text` is null.
///
/// # Safety
/// `engine` is null or from nt_engine_load(), `tokens` null or of `count` elements, `text` null or of `capacity` bytes,
/// `len` null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_detokenize(
    engine: *const nt_engine,
    tokens: *const u32,
    count: usize,
    text: *mut c_char,
    capacity: usize,
    len: *mut usize,
) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let (engine, tokens) = unsafe { (object(engine, "engine")?, elements(tokens, count, "tokens")?.to_vec()) };
        let mut bytes = engine.ask(move |engine| Ok(engine.detokenize(&tokens)))?.into_bytes();
        bytes.push(0);
        // SAFETY: the caller's promise.
        unsafe { fill(&bytes, 1, text.cast(), capacity, len, "len") }
    })
}

/// Copies `found` to `to`, if it is not null and has room, and tells the length without the last `uncounted` elements.
///
/// # Safety
/// `to` is null or has `capacity` elements, `len` is null or may be written.
unsafe fn fill<T: Copy>(
    found: &[T],
    uncounted: usize,
    to: *mut T,
    capacity: usize,
    len: *mut usize,
    name: &str,
) -> Result<(), Failure> {
    // SAFETY: the caller's promise.
    unsafe { give(len, found.len() - uncounted, name) }?;
    if to.is_null() {
        return Ok(());
    }
    if capacity < found.len() {
        let text = format!("the buffer holds {capacity} and {} are needed", found.len());
        return Err(Failure { status: nt_status::Buffer, text });
    }
    // SAFETY: room for all of them, and nobody else has the buffer: the caller's promise.
    unsafe { to.copy_from_nonoverlapping(found.as_ptr(), found.len()) };
    Ok(())
}
