//! A model that is loaded. It lives on a thread of its own, since parts of it may not change threads; so a handle may be
//! used from any thread, and a callback runs on the thread that called.

use std::{
    cell::RefCell,
    ffi::{CString, c_char, c_void},
    ops::ControlFlow,
    path::PathBuf,
    ptr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::JoinHandle,
};

use ntransformer::{Engine, EngineOptions, Event, Generated, Stop, Timing, engine::GrammarVocabulary};

use crate::{
    Failure, guard,
    input::{elements, give, object, utf8},
    nt_generation, nt_options, nt_result, nt_status,
    result::ResultOut,
};

/// A model that is loaded.
#[allow(non_camel_case_types, reason = "the name in C")]
pub struct nt_engine {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// Texts that were asked for so far; each has its number, from 1 on.
    requests: AtomicU64,
    /// The texts up to this number shall end.
    cancelled: Arc<AtomicU64>,
    /// Ends the text that is being generated in the middle of a pass.
    running: Arc<Running>,
    device: CString,
    context: usize,
}

/// The text that is being generated.
#[derive(Default)]
struct Running {
    number: Mutex<u64>,
    cancel: Arc<AtomicBool>,
}

impl Running {
    fn begin(&self, number: u64) {
        let mut running = self.number.lock().unwrap_or_else(PoisonError::into_inner);
        *running = number;
        self.cancel.store(false, Ordering::Relaxed);
    }

    /// Ends it if it is among those up to `number`: not a later one that begins meanwhile.
    fn cancel(&self, number: u64) {
        let running = self.number.lock().unwrap_or_else(PoisonError::into_inner);
        if *running <= number {
            self.cancel.store(true, Ordering::Relaxed);
        }
    }
}

type Job = Box<dyn FnOnce(&mut Loaded) + Send>;

/// What lives on the engine's thread.
pub(crate) struct Loaded {
    pub engine: Engine,
    /// Its tokens as grammars need them, once one did.
    vocabulary: Option<GrammarVocabulary>,
}

/// What the engine's thread tells the thread that asked for a text.
enum Reply {
    Text(String),
    Done(Box<Result<Generated, Failure>>),
}

thread_local! {
    /// The engines whose callbacks are running on this thread.
    static CALLING: RefCell<Vec<*const nt_engine>> = const { RefCell::new(Vec::new()) };
}

/// What nt_generate() calls with each piece of the text: whole characters in UTF-8, `len` bytes and a zero byte. It runs on
/// the thread that called nt_generate(). The text is valid until it returns. Answering false ends the text. It must not
/// throw; of the functions that take the same engine it may call nt_cancel() and those that only tell something.
#[allow(non_camel_case_types, reason = "the name in C")]
pub type nt_text_callback = Option<unsafe extern "C" fn(text: *const c_char, len: usize, user: *mut c_void) -> bool>;

impl nt_engine {
    /// Loads a model, the demo model without a path.
    fn load(path: Option<PathBuf>, mut options: EngineOptions) -> Result<Self, Failure> {
        // Of its own: other engines may be loaded with the same options.
        let running = Arc::new(Running::default());
        options.load.cancel = running.cancel.clone();
        let (jobs, queue) = mpsc::channel::<Job>();
        let (loaded, told) = mpsc::sync_channel(1);
        let work = move || {
            let engine = match &path {
                Some(path) => Engine::open(path, &options),
                None => Engine::demo(&options),
            };
            let engine = match engine {
                Ok(engine) => engine,
                Err(error) => return drop(loaded.send(Err(Failure::from(error)))),
            };
            let about = (engine.device().to_owned(), engine.config().dims.context);
            // Who asked waits for this. Jobs come until the handle is freed.
            let _ = loaded.send(Ok(about));
            let mut loaded = Loaded { engine, vocabulary: None };
            queue.into_iter().for_each(|job| job(&mut loaded));
        };
        let thread = std::thread::Builder::new().name("ntransformer".into()).spawn(work);
        let thread = thread
            .map_err(|e| Failure { status: nt_status::Device, text: format!("no thread can be started: {e}") })?;
        let (device, context) = told.recv().map_err(|_| panicked())??;
        let device = CString::new(device.replace('\0', "")).unwrap_or_default();
        let (requests, cancelled) = Default::default();
        Ok(nt_engine { jobs: Some(jobs), thread: Some(thread), requests, cancelled, running, device, context })
    }

