//! What a driver promises of launches, whoever runs them.

use cuda_std::kernel::Grid;
use gpu::probe;
use ntransformer::device::cuda::driver::Driver;

use super::{Lab, pointer};

/// A struct arrives as it is, and so does the parameter behind it.
pub fn struct_as_parameter<D: Driver>(lab: &mut Lab<D>) {
    let x = lab.floats(40);
    let (input, output) = (lab.input(&x), lab.output(&[0f32; 40]));
    let job = probe::Scaled { x: pointer::<D, _>(&input), y: output.pointer(), factors: [2.0, 10.0], n: 40, more: -3 };
    lab.launch::<probe::struct_as_parameter>(Grid::new(1, 1, 64), (job, 0.5));
    // Twice x is exact, so there is one rounding to an order of the additions.
    let expected: Vec<f32> = x.iter().map(|x| x * 2.0 + 10.0 + -3.0 + 0.5).collect();
    assert_eq!(lab.read::<f32>(&output), expected);
}

/// All of the dynamic shared memory that a block can have is there, in steps across 48 KiB, and no more.
pub fn dynamic_shared<D: Driver>(lab: &mut Lab<D>) {
    const THREADS: u32 = 256;
    let most = lab.driver.properties().shared_per_block;
    assert!(most > 48 << 10, "{most}");
    for bytes in [THREADS * 4, 48 << 10, (48 << 10) + THREADS * 4, most, 4 << 10, most] {
        let x = lab.floats(THREADS as usize);
        let y = lab.output(&x);
        let grid = Grid::new(1, 1, THREADS).with_shared(bytes);
        lab.launch::<probe::reverse_in_dynamic_shared>(grid, (y.pointer(), bytes / 4 / THREADS));
        assert!(lab.read::<f32>(&y).iter().eq(x.iter().rev()), "{bytes} bytes");
    }
    let y = lab.output(&[0f32; THREADS as usize]);
    let grid = Grid::new(1, 1, THREADS).with_shared(most + 1);
    // SAFETY: the kernel stays in `y` and in less shared memory than that, and it does not start.
    let result = unsafe { lab.driver.launch::<probe::reverse_in_dynamic_shared>(grid, (y.pointer(), 1)) };
    let error = result.unwrap_err().to_string();
    assert!(error.contains("reverse_in_dynamic_shared") && error.contains("shared memory"), "{error}");
}
