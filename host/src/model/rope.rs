//! Rotary position embeddings: from positions to cosines and sines (Su et al. 2021).

use super::ModelError;
use crate::gguf::Gguf;

/// The angle per position of each rotated pair.
#[derive(Clone, Debug)]
pub struct Rope {
    /// `[rope_dims / 2]`, radians per position.
    frequencies: Vec<f64>,
}

impl Rope {
    /// base^(-2i/d), divided by `rope_freqs.weight` where the file has it (Llama 3.1 and later) and by the factor of linear
    /// scaling.
    ///
    /// # Errors
    /// Another kind of scaling, or factors that are not positive numbers.
    pub fn new(gguf: &Gguf, arch: &str, dims: usize) -> Result<Self, ModelError> {
        let meta = gguf.metadata();
        let bad =
            |key: &str, why: String| ModelError::Metadata { file: gguf.name().to_owned(), key: key.to_owned(), why };
        let positive = |key: &str, value: f64| {
            if value.is_finite() && value > 0.0 {
                Ok(value)
            } else {
                Err(bad(key, format!("{value} is not a positive number")))
            }
        };
        let key = format!("{arch}.rope.freq_base");
        let base = positive(&key, f64::from(meta.f32(&key)?.unwrap_or(10_000.0)))?;
        let scale = match meta.str(&format!("{arch}.rope.scaling.type"))? {
            None | Some("none") => 1.0,
            Some("linear") => {
                let key = format!("{arch}.rope.scaling.factor");
                positive(&key, f64::from(meta.require_f32(&key)?))?
            }
            Some(other) => {
                let what = format!("rope scaling `{other}` ({arch}.rope.scaling.type)");
                return Err(ModelError::Unsupported { file: gguf.name().to_owned(), what });
            }
        };
        let factors = match gguf.tensor("rope_freqs.weight") {
            None => vec![1.0; dims / 2],
            Some(info) => {
                let ty = gguf.supported_type(info)?;
                if info.rows() != 1 || info.cols() != dims as u64 / 2 {
                    return Err(ModelError::Shape {
                        file: gguf.name().to_owned(),
                        tensor: info.name.clone(),
                        found: format!("{:?}", info.dims),
                        expected: format!("[{}]", dims / 2),
                    });
                }
                let mut factors = vec![0.0f32; dims / 2];
                quant::decode_row(ty, gguf.bytes(info), &mut factors).expect("the reader checked the tensor's length");
                factors
            }
        };
        let frequency = |(i, &factor): (usize, &f32)| {
            let factor = positive("rope_freqs.weight", f64::from(factor))?;
            Ok(base.powf(-2.0 * i as f64 / dims as f64) / factor / scale)
        };
        Ok(Rope { frequencies: factors.iter().enumerate().map(frequency).collect::<Result<_, ModelError>>()? })
    }

    /// Cosines and sines for `positions`, `[positions x rope_dims / 2]` each. Computed in f64: at position 100,000 an f32
    /// angle is off by 0.004 radians.
    pub fn angles(&self, positions: &[u32]) -> (Vec<f32>, Vec<f32>) {
        let angles = positions.iter().flat_map(|&p| self.frequencies.iter().map(move |f| f64::from(p) * f));
        angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip()
    }
}
