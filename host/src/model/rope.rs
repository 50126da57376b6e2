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
        // A factor without a type is linear, and so is the key that came before both.
        let linear = |keys: &[&str]| -> Result<f64, ModelError> {
            for key in keys {
                let key = format!("{arch}.rope.{key}");
                if let Some(factor) = meta.f32(&key)? {
                    return positive(&key, f64::from(factor));
                }
            }
            Ok(1.0)
        };
        let scale = match meta.str(&format!("{arch}.rope.scaling.type"))? {
            Some("none") => 1.0,
            None | Some("linear") => linear(&["scaling.factor", "scale_linear"])?,
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

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;
    use crate::gguf::Writer;

    fn rope(set: impl Fn(&mut Writer)) -> Result<Rope, ModelError> {
        let mut writer = Writer::new();
        writer.set("llama.rope.freq_base", &10_000f32).unwrap();
        set(&mut writer);
        let bytes = writer.begin(Vec::new()).unwrap().finish().unwrap();
        Rope::new(&Gguf::from_vec("test", bytes).unwrap(), "llama", 4)
    }

    /// Pair 0 turns by one radian a position, pair 1 by base^(-1/2) = 1/100, each divided by `factor`.
    fn assert_scaled(rope: &Rope, factor: f32) {
        let (cos, sin) = rope.angles(&[0, 300]);
        let angles = [0.0, 0.0, 300.0 / factor, 3.0 / factor];
        for ((cos, sin), angle) in cos.iter().zip(&sin).zip(angles) {
            assert_abs_diff_eq!(*cos, angle.cos(), epsilon = 1e-4);
            assert_abs_diff_eq!(*sin, angle.sin(), epsilon = 1e-4);
        }
    }

    #[test]
    fn linear_scaling_is_read_from_every_key_that_states_it() {
        let key = |name: &str| format!("llama.rope.{name}");
        assert_scaled(&rope(|_| ()).unwrap(), 1.0);
        let typed = |w: &mut Writer| {
            w.set(&key("scaling.type"), "linear").unwrap();
            w.set(&key("scaling.factor"), &4f32).unwrap();
        };
        assert_scaled(&rope(typed).unwrap(), 4.0);
        assert_scaled(&rope(|w| drop(w.set(&key("scaling.factor"), &4f32))).unwrap(), 4.0);
        assert_scaled(&rope(|w| drop(w.set(&key("scale_linear"), &2f32))).unwrap(), 2.0);
        assert!(rope(|w| drop(w.set(&key("scaling.type"), "yarn"))).is_err());
        assert!(rope(|w| drop(w.set(&key("scaling.factor"), &0f32))).is_err());
    }
}
