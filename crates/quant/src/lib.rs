//! GGUF block formats: layout, size, decode, encode.
//!
//! One definition serves the GPU kernels, the CPU device, the file reader and the writer of synthetic models, so the
//! crate is `no_std`, allocates nothing and depends on nothing. [`Format`] is what a format is; [`TensorType`] is the
//! same set as a value, and [`TensorType::visit`] leads from the value to the `Format`.
#![no_std]
#![allow(non_camel_case_types, reason = "Q4_K and its like are the formats' standard names")]

mod bytes;
mod fit;
mod format;
mod iq4;
mod k_scales;
mod minifloat;
mod nibbles;
mod random;
mod row;
mod tensor_type;

/// The formats, as types.
pub mod formats {
    mod float;
    mod iq4_nl;
    mod iq4_xs;
    mod legacy;
    mod q2_k;
    mod q3_k;
    mod q4_k;
    mod q5_k;
    mod q6_k;
    mod q8_0;

    pub use float::{BF16, F16, F32};
    pub use iq4_nl::IQ4_NL;
    pub use iq4_xs::IQ4_XS;
    pub use legacy::{Legacy, Q4_0, Q4_1, Q5_0, Q5_1};
    pub use q2_k::Q2_K;
    pub use q3_k::Q3_K;
    pub use q4_k::Q4_K;
    pub use q5_k::Q5_K;
    pub use q6_k::Q6_K;
    pub use q8_0::Q8_0;
}

pub use bytes::Bytes;
pub use format::{Format, decode};
pub use iq4::VALUES as IQ4_VALUES;
pub use minifloat::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
pub use random::fill_random;
pub use row::{LengthError, decode_row, encode_row};
pub use tensor_type::{TensorType, Visitor};
