//! Continuing a prompt, token by token.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use super::{Engine, EngineError, Grammar, SampleError, Sampler, Sampling, Utf8Stream, Wanted, stop::StopStrings};
use crate::model::{Config, Flowed};

/// How a prompt is continued.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// New tokens at most. None: as many as the context holds.
    pub max_new: Option<usize>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// What the answer has to follow, if anything.
    pub grammar: Option<Grammar>,
    /// Texts that end the answer before them.
    pub stop: Vec<String>,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model ended its text, or the grammar is complete.
    End,
    /// As many tokens as asked for, or the context is full.
    Length,
    /// One of [`GenerateOptions::stop`] came up.
    StopString,
    /// The caller asked to stop.
    Interrupted,
}

/// What generation tells its caller while it runs. The caller answers whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// So many tokens of the prompt are in the KV cache.
    Prompt(usize),
    /// The next token of the text.
    Token(u32),
    /// The next piece of the text: whole characters, and nothing that may still become a stop string.
    Text(&'a str),
}

/// Tokens and the time they took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// Tokens processed.
    pub tokens: usize,
    /// Passes over the weights.
    pub passes: usize,
    /// Time taken.
    pub time: Duration,
    /// What was streamed meanwhile; none where nothing is.
    pub flowed: Option<Flowed>,
}

impl Timing {
    /// Tokens per second.
    pub fn rate(&self) -> f64 {
        if self.time.is_zero() { 0.0 } else { self.tokens as f64 / self.time.as_secs_f64() }
    }
}

/// The outcome of a generation.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The new tokens, without the one that ended the text.
    pub tokens: Vec<u32>,
    /// Their text, up to a stop string. Control tokens have none.
    pub text: String,
    /// Why it ended.
    pub stop: Stop,
    /// Whether the grammar wanted more text before the end.
    pub unfinished: bool,
    /// Tokens of the prompt that were in the KV cache already.
    pub reused: usize,
    /// Processing the rest of the prompt, up to the first new token's logits.
    pub prompt: Timing,
    /// The passes that computed further tokens.
    pub decode: Timing,
}

/// Whether `prompt` can be continued by `max_new` tokens; to be asked before the weights are loaded.
///
/// # Errors
/// An empty prompt, or more tokens than the context holds.
pub fn check_length(config: &Config, prompt: &[u32], max_new: usize) -> Result<(), EngineError> {
    let (tokens, context) = (prompt.len().saturating_add(max_new), config.dims.context);
    if prompt.is_empty() {
        return Err(EngineError::EmptyPrompt);
    }
    if tokens > context {
        return Err(EngineError::Context { prompt: prompt.len(), max_new, context, limit: config.max_context });
    }
    Ok(())
}

/// What came of a computation; none if somebody asked to stop it.
fn wanted<T>(result: Result<T, EngineError>) -> Result<Option<T>, EngineError> {
    match result {
        Err(e) if e.is_cancelled() => Ok(None),
        result => result.map(Some),
    }
}

type Told<'a> = &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>;

/// An answer in the making, told as it grows.
struct Answer {
    out: Generated,
    utf8: Utf8Stream,
    stop: StopStrings,
    /// The caller asked to stop, and hears of nothing more.
    interrupted: bool,
}

impl Answer {
    fn new(stop: &[String]) -> Self {
        let none = Timing::default();
        let (tokens, text) = (Vec::new(), String::new());
        let out =
            Generated { tokens, text, stop: Stop::Length, unfinished: false, reused: 0, prompt: none, decode: none };
        Answer { out, utf8: Utf8Stream::default(), stop: StopStrings::new(stop), interrupted: false }
    }

    /// Adds a token, whose bytes are `bytes`. Gives the reason to stop after it, if there is one.
    fn push(&mut self, token: u32, bytes: &[u8], told: Told<'_>) -> Option<Stop> {
        self.out.tokens.push(token);
        self.tell(Event::Token(token), told);
        let (text, stopped) = self.stop.push(&self.utf8.push(bytes));
        self.add(&text, told);
        match stopped {
            true => Some(Stop::StopString),
            false => self.interrupted.then_some(Stop::Interrupted),
        }
    }