    /// Has the engine's thread do `job`, which answers through its own channel.
    fn send(&self, job: Job) -> Result<(), Failure> {
        // The engine's thread waits for the callback: waiting for that thread in turn would be for ever.
        if is_calling(self) {
            return Err(Failure::argument("a callback cannot use the engine that it was called for"));
        }
        self.jobs.as_ref().and_then(|jobs| jobs.send(job).ok()).ok_or_else(panicked)
    }

    /// What `f` finds, on the engine's thread.
    pub(crate) fn ask<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Engine) -> Result<R, Failure> + Send + 'static,
    ) -> Result<R, Failure> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.send(Box::new(move |loaded| drop(reply.send(f(&mut loaded.engine)))))?;
        answer.recv().map_err(|_| panicked())?
    }

    /// Continues a prompt; `told` hears of the text and answers whether to go on.
    fn generate(
        &self,
        prompt: Prompt,
        generation: nt_generation,
        told: &mut dyn FnMut(String) -> bool,
    ) -> Result<Generated, Failure> {
        // Each piece of text waits for the answer whether to go on.
        let (replies, heard) = mpsc::sync_channel(0);
        let (answers, go_on): (Sender<bool>, Receiver<bool>) = mpsc::channel();
        // Taken before the engine's thread has the job, so that a text can also be cancelled while it waits for its turn.
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let (upto, running) = (self.cancelled.clone(), self.running.clone());
        let cancelled = move || number <= upto.load(Ordering::Relaxed);
        self.send(Box::new(move |Loaded { engine, vocabulary }| {
            running.begin(number);
            if cancelled() {
                return drop(replies.send(Reply::Done(Box::new(Ok(nothing())))));
            }
            let generated = prompt.tokens(engine).and_then(|prompt| {
                let options = generation.options(engine.tokenizer(), vocabulary)?;
                let generated = engine.generate(&prompt, &options, |event| {
                    let wanted = match event {
                        Event::Text(text) => {
                            replies.send(Reply::Text(text.to_owned())).is_ok() && go_on.recv() == Ok(true)
                        }
                        Event::Prompt(_) | Event::Token(_) => true,
                    };
                    match wanted && !cancelled() {
                        true => ControlFlow::Continue(()),
                        false => ControlFlow::Break(()),
                    }
                });
                generated.map_err(Failure::from)
            });
            drop(replies.send(Reply::Done(Box::new(generated))));
        }))?;
        loop {
            match heard.recv().map_err(|_| panicked())? {
                Reply::Text(text) => drop(answers.send(told(text))),
                Reply::Done(generated) => return *generated,
            }
        }
    }
}

impl Drop for nt_engine {
    fn drop(&mut self) {
        // Without jobs to come the thread ends; the device's memory is free when it has.
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A text that was cancelled before it was begun.
fn nothing() -> Generated {
    let none = Timing::default();
    let (tokens, text, stop) = (Vec::new(), String::new(), Stop::Interrupted);
    Generated { tokens, text, stop, unfinished: false, reused: 0, prompt: none, decode: none }
}

/// Whether a callback of this engine is running on this thread.
fn is_calling(engine: *const nt_engine) -> bool {
    CALLING.with_borrow(|engines| engines.contains(&engine))
}

fn panicked() -> Failure {
    Failure { status: nt_status::Internal, text: "a mistake in the engine stopped it; stderr has more".into() }
}

/// What is continued.
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl Prompt {
    fn tokens(self, engine: &Engine) -> Result<Vec<u32>, Failure> {
        match self {
            Prompt::Text(text) => engine.tokenizer().prompt(&text).map_err(|e| Failure::argument(e.to_string())),
            Prompt::Tokens(tokens) => {
                let vocab = engine.config().dims.vocab;
                match tokens.iter().find(|&&token| token as usize >= vocab) {
                    Some(token) => {
                        Err(Failure::argument(format!("token {token} is outside the vocabulary of {vocab}")))
                    }
                    None => Ok(tokens),
                }
            }
        }
    }
}

/// Loads the model in the GGUF file at `path` (zero-terminated, the system's own encoding), or the built-in demo model where
/// `path` is null, and gives it in `engine`. `options` may be null. Takes as long as reading the file does. To be freed with
/// nt_engine_free().
///
/// # Safety
/// `path` is null or zero-terminated, `options` null or from nt_options_new(), `engine` null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_engine_load(
    path: *const c_char,
    options: *const nt_options,
    engine: *mut *mut nt_engine,
) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { give(engine, ptr::null_mut(), "engine") }?;
        let path = match path.is_null() {
            true => None,
            // SAFETY: not null, and zero-terminated: the caller's promise.
            false => Some(path_of(unsafe { std::ffi::CStr::from_ptr(path) })),
        };
        // SAFETY: the caller's promise.
        let options = unsafe { options.as_ref() }.map(|options| options.0.clone()).unwrap_or_default();
        let loaded = Box::new(nt_engine::load(path, options)?);
        // SAFETY: the caller's promise.
        unsafe { give(engine, Box::into_raw(loaded), "engine") }
    })
}

