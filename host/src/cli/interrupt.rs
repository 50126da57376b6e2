//! Ctrl-C: the first ends the work at the next token, the second ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

/// Exit code of an interrupted run: 128 + SIGINT, as shells expect.
pub const EXIT_CODE: u8 = 130;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Nothing is computed that could end: the first Ctrl-C ends the process.
static IDLE: AtomicBool = AtomicBool::new(false);

/// Installs the handler. Without one (no signals on this system), Ctrl-C ends the process at once, which is the default.
pub fn install() {
    let handler = || {
        if IDLE.load(Ordering::Relaxed) || INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(EXIT_CODE.into());
        }
    };
    if let Err(e) = ctrlc::set_handler(handler) {
        super::open::say(&format!("warning: Ctrl-C will end the process at once: {e}"));
    }
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
