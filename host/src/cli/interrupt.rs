//! Ctrl-C: the first ends the work within about a layer's time, the second ends the process.

use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicBool, Ordering},
};

/// Exit code of an interrupted run: 128 + SIGINT, as shells expect.
pub const EXIT_CODE: u8 = 130;

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Nothing is computed that could end: the first Ctrl-C ends the process.
static IDLE: AtomicBool = AtomicBool::new(false);

/// Installs the handler. Without one (no signals on this system), Ctrl-C ends the process at once, which is the default.
pub fn install() {
    let handler = || {
        if IDLE.load(Ordering::Relaxed) || INTERRUPTED.swap(true, Ordering::Relaxed) {
            exit(EXIT_CODE);
        }
    };
    if let Err(e) = ctrlc::set_handler(handler) {
        super::open::say(&format!("warning: Ctrl-C will end the process at once: {e}"));
    }
}

/// Ends the process, whatever its threads are doing: a driver's own clean-up would wait for copies and kernels, or meet one of its calls
/// on another thread. The system takes back what they use.
pub fn exit(code: u8) -> ! {
    // But for drives that would go on writing into memory that is not this process's any more.
    nvme::unbound::stop_all();
    // SAFETY: it ends the process, and runs nothing of it.
    unsafe { libc::_exit(code.into()) }
}

/// Becomes true when the user asks to stop.
pub fn flag() -> Arc<AtomicBool> {
    INTERRUPTED.clone()
}

/// The user has asked to stop.
pub fn requested() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Says whether something is being computed; a Ctrl-C before counts no more.
pub fn set_idle(idle: bool) {
    INTERRUPTED.store(false, Ordering::Relaxed);
    IDLE.store(idle, Ordering::Relaxed);
}