fn path_of(path: &std::ffi::CStr) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::OsStr::from_bytes(path.to_bytes()).into()
}

/// Frees an engine and the memory of its model; null is ignored. No other function may be using it: from a
/// callback of the engine nothing is freed, and nt_last_error() says so.
///
/// # Safety
/// `engine` is null or from nt_engine_load(), and not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_engine_free(engine: *mut nt_engine) {
    if !engine.is_null() {
        guard(|| {
            // The engine's thread waits for the callback: waiting for its end would be for ever.
            if is_calling(engine) {
                return Err(Failure::argument("a callback cannot free the engine that it was called for"));
            }
            // SAFETY: from Box::into_raw, and freed once: the caller's promise.
            drop(unsafe { Box::from_raw(engine) });
            Ok(())
        });
    }
}

/// The name of the device that the model is on, in UTF-8; null for a null engine. Valid as long as the engine.
///
/// # Safety
/// `engine` is null or from nt_engine_load().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_engine_device(engine: *const nt_engine) -> *const c_char {
    // SAFETY: the caller's promise.
    unsafe { engine.as_ref() }.map_or(ptr::null(), |engine| engine.device.as_ptr())
}

/// Tokens that prompt and answer may have together; 0 for a null engine.
///
/// # Safety
/// `engine` is null or from nt_engine_load().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_engine_context(engine: *const nt_engine) -> usize {
    // SAFETY: the caller's promise.
    unsafe { engine.as_ref() }.map_or(0, |engine| engine.context)
}

/// Continues a text, `len` bytes of UTF-8 or NT_ZERO_TERMINATED. Special tokens that are written in it stay text.
///
/// `generation`, `callback` and `result` may be null. A text that ends for any of nt_stop's reasons is NT_STATUS_OK.
///
/// # Safety
/// `engine` is null or from nt_engine_load(), `prompt` null or of `len` bytes, `generation` null or from
/// nt_generation_new(), `result` null or with its struct_size set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generate(
    engine: *const nt_engine,
    prompt: *const c_char,
    len: usize,
    generation: *const nt_generation,
    callback: nt_text_callback,
    user: *mut c_void,
    result: *mut nt_result,
) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let prompt = Prompt::Text(unsafe { utf8(prompt, len, "prompt") }?.to_owned());
        // SAFETY: the caller's promise.
        unsafe { generate(engine, prompt, generation, callback, user, result) }
    })
}

/// As nt_generate(), of `count` tokens such as nt_tokenize() gives.
///
/// # Safety
/// As nt_generate(); `tokens` is null or has `count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generate_tokens(
    engine: *const nt_engine,
    tokens: *const u32,
    count: usize,
    generation: *const nt_generation,
    callback: nt_text_callback,
    user: *mut c_void,
    result: *mut nt_result,
) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let prompt = Prompt::Tokens(unsafe { elements(tokens, count, "tokens") }?.to_vec());
        // SAFETY: the caller's promise.
        unsafe { generate(engine, prompt, generation, callback, user, result) }
    })
}

/// # Safety
/// As nt_generate().
unsafe fn generate(
    engine: *const nt_engine,
    prompt: Prompt,
    generation: *const nt_generation,
    callback: nt_text_callback,
    user: *mut c_void,
    result: *mut nt_result,
) -> Result<(), Failure> {
    // SAFETY: the caller's promise.
    let (engine, result) = unsafe { (object(engine, "engine")?, ResultOut::new(result)?) };
    // SAFETY: the caller's promise.
    let generation = unsafe { generation.as_ref() }.cloned().unwrap_or_default();
    let generated = engine.generate(prompt, generation, &mut |text| {
        let Some(callback) = callback else { return true };
        let len = text.len();
        let mut bytes = text.into_bytes();
        bytes.push(0);
        CALLING.with_borrow_mut(|engines| engines.push(engine));
        // SAFETY: `len` bytes and a zero byte; the function is what C passed, with its own `user`.
        let go_on = unsafe { callback(bytes.as_ptr().cast(), len, user) };
        CALLING.with_borrow_mut(Vec::pop);
        go_on
    })?;
    result.write(&generated);
    Ok(())
}

