//! `ntransformer --chat`: a conversation.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    ops::ControlFlow,
    path::PathBuf,
};

use anyhow::Context;
use rustyline::{
    Behavior, DefaultEditor,
    error::ReadlineError,
    history::{FileHistory, History},
};

use super::{
    generate::{GenerateArgs, Output},
    interrupt,
    open::Loaded,
    text,
};
use crate::engine::{
    Event, GenerateOptions, Stop,
    chat::{self, Chat, TemplateSource},
};

const PROMPT: &str = ">>> ";
/// In front of the lines of a message after the first.
const MORE: &str = "... ";
/// Messages that the history keeps.
const HISTORY: usize = 1000;

const HELP: &str = "\
/system TEXT   sets the instructions for the model; without TEXT, shows them
/system none   takes them back
/clear         forgets the conversation
/help          shows this
/bye           ends (as Ctrl-D does)
A line that ends with \\ is continued on the next one. Ctrl-C stops an answer.";

/// How a conversation is held.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Chat")]
pub struct ChatArgs {
    /// Hold a conversation. The first message is that of -p, the others are read from stdin, a line each.
    #[arg(long)]
    chat: bool,
    /// Instructions that hold for the whole conversation.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// The template of a family of models instead of the file's own, such as chatml or llama-3.
    #[arg(long, value_name = "NAME", requires = "chat", conflicts_with = "chat_template_file")]
    chat_template: Option<String>,
    /// A template in a file instead of the model's own.
    #[arg(long, value_name = "FILE", requires = "chat")]
    chat_template_file: Option<PathBuf>,
}

impl ChatArgs {
    pub fn asked(&self) -> bool {
        self.chat
    }

    fn source(&self) -> anyhow::Result<TemplateSource> {
        Ok(match (&self.chat_template, &self.chat_template_file) {
            (Some(name), _) => TemplateSource::Family(name.clone()),
            (None, Some(path)) => TemplateSource::Text { name: path.display().to_string(), source: text::read(path)? },
            (None, None) => TemplateSource::Model,
        })
    }
}

/// Answers the messages of -p and stdin on stdout. The exit code is that of an interrupted run if Ctrl-C ended it.
pub fn run(args: &GenerateArgs) -> anyhow::Result<u8> {
    let first = args.text()?;
    let file = args.model.open(args.context)?;
    let template = chat::template(&file, &args.chat.source()?)?;
    args.model.say(&format!("chat template: {}", template.name()));
    if template.is_guess() {
        args.model.say("the file has no chat template: this one is a guess; --chat-template sets another");
    }
    let mut chat = Chat::new(template, args.chat.system.clone())?;
    tell_merged(args, &chat);
    let sampling = args.sampling.sampling(file.config().dims.vocab)?;
    let grammar = args.grammar(file.tokenizer())?;
    let trace = args.model.trace_file()?;
    let engine = args.model.load(file, 1)?;
    if args.model.verbose {
        args.model.say(&args.sampling.describe(&sampling));
    } else if !sampling.is_greedy() {
        args.model.say(&format!("seed: {}", sampling.seed));
    }
    let options = GenerateOptions { max_new: args.n_predict, sampling, grammar, stop: Vec::new() };
    let mut talk = Talk { args, engine, options };
    let result = match (interrupt::idle(), io::stdin().is_terminal()) {
        (true, _) => Ok(interrupt::EXIT_CODE),
        (false, true) => talk.with_user(&mut chat, first),
        (false, false) => talk.with_lines(&mut chat, first),
    };
    let traced = args.model.write_trace(trace, talk.engine.runner());
    let code = result?;
    traced?;
    if code == interrupt::EXIT_CODE {
        // As `Loaded` does where it is dropped while the interruption still counts.
        std::mem::forget(talk);
    }
    Ok(code)
}

/// The parts of a conversation that stay.
struct Talk<'a> {
    args: &'a GenerateArgs,
    engine: Loaded,
    options: GenerateOptions,
}

