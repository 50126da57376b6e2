//! Chat templates: Jinja, as Hugging Face transformers renders it.
//!
//! The reference is transformers' `apply_chat_template` (`utils/chat_template_utils.py`): blocks are trimmed, a template
//! sees `messages`, `tools`, `documents`, `add_generation_prompt`, the special tokens' texts (`bos_token`, ...), and the
//! functions `raise_exception` and `strftime_now`; undefined names are empty. Values print as Python prints them.
//!
//! A template comes with a model, so it is not trusted: it can compute and nothing else. Its length, its steps, the depth
//! of its recursion, its time, the length of what it writes, and numbers that make a single step long (`indent`, `slice`,
//! `batch`) are limited. The memory of the strings and lists that it builds is only limited by steps and time: a template
//! that means harm can still make the process run out of memory, by doubling a string with `+`, by `replace` or `join` with
//! long strings, or by a wide field in `format`. And one that is stopped for its time goes on, unheard, on its thread.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    sync::{Arc, LazyLock, mpsc},
    time::Duration,
};

use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, Value, context, escape_formatter, filters,
    syntax::SyntaxConfig,
    value::{Kwargs, StringInput, ValueKind},
};
use regex_automata::meta::Regex;

use super::{ChatError, ChatFault};

/// Bytes of a template. The longest published ones have 30 KB.
const MAX_SOURCE: usize = 1 << 20;

/// Steps of a rendering. A long conversation takes some 100,000; this many take about a second.
const MAX_STEPS: u64 = 20_000_000;

/// Bytes that a template may write beyond the conversation itself.
const MAX_OUTPUT: usize = 64 << 20;

/// Time for a rendering: what takes this long never ends, or builds strings without end.
const MAX_TIME: Duration = Duration::from_secs(10);

/// Stack for a rendering, in bytes: more than the deepest recursion that is allowed takes.
const STACK: usize = 8 << 20;

/// The most parts that `slice` makes, and the longest ones of `batch`.
const MAX_PARTS: usize = 100_000;

/// The most blanks that each level of `tojson` adds.
const MAX_JSON_INDENT: usize = 64;

/// What starts the message of an error that a template raises itself.
const RAISED: &str = "raised by the template: ";

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The instructions that hold for the whole conversation.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// Its name in templates.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// Something said in a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Message { role, content: content.into() }
    }
}

