//! Memory, and what moves into and out of it.

use std::env;

use super::*;
use crate::device::{Transfer, cuda::CudaDevice};

#[test]
fn memory_that_does_not_fit_is_said_with_the_numbers() {
    with_driver!("memory_that_does_not_fit_is_said_with_the_numbers", "FAKE_CUDA_MEMORY" = "1000000");
    let driver = open();
    let first = driver.alloc("the first", 600_000).unwrap();
    assert_eq!(driver.memory().unwrap(), MemoryInfo { free: 400_000, total: 1_000_000 });
    let Err(error) = driver.alloc("the second", 400_001) else { panic!("it fitted") };
    assert!(matches!(error, DeviceError::OutOfMemory { need: 400_001, free: 400_000, .. }), "{error}");
    assert!(error.to_string().contains("cuda:0 Fake 0: not enough memory for the second"), "{error}");
    drop(first);
    driver.alloc("the second again", 400_001).unwrap();
    driver.alloc("nothing", 0).unwrap();
}

#[test]
fn pinning_that_does_not_fit_is_refused() {
    with_driver!("pinning_that_does_not_fit_is_refused", "FAKE_CUDA_FAIL" = "cuMemHostRegister_v2=2");
    let driver = open();
    for bytes in [4096, 1 << 60] {
        let Err(error) = driver.pinned("a layer", bytes) else { panic!("it fitted") };
        assert!(matches!(error, DeviceError::OutOfMemory { need, .. } if need == bytes as u64), "{error}");
        assert!(error.to_string().contains("page-locked host memory: not enough memory for a layer"), "{error}");
    }
}

#[test]
fn ranges_outside_buffers_are_refused() {
    with_driver!("ranges_outside_buffers_are_refused");
    let driver = open();
    let (mem, pinned) = (driver.alloc("mem", 100).unwrap(), driver.pinned("pinned", 100).unwrap());
    let mut bytes = [0; 51];
    let refused = [
        driver.write(&mem, 50, &bytes),
        driver.write(&mem, usize::MAX, &bytes),
        driver.read(&mem, 101, &mut bytes[..0]),
        driver.copy(&mem, &mem, 101),
        driver.upload(&pinned, 0..101, &mem, 0, None).map(drop),
        driver.upload(&pinned, 50..100, &mem, 51, None).map(drop),
        #[expect(clippy::reversed_empty_ranges)]
        driver.upload(&pinned, 2..1, &mem, 0, None).map(drop),
    ];
    for (case, result) in refused.into_iter().enumerate() {
        assert!(matches!(result, Err(DeviceError::OutOfRange { .. })), "case {case}: {result:?}");
    }
    driver.write(&mem, 100, &[]).unwrap();
    driver.upload(&pinned, 100..100, &mem, 100, None).unwrap();
}

#[test]
fn writes_of_every_size_arrive_although_their_source_is_reused() {
    with_driver!("writes_of_every_size_arrive_although_their_source_is_reused");
    let driver = open();
    // Three and a bit staging buffers in one write, then sizes around their ends, so that each is used several times.
    let sizes = [3 * memory::STAGE + 7, 1, 63, 65, memory::STAGE - 1, memory::STAGE, memory::STAGE + 1, 5];
    let mems: Vec<Mem> = sizes.iter().map(|&size| driver.alloc("target", size + 3).unwrap()).collect();
    let mut source = Vec::new();
    for (seed, (&size, mem)) in sizes.iter().zip(&mems).enumerate() {
        source.clear();
        source.extend(pattern(size, seed));
        driver.write(mem, 3, &source).unwrap();
    }
    // From page-locked memory too, where the driver itself would read later.
    let mut pinned = driver.pinned("source", 1000).unwrap();
    let last = driver.alloc("target", 1000).unwrap();
    pinned.as_mut().copy_from_slice(&pattern(1000, 99));
    driver.write(&last, 0, pinned.as_ref()).unwrap();
    pinned.as_mut().fill(0);

    for (seed, (&size, mem)) in sizes.iter().zip(&mems).enumerate() {
        assert!(fetch(&driver, mem)[3..] == pattern(size, seed), "write {seed} of {size} bytes");
    }
    assert!(fetch(&driver, &last) == pattern(1000, 99));
}

