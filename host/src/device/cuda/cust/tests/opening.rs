//! Opening a GPU, and what is said where there is none.

use std::env;

use super::*;

fn why(result: Result<CustDriver>) -> String {
    match result {
        Err(error @ DeviceError::Unavailable { .. }) => error.to_string(),
        Err(error) => panic!("not Unavailable: {error}"),
        Ok(_) => panic!("it opened"),
    }
}

#[test]
fn no_driver_is_said_with_the_way_out() {
    let settings = [("NT_LIBCUDA", "/nonexistent/libcuda.so.1")];
    if fake::outer(&here!("no_driver_is_said_with_the_way_out"), &settings).is_some() {
        return;
    }
    let message = why(CustDriver::open(0, |_| ()));
    for part in ["not installed or not visible", "/nonexistent/libcuda.so.1", "--device cpu"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(CustDriver::count().unwrap_err().to_string(), message);
}

#[test]
fn unusable_devices_are_named_with_the_reason() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("FAKE_CUDA_VERSION", "11020", &["too old", "CUDA 11.2", "CUDA 11.4", "PTX 7.4", "update"]),
        ("FAKE_CUDA_DEVICES", "0", &["sees no GPU"]),
        ("FAKE_CUDA_CAPABILITY", "75", &["cuda:0 Fake 0", "compute capability 7.5", "8.0"]),
        ("FAKE_CUDA_FAIL", "cuInit=803", &["cuInit", "unsupported display driver / cuda driver combination"]),
        ("FAKE_CUDA_FAIL", "cuDevicePrimaryCtxRetain=46", &["cuda:0 Fake 0", "busy or unavailable"]),
        ("FAKE_CUDA_FAIL", "cuStreamCreateWithPriority=2", &["cuStreamCreate", "out of memory"]),
        ("FAKE_CUDA_FAIL", "cuDeviceGetCount=4242", &["cuDeviceGetCount", "CUDA error 4242"]),
    ];
    for (number, (variable, value, _)) in cases.iter().enumerate() {
        let name = here!("unusable_devices_are_named_with_the_reason");
        if fake::outer_with_driver(&name, &[("CASE", &number.to_string()), (variable, value)]).is_none() {
            let message = why(CustDriver::open(0, |_| ()));
            let case: usize = env::var("CASE").unwrap().parse().unwrap();
            for part in cases[case].2.iter().chain(&["no CUDA device: ", "--device cpu"]) {
                assert!(message.contains(part), "{part:?} is not in {message:?}");
            }
            return;
        }
    }
}

#[test]
fn an_index_beyond_the_devices_is_said_with_their_number() {
    with_driver!("an_index_beyond_the_devices_is_said_with_their_number", "FAKE_CUDA_DEVICES" = "2");
    assert_eq!(CustDriver::count().unwrap(), 2);
    assert_eq!(CustDriver::open(1, |_| ()).unwrap().name(), "cuda:1 Fake 1");
    let message = why(CustDriver::open(2, |_| ()));
    assert!(message.contains("no cuda:2") && message.contains("2 are visible"), "{message}");
    assert!(why(CustDriver::open(usize::MAX, |_| ())).contains("no cuda:18446744073709551615"));
}

#[test]
fn the_properties_are_the_devices() {
    with_driver!("the_properties_are_the_devices", "FAKE_CUDA_CAPABILITY" = "103");
    let expected = Properties {
        multiprocessors: 4,
        shared_per_block: 227 << 10,
        shared_per_multiprocessor: 228 << 10,
        shared_reserved: 1 << 10,
        compute_capability: (10, 3),
        l2_bytes: 1 << 20,
        cluster: 8,
    };
    assert_eq!(*open().properties(), expected);
}
