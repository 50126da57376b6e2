//! Rotary position embeddings: from positions to cosines and sines (Su et al. 2021), and the ways in which models stretch
//! them over longer texts than they were trained on.

use std::f64::consts::TAU;

use super::{ModelError, keys::Keys};
use crate::{device::Rotation, gguf::TensorInfo};

/// No context is longer, in tokens.
pub(super) const MAX_CONTEXT: usize = 1 << 31;
/// The base of models that state none.
const DEFAULT_BASE: f64 = 10_000.0;
/// Turns within the original context from which YaRN leaves a pair as it is, and below which it slows it down entirely.
const YARN_BETAS: [f64; 2] = [32.0, 1.0];

/// How positions become rotations.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// `[rope_dims / 2]`, radians per position of each rotated pair.
    frequencies: Vec<f64>,
    /// What cosines and sines are multiplied with.
    magnitude: f64,
    temperature: Option<Temperature>,
}

/// Queries grow with their position: times 1 + beta ln(1 + floor(position / period)).
#[derive(Clone, Copy, Debug, PartialEq)]
struct Temperature {
    beta: f64,
    period: f64,
}

impl Rope {
    /// base^(-2i/d) for `dims` rotated elements, slowed down as the file says: by factors for each pair (`rope_freqs.weight` of
    /// Llama 3.1; of LongRoPE those for short or long contexts), by a linear factor, or by YaRN (Peng et al. 2023).
    ///
    /// # Errors
    /// Another kind of scaling, or factors that are not positive numbers.
    pub(super) fn new(keys: &Keys<'_>, dims: usize, trained: usize, context: usize) -> Result<Self, ModelError> {
        let base = keys.positive("rope.freq_base")?.unwrap_or(DEFAULT_BASE);
        let original = original_context(keys)?.unwrap_or(trained);
        let mut rope = Rope::plain(base, dims);
        let factor = factor(keys)?;
        let scaling = keys.str("rope.scaling.type")?;
        match scaling {
            None | Some("none" | "linear" | "yarn" | "longrope") => (),
            Some(other) => {
                return Err(keys.unsupported(format!("rope scaling `{other}` ({})", keys.key("rope.scaling.type"))));
            }
        }
        let (long, short) = ("rope_factors_long.weight", "rope_factors_short.weight");
        let name =
            if keys.gguf.tensor(long).is_none() && keys.gguf.tensor(short).is_none() && scaling != Some("longrope") {
                "rope_freqs.weight"
            } else if context > original {
                long
            } else {
                short
            };
        if let Some(info) = keys.gguf.tensor(name) {
            let factors = factors(keys, info, dims)?;
            rope.frequencies.iter_mut().zip(factors).for_each(|(frequency, factor)| *frequency /= factor);
        } else if name != "rope_freqs.weight" {
            keys.gguf.require(name)?;
        }
        match scaling {
            Some("none") => (),
            Some("yarn") => rope.stretch_by_yarn(keys, base, factor, original)?,
            _ => rope.frequencies.iter_mut().for_each(|frequency| *frequency /= factor),
        }
        rope.magnitude *= keys.positive("rope.scaling.attn_factor")?.unwrap_or(1.0);
        Ok(rope)
    }

    /// base^(-2i/d), unscaled.
    pub(super) fn plain(base: f64, dims: usize) -> Self {
        let frequencies = (0..dims / 2).map(|i| base.powf(-2.0 * i as f64 / dims as f64)).collect();
        Rope { frequencies, magnitude: 1.0, temperature: None }
    }

    /// The same rotation for queries that grow with their position, every `period` positions.
    pub(super) fn with_temperature(&self, beta: f64, period: usize) -> Self {
        Rope { temperature: Some(Temperature { beta, period: period as f64 }), ..self.clone() }
    }

    /// Slow pairs become slower by `factor`, fast ones stay, and those between are blended. The longer context makes
    /// attention flatter, which the magnitude makes up for.
    fn stretch_by_yarn(&mut self, keys: &Keys<'_>, base: f64, factor: f64, original: usize) -> Result<(), ModelError> {
        if let Some(ext) = keys.float("rope.scaling.yarn_ext_factor")?.filter(|&ext| ext != 1.0) {
            return Err(keys.unsupported(format!("{} {ext}", keys.key("rope.scaling.yarn_ext_factor"))));
        }
        let [fast, slow] = YARN_BETAS;
        let fast = keys.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(fast);
        let slow = keys.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(slow);
        let dims = 2.0 * self.frequencies.len() as f64;
        // The pair that turns so often within the original context.
        let pair_of = |turns: f64| dims * (original as f64 / (turns * TAU)).ln() / (2.0 * base.ln());
        let (low, high) = (pair_of(fast).floor().max(0.0), pair_of(slow).ceil().min(dims - 1.0));
        for (i, frequency) in self.frequencies.iter_mut().enumerate() {
            let slowed = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
            *frequency = *frequency / factor * slowed + *frequency * (1.0 - slowed);
        }
        let flatness = |weight: f64| if factor > 1.0 { 0.1 * weight * factor.ln() + 1.0 } else { 1.0 };
        let of_all_dims = keys.positive_or_off("rope.scaling.yarn_log_multiplier")?.map_or(1.0, flatness);
        let stated = keys.positive("rope.scaling.yarn_attn_factor")?;
        self.magnitude = stated.unwrap_or(flatness(1.0) / of_all_dims);
        Ok(())
    }