/// A template that was understood.
#[derive(Debug)]
pub struct Template {
    env: Arc<Environment<'static>>,
    file: String,
    name: String,
    source: String,
    /// Names and texts of special tokens, such as `bos_token` and `<s>`.
    tokens: Vec<(&'static str, String)>,
    guessed: bool,
}

impl Template {
    /// Reads the template `source`. `file` and `name` stand for it in messages; `tokens` are the special tokens that it
    /// knows, by their names there (`bos_token`, ...).
    ///
    /// # Errors
    /// A template that is too long, or not Jinja.
    pub fn new(file: &str, name: &str, source: &str, tokens: Vec<(&'static str, String)>) -> Result<Self, ChatError> {
        let fail = |fault| ChatError { file: file.to_owned(), fault };
        if source.len() > MAX_SOURCE {
            let (name, bytes) = (name.to_owned(), source.len());
            return Err(fail(ChatFault::TooLong { name, bytes, max: MAX_SOURCE }));
        }
        let mut env = environment();
        env.add_template_owned("chat", without_generation_blocks(source)).map_err(|e| fail(fault(name, &e)))?;
        let (file, name, source) = (file.to_owned(), name.to_owned(), source.to_owned());
        Ok(Template { env: Arc::new(env), file, name, source, tokens, guessed: false })
    }

    /// The same, of the file `file`.
    pub(super) fn of_file(self, file: &str) -> Self {
        Template { file: file.to_owned(), ..self }
    }

    /// The same, as a guess or not.
    pub(super) fn guessed(self, guessed: bool) -> Self {
        Template { guessed, ..self }
    }

    /// The template's name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is only a guess that the model was trained with it: the file has no template, and its vocabulary is that of
    /// several families.
    pub fn is_guess(&self) -> bool {
        self.guessed
    }

    /// What it was made from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether `text` is in the template or the special tokens that it knows.
    pub(super) fn has(&self, text: &str) -> bool {
        self.source.contains(text) || self.tokens.iter().any(|(_, token)| token.contains(text))
    }

    pub(super) fn error(&self, fault: ChatFault) -> ChatError {
        ChatError { file: self.file.clone(), fault }
    }

    /// The text of a conversation; with `answer`, up to where the model's next answer begins.
    ///
    /// # Errors
    /// What the template refuses, or what is wrong with it.
    pub fn render(&self, messages: &[Message], answer: bool) -> Result<String, ChatError> {
        self.render_within(messages, answer, MAX_TIME)
    }

    fn render_within(&self, messages: &[Message], answer: bool, time: Duration) -> Result<String, ChatError> {
        let said: usize = messages.iter().map(|m| m.content.len()).sum();
        let mut out = Limited { bytes: Vec::new(), left: said.saturating_mul(4).saturating_add(MAX_OUTPUT) };
        let max = out.left;
        let values = messages.iter().map(|m| context! { role => m.role.name(), content => m.content.as_str() });
        let context = context! {
            messages => values.collect::<Vec<Value>>(),
            tools => (),
            documents => (),
            add_generation_prompt => answer,
            ..Value::from(self.tokens.iter().map(|(name, text)| (*name, text.clone())).collect::<BTreeMap<_, _>>())
        };
        // Steps can be long, and there is no way to stop one from outside or to ask for the time between all of them. So a
        // template that takes too long is left alone: its thread ends with its steps, or with the process.
        let env = Arc::clone(&self.env);
        let (done, rendered) = mpsc::sync_channel(1);
        let work = move || {
            let template = env.get_template("chat");
            let result = template.and_then(|t| t.render_captured_to(context, &mut out).map(drop));
            // Nobody hears it when the time is over.
            let _ = done.send((result, out));
        };
        let failed = |message| self.error(ChatFault::Failed { name: self.name.clone(), line: None, message });
        let thread = std::thread::Builder::new().name("chat template".into()).stack_size(STACK).spawn(work);
        let thread = thread.map_err(|e| failed(format!("no thread can be started for it: {e}")))?;
        let (result, out) = match rendered.recv_timeout(time) {
            Ok(rendered) => rendered,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                return Err(failed(format!("it takes longer than {} s", time.as_secs_f64())));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
                Err(panic) => std::panic::resume_unwind(panic),
                Ok(()) => unreachable!("the thread sends before it ends"),
            },
        };
        match result {
            Ok(()) => Ok(String::from_utf8_lossy(&out.bytes).into_owned()),
            Err(_) if out.left == 0 => Err(self.error(ChatFault::OutputTooLong { name: self.name.clone(), max })),
            Err(e) => Err(self.error(fault(&self.name, &e))),
        }
    }
}

/// Memory that takes so many bytes and no more.
struct Limited {
    bytes: Vec<u8>,
    left: usize,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.left {
            self.left = 0;
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        self.left -= bytes.len();
        self.bytes.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn fault(name: &str, error: &Error) -> ChatFault {
    let name = name.to_owned();
    let detail = error.detail().map_or_else(|| error.kind().to_string(), |d| format!("{}: {d}", error.kind()));
    match error.detail().and_then(|detail| detail.strip_prefix(RAISED)) {
        _ if error.kind() == ErrorKind::OutOfFuel => ChatFault::Endless { name, steps: MAX_STEPS },
        Some(message) => ChatFault::Refused { name, message: message.escape_debug().to_string() },
        None => ChatFault::Failed { name, line: error.line(), message: detail.escape_debug().to_string() },
    }
}

/// Jinja as transformers sets it up.
fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.expect("the delimiters are the usual ones"));
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_formatter(|out, state, value| match value.kind() {
        ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
        ValueKind::None => Ok(out.write_str("None")?),
        _ => escape_formatter(out, state, value),
    });
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_fuel(Some(MAX_STEPS));
    env.add_filter("tojson", tojson);
    env.add_filter("indent", indent);
    env.add_filter("slice", |state: &State<'_, '_>, value: Value, count: usize, fill: Option<Value>| {
        bounded("slice", count, MAX_PARTS).and_then(|()| filters::slice(state, value, count, fill))
    });
    env.add_filter("batch", |state: &State<'_, '_>, value: Value, count: usize, fill: Option<Value>| {
        bounded("batch", count, MAX_PARTS).and_then(|()| filters::batch(state, value, count, fill))
    });
    // Python's None is not, and templates ask before they take the length of what they may not have been given.
    env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    env.add_function("raise_exception", |message: &str| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
    });
    env.add_function("strftime_now", |format: &str| {
        let now = jiff::Zoned::now();
        let wrong = |e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}"));
        jiff::fmt::strtime::format(format, &now).map_err(wrong)
    });
    env
}

