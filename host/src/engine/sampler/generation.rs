//! Tests of the sampler in a generation: which tokens it sees, and what it asks of the model.

use std::{cell::Cell, ops::ControlFlow, rc::Rc, sync::Arc};

use super::{SampleError, Sampling};
use crate::{
    engine::{
        Engine, EngineError, GenerateOptions, Grammar, GrammarVocabulary, MemoryReport, ModelFile, Runner, Stop, Syntax,
    },
    model::Config,
};

/// A model that computes the same logits for every token.
struct Constant {
    config: Config,
    logits: Vec<f32>,
    asked: Rc<Cell<Asked>>,
}

/// How often the model was asked for passes, for the best token, for the best few, and for all logits.
#[derive(Clone, Copy, Default)]
struct Asked {
    passes: usize,
    argmax: usize,
    top_k: usize,
    logits: usize,
}

/// The first of the likely tokens: those before it mean something to the tokenizer.
const FIRST: usize = 10;

/// An engine with that model. `best` are the logits of the tokens from `FIRST` on, the others are far below.
fn engine(best: &[f32]) -> (Engine, Rc<Cell<Asked>>) {
    let ModelFile { model, tokenizer } = ModelFile::demo(Some(64)).unwrap();
    let mut logits = vec![-20.0; model.config.dims.vocab];
    logits[FIRST..][..best.len()].copy_from_slice(best);
    let asked = Rc::new(Cell::default());
    let runner = Box::new(Constant { config: model.config.clone(), logits, asked: asked.clone() });
    (Engine { runner, tokenizer, gguf: Arc::clone(&model.gguf), cached: Vec::new() }, asked)
}

fn continued(best: &[f32], prompt: &[u32], length: usize, sampling: Sampling) -> Result<Vec<u32>, EngineError> {
    generated(&mut engine(best).0, prompt, length, sampling)
}

/// The new tokens, counted from `FIRST` on, as those of the prompt.
fn generated(engine: &mut Engine, prompt: &[u32], length: usize, sampling: Sampling) -> Result<Vec<u32>, EngineError> {
    let prompt: Vec<u32> = prompt.iter().map(|token| token + FIRST as u32).collect();
    let options = GenerateOptions { max_new: Some(length), sampling, ..Default::default() };
    let tokens = engine.generate(&prompt, &options, |_| ControlFlow::Continue(()))?.tokens;
    Ok(tokens.into_iter().map(|token| token - FIRST as u32).collect())
}

impl Runner for Constant {
    fn config(&self) -> &Config {
        &self.config
    }
    fn device(&self) -> &str {
        "none"
    }
    fn max_batch(&self) -> usize {
        2
    }
    fn memory(&self) -> MemoryReport {
        MemoryReport::default()
    }
    fn pass(&mut self, _: &[u32], _: usize, _: usize) -> Result<(), EngineError> {
        let asked = self.asked.get();
        self.asked.set(Asked { passes: asked.passes + 1, ..asked });
        Ok(())
    }
    fn logits(&mut self) -> Result<Vec<f32>, EngineError> {
        let asked = self.asked.get();
        self.asked.set(Asked { logits: asked.logits + 1, ..asked });
        Ok(self.logits.clone())
    }
    fn argmax(&mut self) -> Result<Option<u32>, EngineError> {
        let asked = self.asked.get();
        self.asked.set(Asked { argmax: asked.argmax + 1, ..asked });
        let best = self.logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        Ok(best.map(|(id, _)| id as u32))
    }
    fn top_k(&mut self, k: usize) -> Result<Vec<(u32, f32)>, EngineError> {
        let asked = self.asked.get();
        self.asked.set(Asked { top_k: asked.top_k + 1, ..asked });
        let mut sorted: Vec<(u32, f32)> = (0..).zip(self.logits.iter().copied()).collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
        sorted.truncate(k);
        Ok(sorted)
    }
}