    fn tell(&mut self, event: Event<'_>, told: Told<'_>) {
        if !self.interrupted {
            self.interrupted = told(event).is_break();
        }
    }

    fn add(&mut self, text: &str, told: Told<'_>) {
        self.out.text.push_str(text);
        if !text.is_empty() {
            self.tell(Event::Text(text), told);
        }
    }

    /// The whole, with what was held back; that is told too, unless the caller asked to stop.
    fn end(mut self, stop: Stop, told: Told<'_>) -> Generated {
        let rest = match stop {
            Stop::StopString => String::new(),
            _ => self.stop.push(&self.utf8.flush()).0 + &self.stop.flush(),
        };
        self.add(&rest, told);
        self.out.stop = stop;
        self.out
    }
}

impl Engine {
    /// Continues `prompt`. `told` hears of every token and may end the text by answering [`ControlFlow::Break`]: then it
    /// is not called again, and text that was held back is in [`Generated::text`] only.
    ///
    /// The tokens that `prompt` starts with and that are in the KV cache from the calls before are not computed again;
    /// only the last one always is, for its logits. After an error or an interruption the cache is as valid as before.
    /// [`LoadOptions::cancel`](super::LoadOptions::cancel) ends the text, too, in the middle of a pass.
    ///
    /// # Errors
    /// Before anything is computed: an empty prompt, or one that does not fit into the context with `max_new` tokens, or
    /// sampling settings without a meaning. Later: the device's errors, logits that are not numbers, or no token that may
    /// follow.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        mut told: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Generated, EngineError> {
        let told: Told<'_> = &mut told;
        let room = self.config().dims.context.saturating_sub(prompt.len());
        let max_new = options.max_new.unwrap_or(room.max(1));
        check_length(self.config(), prompt, max_new)?;
        options.sampling.check(self.config().dims.vocab)?;
        let mut sampler = Sampler::new(options.sampling.clone(), options.grammar.clone());
        let mut answer = Answer::new(&options.stop);

        let before = self.runner.flowed()?;
        let started = Instant::now();
        self.keep_prefix(prompt);
        answer.out.reused = self.cached.len();
        for chunk in prompt[self.cached.len()..].chunks(self.runner.max_batch()) {
            let last = self.cached.len() + chunk.len() == prompt.len();
            if wanted(self.pass(chunk, usize::from(last)))?.is_none() {
                answer.interrupted = true;
                break;
            }
            answer.out.prompt.tokens += chunk.len();
            answer.out.prompt.passes += 1;
            answer.out.prompt.time = started.elapsed();
            answer.tell(Event::Prompt(self.cached.len()), told);
            if answer.interrupted {
                break;
            }
        }
        if answer.interrupted {
            answer.out.prompt.time = started.elapsed();
            answer.out.prompt.flowed = self.flowed_since(before)?;
            return Ok(answer.end(Stop::Interrupted, told));
        }
        if max_new == 0 || sampler.is_complete() {
            answer.out.prompt.flowed = self.flowed_since(before)?;
            return Ok(answer.end(if max_new == 0 { Stop::Length } else { Stop::End }, told));
        }
        let first = wanted(self.choose(&mut sampler))?;
        answer.out.prompt.time = started.elapsed();
        answer.out.prompt.flowed = self.flowed_since(before)?;
        let Some(mut next) = first else {
            answer.interrupted = true;
            return Ok(answer.end(Stop::Interrupted, told));
        };

