//! How functions say what went wrong.

use std::{
    cell::RefCell,
    ffi::{CString, c_char},
    panic::{AssertUnwindSafe, catch_unwind},
};

use ntransformer::EngineError;

/// What a function answers. Where it is not NT_STATUS_OK, nt_last_error() has the reason.
#[allow(non_camel_case_types, reason = "the name in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum nt_status {
    /// Done.
    Ok = 0,
    /// An argument is not what the function takes: a null pointer, text that is not UTF-8, a number out of range.
    Argument = 1,
    /// The model's file cannot be read, is damaged, or has something that is not supported.
    Model = 2,
    /// The device is not there, failed, or has too little memory.
    Device = 3,
    /// Prompt and answer do not fit into the context, or there is no prompt.
    Context = 4,
    /// The caller's buffer is too small; the needed size is told.
    Buffer = 5,
    /// A mistake in the engine itself. The engine that it happened in can only be freed.
    Internal = 6,
}

/// A status and its text.
pub(crate) struct Failure {
    pub status: nt_status,
    pub text: String,
}

impl Failure {
    pub fn argument(text: impl Into<String>) -> Self {
        Failure { status: nt_status::Argument, text: text.into() }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let status = match &error {
            EngineError::Device(_) | EngineError::DoesNotFit { .. } => nt_status::Device,
            EngineError::Context { .. } | EngineError::EmptyPrompt => nt_status::Context,
            EngineError::Pass { .. } => nt_status::Internal,
            _ => nt_status::Model,
        };
        Failure { status, text: error.to_string() }
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Runs the body of a C function: a failure's text is kept for nt_last_error(), and a panic is a failure.
pub(crate) fn guard(body: impl FnOnce() -> Result<(), Failure>) -> nt_status {
    // Nothing is used after a panic that the panic could have left half-done: what C handed in is not changed by then, and
    // an engine whose thread panicked answers nothing more.
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return nt_status::Ok,
        Ok(Err(failure)) => failure,
        Err(_) => Failure { status: nt_status::Internal, text: "a mistake in the engine; stderr has more".into() },
    };
    let text = CString::new(failure.text.replace('\0', "\u{FFFD}")).unwrap_or_default();
    // A thread that is ending keeps no text.
    let _ = LAST.try_with(|last| *last.borrow_mut() = text);
    failure.status
}

/// The reason why a function last failed on this thread, in UTF-8; empty if none has. Valid until the next failure on this
/// thread.
#[unsafe(no_mangle)]
pub extern "C" fn nt_last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn last() -> String {
        // SAFETY: never null, and zero-terminated; copied before the next failure.
        unsafe { CStr::from_ptr(nt_last_error()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_panic_is_a_status_and_a_text() {
        assert_eq!(guard(|| panic!("on purpose")), nt_status::Internal);
        assert!(last().contains("a mistake in the engine"));
        assert_eq!(guard(|| Err(Failure::argument("zero\0inside"))), nt_status::Argument);
        assert_eq!(last(), "zero\u{FFFD}inside");
        assert_eq!((guard(|| Ok(())), last().as_str()), (nt_status::Ok, "zero\u{FFFD}inside"));
        let elsewhere = std::thread::spawn(last).join().unwrap();
        assert_eq!(elsewhere, "", "each thread has its own");
    }
}