#[test]
fn penalties_see_prompt_and_answer_and_do_not_compound() {
    let presence = || Sampling { presence_penalty: 1.5, repeat_last_n: Some(2), ..Sampling::greedy() };
    let (mut model, asked) = engine(&[3.0, 2.0, 1.0]);
    // The logits by the window before each token: 5 5: 3 2 1, 5 0: 1.5 2 1, 0 1: 1.5 0.5 1, 1 0: the same, 0 0: 1.5 2 1.
    assert_eq!(generated(&mut model, &[5, 5], 8, presence()).unwrap(), [0, 1, 0, 0, 1, 0, 0, 1]);
    assert_eq!(asked.get().argmax, 0, "the device's choice knows no penalty");
    assert_eq!(continued(&[3.0, 2.0, 1.0], &[5, 0], 1, presence()).unwrap(), [1], "the prompt counts");

    // Counted twice, 0 falls behind 1 for good. A penalty for each step would let even 2 win.
    let frequency = Sampling { frequency_penalty: 0.6, repeat_last_n: Some(2), ..Sampling::greedy() };
    let found = continued(&[3.0, 2.0, 1.0], &[5, 5], 6, frequency).unwrap();
    assert_eq!(found, [0, 0, 1, 0, 0, 1]);

    let repeat = Sampling { repeat_penalty: 1.4, repeat_last_n: None, ..Sampling::greedy() };
    let found = continued(&[3.0, 2.0, 1.0], &[5, 5], 6, repeat).unwrap();
    assert_eq!(found, [0; 6], "3 / 1.4 stays above 2, however often");
}

#[test]
fn greedy_without_penalties_is_the_devices_choice() {
    let (mut model, asked) = engine(&[3.0, 2.0]);
    assert_eq!(generated(&mut model, &[5], 4, Sampling::greedy()).unwrap(), [0; 4]);
    assert_eq!(asked.get().argmax, 4);
}

#[test]
fn what_travels_is_what_the_settings_want() {
    let (mut model, asked) = engine(&[3.0, 2.0, 1.0]);
    let penalized =
        Sampling { top_k: 2, presence_penalty: 4.0, repeat_last_n: Some(1), seed: 3, ..Sampling::default() };
    let few = generated(&mut model, &[5], 20, penalized.clone()).unwrap();
    assert_eq!((asked.get().argmax, asked.get().top_k, asked.get().logits), (0, 20, 0));
    // The same, and a bias that changes nothing, because its token stays far below; but it might have.
    let (mut model, asked) = engine(&[3.0, 2.0, 1.0]);
    let all = Sampling { logit_bias: vec![(0, 0.5)], ..penalized };
    assert_eq!(generated(&mut model, &[5], 20, all).unwrap(), few);
    assert_eq!((asked.get().argmax, asked.get().top_k, asked.get().logits), (0, 0, 20));
    assert!(few.contains(&0) && few.contains(&1) && few.contains(&2), "{few:?}");
}

#[test]
fn settings_without_a_meaning_are_refused_before_the_first_pass() {
    let (mut model, asked) = engine(&[1.0]);
    let vocab = model.config().dims.vocab as u32;
    let bias = |logit_bias| Sampling { logit_bias, ..Sampling::greedy() };
    let refused = generated(&mut model, &[5], 4, bias(vec![(vocab, 1.0)]));
    assert!(matches!(refused, Err(EngineError::Sampling(_))), "{refused:?}");
    assert_eq!(asked.get().passes, 0);
    let refused = generated(&mut model, &[5], 4, bias((0..vocab).map(|token| (token, f32::NEG_INFINITY)).collect()));
    assert!(matches!(refused, Err(EngineError::Sample(SampleError::NothingAllowed { .. }))), "{refused:?}");
}

#[test]
fn each_generation_starts_its_grammar_and_ends_with_it() {
    let (mut model, _) = engine(&[]);
    let vocabulary = GrammarVocabulary::new(&model.tokenizer).unwrap();
    let grammar = Grammar::new(&vocabulary, Syntax::Gbnf, "root ::= \"ab\"").unwrap();
    let options = GenerateOptions { sampling: Sampling::greedy(), grammar: Some(grammar), ..Default::default() };
    for _ in 0..2 {
        let done = model.generate(&[5], &options, |_| ControlFlow::Continue(())).unwrap();
        assert_eq!((&*done.text, done.stop, done.unfinished), ("ab", Stop::End, false));
        let cut = GenerateOptions { max_new: Some(1), ..options.clone() };
        let done = model.generate(&[5], &cut, |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(done.unfinished, done.text != "ab");
    }
}
