//! What can be wrong with a grammar.

/// An error of a grammar.
#[derive(Debug, thiserror::Error)]
pub enum GrammarError {
    /// The model's tokens do not serve.
    #[error("the model's vocabulary cannot be used with a grammar: {0}")]
    Vocabulary(String),
    /// Too much text.
    #[error("the grammar has {bytes} bytes; the limit is {limit}")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// A GBNF grammar that cannot be read.
    #[error(transparent)]
    Gbnf(#[from] GbnfError),
    /// A JSON schema that is no JSON.
    #[error("the JSON schema is not JSON")]
    Json(#[from] serde_json::Error),
    /// A grammar or schema that cannot be used.
    #[error("the grammar cannot be used: {0}")]
    Text(String),
    /// No token leads on.
    #[error("the grammar cannot go on: no token of the model fits what has to follow")]
    DeadEnd,
    /// The grammar takes too much work.
    #[error("the grammar cannot go on: {0}")]
    Step(String),
}

impl GrammarError {
    /// From llguidance's message about a grammar.
    pub(super) fn text(message: &str) -> Self {
        GrammarError::Text(essence(message))
    }

    /// From llguidance's message about a token.
    pub(super) fn step(message: &str) -> Self {
        match essence(message) {
            message if message == "NoExtensionBias" => GrammarError::DeadEnd,
            message => GrammarError::Step(message),
        }
    }
}

/// The first line of a message, and with a regular expression what is wrong in it. Excerpts, the parser's state, and
/// backtraces follow.
fn essence(message: &str) -> String {
    let first = message.lines().next().unwrap_or_default().trim_end_matches(':');
    match message.lines().find(|line| line.starts_with("error: ")) {
        Some(error) => format!("{first}: {}", &error["error: ".len()..]),
        None => first.strip_prefix("panic: ").map_or(first.to_owned(), |why| format!("its reader gave up ({why})")),
    }
}

/// A fault in a GBNF grammar and its place.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("line {line}: {fault}")]
pub struct GbnfError {
    /// From 1 on.
    pub line: usize,
    /// What is wrong there.
    pub fault: GbnfFault,
}

/// What is wrong in a GBNF grammar.
#[derive(Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum GbnfFault {
    #[error("expected {expected}, found {}", found.map_or("the end".to_owned(), |c| format!("{c:?}")))]
    Expected { expected: &'static str, found: Option<char> },
    #[error("the text ends before the closing {0}")]
    Unclosed(char),
    #[error("the escape {0:?} is not known (known: \\n \\r \\t \\\\ \\\" \\[ \\] \\- \\xHH \\uHHHH \\UHHHHHHHH)")]
    Escape(String),
    #[error("{0:?} is no character: its code has to be below 110000 and outside of D800 to DFFF")]
    NoCharacter(String),
    #[error("the range {from:?} to {to:?} runs backwards")]
    Range { from: char, to: char },
    #[error("the class [] matches nothing")]
    EmptyClass,
    #[error("a repetition of {min} to {max} runs backwards")]
    Repetition { min: u32, max: u32 },
    #[error("a repetition of more than {limit} is too long")]
    LongRepetition { limit: u32 },
    #[error("groups are nested deeper than {limit}")]
    Nesting { limit: usize },
    #[error("more than {limit} elements are too many; write long lists as character classes and repetitions")]
    Elements { limit: usize },
    #[error(
        "the parts of rule {rule:?}, with the rules that it names, are nested deeper than {limit}; join rules into one"
    )]
    Depth { rule: String, limit: usize },
    #[error("elements for tokens ({0}...) are not supported; write the text that the token stands for")]
    Token(char),
    #[error("the rule {0:?} is defined twice")]
    Twice(String),
    #[error("there is no rule {0:?}")]
    NoRule(String),
    #[error("there is no rule \"root\", which the text has to follow")]
    NoRoot,
}