#[test]
fn writes_wait_for_nothing_while_there_is_room() {
    with_driver!("writes_wait_for_nothing_while_there_is_room");
    let driver = open();
    let mem = driver.alloc("mem", 8192).unwrap();
    let before = driver.mark().unwrap();
    for _ in 0..100 {
        driver.write(&mem, 0, &[1; 8192]).unwrap();
    }
    let after = driver.mark().unwrap();
    assert!(driver.seconds(&before, &after).is_err(), "it has waited");
    driver.host_waits(&after).unwrap();
    // One piece of work each.
    assert!((driver.seconds(&before, &after).unwrap() - 0.1).abs() < 1e-9);
}

#[test]
fn reads_of_every_size_arrive() {
    with_driver!("reads_of_every_size_arrive");
    let driver = open();
    for size in [1, 4, memory::LANDING - 1, memory::LANDING, memory::LANDING + 1, 300_000] {
        let mem = driver.alloc("source", size + 3).unwrap();
        driver.write(&mem, 3, &pattern(size, size)).unwrap();
        let mut bytes = vec![0; size];
        driver.read(&mem, 3, &mut bytes).unwrap();
        assert!(bytes == pattern(size, size), "{size} bytes");
    }
}

#[test]
fn uploads_and_kernels_keep_the_order_of_their_events() {
    with_driver!("uploads_and_kernels_keep_the_order_of_their_events");
    let driver = open();
    let (slot, kept) = (driver.alloc("slot", 256).unwrap(), driver.alloc("kept", 256).unwrap());
    let mut pinned = driver.pinned("layers", 512).unwrap();
    assert!(pinned.as_ref().iter().all(|&byte| byte == 0) && (pinned.as_ref().as_ptr() as usize).is_multiple_of(4096));
    pinned.as_mut().copy_from_slice(&pattern(512, 1));

    // The compute queue uses a layer once it is there. `fetch` waits for that queue alone.
    let there = driver.upload(&pinned, 0..256, &slot, 0, None).unwrap();
    driver.compute_waits(&there).unwrap();
    driver.copy(&slot, &kept, 256).unwrap();
    assert!(fetch(&driver, &kept) == pattern(512, 1)[..256]);

    // The next layer gets into the slot once that use is over. The host waits for the copy queue alone.
    driver.write(&kept, 0, &[0; 256]).unwrap();
    driver.copy(&slot, &kept, 256).unwrap();
    let used = driver.mark().unwrap();
    let next = driver.upload(&pinned, 256..512, &slot, 0, Some(&used)).unwrap();
    driver.host_waits(&next.clone()).unwrap();
    assert!(fetch(&driver, &kept) == pattern(512, 1)[..256]);
    assert!(fetch(&driver, &slot) == pattern(512, 1)[256..]);

    // Memory and events dropped while their work is still queued.
    let event = driver.upload(&pinned, 0..256, &slot, 0, None).unwrap();
    driver.compute_waits(&event).unwrap();
    drop((event, pinned));
    driver.copy(&slot, &kept, 256).unwrap();
    drop(slot);
    assert!(fetch(&driver, &kept) == pattern(512, 1)[..256]);
}

/// Kernels read page-locked memory where it is, also what was asked for before it is dropped.
#[test]
fn memory_is_read_over_the_link() {
    with_driver!("memory_is_read_over_the_link");
    let driver = open();
    let mut pinned = driver.pinned("weights", 512).unwrap();
    pinned.as_mut().copy_from_slice(&pattern(512, 3));
    let start = pinned.as_ref().as_ptr() as u64;
    let (free, kept) = (driver.memory().unwrap().free, driver.alloc("kept", 512).unwrap());
    let mapped = driver.zero_copy(pinned).unwrap();
    // The stand-in's addresses are the host's.
    assert_eq!((CustDriver::address(&mapped), CustDriver::len(&mapped)), (start, 512));
    assert_eq!(driver.memory().unwrap().free, free - 512, "it takes no device memory");
    assert!(fetch(&driver, &mapped) == pattern(512, 3));
    driver.copy(&mapped, &kept, 512).unwrap();
    drop(mapped);
    assert!(fetch(&driver, &kept) == pattern(512, 3));
    let late = driver.zero_copy(driver.pinned("more", 16).unwrap()).unwrap();
    // The stand-in ends the process when the context goes before what was registered.
    drop((driver, kept, late));
}