/// Whether a filter's number is one that it can do at once.
fn bounded(filter: &str, number: usize, max: usize) -> Result<(), Error> {
    match number <= max {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::InvalidOperation, format!("{filter}({number}): at most {max} is allowed"))),
    }
}

/// minijinja's, of texts that do not become longer than what a template may write.
fn indent(
    text: StringInput<'_>,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    options: Kwargs,
) -> Result<Value, Error> {
    let width = match width {
        Some(width) => width,
        None => options.get::<Option<usize>>("width")?.unwrap_or(4),
    };
    let lines = text.as_str().split('\n').count();
    bounded("indent", width, MAX_OUTPUT / lines)?;
    filters::indent(text, Some(width), first, blank, options)
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it: minijinja's without the escapes that HTML needs.
fn tojson(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<String, Error> {
    // It is what happens anyway.
    if options.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson(ensure_ascii=true) is not supported"));
    }
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get("indent")?,
    };
    options.assert_all_used()?;
    if let Some(indent) = indent.as_ref().and_then(Value::as_usize) {
        bounded("tojson", indent, MAX_JSON_INDENT)?;
    }
    let json = filters::tojson(value, indent, Kwargs::from_iter(Vec::<(String, Value)>::new()))?;
    let json = json.as_str().unwrap_or_default();
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    // After each backslash, what it escapes is taken with it, so that an escaped backslash escapes nothing.
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let html = [(r"\u003c", '<'), (r"\u003e", '>'), (r"\u0026", '&'), (r"\u0027", '\'')];
        match html.iter().find(|(escape, _)| rest[at..].starts_with(escape)) {
            Some((escape, c)) => {
                out.push(*c);
                rest = &rest[at + escape.len()..];
            }
            None => {
                out.push_str(&rest[at..at + 2]);
                rest = &rest[at + 2..];
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// `{% generation %}` marks what a model is trained on; transformers knows the tag, and for the text it means nothing.
fn without_generation_blocks(source: &str) -> String {
    static TAG: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}").expect("the pattern is a constant"));
    let mut out = String::with_capacity(source.len());
    let mut end = 0;
    for found in TAG.find_iter(source) {
        let tag = &source[found.range()];
        out.push_str(&source[end..found.start()]);
        let block = if tag.contains("endgeneration") { ("endgeneration", "endif") } else { ("generation", "if true") };
        out.push_str(&tag.replace(block.0, block.1));
        end = found.end();
    }
    out.push_str(&source[end..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> Template {
        Template::new("model.gguf", "t", source, Vec::new()).unwrap()
    }

    #[test]
    fn a_step_that_would_take_all_memory_is_refused() {
        for (source, message) in [
            ("{{ 'x'|indent(1000000000000, true) }}", "indent(1000000000000): at most 67108864"),
            ("{{ 'x'|indent(width=1000000000000) }}", "indent(1000000000000): at most 67108864"),
            ("{{ ('x\\n' * 100000)|indent(10000) }}", "indent(10000): at most 671"),
            ("{{ [1,2]|slice(9223372036854775807)|list }}", "slice(9223372036854775807): at most 100000"),
            ("{{ [1,2]|batch(9223372036854775807, 0)|list }}", "batch(9223372036854775807): at most 100000"),
            ("{{ messages|tojson(indent=9223372036854775807) }}", "tojson(9223372036854775807): at most 64"),
            ("{{ messages|tojson(9223372036854775807) }}", "tojson(9223372036854775807): at most 64"),
        ] {
            let found = template(source).render(&[Message::new(Role::User, "Hello")], true).unwrap_err().to_string();
            assert!(found.contains(message), "{source}: {found}");
        }
        let usual = "{{ 'a\\nb'|indent(2) }}|{{ 'a\\nb'|indent(width=1, first=true) }}|{{ [1,2,3]|slice(2)|list }}|\
                     {{ [1,2,3]|batch(2, 0)|list }}|{{ [1]|tojson(indent=2) }}";
        let text = template(usual).render(&[], true).unwrap();
        assert_eq!(text, "a\n  b| a\n b|[[1, 2], [3]]|[[1, 2], [3, 0]]|[\n  1\n]");
    }

    /// Few steps, each of them long.
    #[test]
    fn a_template_that_takes_long_is_given_up() {
        let source = "{% set s = 'x' * 2000000 %}{% for i in range(500) %}{% set t = s|upper %}{% endfor %}";
        let found = template(source).render_within(&[], true, Duration::from_millis(20)).unwrap_err().to_string();
        assert_eq!(found, "model.gguf: the chat template t fails: it takes longer than 0.02 s");
    }
}