    /// Cosines and sines for `positions`. Computed in f64: at position 100,000 an f32 angle is off by 0.004 radians.
    pub fn angles(&self, positions: &[u32]) -> Rotation {
        let angles = positions.iter().flat_map(|&position| {
            let position = f64::from(position);
            let growth = self.temperature.map_or(1.0, |t| 1.0 + t.beta * (1.0 + (position / t.period).floor()).ln());
            let magnitude = self.magnitude * growth;
            self.frequencies.iter().map(move |frequency| (position * frequency, magnitude))
        });
        let (cos, sin) = angles.map(|(a, m)| ((m * a.cos()) as f32, (m * a.sin()) as f32)).unzip();
        Rotation { cos, sin }
    }
}

/// How many times longer the file's scaling makes the context: 1 where it states nothing, or 0, which stands for none. A
/// factor without a type is linear, and so is the key that came before both.
fn factor(keys: &Keys<'_>) -> Result<f64, ModelError> {
    let (factor, before) = ("rope.scaling.factor", "rope.scale_linear");
    let key = if keys.float(factor)?.is_some() { factor } else { before };
    Ok(keys.positive_or_off(key)?.unwrap_or(1.0))
}

/// The context before it was stretched, where the file states it.
fn original_context(keys: &Keys<'_>) -> Result<Option<usize>, ModelError> {
    const KEY: &str = "rope.scaling.original_context_length";
    match keys.size(KEY)? {
        Some(0) => Err(keys.bad(KEY, "0 tokens".into())),
        stated => Ok(stated),
    }
}

/// The longest context that positions are made for: that of the training, or what scaling makes of the original one.
///
/// # Errors
/// When the scaling's metadata make no sense.
pub(super) fn longest_context(keys: &Keys<'_>, trained: usize) -> Result<usize, ModelError> {
    let original = match (keys.str("rope.scaling.type")?, original_context(keys)?) {
        (Some("none"), _) => return Ok(trained),
        (_, Some(stated)) => stated,
        (Some("yarn"), None) => trained,
        // A file that is scaled linearly gives its context as it is after that.
        (_, None) => return Ok(trained),
    };
    let stretched = (original as f64 * factor(keys)?).round().min(MAX_CONTEXT as f64);
    Ok(trained.max(stretched as usize))
}

