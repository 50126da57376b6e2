//! What becomes of devices that are driven without an IOMMU when the process ends: they are kept from the bus, since its memory becomes others'.

use crate::{Door, unbound::UnboundDoor};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM},
    iterator::Signals,
    low_level::emulate_default_handler,
};
use std::{
    sync::{Arc, Mutex, Once, PoisonError, Weak},
    thread,
};

/// The doors that are open.
static OPEN: Mutex<Vec<Weak<UnboundDoor>>> = Mutex::new(Vec::new());

/// From now on, the device is kept from the bus when the process exits, or when it is ended by a signal that nobody has a handler for. Where that cannot be
/// had, a device that its owner does not stop goes on, as it does when a process is killed.
pub(crate) fn remember(door: &Arc<UnboundDoor>) {
    static ONCE: Once = Once::new();
    extern "C" fn at_exit() {
        stop_all();
    }
    ONCE.call_once(|| {
        // SAFETY: the function takes nothing and lives as long as the process.
        let _ = unsafe { libc::atexit(at_exit) };
        let _ = at_signals();
    });
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    open.retain(|door| door.strong_count() > 0);
    open.push(Arc::downgrade(door));
}

/// Has a thread wait for the signals that would end the process at once. Those that are handled, or ignored (nohup), are others' business.
fn at_signals() -> std::io::Result<()> {
    let mut signals =
        Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM].into_iter().filter(|&signal| is_default(signal)))?;
    let wait = move || {
        for signal in signals.forever() {
            stop_all();
            // Ends the process as the signal would have.
            let _ = emulate_default_handler(signal);
        }
    };
    thread::Builder::new().name("nvme signals".into()).spawn(wait).map(drop)
}

/// Whether nobody has said what a signal is to do.
fn is_default(signal: i32) -> bool {
    // SAFETY: the system writes what there is to a local, of which all bits are allowed to be zero.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_DFL
    }
}

/// Keeps all devices that this process has taken without an IOMMU from the bus, for who ends the process with reads in flight: its memory
/// becomes others', and the devices would still write there. A process that exits does it by itself. (VFIO's devices are stopped by the
/// kernel, however the process ends.)
pub fn stop_all() {
    let open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    for door in open.iter().filter_map(Weak::upgrade) {
        // Nothing is left to be told of an error.
        let _ = door.set_bus_master(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::System;
    use std::{
        env,
        fs::{self, File},
        os::unix::{fs::FileExt, process::ExitStatusExt},
        path::{Path, PathBuf},
        process::Command,
        time::{Duration, Instant},
    };

    const FOLDER: &str = "sys/bus/pci/devices/0000:3b:00.0";

    /// A device of files, whose registers nobody plays.
    fn device(root: &Path) -> PathBuf {
        let folder = root.join(FOLDER);
        fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in
            [("class", &b"0x010802\n"[..]), ("enable", b"0"), ("config", &[0; 64]), ("resource0", &[0; 8192])]
        {
            fs::write(folder.join(name), bytes).unwrap();
        }
        folder
    }

    fn open(root: &Path) -> Result<Arc<dyn Door>, String> {
        UnboundDoor::open(&System::at(root), "3b:00.0".parse().unwrap()).map_err(|e| e.to_string())
    }

    fn is_master(folder: &Path) -> bool {
        let mut command = [0; 2];
        File::open(folder.join("config")).unwrap().read_exact_at(&mut command, 4).unwrap();
        command[0] & 4 != 0
    }

    #[test]
    fn devices_are_kept_from_the_bus() {
        let root = tempfile::tempdir().unwrap();
        let folder = device(root.path());
        let door = open(root.path()).unwrap();
        door.set_bus_master(true).unwrap();
        assert!(is_master(&folder));
        stop_all();
        assert!(!is_master(&folder));
        let again = open(root.path()).err().unwrap();
        assert!(again.contains("another process drives it"), "{again}");
        drop(door);
        assert_eq!(fs::read(folder.join("enable")).unwrap(), b"0");
    }

    /// Where the process that `ended` starts has its device.
    const ROOT: &str = "NVME_TEST_ROOT";

    #[test]
    #[ignore = "ended starts it"]
    fn a_process_at_work() {
        let Some(root) = env::var_os(ROOT) else { return };
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            // Whoever started the tests may have these ignored, as nohup does, and shells for what runs in the background.
            // SAFETY: no handler of this process is lost.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        let door = open(Path::new(&root)).unwrap();
        door.set_bus_master(true).unwrap();
        thread::sleep(Duration::from_secs(20));
    }

    /// A process with a device that is ended by this signal.
    fn ended(signal: i32) {
        let root = tempfile::tempdir().unwrap();
        let folder = device(root.path());
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", "ending::tests::a_process_at_work", "--ignored", "--nocapture"])
            .env(ROOT, root.path());
        let mut process = command.spawn().unwrap();
        let begin = Instant::now();
        while !is_master(&folder) {
            assert!(begin.elapsed() < Duration::from_secs(10), "it does not begin");
            thread::sleep(Duration::from_millis(10));
        }
        // SAFETY: a process of our own that was not waited for.
        assert_eq!(unsafe { libc::kill(process.id() as i32, signal) }, 0);
        assert_eq!(process.wait().unwrap().signal(), Some(signal));
        assert!(!is_master(&folder), "the device goes on behind signal {signal}");
    }

    #[test]
    fn signals_that_end_the_process() {
        [SIGTERM, SIGHUP, SIGINT].into_iter().for_each(ended);
    }
}
