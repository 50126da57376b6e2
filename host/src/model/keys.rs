//! Metadata under an architecture's prefix.

use super::ModelError;
use crate::gguf::{Gguf, Value};

/// A file's metadata whose keys begin with `prefix`.
pub(super) struct Keys<'a> {
    pub gguf: &'a Gguf,
    pub prefix: &'static str,
}

impl Keys<'_> {
    pub fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    pub fn require(&self, key: &str) -> Result<usize, ModelError> {
        Ok(self.gguf.metadata().require_u32(&self.key(key))? as usize)
    }

    pub fn size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        Ok(self.gguf.metadata().u32(&self.key(key))?.map(|v| v as usize))
    }

    pub fn or(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        Ok(self.size(key)?.unwrap_or(default))
    }

    /// A size that files state once, or for each of `layers` layers; here it has to be the same for all.
    pub fn same_in_all(&self, key: &str, layers: usize) -> Result<Option<usize>, ModelError> {
        let Some(Value::Array(array)) = self.gguf.metadata().get(&self.key(key)) else { return self.size(key) };
        if array.len() != layers {
            return Err(self.bad(key, format!("an array of {} sizes for {layers} layers", array.len())));
        }
        let sizes = self.gguf.metadata().u32s(&self.key(key))?.unwrap_or_default();
        if sizes.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(self.unsupported(format!("a model with layers of different sizes ({})", self.key(key))));
        }
        Ok(sizes.first().map(|&size| size as usize))
    }

    pub fn float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        Ok(self.gguf.metadata().f32(&self.key(key))?.map(f64::from))
    }

    /// A number above 0.
    pub fn positive(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.float(key)? {
            Some(value) if value.is_finite() && value > 0.0 => Ok(Some(value)),
            Some(value) => Err(self.bad(key, format!("{value} is not a positive number"))),
            None => Ok(None),
        }
    }

    /// A number above 0, or 0, which stands for none.
    pub fn positive_or_off(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.float(key)? {
            Some(0.0) => Ok(None),
            _ => self.positive(key),
        }
    }

    pub fn str(&self, key: &str) -> Result<Option<&str>, ModelError> {
        Ok(self.gguf.metadata().str(&self.key(key))?)
    }

    /// One bool for each of `layers` layers; none where the key is absent or no array.
    pub fn bools(&self, key: &str, layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
        let Some(Value::Array(array)) = self.gguf.metadata().get(&self.key(key)) else { return Ok(None) };
        let bool = |value| match value {
            Value::Bool(v) => Some(v),
            other => other.integer().map(|v| v != 0),
        };
        match array.iter().map(bool).collect::<Option<Vec<_>>>() {
            Some(bools) if bools.len() == layers => Ok(Some(bools)),
            _ => Err(self.bad(key, format!("an array of one bool for each of {layers} layers is expected"))),
        }
    }

    pub fn within(&self, key: &str, value: usize, min: usize, max: usize) -> Result<usize, ModelError> {
        if (min..=max).contains(&value) {
            Ok(value)
        } else {
            Err(self.bad(key, format!("{value} is outside {min}..={max}")))
        }
    }

    pub fn bad(&self, key: &str, why: String) -> ModelError {
        ModelError::Metadata { file: self.gguf.name().to_owned(), key: self.key(key), why }
    }

    pub fn unsupported(&self, what: String) -> ModelError {
        ModelError::Unsupported { file: self.gguf.name().to_owned(), what }
    }
}
