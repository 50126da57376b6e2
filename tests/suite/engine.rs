//! The library's public interface: what a program that uses the crate sees.

use std::{ops::ControlFlow, sync::Arc};

use ntransformer::{
    DeviceChoice, Engine, EngineError, EngineOptions, Event, GenerateOptions, Generated, LoadOptions, ModelFile,
    Sampling, Stop,
    cli::synth::{Quant, Shape},
};
use quant::TensorType;

use crate::{setup, synth};

#[path = "../../host/examples/generate.rs"]
#[allow(dead_code, reason = "the example's main is not called")]
mod example;

fn engine() -> Engine {
    Engine::demo(&EngineOptions { device: DeviceChoice::Cpu, context: Some(256), ..Default::default() }).unwrap()
}

fn greedy(max_new: usize) -> GenerateOptions {
    GenerateOptions { max_new: Some(max_new), sampling: Sampling::greedy(), ..Default::default() }
}

fn run(engine: &mut Engine, prompt: &[u32], options: &GenerateOptions) -> Generated {
    engine.generate(prompt, options, |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn the_example_runs() {
    let model = setup::root().join("assets/demo.gguf");
    for model in [None, model.to_str()] {
        let mut out = Vec::new();
        example::run(DeviceChoice::Cpu, model, "Once upon a time", &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.split_whitespace().count() > 10, "{text:?}");
    }
    let missing = example::run(DeviceChoice::Cpu, Some("missing.gguf"), "", &mut Vec::new()).unwrap_err();
    assert!(missing.to_string().contains("missing.gguf"), "{missing}");
}

#[test]
fn events_tell_what_the_result_says() {
    let mut engine = engine();
    let prompt = engine.tokenize("Once upon a time").unwrap();
    let (mut prompts, mut tokens, mut text) = (Vec::new(), Vec::new(), String::new());
    let generated = engine.generate(&prompt, &greedy(20), |event| {
        match event {
            Event::Prompt(done) => prompts.push(done),
            Event::Token(token) => tokens.push(token),
            Event::Text(piece) => text.push_str(piece),
        }
        ControlFlow::Continue(())
    });
    let generated = generated.unwrap();
    assert_eq!(prompts, [prompt.len()]);
    assert_eq!((&tokens, &text), (&generated.tokens, &generated.text));
    assert_eq!(generated.stop, Stop::Length);
    assert_eq!(text, engine.detokenize(&tokens));
    assert_eq!(engine.detokenize(&prompt[1..]), "Once upon a time", "the prompt starts with BOS");
}

#[test]
fn a_longer_text_costs_its_new_tokens_and_gives_what_a_fresh_engine_gives() {
    // In the emulator a smaller model, of random weights.
    for (device, new) in [(DeviceChoice::Cpu, 4), (DeviceChoice::Emulator, 2)] {
        let open = || match device {
            DeviceChoice::Cpu => engine(),
            _ => {
                let gguf = Arc::into_inner(synth::model(Shape::Tiny, Quant::pure(TensorType::Q8_0), 3)).unwrap();
                ModelFile::from_gguf(gguf, Some(64)).unwrap().load(device, &LoadOptions::default(), |_| ()).unwrap()
            }
        };
        let (mut kept, mut fresh) = (open(), open());
        let mut text = kept.tokenize("Once upon a time").unwrap();
        let first = run(&mut kept, &text, &greedy(new));
        assert_eq!((first.reused, first.prompt.tokens), (0, text.len()));
        text.extend(&first.tokens);
        let computed = text.len() - 1;
        text.extend(kept.tokenizer().encode(" Then", Default::default()).unwrap());
        let second = run(&mut kept, &text, &greedy(new));
        assert_eq!((second.reused, second.prompt.tokens), (computed, text.len() - computed), "{device:?}");
        assert_eq!(second.tokens, run(&mut fresh, &text, &greedy(new)).tokens, "{device:?}");
        assert_eq!(kept.cached(), [&text[..], &second.tokens[..new - 1]].concat());

        // The same again: only the last token is computed, for its logits. And back to a shorter text.
        let again = run(&mut kept, &text, &greedy(new));
        assert_eq!((again.reused, &again.tokens), (text.len() - 1, &second.tokens), "{device:?}");
        let back = run(&mut kept, &text[..5], &greedy(1));
        assert_eq!((back.reused, &back.tokens), (4, &run(&mut fresh, &text[..5], &greedy(1)).tokens), "{device:?}");
    }
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let mut engine = engine();
    let prompt = engine.tokenize("Once upon a time").unwrap();
    let whole = run(&mut engine, &prompt, &greedy(30)).text;
    let words: Vec<&str> = whole.split(' ').collect();
    let stop = format!("{} {}", words[4], &words[5][..1]);
    let (mut text, options) = (String::new(), GenerateOptions { stop: vec![stop.clone()], ..greedy(30) });
    let stopped = engine.generate(&prompt, &options, |event| {
        if let Event::Text(piece) = event {
            text.push_str(piece);
        }
        ControlFlow::Continue(())
    });
    let stopped = stopped.unwrap();
    assert_eq!((stopped.stop, &stopped.text), (Stop::StopString, &text));
    assert_eq!(text, whole.split(&stop).next().unwrap());
}

#[test]
fn an_interrupted_text_can_be_continued() {
    let mut engine = engine();
    let prompt = engine.tokenize("Once upon a time").unwrap();
    let whole = run(&mut engine, &prompt, &greedy(12)).tokens;
    let mut count = 0;
    let part = engine.generate(&prompt, &greedy(12), |event| {
        count += usize::from(matches!(event, Event::Token(_)));
        if count < 5 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    let part = part.unwrap();
    assert_eq!((part.stop, part.tokens.as_slice()), (Stop::Interrupted, &whole[..5]));
    let rest = run(&mut engine, &[&prompt[..], &part.tokens].concat(), &greedy(7));
    assert_eq!((rest.prompt.tokens, rest.tokens.as_slice()), (1, &whole[5..]));

    let none = engine.generate(&prompt[..2], &greedy(12), |_| ControlFlow::Break(())).unwrap();
    assert_eq!((none.stop, none.tokens.len(), engine.cached()), (Stop::Interrupted, 0, &prompt[..2]));
}

#[test]
fn the_context_bounds_the_answer() {
    let options = EngineOptions { device: DeviceChoice::Cpu, context: Some(16), ..Default::default() };
    let mut engine = Engine::demo(&options).unwrap();
    let prompt = engine.tokenize("Once upon a time").unwrap();
    let full = run(&mut engine, &prompt, &GenerateOptions { max_new: None, ..greedy(0) });
    assert_eq!((full.stop, full.tokens.len()), (Stop::Length, 16 - prompt.len()));
    let refuse = |engine: &mut Engine, prompt: &[u32], max_new| {
        engine.generate(prompt, &max_new, |_| ControlFlow::Continue(())).unwrap_err()
    };
    let unbounded = GenerateOptions { max_new: None, ..greedy(0) };
    assert!(matches!(refuse(&mut engine, &[5; 16], unbounded), EngineError::Context { prompt: 16, context: 16, .. }));
    assert!(matches!(refuse(&mut engine, &prompt, greedy(15)), EngineError::Context { max_new: 15, .. }));
    assert!(matches!(refuse(&mut engine, &[], greedy(1)), EngineError::EmptyPrompt));
    let outside = refuse(&mut engine, &[prompt[0], prompt[1], 1 << 30], greedy(1));
    assert!(matches!(outside, EngineError::Vocabulary { token: 0x4000_0000, .. }));
    assert!(outside.to_string().starts_with("the built-in demo model: token 1073741824 is outside"), "{outside}");
    assert_eq!(engine.cached(), &prompt[..2], "what was refused is not in the cache");
    assert_eq!(run(&mut engine, &prompt, &greedy(5)).tokens, full.tokens[..5]);
}
