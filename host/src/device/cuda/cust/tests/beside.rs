//! Kernels beside all others, and memory that they share with the host.

use super::*;
use crate::device::cuda::beside::Beside;

#[test]
fn kernels_run_on_a_queue_of_their_own() {
    with_driver!("kernels_run_on_a_queue_of_their_own");
    let driver = open();
    let mut beside = driver.beside("good").unwrap();
    assert_eq!(beside.name(), "cuda:0 Fake 0");
    let memory = beside.shared("words", 5000).unwrap();
    assert_eq!((memory.len(), memory.address(8)), (8192, memory.as_ptr().as_ptr() as u64 + 8));
    assert!((0..2048).all(|word| memory.load(4 * word) == 0), "it is not zeroed");
    assert!(beside.is_idle().unwrap(), "nothing was started");
    // On another thread, and without the driver that opened it.
    drop(driver);
    let theirs = memory.clone();
    let thread = std::thread::spawn(move || {
        let start = theirs.address(8) as *mut u8;
        // SAFETY: twelve bytes of the memory.
        unsafe { beside.launch::<Fill>(Grid::new(1, 1, 32), (start, 7, 12)) }.unwrap();
        // The stand-in works when it is waited for.
        assert!(!beside.is_idle().unwrap());
        // Waits.
        drop(beside);
    });
    thread.join().unwrap();
    assert_eq!([0, 4, 8, 12, 16, 20].map(|at| memory.load(at)), [0, 0, 0x0707_0707, 0x0707_0707, 0x0707_0707, 0]);
}

#[test]
fn what_cannot_be_had_beside_is_an_error() {
    with_driver!("what_cannot_be_had_beside_is_an_error");
    let driver = open();
    let Err(error) = driver.beside("unheard_of") else { panic!("there is such a module") };
    assert!(error.to_string().contains("no kernel module unheard_of"), "{error}");
    let Err(error) = driver.beside("bad") else { panic!("it was compiled") };
    assert!(error.to_string().contains("the driver refused the kernel module bad"), "{error}");
    let mut beside = driver.beside("good").unwrap();
    // SAFETY: there is no such kernel.
    let error = unsafe { beside.launch::<Absent>(Grid::new(1, 1, 32), ()) }.unwrap_err();
    assert!(error.to_string().contains("cuModuleGetFunction"), "{error}");
    let Err(error) = beside.shared("too much", 1 << 60) else { panic!("it fitted") };
    assert!(error.to_string().contains("page-locked host memory: not enough memory for too much"), "{error}");
}