        let before = self.runner.flowed()?;
        let started = Instant::now();
        let stop = loop {
            if self.tokenizer.is_end(next) {
                break Stop::End;
            }
            if let Some(stop) = answer.push(next, &self.text_of(next), told) {
                break stop;
            }
            if sampler.is_complete() {
                break Stop::End;
            }
            if answer.out.tokens.len() == max_new {
                break Stop::Length;
            }
            let computed = self.pass(&[next], 1).and_then(|()| self.choose(&mut sampler));
            let Some(chosen) = wanted(computed)? else {
                answer.interrupted = true;
                break Stop::Interrupted;
            };
            answer.out.decode.tokens += 1;
            answer.out.decode.passes += 1;
            next = chosen;
        };
        answer.out.decode.time = started.elapsed();
        answer.out.decode.flowed = self.flowed_since(before)?;
        answer.out.unfinished = sampler.is_unfinished();
        Ok(answer.end(stop, told))
    }

    /// What has been streamed since it was `before`.
    fn flowed_since(&mut self, before: Option<Flowed>) -> Result<Option<Flowed>, EngineError> {
        Ok(before.zip(self.runner.flowed()?).map(|(before, now)| now.since(&before)))
    }

    /// The bytes that a token adds to the answer.
    fn text_of(&self, token: u32) -> Vec<u8> {
        if self.tokenizer.is_control(token) { Vec::new() } else { self.tokenizer.token_bytes(token) }
    }

    /// Keeps of the KV cache what `prompt`, without its last token, starts with.
    fn keep_prefix(&mut self, prompt: &[u32]) {
        let same = self.cached.iter().zip(&prompt[..prompt.len() - 1]).take_while(|(a, b)| a == b).count();
        self.cached.truncate(same);
    }

    /// A pass over `tokens` at the end of what is cached. If it fails, they are not, whatever it has written.
    fn pass(&mut self, tokens: &[u32], wanted: usize) -> Result<(), EngineError> {
        self.runner.pass(tokens, self.cached.len(), wanted)?;
        self.cached.extend_from_slice(tokens);
        Ok(())
    }

    /// The token that follows what is cached.
    fn choose(&mut self, sampler: &mut Sampler) -> Result<u32, EngineError> {
        let runner = &mut *self.runner;
        let chosen = match sampler.wants(&self.cached) {
            Wanted::Best => runner.argmax()?.ok_or(SampleError::NotANumber),
            Wanted::Top(k) => sampler.sample_top(runner.top_k(k)?, &self.cached),
            Wanted::All => sampler.sample(&runner.logits()?, &self.cached),
        };
        let (file, position) = (&runner.config().file, self.cached.len() - 1);
        chosen.map_err(|e| match e {
            SampleError::NotANumber => EngineError::NotANumber { file: file.clone(), position },
            other => other.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc, sync::Arc};

    use super::*;
    use crate::{
        device::DeviceError,
        engine::{MemoryReport, ModelFile, Runner},
    };

    /// A runner whose next token depends on all that its cache holds, and whose passes can be made to fail halfway.
    struct Fake {
        config: Config,
        cache: Vec<u32>,
        script: Rc<RefCell<Script>>,
    }

    #[derive(Default)]
    struct Script {
        /// Start and length of every pass.
        passes: Vec<(usize, usize)>,
        /// The pass that fails, by its number.
        fails: Option<usize>,
    }

    impl Runner for Fake {
        fn config(&self) -> &Config {
            &self.config
        }

        fn device(&self) -> &str {
            "fake"
        }

        fn max_batch(&self) -> usize {
            4
        }

        fn memory(&self) -> MemoryReport {
            MemoryReport::default()
        }

        fn pass(&mut self, tokens: &[u32], start: usize, _wanted: usize) -> Result<(), EngineError> {
            let mut script = self.script.borrow_mut();
            assert!(start <= self.cache.len(), "positions before {start} were never computed");
            self.cache.truncate(start);
            script.passes.push((start, tokens.len()));
            if script.fails == Some(script.passes.len() - 1) {
                self.cache.push(u32::MAX);
                return Err(DeviceError::Unsupported("halfway".into()).into());
            }
            self.cache.extend_from_slice(tokens);
            Ok(())
        }

        fn logits(&mut self) -> Result<Vec<f32>, EngineError> {
            unreachable!("greedy decoding asks for the best token only")
        }

        fn argmax(&mut self) -> Result<Option<u32>, EngineError> {
            Ok(Some(100 + self.cache.iter().fold(7, |hash: u32, token| (hash * 31 + token) % 1009)))
        }

        fn top_k(&mut self, _: usize) -> Result<Vec<(u32, f32)>, EngineError> {
            unreachable!("greedy decoding asks for the best token only")
        }
    }

    fn engine() -> (Engine, Rc<RefCell<Script>>) {
        let ModelFile { model, tokenizer } = ModelFile::demo(Some(64)).unwrap();
        let script = Rc::new(RefCell::new(Script::default()));
        let runner = Box::new(Fake { config: model.config.clone(), cache: Vec::new(), script: script.clone() });
        (Engine { runner, tokenizer, gguf: Arc::clone(&model.gguf), cached: Vec::new() }, script)
    }

    fn run(engine: &mut Engine, prompt: &[u32]) -> Result<Vec<u32>, EngineError> {
        let options = GenerateOptions { max_new: Some(3), sampling: Sampling::greedy(), ..Default::default() };
        engine.generate(prompt, &options, |_| ControlFlow::Continue(())).map(|generated| generated.tokens)
    }

    #[test]
    fn a_pass_that_fails_leaves_a_valid_cache() {
        let prompt: Vec<u32> = (1..=10).collect();
        let expected = run(&mut engine().0, &prompt).unwrap();
        let (passes, failures) = ([(0, 4), (4, 4), (8, 2), (10, 1), (11, 1)], [0, 4, 8, 10, 11]);
        for (fails, kept) in failures.into_iter().enumerate() {
            let (mut engine, script) = engine();
            script.borrow_mut().fails = Some(fails);
            assert!(run(&mut engine, &prompt).unwrap_err().to_string().contains("halfway"));
            assert_eq!(script.take().passes, passes[..=fails]);
            assert_eq!(engine.cached().len(), kept);
            assert_eq!(run(&mut engine, &prompt).unwrap(), expected, "after pass {fails} failed");
            assert_eq!(script.borrow().passes[0].0, kept.min(9));
        }
    }

    #[test]
    fn who_asked_to_stop_hears_nothing_more() {
        // Half a stop string, and half a character.
        for (bytes, told_text, text) in [(&b"so EN"[..], "so ", "so EN"), (b"so \xC3", "so ", "so \u{FFFD}")] {
            for at in [Event::Token(7), Event::Text(told_text)] {
                let mut heard = 0;
                let mut told = |event: Event<'_>| {
                    heard += 1;
                    if event == at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                };
                let mut answer = Answer::new(&["END".to_owned()]);
                assert_eq!(answer.push(7, bytes, &mut told), Some(Stop::Interrupted));
                assert_eq!(answer.end(Stop::Interrupted, &mut told).text, text);
                assert_eq!(heard, if at == Event::Token(7) { 1 } else { 2 }, "{text}, after {at:?}");
            }
        }
    }

    #[test]
    fn only_what_differs_is_computed() {
        let (mut engine, script) = engine();
        let mut prompt: Vec<u32> = (1..=6).collect();
        run(&mut engine, &prompt).unwrap();
        prompt[5] = 60;
        let expected = run(&mut self::engine().0, &prompt).unwrap();
        script.take();
        assert_eq!(run(&mut engine, &prompt).unwrap(), expected);
        assert_eq!(script.take().passes, [(5, 1), (6, 1), (7, 1)]);
        engine.runner();
        assert_eq!(run(&mut engine, &prompt).unwrap(), expected);
        assert_eq!(script.take().passes[0], (0, 4), "after others used the runner, all is computed");
    }
}
