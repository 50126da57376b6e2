//! Text from tokens' bytes: a character may be spread over several tokens.

/// Turns pieces of bytes into text that is printed as it comes: characters appear once they are complete.
///
/// ```
/// let mut stream = ntransformer::engine::tokenizer::Utf8Stream::default();
/// assert_eq!(stream.push(b"a\xc3"), "a");
/// assert_eq!(stream.push(b"\xa4b"), "äb");
/// assert_eq!(stream.push(b"\xe2\x82"), "");
/// assert_eq!(stream.flush(), "\u{fffd}");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    /// The start of a character whose end has not come yet: at most three bytes.
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// Adds `bytes` and returns the text that is complete now. Bytes that cannot become a character are U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        let mut text = String::new();
        let mut rest = std::mem::take(&mut self.pending);
        rest.extend_from_slice(bytes);
        let mut rest = rest.as_slice();
        while let Err(error) = std::str::from_utf8(rest) {
            let (valid, invalid) = rest.split_at(error.valid_up_to());
            text.push_str(&String::from_utf8_lossy(valid));
            let Some(len) = error.error_len() else {
                self.pending = invalid.to_vec();
                return text;
            };
            text.push(char::REPLACEMENT_CHARACTER);
            rest = &invalid[len..];
        }
        text.push_str(&String::from_utf8_lossy(rest));
        text
    }

    /// Ends the stream: what is left of an incomplete character is U+FFFD.
    pub fn flush(&mut self) -> String {
        let pending = std::mem::take(&mut self.pending);
        String::from_utf8_lossy(&pending).into_owned()
    }
}
