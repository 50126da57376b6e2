//! Stop strings: text that ends an answer, and is not part of it.

/// Text on its way to the caller. What may be the start of a stop string is held back until it is decided.
#[derive(Debug)]
pub(super) struct StopStrings {
    strings: Vec<String>,
    /// A proper prefix of a stop string, the longest that the text so far ends with.
    held: String,
}

impl StopStrings {
    /// Empty strings are ignored: every text has them.
    pub fn new(strings: &[String]) -> Self {
        StopStrings { strings: strings.iter().filter(|s| !s.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Adds `text`. Gives the text that is certain now, and whether a stop string followed it.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        let mut all = std::mem::take(&mut self.held);
        all.push_str(text);
        if let Some(at) = self.strings.iter().filter_map(|stop| all.find(stop.as_str())).min() {
            all.truncate(at);
            return (all, true);
        }
        let may_stop = |at: &usize| self.strings.iter().any(|stop| stop.starts_with(&all[*at..]));
        let at = all.char_indices().map(|(at, _)| at).find(may_stop).unwrap_or(all.len());
        self.held = all.split_off(at);
        (all, false)
    }

    /// What was held back, when no more text comes.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes `text` a character at a time: the text up to the stop string, and whether one was found.
    fn run(strings: &[&str], text: &str) -> (String, bool) {
        let strings: Vec<String> = strings.iter().map(|s| s.to_string()).collect();
        let mut stop = StopStrings::new(&strings);
        let mut out = String::new();
        for c in text.chars() {
            let (piece, stopped) = stop.push(&c.to_string());
            out.push_str(&piece);
            if stopped {
                return (out, true);
            }
        }
        out.push_str(&stop.flush());
        (out, false)
    }

    #[test]
    fn text_ends_before_the_stop_string() {
        assert_eq!(run(&["END"], "one END two"), ("one ".into(), true));
        assert_eq!(run(&["aab"], "aaab"), ("a".into(), true), "a false start overlaps the true one");
        assert_eq!(run(&["zz", "ö!"], "schön schö!"), ("schön sch".into(), true));
        assert_eq!(
            StopStrings::new(&["b".into(), "ab".into()]).push("xab"),
            ("x".into(), true),
            "the first one counts"
        );
    }

    #[test]
    fn what_is_not_the_stop_string_comes_out() {
        assert_eq!(run(&["END"], "EN route, E"), ("EN route, E".into(), false));
        assert_eq!(run(&["", "END"], "text"), ("text".into(), false));
        assert_eq!(run(&[], "text"), ("text".into(), false));
        let mut stop = StopStrings::new(&["END".into()]);
        assert_eq!(stop.push("the E"), ("the ".into(), false), "only what may be a stop string is held back");
        assert_eq!(stop.push("a"), ("Ea".into(), false));
    }
}