impl Talk<'_> {
    /// Each line of stdin is a message. What goes wrong ends the conversation.
    fn with_lines(&mut self, chat: &mut Chat, first: String) -> anyhow::Result<u8> {
        let lines = io::stdin().lock().lines().map(|line| line.context("standard input"));
        for message in [Ok(first)].into_iter().chain(lines) {
            let message = message?;
            if !message.trim().is_empty() && self.turn(chat, &message)? == Stop::Interrupted {
                return Ok(interrupt::EXIT_CODE);
            }
        }
        Ok(0)
    }

    /// Messages are edited on a terminal. What goes wrong is told, and the conversation goes on.
    fn with_user(&mut self, chat: &mut Chat, first: String) -> anyhow::Result<u8> {
        let config = rustyline::Config::builder().behavior(Behavior::PreferTerm).max_history_size(HISTORY)?.build();
        let mut editor = DefaultEditor::with_config(config).context("the terminal")?;
        let mut kept = Kept { path: history_file() };
        if let Some(path) = &kept.path {
            // There is none before the first conversation.
            let _ = editor.load_history(path);
        }
        self.args.model.say("\nType a message, or /help for the commands.");
        let mut next = Some(first).filter(|text| !text.trim().is_empty());
        if let Some(text) = &next {
            self.args.model.say(&format!("{PROMPT}{text}"));
        }
        loop {
            let message = match next.take() {
                Some(message) => message,
                None => match read(&mut editor)? {
                    Input::Message(message) => {
                        if let Some(warning) = kept.append(editor.history_mut()) {
                            self.args.model.say(&warning);
                        }
                        message
                    }
                    Input::Nothing => continue,
                    Input::End => break,
                },
            };
            match Command::of(&message) {
                Some(Command::Bye) => break,
                Some(command) => self.obey(chat, command)?,
                None => {
                    if let Err(e) = self.turn(chat, &message) {
                        super::open::say(&format!("error: {e:#}"));
                    }
                }
            }
        }
        Ok(0)
    }

    /// A message and its answer.
    fn turn(&mut self, chat: &mut Chat, message: &str) -> anyhow::Result<Stop> {
        let args = self.args;
        let mut output = Output::default();
        let bar = args.model.counter("prompt: {pos} tokens", 0)?;
        interrupt::computing();
        let answer = chat.say(&mut self.engine, message, &self.options, |event| {
            match event {
                Event::Prompt(done) => bar.set_position(done as u64),
                Event::Token(_) => bar.finish_and_clear(),
                // Many models begin with a blank or an empty line.
                Event::Text(text) if output.is_empty() && text.trim_start().is_empty() => (),
                Event::Text(text) if output.is_empty() => output.print(text.trim_start()),
                Event::Text(text) => output.print(text),
            }
            let go_on = output.error.is_none() && !interrupt::requested();
            if go_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        let interrupted = interrupt::idle();
        bar.finish_and_clear();
        output.finish(answer.is_ok())?;
        let answer = answer?;
        // Else answers to equal messages would be drawn alike.
        self.options.sampling.seed = self.options.sampling.seed.wrapping_add(1);
        let generated = &answer.generated;
        if answer.dropped > 0 {
            args.model.say(&format!(
                "the context was full: the oldest {} messages are no longer part of the conversation",
                answer.dropped
            ));
        }
        if generated.stop == Stop::Length && self.options.max_new.is_none_or(|max| generated.tokens.len() < max) {
            args.model.say("the context is full: the answer ends here; -c makes it longer where the model allows it");
        }
        args.tell_unfinished(generated);
        if args.model.verbose {
            args.model.say(&format!(
                "turn: {} tokens of prompt in {} passes and {:.2} s, {} in the cache before; {} new tokens, {:.2} tok/s",
                generated.prompt.tokens,
                generated.prompt.passes,
                generated.prompt.time.as_secs_f64(),
                generated.reused,
                generated.tokens.len(),
                generated.decode.rate()
            ));
        }
        Ok(if interrupted { Stop::Interrupted } else { generated.stop })
    }

    fn obey(&self, chat: &mut Chat, command: Command) -> anyhow::Result<()> {
        let say = |text: &str| writeln!(io::stderr(), "{text}");
        match command {
            Command::Bye => (),
            Command::Help => say(HELP)?,
            Command::Clear => {
                chat.clear();
                say("The conversation is forgotten.")?;
            }
            Command::NoSystem => {
                chat.set_system(None)?;
                say("There are no instructions any more.")?;
            }
            Command::System(None) => {
                say(chat.system().unwrap_or("There are no instructions: /system TEXT sets them."))?
            }
            Command::System(Some(text)) => match chat.set_system(Some(text)) {
                Ok(()) => tell_merged(self.args, chat),
                Err(e) => say(&format!("error: {e}"))?,
            },
            Command::Unknown(name) => say(&format!("There is no command {name}; /help shows those that there are."))?,
        }
        Ok(())
    }
}

fn tell_merged(args: &GenerateArgs, chat: &Chat) {
    if chat.merges_system() {
        args.model.say("the chat template takes no system message: it is put in front of the first message");
    }
}

/// What a user may type instead of a message.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Bye,
    Clear,
    Help,
    System(Option<String>),
    NoSystem,
    Unknown(String),
}