#[test]
fn memory_without_an_address_is_refused() {
    with_driver!("memory_without_an_address_is_refused", "FAKE_CUDA_FAIL" = "cuMemHostGetDevicePointer_v2=1");
    let driver = open();
    let Err(error) = driver.zero_copy(driver.pinned("weights", 16).unwrap()) else { panic!("it has an address") };
    assert!(error.to_string().contains("cuMemHostGetDevicePointer"), "{error}");
}

#[test]
fn handles_outlive_their_driver() {
    with_driver!("handles_outlive_their_driver");
    let driver = open();
    let (mem, pinned) = (driver.alloc("mem", 64).unwrap(), driver.pinned("pinned", 64).unwrap());
    let event = driver.upload(&pinned, 0..64, &mem, 0, None).unwrap();
    // The stand-in ends the process when the context goes before its memory.
    drop((driver, mem, event, pinned));
}

/// Memory that others write: it has a dma-buf where the driver gives one, and kernels see what came when the driver has been asked to wait.
#[test]
fn memory_that_others_write_is_told_and_waited_for() {
    let name = here!("memory_that_others_write_is_told_and_waited_for");
    for (number, settings) in [
        &[("FAKE_CUDA_TRACE", "1")][..],
        &[("FAKE_CUDA_TRACE", "1"), ("FAKE_CUDA_ORDERING", "100"), ("FAKE_CUDA_DMA_BUF", "1")],
        &[("FAKE_CUDA_FLUSH", "2")],
    ]
    .into_iter()
    .enumerate()
    {
        let number = number.to_string();
        let settings = [settings, &[("NUMBER", &*number)]].concat();
        if let Some(stderr) = fake::outer_with_driver(&name, &settings) {
            assert_eq!(stderr.contains("flush"), number == "0", "{stderr}");
            assert_eq!(stderr.contains("seen from elsewhere"), number != "2", "{stderr}");
            continue;
        }
        let mut dev = CudaDevice::new(open());
        let buf = dev.alloc("the ring", 8192).unwrap();
        match env::var("NUMBER").unwrap().as_str() {
            "2" => {
                let error = dev.device_memory(&buf).err().expect("nobody knows when kernels see it").to_string();
                assert!(error.contains("neither orders other devices' writes nor waits for them"), "{error}");
            }
            number => {
                let memory = dev.device_memory(&buf).unwrap();
                assert!(memory.len() == 8192 && memory.address().is_multiple_of(4096), "{:#x}", memory.address());
                memory.write(4096, &[7; 4096]).unwrap();
                // The stand-in's queues are lazy: the bytes are there only because they were waited for.
                // SAFETY: the stand-in's device memory is the host's.
                let byte = |at: u64| unsafe { *((memory.address() + at) as *const u8) };
                assert_eq!((byte(4096), byte(8191)), (7, 7));
                assert!(memory.write(8192, &[1]).is_err());
                match (number, memory.dma_buf()) {
                    ("0", Err(why)) => assert!(why.starts_with("cuMemGetHandleForAddressRange failed"), "{why}"),
                    ("1", Ok(fd)) => assert_eq!(std::fs::File::from(fd).metadata().unwrap().len(), 8192),
                    (number, result) => panic!("{number}: {result:?}"),
                }
                dev.acquire().unwrap();
                drop(memory);
                dev.limit_link(Some(1e9));
                let error = dev.device_memory(&buf).err().expect("a slow link cannot be played").to_string();
                assert!(error.contains("--link-limit delays copies"), "{error}");
            }
        }
        return;
    }
}
