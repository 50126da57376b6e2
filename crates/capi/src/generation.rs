//! What can be set for generating.

use std::ffi::c_char;

use ntransformer::{
    GenerateOptions, Sampling, Tokenizer,
    engine::{Grammar, GrammarError, GrammarVocabulary, Syntax},
};

use crate::{
    Failure, guard,
    input::{object_mut, utf8},
    nt_status,
};

/// How a prompt is continued.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Default)]
pub struct nt_generation {
    options: GenerateOptions,
    /// A grammar, which is read when the tokens are known that it is for.
    grammar: Option<(Syntax, String)>,
}

impl nt_generation {
    /// The options for an engine with these tokens; `kept` is made when it is first needed.
    pub(crate) fn options(
        self,
        tokenizer: &Tokenizer,
        kept: &mut Option<GrammarVocabulary>,
    ) -> Result<GenerateOptions, Failure> {
        let fault = |e: GrammarError| Failure::argument(format!("the grammar: {e}"));
        let mut options = self.options;
        if let Some((syntax, text)) = self.grammar {
            let vocabulary = match kept {
                Some(vocabulary) => vocabulary,
                None => kept.insert(GrammarVocabulary::new(tokenizer).map_err(fault)?),
            };
            options.grammar = Some(Grammar::new(vocabulary, syntax, &text).map_err(fault)?);
        }
        Ok(options)
    }
}

/// New settings, those of the command line where nothing is said: temperature 0.8, top-k 40, top-p 0.95, min-p 0.05, no
/// penalties, a random seed; and up to as many tokens as the context holds. To be freed with nt_generation_free().
#[unsafe(no_mangle)]
pub extern "C" fn nt_generation_new() -> *mut nt_generation {
    Box::into_raw(Box::default())
}

/// Frees settings; null is ignored.
///
/// # Safety
/// `generation` is null or from nt_generation_new(), and not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generation_free(generation: *mut nt_generation) {
    if !generation.is_null() {
        // SAFETY: from Box::into_raw, and freed once: the caller's promise.
        drop(unsafe { Box::from_raw(generation) });
    }
}

/// Changes how tokens are chosen, unless the change makes no sense.
///
/// # Safety
/// `generation` is null or from nt_generation_new().
unsafe fn set(generation: *mut nt_generation, change: impl FnOnce(&mut Sampling)) -> Result<(), Failure> {
    // SAFETY: the caller's promise.
    let generation = unsafe { object_mut(generation, "generation") }?;
    let mut sampling = generation.options.sampling.clone();
    change(&mut sampling);
    // Which tokens there are is known when there is an engine.
    sampling.check(usize::MAX).map_err(|e| Failure::argument(e.to_string()))?;
    generation.options.sampling = sampling;
    Ok(())
}

/// New tokens at most.
///
/// # Safety
/// `generation` is null or from nt_generation_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generation_set_max_tokens(generation: *mut nt_generation, tokens: usize) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { object_mut(generation, "generation") }?.options.max_new = Some(tokens);
        Ok(())
    })
}

/// Randomness, 0 or more; 0 always takes the most likely token.
///
/// # Safety
/// `generation` is null or from nt_generation_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generation_set_temperature(generation: *mut nt_generation, temperature: f32) -> nt_status {
    // SAFETY: the caller's promise.
    guard(|| unsafe { set(generation, |sampling| sampling.temperature = temperature) })
}

/// Chooses among the k most likely tokens only; 0 for all.
///
/// # Safety
/// `generation` is null or from nt_generation_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generation_set_top_k(generation: *mut nt_generation, k: usize) -> nt_status {
    // SAFETY: the caller's promise.
    guard(|| unsafe { set(generation, |sampling| sampling.top_k = k) })
}

/// Chooses among the most likely tokens that have probability p together, above 0 and up to 1; 1 for all.
///
/// # Safety
/// `generation` is null or from nt_generation_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generation_set_top_p(generation: *mut nt_generation, p: f32) -> nt_status {
    // SAFETY: the caller's promise.
    guard(|| unsafe { set(generation, |sampling| sampling.top_p = p) })
}

/// Chooses among tokens that are at least p times as probable as the most likely one, 0 to 1; 0 for all.
///
/// # Safety
/// `generation` is null or from nt_generation_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generation_set_min_p(generation: *mut nt_generation, p: f32) -> nt_status {
    // SAFETY: the caller's promise.
    guard(|| unsafe { set(generation, |sampling| sampling.min_p = p) })
}

