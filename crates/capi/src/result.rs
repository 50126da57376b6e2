//! What a generation gives besides its text.

use ntransformer::{Generated, Stop};

use crate::Failure;

/// Why a text ended.
#[allow(non_camel_case_types, reason = "the name in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum nt_stop {
    /// The model ended it.
    End = 0,
    /// As many tokens as asked for, or the context is full.
    Length = 1,
    /// One of the stop texts came up.
    StopString = 2,
    /// The callback answered false, or nt_cancel() was called.
    Cancelled = 3,
}

/// What a generation did. Set `struct_size` to sizeof(nt_result) before the call: a newer library, whose struct has more
/// members, then writes only those that the program knows.
#[allow(non_camel_case_types, reason = "the name in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct nt_result {
    /// sizeof(nt_result).
    pub struct_size: usize,
    /// Why the text ended.
    pub stop: nt_stop,
    /// Tokens of the prompt that were computed.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were in the KV cache from the generation before.
    pub reused_tokens: usize,
    /// New tokens.
    pub new_tokens: usize,
    /// Seconds from the start to the first new token.
    pub prompt_seconds: f64,
    /// Seconds that the other new tokens took.
    pub decode_seconds: f64,
}

impl nt_result {
    fn new(generated: &Generated, struct_size: usize) -> Self {
        nt_result {
            struct_size,
            stop: match generated.stop {
                Stop::End => nt_stop::End,
                Stop::Length => nt_stop::Length,
                Stop::StopString => nt_stop::StopString,
                Stop::Interrupted => nt_stop::Cancelled,
            },
            prompt_tokens: generated.prompt.tokens,
            reused_tokens: generated.reused,
            new_tokens: generated.tokens.len(),
            prompt_seconds: generated.prompt.time.as_secs_f64(),
            decode_seconds: generated.decode.time.as_secs_f64(),
        }
    }
}

/// A caller's result struct, of the caller's size.
pub(crate) struct ResultOut {
    to: *mut nt_result,
    size: usize,
}

impl ResultOut {
    /// # Safety
    /// `to` is null or has its `struct_size` set, and as many bytes, until the result is written.
    pub unsafe fn new(to: *mut nt_result) -> Result<Self, Failure> {
        if to.is_null() {
            return Ok(ResultOut { to, size: 0 });
        }
        // SAFETY: not null, and the first member is set: the caller's promise.
        let size = unsafe { (&raw const (*to).struct_size).read() };
        // The members of the first version.
        if size < size_of::<nt_result>() {
            return Err(Failure::argument(format!(
                "result.struct_size is {size}: set it to sizeof(nt_result), {} bytes",
                size_of::<nt_result>()
            )));
        }
        Ok(ResultOut { to, size })
    }

    /// Writes the members that the caller knows.
    pub fn write(self, generated: &Generated) {
        if !self.to.is_null() {
            // SAFETY: not null, and at least as big as the struct is here: checked by `new`, promised by its caller.
            unsafe { self.to.write(nt_result::new(generated, self.size)) };
        }
    }
}
