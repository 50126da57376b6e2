//! Which tensor gets which type.

use std::str::FromStr;

use quant::TensorType::{self, F16, IQ4_NL, IQ4_XS, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};

use super::shape::Sizes;

/// One type for all matrices, or one of llama.cpp's mixtures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quant {
    base: TensorType,
    mix: Option<Mix>,
}

/// llama.cpp's mixtures (`llama_tensor_get_type` in its src/llama-quant.cpp), as far as they concern dense models whose key
/// heads serve four query heads or more, and are made without an importance matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mix {
    /// One type but for the output matrix.
    Output,
    Iq4,
    Q2K,
    Q3KM,
    Q4KM,
    Q5KM,
}

/// What the mixtures tell apart; with the layer where that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The table of token embeddings.
    Embedding,
    /// The output matrix.
    Output,
    /// A layer's value projection.
    V(u32),
    /// A layer's output projection of attention.
    AttnOutput,
    /// A layer's down projection.
    FfnDown(u32),
    /// Any other matrix.
    Plain,
}

/// Name, type of most matrices, and the others'. A name that is also a type's stands for the mixture.
const MIXES: [(&str, TensorType, Mix); 10] = [
    ("Q4_0", Q4_0, Mix::Output),
    ("Q4_1", Q4_1, Mix::Output),
    ("Q5_0", Q5_0, Mix::Output),
    ("Q5_1", Q5_1, Mix::Output),
    ("IQ4_NL", IQ4_NL, Mix::Iq4),
    ("IQ4_XS", IQ4_XS, Mix::Iq4),
    ("Q2_K", Q2_K, Mix::Q2K),
    ("Q3_K_M", Q3_K, Mix::Q3KM),
    ("Q4_K_M", Q4_K, Mix::Q4KM),
    ("Q5_K_M", Q5_K, Mix::Q5KM),
];

impl FromStr for Quant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if let Some(&(_, base, mix)) = MIXES.iter().find(|(mix, ..)| mix.eq_ignore_ascii_case(name)) {
            return Ok(Quant { base, mix: Some(mix) });
        }
        TensorType::from_name(name).map(Quant::pure).ok_or_else(|| {
            let types = TensorType::ALL.iter().map(|ty| ty.name()).filter(|ty| MIXES.iter().all(|mix| mix.0 != *ty));
            let names: Vec<_> = types.chain(MIXES.iter().map(|mix| mix.0)).collect();
            format!("expected one of {}", names.join(", "))
        })
    }
}

impl Quant {
    /// `ty` for every matrix.
    pub fn pure(ty: TensorType) -> Self {
        Quant { base: ty, mix: None }
    }

    /// The type that most matrices have.
    pub fn base(self) -> TensorType {
        self.base
    }

    /// The name that [`FromStr`] takes.
    pub fn name(self) -> &'static str {
        let mix = MIXES.iter().find(|(_, base, mix)| (*base, Some(*mix)) == (self.base, self.mix));
        mix.map_or(self.base.name(), |(name, ..)| name)
    }

    /// The type of a matrix with rows of `cols` elements.
    pub fn tensor_type(self, role: Role, cols: u64, sizes: &Sizes) -> TensorType {
        fitting(self.wanted_type(role, sizes), cols)
    }

    /// The type of a matrix, if its rows are whole blocks of it.
    fn wanted_type(self, role: Role, sizes: &Sizes) -> TensorType {
        let Some(mix) = self.mix else { return self.base };
        let layers = sizes.layers;
        // The first and last eighth of the layers, and every third between.
        let more_bits = |i: u32| i < layers / 8 || i >= 7 * layers / 8 || (i - layers / 8) % 3 == 2;
        match (role, mix) {
            (Role::Output, _) => Q6_K,
            (Role::Embedding, _) if sizes.tied => Q6_K,
            (Role::V(i), _) => {
                let ty = match mix {
                    Mix::Output => self.base,
                    Mix::Iq4 => Q5_K,
                    Mix::Q2K => Q4_K,
                    Mix::Q3KM => {
                        if i < 2 {
                            Q5_K
                        } else {
                            Q4_K
                        }
                    }
                    Mix::Q4KM | Mix::Q5KM => {
                        if more_bits(i) {
                            Q6_K
                        } else {
                            self.base
                        }
                    }
                };
                // 70B models, whose value projections are an eighth of the query's: the bits cost next to nothing.
                if layers == 80 && ty == Q4_K { Q5_K } else { ty }
            }
            (Role::FfnDown(i), Mix::Iq4) if i < layers / 8 => Q5_K,
            (Role::FfnDown(_), Mix::Q2K) | (Role::AttnOutput, Mix::Q2K) => Q3_K,
            (Role::FfnDown(i), Mix::Q3KM) => {
                if i < layers / 16 {
                    Q5_K
                } else {
                    Q4_K
                }
            }
            (Role::AttnOutput, Mix::Q3KM) => Q4_K,
            (Role::FfnDown(i), Mix::Q4KM | Mix::Q5KM) if more_bits(i) => Q6_K,
            _ => self.base,
        }
    }
}

