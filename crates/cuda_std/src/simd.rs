//! Instructions on the four bytes of a word.

/// `dp4a.s32.s32`: `c` plus the sum of the products of the signed bytes of `a` and `b`, wrapping.
#[inline(always)]
pub fn dp4a(a: u32, b: u32, c: i32) -> i32 {
    #[cfg(target_arch = "nvptx64")]
    return crate::nvptx::dp4a(a, b, c);
    #[cfg(not(target_arch = "nvptx64"))]
    return a
        .to_le_bytes()
        .into_iter()
        .zip(b.to_le_bytes())
        .fold(c, |sum, (a, b)| sum.wrapping_add(i32::from(a as i8) * i32::from(b as i8)));
}

/// `prmt.b32`: byte `i` of the result is the one that the low three bits of nibble `i` of `selector` choose among the bytes of `a`
/// (0 to 3) and `b` (4 to 7), or where the nibble's top bit is set, eight copies of that byte's top bit.
#[inline(always)]
pub fn byte_perm(a: u32, b: u32, selector: u32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    return crate::nvptx::prmt(a, b, selector);
    #[cfg(not(target_arch = "nvptx64"))]
    {
        let bytes = (u64::from(a) | u64::from(b) << 32).to_le_bytes();
        u32::from_le_bytes(core::array::from_fn(|i| {
            let nibble = selector >> (4 * i) & 0xf;
            let byte = bytes[nibble as usize & 7];
            if nibble < 8 { byte } else { (byte as i8 >> 7) as u8 }
        }))
    }
}

/// `lop3.b32`: the bits of `a` where `mask` has ones, those of `b` where it has zeros.
#[inline(always)]
pub fn select_bits(mask: u32, a: u32, b: u32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    return crate::nvptx::select_bits(mask, a, b);
    #[cfg(not(target_arch = "nvptx64"))]
    return a & mask | b & !mask;
}

/// `shf.r.wrap.b32`: bits `bits % 32` and the 31 above it of the 64 that `high` and `low` make.
#[inline(always)]
pub fn funnel_shift_right(low: u32, high: u32, bits: u32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    return crate::nvptx::funnel_shift_right(low, high, bits);
    #[cfg(not(target_arch = "nvptx64"))]
    return ((u64::from(high) << 32 | u64::from(low)) >> (bits % 32)) as u32;
}

/// `cvt.rni.s32.f32`: to the nearest integer, ties to even; saturates.
#[inline(always)]
pub fn round_to_int(x: f32) -> i32 {
    #[cfg(target_arch = "nvptx64")]
    return crate::nvptx::round_to_int(x);
    #[cfg(not(target_arch = "nvptx64"))]
    return x.round_ties_even() as i32;
}

/// `cvt.pack.sat.s8.s32.b32`: four integers as the signed bytes of a word, the first in the lowest; saturates.
#[inline(always)]
pub fn pack_i8(values: [i32; 4]) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    return crate::nvptx::pack_i8(values);
    #[cfg(not(target_arch = "nvptx64"))]
    return u32::from_le_bytes(values.map(|value| value.clamp(-128, 127) as i8 as u8));
}