impl Command {
    /// A line that starts with a slash and a word. `/etc/passwd` is not one.
    fn of(message: &str) -> Option<Self> {
        let message = message.trim();
        let (name, rest) = message.split_once(char::is_whitespace).unwrap_or((message, ""));
        let word = name.strip_prefix('/')?;
        if !word.chars().all(|c| c.is_ascii_alphabetic() || c == '?') {
            return None;
        }
        Some(match word {
            "bye" | "exit" | "quit" => Command::Bye,
            "clear" => Command::Clear,
            "help" | "?" => Command::Help,
            "system" if rest.trim() == "none" => Command::NoSystem,
            "system" => Command::System(Some(rest.trim().to_owned()).filter(|text| !text.is_empty())),
            _ => Command::Unknown(name.to_owned()),
        })
    }
}

enum Input {
    Message(String),
    Nothing,
    End,
}

/// A message of one or more lines.
fn read(editor: &mut DefaultEditor) -> anyhow::Result<Input> {
    let mut message = String::new();
    loop {
        let line = match editor.readline(if message.is_empty() { PROMPT } else { MORE }) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) if message.is_empty() => {
                super::open::say("/bye or Ctrl-D ends the conversation.");
                return Ok(Input::Nothing);
            }
            Err(ReadlineError::Interrupted) => return Ok(Input::Nothing),
            Err(ReadlineError::Eof) => return Ok(Input::End),
            Err(e) => return Err(e).context("the terminal"),
        };
        match line.strip_suffix('\\') {
            Some(line) => message = message + line + "\n",
            None => {
                message += &line;
                break;
            }
        }
    }
    if message.trim().is_empty() {
        return Ok(Input::Nothing);
    }
    editor.add_history_entry(message.as_str())?;
    Ok(Input::Message(message))
}

/// Where the history is kept, by the XDG base directory specification.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || Some(PathBuf::from(std::env::var_os("HOME").filter(|home| !home.is_empty())?).join(".local/state"));
    Some(state.or_else(home)?.join("ntransformer/history"))
}

/// The file that messages are kept in.
struct Kept {
    /// None where there is no place for it.
    path: Option<PathBuf>,
}

impl Kept {
    /// Writes what is new in the history to the file. Where that fails it is given up, with a warning.
    fn append(&mut self, history: &mut FileHistory) -> Option<String> {
        let path = self.path.take()?;
        let folder = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        match folder.map_err(ReadlineError::from).and_then(|()| history.append(&path)) {
            Ok(()) => {
                self.path = Some(path);
                None
            }
            Err(e) => Some(format!("{}: cannot be written: {e}; messages are not kept for later", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_kept_at_once_and_where_they_cannot_be_that_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/history");
        let (mut kept, mut history) = (Kept { path: Some(path.clone()) }, FileHistory::new());
        for message in ["first", "second"] {
            history.add(message).unwrap();
            assert_eq!(kept.append(&mut history), None);
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text.matches(message).count(), 1, "{text}");
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap().matches("first").count(), 1);

        let mut kept = Kept { path: Some(path.join("of/a/file")) };
        history.add("third").unwrap();
        let warning = kept.append(&mut history).unwrap();
        assert!(warning.contains("history/of/a/file: cannot be written: "), "{warning}");
        assert_eq!(kept.append(&mut history), None);
    }

    #[test]
    fn commands_are_words_with_a_slash() {
        assert_eq!(Command::of(" /bye "), Some(Command::Bye));
        assert_eq!(Command::of("/?"), Some(Command::Help));
        assert_eq!(Command::of("/system"), Some(Command::System(None)));
        assert_eq!(Command::of("/system Be\nbrief. "), Some(Command::System(Some("Be\nbrief.".into()))));
        assert_eq!(Command::of("/system none "), Some(Command::NoSystem));
        assert_eq!(Command::of("/system none of it"), Some(Command::System(Some("none of it".into()))));
        assert_eq!(Command::of("/sing a song"), Some(Command::Unknown("/sing".into())));
        for message in ["", "Hello", "/etc/passwd is a file", "/* a comment */", "a /bye"] {
            assert_eq!(Command::of(message), None, "{message}");
        }
    }
}
