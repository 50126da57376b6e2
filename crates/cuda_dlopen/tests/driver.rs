//! The symbols with no driver, with a stand-in, and with results that cust's enum lacks.

mod fake;

use std::{env, ptr};

use cuda_dlopen::{Code, raw};
use cust::{
    context::Context,
    device::Device,
    error::CudaError,
    sys::{self, CUresult},
};

/// A place where there is no library.
const NOWHERE: (&str, &str) = ("NT_LIBCUDA", "/nonexistent/libcuda.so.1");

#[test]
fn without_a_driver_there_is_no_device() {
    if fake::outer("without_a_driver_there_is_no_device", &[NOWHERE]).is_some() {
        return;
    }
    assert!(!cuda_dlopen::driver_present());
    assert!(cuda_dlopen::why_absent().unwrap().contains("/nonexistent/libcuda.so.1"));
    assert_eq!(cuda_dlopen::driver_version(), Err(Code::NO_DEVICE));
    assert_eq!(Code::NO_DEVICE.to_string(), "no CUDA-capable device is detected (CUDA_ERROR_NO_DEVICE)");
    assert_eq!(cust::init(cust::CudaFlags::empty()), Err(CudaError::NoDevice));
    assert_eq!(Device::num_devices(), Err(CudaError::NoDevice));
    assert_eq!(cuda_dlopen::last_error(), Some(Code::NO_DEVICE));
}

#[test]
fn every_error_has_words() {
    // cust's Display asks the driver and fails where that has no answer, which makes `to_string` panic.
    let all = || {
        assert!(CudaError::NoDevice.to_string().contains("no CUDA-capable device"));
        for error in [CudaError::UnknownError, CudaError::NotSupported] {
            assert!(error.to_string().contains("unknown error"), "{error}");
        }
        for value in 1..1200 {
            assert!(!Code::new(value).unwrap().to_string().is_empty());
        }
    };
    let name = "every_error_has_words";
    if env::var("WITH_DRIVER").is_ok() {
        if fake::outer_with_driver(name, &[]).is_none() {
            all();
            assert_eq!(Code::OUT_OF_MEMORY.to_string(), "out of memory (CUDA_ERROR_OUT_OF_MEMORY)");
            assert_eq!(Code::new(4242).unwrap().to_string(), "CUDA error 4242, which the driver does not describe");
        }
        return;
    }
    if fake::outer(name, &[NOWHERE]).is_none() {
        all();
        return;
    }
    fake::outer_with_driver(name, &[("WITH_DRIVER", "1")]);
}

#[test]
fn codes_that_cust_lacks_become_unknown() {
    // 46 (device unavailable) and 1000000 are in no enum of cust's, 803 is in its raw one only, 2 in both.
    for (code, as_enum) in [("46", 999), ("1000000", 999), ("803", 803), ("2", 2)] {
        let failing = format!("cuDevicePrimaryCtxRetain={code}");
        let settings = [("FAKE_CUDA_FAIL", failing.as_str()), ("CODE", code), ("AS_ENUM", &as_enum.to_string())];
        if fake::outer_with_driver("codes_that_cust_lacks_become_unknown", &settings).is_some() {
            continue;
        }
        let real = Code::new(env::var("CODE").unwrap().parse().unwrap()).unwrap();
        let as_enum: i32 = env::var("AS_ENUM").unwrap().parse().unwrap();
        cust::init(cust::CudaFlags::empty()).unwrap();
        let device = Device::get_device(0).unwrap();

        let mut context = ptr::null_mut();
        // SAFETY: the result is a local; the stand-in fails before it writes.
        let result: CUresult = unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device.as_raw()) };
        assert_eq!(result as i32, as_enum);
        assert_eq!(cuda_dlopen::last_error(), Some(real));

        let expected = if real == Code::OUT_OF_MEMORY { CudaError::OutOfMemory } else { CudaError::UnknownError };
        let error = Context::new(device).unwrap_err();
        assert_eq!(error, expected);
        assert!(!error.to_string().is_empty());

        // SAFETY: as above.
        assert_eq!(unsafe { raw::cuDevicePrimaryCtxRetain(&mut context, device.as_raw()) }, Err(real));
        return;
    }
}

#[test]
fn cust_reaches_the_driver() {
    if fake::outer_with_driver("cust_reaches_the_driver", &[("FAKE_CUDA_VERSION", "12080")]).is_some() {
        return;
    }
    assert!(cuda_dlopen::driver_present());
    assert_eq!(cuda_dlopen::why_absent(), None);
    assert_eq!(cuda_dlopen::driver_version(), Ok(12080));
    cust::init(cust::CudaFlags::empty()).unwrap();
    assert_eq!(Device::num_devices(), Ok(1));
    assert_eq!(Device::get_device(0).unwrap().name().unwrap(), "Fake 0");
    assert_eq!(cuda_dlopen::last_error(), None);
}

#[test]
fn a_function_that_the_driver_lacks_is_not_found() {
    if fake::outer_with_driver("a_function_that_the_driver_lacks_is_not_found", &[]).is_some() {
        return;
    }
    // SAFETY: no such function is there to be called.
    assert_eq!(unsafe { raw::cuTexObjectDestroy(0) }, Err(Code::NOT_FOUND));
}