/// `ty`, or what llama.cpp takes in its stead where a row of `cols` elements is not made of whole blocks of it: smaller blocks
/// of at least as many bits, or none at all.
fn fitting(ty: TensorType, cols: u64) -> TensorType {
    let fits = |ty: TensorType| cols.is_multiple_of(ty.block_elems() as u64);
    let smaller = match ty {
        Q2_K | Q3_K => Q4_0,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        IQ4_XS => IQ4_NL,
        _ => F16,
    };
    [ty, smaller].into_iter().find(|ty| fits(*ty)).unwrap_or(F16)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::Shape;
    use super::*;

    /// Tensors of each type, as llama.cpp lists them when it loads the published files of these models.
    #[test]
    fn mixtures_are_those_of_published_files() {
        use TensorType::F32;
        type Counts = &'static [(TensorType, usize)];
        let cases: [(Shape, &str, Counts); 13] = [
            (Shape::Llama1b, "Q4_K_M", &[(F32, 34), (Q4_K, 96), (Q6_K, 17)]),
            (Shape::Llama8b, "q4_k_m", &[(F32, 66), (Q4_K, 193), (Q6_K, 33)]),
            (Shape::Llama8b, "Q5_K_M", &[(F32, 66), (Q5_K, 193), (Q6_K, 33)]),
            (Shape::Llama8b, "Q3_K_M", &[(F32, 66), (Q3_K, 129), (Q4_K, 92), (Q5_K, 4), (Q6_K, 1)]),
            (Shape::Llama8b, "Q2_K", &[(F32, 66), (Q2_K, 129), (Q3_K, 64), (Q4_K, 32), (Q6_K, 1)]),
            (Shape::Llama8b, "Q8_0", &[(F32, 66), (Q8_0, 226)]),
            (Shape::Llama8b, "Q4_0", &[(F32, 66), (Q4_0, 225), (Q6_K, 1)]),
            (Shape::Llama8b, "Q5_1", &[(F32, 66), (Q5_1, 225), (Q6_K, 1)]),
            (Shape::Llama8b, "IQ4_XS", &[(F32, 66), (IQ4_XS, 189), (Q5_K, 36), (Q6_K, 1)]),
            (Shape::Llama8b, "iq4_nl", &[(F32, 66), (IQ4_NL, 189), (Q5_K, 36), (Q6_K, 1)]),
            (Shape::Qwen05b, "Q4_K_M", &[(F32, 121), (Q4_K, 12), (Q5_0, 132), (Q6_K, 12), (Q8_0, 13)]),
            (Shape::Llama70b, "Q4_K_M", &[(F32, 162), (Q4_K, 441), (Q5_K, 40), (Q6_K, 81)]),
            (Shape::Qwen32b, "Q4_K_M", &[(F32, 321), (Q4_K, 385), (Q6_K, 65)]),
        ];
        for (shape, name, expected) in cases {
            let quant: Quant = name.parse().unwrap();
            let sizes = shape.sizes();
            let mut counts = BTreeMap::new();
            for tensor in sizes.tensors(&quant, sizes.vocab.unwrap()) {
                *counts.entry(tensor.ty).or_insert(0) += 1;
            }
            assert_eq!(counts, expected.iter().copied().collect(), "{shape:?} {name}");
        }
    }

    #[test]
    fn every_name_is_understood() {
        let mixes = MIXES.iter().map(|mix| mix.0);
        for name in TensorType::ALL.iter().map(|ty| ty.name()).chain(mixes) {
            assert_eq!(name.parse::<Quant>().unwrap().name(), name);
        }
        assert!("Q8_1".parse::<Quant>().unwrap_err().contains("F32, F16, BF16, Q8_0, Q3_K"));
    }
}
