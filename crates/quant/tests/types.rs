//! The table of types and the 16-bit floating-point conversions.

use quant::{TensorType, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

#[test]
fn types_are_those_of_ggml() {
    // id, name, values and bytes of a block: gguf.constants.GGML_QUANT_SIZES.
    let table = [
        (0, "F32", 1, 4),
        (1, "F16", 1, 2),
        (30, "BF16", 1, 2),
        (2, "Q4_0", 32, 18),
        (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24),
        (8, "Q8_0", 32, 34),
        (10, "Q2_K", 256, 84),
        (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144),
        (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210),
        (20, "IQ4_NL", 32, 18),
        (23, "IQ4_XS", 256, 136),
    ];
    assert_eq!(TensorType::ALL.len(), table.len());
    for (id, name, elems, bytes) in table {
        let ty = TensorType::from_ggml(id).unwrap();
        assert_eq!((ty.ggml_id(), ty.name(), ty.block_elems(), ty.block_bytes()), (id, name, elems, bytes));
        assert_eq!(TensorType::from_name(&name.to_lowercase()), Some(ty));
        assert_eq!(format!("{ty:>5}"), format!("{name:>5}"));
    }
    let known = (0..100).filter_map(TensorType::from_ggml).count();
    assert_eq!(known, table.len());
    assert_eq!(TensorType::from_ggml(u32::MAX), None);
    assert_eq!(TensorType::from_name("Q8_1"), None);
}

#[test]
fn every_16_bit_number_converts_as_in_half() {
    for h in 0..=u16::MAX {
        let (f16, bf16) = (half::f16::from_bits(h), half::bf16::from_bits(h));
        assert_eq!(f16_to_f32(h).is_nan(), f16.is_nan());
        assert_eq!(bf16_to_f32(h).is_nan(), bf16.is_nan());
        if f16.is_nan() {
            assert_eq!(f16_to_f32(h).to_bits() >> 13 & 0x3ff, u32::from(h & 0x3ff), "payload of {h:#x}");
        } else {
            assert_eq!(f16_to_f32(h).to_bits(), f16.to_f32_const().to_bits(), "f16 {h:#x}");
            assert_eq!(f32_to_f16(f16_to_f32(h)), h);
        }
        if !bf16.is_nan() {
            assert_eq!(bf16_to_f32(h).to_bits(), bf16.to_f32_const().to_bits(), "bf16 {h:#x}");
            assert_eq!(f32_to_bf16(bf16_to_f32(h)), h);
        }
    }
}

#[test]
fn singles_round_as_in_half() {
    // Around every 16-bit number and every tie between two, then singles spread over all exponents.
    let near = |bits: u32| (0..5).map(move |i| bits.wrapping_add(i).wrapping_sub(2));
    let numbers = (0..=u16::MAX).flat_map(|h| {
        let (f16, bf16) = (f16_to_f32(h).to_bits(), u32::from(h) << 16);
        [near(f16), near(f16 + 0x1000), near(bf16), near(bf16 + 0x8000)].into_iter().flatten()
    });
    let subnormal_ties = (0..1024).flat_map(|i| near((((2 * i + 1) as f32) / 33_554_432.0).to_bits()));
    let spread = (0..u32::MAX).step_by(4099);
    for x in numbers.chain(subnormal_ties).chain(spread).map(f32::from_bits) {
        if x.is_nan() {
            assert!(f16_to_f32(f32_to_f16(x)).is_nan() && bf16_to_f32(f32_to_bf16(x)).is_nan());
        } else {
            assert_eq!(f32_to_f16(x), half::f16::from_f32_const(x).to_bits(), "f16 of {:#x}", x.to_bits());
            assert_eq!(f32_to_bf16(x), half::bf16::from_f32_const(x).to_bits(), "bf16 of {:#x}", x.to_bits());
        }
    }
}