/// Divides the logits of tokens that occurred among the last ones, once; 1 is off.
///
/// # Safety
/// `generation` is null or from nt_generation_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generation_set_repeat_penalty(generation: *mut nt_generation, penalty: f32) -> nt_status {
    // SAFETY: the caller's promise.
    guard(|| unsafe { set(generation, |sampling| sampling.repeat_penalty = penalty) })
}

/// Lowers a token's logit for each time that it occurred among the last ones; 0 is off.
///
/// # Safety
/// `generation` is null or from nt_generation_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generation_set_frequency_penalty(
    generation: *mut nt_generation,
    penalty: f32,
) -> nt_status {
    // SAFETY: the caller's promise.
    guard(|| unsafe { set(generation, |sampling| sampling.frequency_penalty = penalty) })
}

/// Lowers a token's logit if it occurred among the last ones; 0 is off.
///
/// # Safety
/// `generation` is null or from nt_generation_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generation_set_presence_penalty(generation: *mut nt_generation, penalty: f32) -> nt_status {
    // SAFETY: the caller's promise.
    guard(|| unsafe { set(generation, |sampling| sampling.presence_penalty = penalty) })
}

/// How many of the last tokens the penalties look at, the prompt's included: 64 if not set; 0 for none, SIZE_MAX for all.
///
/// # Safety
/// `generation` is null or from nt_generation_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generation_set_repeat_last_n(generation: *mut nt_generation, tokens: usize) -> nt_status {
    // SAFETY: the caller's promise.
    guard(|| unsafe { set(generation, |sampling| sampling.repeat_last_n = Some(tokens).filter(|&n| n < usize::MAX)) })
}

/// The same seed gives the same text on the same device.
///
/// # Safety
/// `generation` is null or from nt_generation_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generation_set_seed(generation: *mut nt_generation, seed: u64) -> nt_status {
    // SAFETY: the caller's promise.
    guard(|| unsafe { set(generation, |sampling| sampling.seed = seed) })
}

/// Adds to a token's logit; minus infinity bans the token.
///
/// # Safety
/// `generation` is null or from nt_generation_new().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generation_add_logit_bias(
    generation: *mut nt_generation,
    token: u32,
    bias: f32,
) -> nt_status {
    // SAFETY: the caller's promise.
    guard(|| unsafe { set(generation, |sampling| sampling.logit_bias.push((token, bias))) })
}

/// Adds a text that ends the answer before it: `len` bytes, or NT_ZERO_TERMINATED.
///
/// # Safety
/// `generation` is null or from nt_generation_new(); `stop` is null or has `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generation_add_stop(
    generation: *mut nt_generation,
    stop: *const c_char,
    len: usize,
) -> nt_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let (generation, stop) = unsafe { (object_mut(generation, "generation")?, utf8(stop, len, "stop")?) };
        if stop.is_empty() {
            return Err(Failure::argument("stop is empty: every text has it"));
        }
        generation.options.stop.push(stop.to_owned());
        Ok(())
    })
}

/// The answer follows this grammar, in llama.cpp's GBNF: `len` bytes, or NT_ZERO_TERMINATED. Replaces a grammar or schema
/// that was set. It is read when a text is generated, and refused there if it is wrong.
///
/// # Safety
/// `generation` is null or from nt_generation_new(); `grammar` is null or has `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generation_set_grammar(
    generation: *mut nt_generation,
    grammar: *const c_char,
    len: usize,
) -> nt_status {
    // SAFETY: the caller's promise.
    guard(|| unsafe { set_grammar(generation, Syntax::Gbnf, grammar, len, "grammar") })
}

/// The answer is JSON that follows this JSON schema, `len` bytes or NT_ZERO_TERMINATED; "{}" is any JSON. As
/// nt_generation_set_grammar() otherwise.
///
/// # Safety
/// `generation` is null or from nt_generation_new(); `schema` is null or has `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nt_generation_set_json_schema(
    generation: *mut nt_generation,
    schema: *const c_char,
    len: usize,
) -> nt_status {
    // SAFETY: the caller's promise.
    guard(|| unsafe { set_grammar(generation, Syntax::JsonSchema, schema, len, "schema") })
}

/// # Safety
/// `generation` is null or from nt_generation_new(); `text` is null or has `len` bytes.
unsafe fn set_grammar(
    generation: *mut nt_generation,
    syntax: Syntax,
    text: *const c_char,
    len: usize,
    name: &str,
) -> Result<(), Failure> {
    // SAFETY: the caller's promise.
    let (generation, text) = unsafe { (object_mut(generation, "generation")?, utf8(text, len, name)?) };
    generation.grammar = Some((syntax, text.to_owned()));
    Ok(())
}