/// What the frequencies are divided by.
fn factors(keys: &Keys<'_>, info: &TensorInfo, dims: usize) -> Result<Vec<f64>, ModelError> {
    let file = || keys.gguf.name().to_owned();
    let ty = keys.gguf.supported_type(info)?;
    if info.rows() != 1 || info.cols() != dims as u64 / 2 {
        return Err(ModelError::Shape {
            file: file(),
            tensor: info.name.clone(),
            found: format!("{:?}", info.dims),
            expected: format!("[{}]", dims / 2),
        });
    }
    let mut factors = vec![0.0f32; dims / 2];
    quant::decode_row(ty, keys.gguf.bytes(info), &mut factors).expect("the reader checked the tensor's length");
    match factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
        Some(factor) => {
            let why = format!("{factor} is not a positive number");
            Err(ModelError::Metadata { file: file(), key: info.name.clone(), why })
        }
        None => Ok(factors.into_iter().map(f64::from).collect()),
    }
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;
    use crate::gguf::{Gguf, Writer};

    fn rope(set: impl Fn(&mut Writer)) -> Result<Rope, ModelError> {
        let mut writer = Writer::new();
        writer.set("llama.rope.freq_base", &10_000f32).unwrap();
        set(&mut writer);
        let bytes = writer.begin(Vec::new()).unwrap().finish().unwrap();
        Rope::new(&Keys { gguf: &Gguf::from_vec("test", bytes).unwrap(), prefix: "llama" }, 4, 1024, 1024)
    }

    fn key(name: &str) -> String {
        format!("llama.rope.{name}")
    }

    /// Pair 0 turns by one radian a position, pair 1 by base^(-1/2) = 1/100, each divided by `factor`.
    fn assert_scaled(rope: &Rope, factor: f32) {
        let Rotation { cos, sin } = rope.angles(&[0, 300]);
        let angles = [0.0, 0.0, 300.0 / factor, 3.0 / factor];
        for ((cos, sin), angle) in cos.iter().zip(&sin).zip(angles) {
            assert_abs_diff_eq!(*cos, angle.cos(), epsilon = 1e-4);
            assert_abs_diff_eq!(*sin, angle.sin(), epsilon = 1e-4);
        }
    }

    #[test]
    fn linear_scaling_is_read_from_every_key_that_states_it() {
        assert_scaled(&rope(|_| ()).unwrap(), 1.0);
        let typed = |w: &mut Writer| {
            w.set(&key("scaling.type"), "linear").unwrap();
            w.set(&key("scaling.factor"), &4f32).unwrap();
        };
        assert_scaled(&rope(typed).unwrap(), 4.0);
        assert_scaled(&rope(|w| drop(w.set(&key("scaling.factor"), &4f32))).unwrap(), 4.0);
        assert_scaled(&rope(|w| drop(w.set(&key("scale_linear"), &2f32))).unwrap(), 2.0);
        let none = |w: &mut Writer| {
            w.set(&key("scaling.type"), "none").unwrap();
            w.set(&key("scaling.factor"), &4f32).unwrap();
        };
        assert_scaled(&rope(none).unwrap(), 1.0);
        // 0 stands for no scaling, and whole numbers may be stored as integers.
        assert_scaled(&rope(|w| drop(w.set(&key("scaling.factor"), &0f32))).unwrap(), 1.0);
        assert_scaled(&rope(|w| drop(w.set(&key("scaling.factor"), &4u32))).unwrap(), 4.0);
        assert!(rope(|w| drop(w.set(&key("scaling.factor"), &-1f32))).is_err());
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let message = rope(|w| drop(w.set(&key("scaling.type"), "dynamic"))).unwrap_err().to_string();
        assert!(message.contains("`dynamic`") && message.contains("llama.rope.scaling.type"), "{message}");
        let message = rope(|w| drop(w.set(&key("scaling.type"), "longrope"))).unwrap_err().to_string();
        assert!(message.contains("rope_factors_short.weight"), "{message}");
        let yarn = |w: &mut Writer| {
            w.set(&key("scaling.type"), "yarn").unwrap();
            w.set(&key("scaling.yarn_ext_factor"), &0.5f32).unwrap();
        };
        assert!(rope(yarn).unwrap_err().to_string().contains("yarn_ext_factor 0.5"));
    }

    /// YaRN's magnitude: 0.1 ln(factor) + 1, or what the file says.
    #[test]
    fn the_magnitude_of_yarn() {
        let magnitude = |set: &[(&str, f32)]| {
            let rope = rope(|w| {
                w.set(&key("scaling.type"), "yarn").unwrap();
                w.set(&key("scaling.factor"), &8f32).unwrap();
                set.iter().for_each(|(name, value)| drop(w.set(&key(&format!("scaling.{name}")), value)));
            });
            f64::from(rope.unwrap().angles(&[0]).cos[0])
        };
        let whole = 0.1 * 8f64.ln() + 1.0;
        assert_abs_diff_eq!(magnitude(&[]), whole, epsilon = 1e-6);
        assert_abs_diff_eq!(magnitude(&[("attn_factor", 0.5)]), 0.5 * whole, epsilon = 1e-6);
        assert_abs_diff_eq!(magnitude(&[("yarn_log_multiplier", 1.0)]), 1.0, epsilon = 1e-6);
        assert_abs_diff_eq!(magnitude(&[("yarn_log_multiplier", 0.0)]), whole, epsilon = 1e-6);
        assert_abs_diff_eq!(magnitude(&[("yarn_attn_factor", 1.25)]), 1.25, epsilon = 1e-6);
    }

    #[test]
    fn temperature_grows_with_the_position() {
        let positions = [0, 99, 100, 399];
        let plain = Rope::plain(10_000.0, 2);
        let [cos, grown] = [&plain, &plain.with_temperature(0.5, 100)].map(|rope| rope.angles(&positions).cos);
        for ((cos, grown), periods) in cos.iter().zip(grown).zip([0f32, 0.0, 1.0, 3.0]) {
            assert_abs_diff_eq!(grown, cos * (1.0 + 0.5 * (1.0 + periods).ln()), epsilon = 1e-6);
        }
    }
}