/// Ends the texts that were asked for and are not complete: the one that is being generated within about a layer's time, those
/// that wait for their turn before they begin. Their nt_generate() returns with NT_STOP_CANCELLED. Texts that are asked for later
/// are not affected. May be called from any thread, and from a callback; does not wait. Not from a signal handler.
///
/// # Safety
/// `engine` is null or from nt_engine_load().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_cancel(engine: *const nt_engine) {
    // SAFETY: the caller's promise.
    if let Some(engine) = unsafe { engine.as_ref() } {
        let asked = engine.requests.load(Ordering::Relaxed);
        engine.cancelled.fetch_max(asked, Ordering::Relaxed);
        engine.running.cancel(asked);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_text_that_waits_can_be_cancelled() {
        let options = EngineOptions { device: ntransformer::DeviceChoice::Cpu, ..Default::default() };
        let engine = nt_engine::load(None, options).ok().unwrap();
        let (go, wait) = mpsc::channel::<()>();
        engine.send(Box::new(move |_| assert!(wait.recv().is_err()))).ok().unwrap();
        let text = || engine.generate(Prompt::Text("A".into()), Default::default(), &mut |_| false).ok().unwrap();
        let waited = std::thread::scope(|scope| {
            let waits = scope.spawn(text);
            while engine.requests.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            // SAFETY: a reference is valid.
            unsafe { nt_cancel(&engine) };
            drop(go);
            waits.join().unwrap()
        });
        assert_eq!((waited.stop, waited.tokens.len(), waited.prompt.tokens), (Stop::Interrupted, 0, 0));
        assert!(!text().tokens.is_empty(), "the next text is a new one");
    }

    /// A pass that takes seconds does not have to be waited for; and a later text is whole.
    #[test]
    fn a_text_is_cancelled_in_the_middle_of_a_pass() {
        let mut options = EngineOptions { device: ntransformer::DeviceChoice::Cpu, ..Default::default() };
        options.context = Some(64);
        options.load.streaming = true;
        options.load.vram_budget = Some((7 << 20).into());
        // Some MB for each pass.
        options.load.link_limit = Some(1e6);
        let engine = nt_engine::load(None, options).ok().unwrap();
        let text = || engine.generate(Prompt::Text("A".into()), Default::default(), &mut |_| false).ok().unwrap();
        let begin = Instant::now();
        let cancelled = std::thread::scope(|scope| {
            let text = scope.spawn(text);
            std::thread::sleep(Duration::from_millis(300));
            // SAFETY: a reference is valid.
            unsafe { nt_cancel(&engine) };
            text.join().unwrap()
        });
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
        assert_eq!((cancelled.stop, cancelled.prompt.tokens), (Stop::Interrupted, 0));
        assert!(!text().tokens.is_empty(), "the next text is a new one");
        engine.running.begin(7);
        engine.running.cancel(6);
        assert!(!engine.running.cancel.load(Ordering::Relaxed), "a text that was asked for later");
    }

    #[test]
    fn an_engine_that_panicked_answers_nothing_more() {
        let options = EngineOptions { device: ntransformer::DeviceChoice::Cpu, ..Default::default() };
        let engine = nt_engine::load(None, options).ok().unwrap();
        let status = |answer: Result<usize, Failure>| answer.map_err(|failure| failure.status);
        assert_eq!(status(engine.ask(|engine| Ok(engine.config().dims.context))), Ok(engine.context));
        assert_eq!(status(engine.ask(|_| panic!("on purpose"))), Err(nt_status::Internal));
        assert_eq!(status(engine.ask(|_| Ok(1))), Err(nt_status::Internal));
        let generated = engine.generate(Prompt::Text("A".into()), Default::default(), &mut |_| true);
        assert_eq!(generated.err().unwrap().status, nt_status::Internal);
    }
}
