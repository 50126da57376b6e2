//! What can go wrong between a conversation and its text.

/// An error of a chat template.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {fault}")]
pub struct ChatError {
    /// The model file, or the file that the template is from.
    pub file: String,
    /// What is wrong.
    pub fault: ChatFault,
}

/// What is wrong with a chat template.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum ChatFault {
    #[error(
        "has no chat template, and its vocabulary does not say which one it was trained with; name one with --chat-template \
         ({names}), or give a file with --chat-template-file"
    )]
    NoTemplate { names: String },
    #[error("there is no chat template {name:?}; there are {names}")]
    NoSuchName { name: String, names: String },
    #[error("the chat template {name} has {bytes} bytes; {max} are allowed")]
    TooLong { name: String, bytes: usize, max: usize },
    #[error("the chat template {name} does not end: it was stopped after {steps} steps")]
    Endless { name: String, steps: u64 },
    #[error("the chat template {name} writes more than {max} bytes")]
    OutputTooLong { name: String, max: usize },
    #[error("the chat template {name} refuses this conversation: {message}")]
    Refused { name: String, message: String },
    #[error("the chat template {name} fails{line}: {message}", line = line.map_or(String::new(), |l| format!(" in line {l}")))]
    Failed { name: String, line: Option<usize>, message: String },
    #[error("the conversation uses every private-use character of Unicode; one is needed to mark the users' text")]
    NoMark,
}
