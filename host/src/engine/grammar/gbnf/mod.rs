//! llama.cpp's grammars in llguidance's Lark.
//!
//! GBNF's rules are made of characters, Lark's of lexemes, which a lexer cuts off the text: always the longest that is
//! possible. So that this makes no difference, everything that does not recurse becomes one lexeme, with the characters
//! around it: a grammar without recursion is a single regular expression. What is left is the border of a recursive part:
//! where the lexeme before it, or an alternative to that lexeme, could take in the characters that follow, it does. What is
//! written follows the grammar in any case, but some texts of the grammar are never written.

mod parser;

use super::{GbnfError, GbnfFault};
use parser::{Grammar, Node, parse};
use std::fmt::Write;

/// Levels of groups, repetitions and rules inside each other. The work for an expression grows faster than its depth.
const MAX_DEPTH: usize = 500;

/// The Lark grammar for a GBNF grammar.
///
/// # Errors
/// When it cannot be read, with the line.
pub(super) fn to_lark(text: &str) -> Result<String, GbnfError> {
    let grammar = parse(text)?;
    let mut writer = Writer { regular: regular(&grammar)?, lark: String::new(), parts: 0 };
    let root = writer.reference(grammar.root);
    writer.define("start", &root);
    for (rule, body) in grammar.rules.iter().enumerate() {
        let name = writer.reference(rule);
        let body = writer.body(body);
        writer.define(&name, &body);
    }
    Ok(writer.lark)
}

/// For each rule, whether it comes to no recursive rule, so that it is a regular expression.
///
/// # Errors
/// A rule that is too deep. Below a recursive rule, only what is regular counts: that becomes an expression.
fn regular(grammar: &Grammar) -> Result<Vec<bool>, GbnfError> {
    // Rules whose references are all regular are, from those without references on.
    let uses: Vec<Vec<usize>> = grammar.rules.iter().map(Node::references).collect();
    let mut open: Vec<usize> = uses.iter().map(Vec::len).collect();
    let mut users = vec![Vec::new(); uses.len()];
    for (user, used) in uses.iter().enumerate() {
        for &rule in used {
            users[rule].push(user);
        }
    }
    let mut found: Vec<usize> = (0..uses.len()).filter(|&rule| open[rule] == 0).collect();
    let (mut regular, mut depths) = (vec![false; uses.len()], vec![0; uses.len()]);
    let depth = |rule: usize, depths: &[usize]| match depth(&grammar.rules[rule], depths) {
        depth if depth <= MAX_DEPTH => Ok(depth),
        _ => {
            let (rule, line) = grammar.places[rule].clone();
            Err(GbnfError { line, fault: GbnfFault::Depth { rule, limit: MAX_DEPTH } })
        }
    };
    while let Some(rule) = found.pop() {
        regular[rule] = true;
        depths[rule] = depth(rule, &depths)?;
        for &user in &users[rule] {
            open[user] -= 1;
            if open[user] == 0 {
                found.push(user);
            }
        }
    }
    for rule in (0..uses.len()).filter(|&rule| !regular[rule]) {
        depth(rule, &depths)?;
    }
    Ok(regular)
}

/// How deep `node` is, given the depths of the rules.
fn depth(node: &Node, rules: &[usize]) -> usize {
    match node {
        Node::Text(_) | Node::Class { .. } | Node::Any => 1,
        Node::Rule(rule) => 1 + rules[*rule],
        Node::Sequence(nodes) | Node::Either(nodes) => {
            usize::from(nodes.len() > 1) + nodes.iter().map(|node| depth(node, rules)).max().unwrap_or(0)
        }
        Node::Repeat(node, ..) => 1 + depth(node, rules),
    }
}

/// Writes Lark: lexemes have names with T, other rules with r. Groups become rules, because Lark's may not be nested deeply.
struct Writer {
    regular: Vec<bool>,
    lark: String,
    /// Rules that stand for a part of a GBNF rule.
    parts: usize,
}

impl Writer {
    fn define(&mut self, name: &str, body: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.lark, "{name}: {body}");
    }

    /// The name of a GBNF rule.
    fn reference(&self, rule: usize) -> String {
        format!("{}{rule}", if self.regular[rule] { "T" } else { "r" })
    }

    fn is_regular(&self, node: &Node) -> bool {
        node.references().iter().all(|&rule| self.regular[rule])
    }

    /// What stands behind the colon for `node`.
    fn body(&mut self, node: &Node) -> String {
        match node {
            Node::Sequence(nodes) | Node::Either(nodes) if nodes.len() == 1 => self.body(&nodes[0]),
            Node::Either(options) if self.is_regular(node) => {
                options.iter().map(|option| self.body(option)).collect::<Vec<_>>().join(" | ")
            }
            Node::Either(options) => {
                // The regular ones are one lexeme together.
                let (lexeme, rules): (Vec<_>, Vec<_>) = options.iter().cloned().partition(|o| self.is_regular(o));
                let mut bodies: Vec<String> = rules.iter().map(|option| self.body(option)).collect();
                if !lexeme.is_empty() {
                    bodies.push(self.atom(&Node::Either(lexeme)));
                }
                bodies.join(" | ")
            }
            Node::Sequence(items) if items.is_empty() => r#""""#.to_owned(),
            Node::Sequence(items) if self.is_regular(node) => {
                items.iter().map(|item| self.atom(item)).collect::<Vec<_>>().join(" ")
            }
            Node::Sequence(items) => {
                // Neighbours that are regular are one lexeme together.
                let runs = items.chunk_by(|a, b| self.is_regular(a) && self.is_regular(b));
                let runs: Vec<Node> = runs.map(|run| Node::Sequence(run.to_vec())).collect();
                runs.iter().map(|run| self.atom(run)).collect::<Vec<_>>().join(" ")
            }
            Node::Repeat(item, min, max) => {
                let item = self.atom(item);
                match (min, max) {
                    (0, None) => format!("{item}*"),
                    (0, Some(1)) => format!("{item}?"),
                    (1, None) => format!("{item}+"),
                    (min, None) => format!("{item}{{{min},}}"),
                    (0, Some(0)) => r#""""#.to_owned(),
                    (min, Some(max)) => format!("{item}{{{min},{max}}}"),
                }
            }
            leaf => self.atom(leaf),
        }
    }

    /// `node` as one element, of a rule of its own if need be.
    fn atom(&mut self, node: &Node) -> String {
        match node {
            Node::Rule(rule) => self.reference(*rule),
            Node::Text(text) if text.is_empty() => r#""""#.to_owned(),
            Node::Text(text) => format!("/{}/", text.chars().map(escaped).collect::<String>()),
            Node::Class { ranges, negated } => {
                let range = |&(from, to): &(char, char)| match from == to {
                    true => escaped(from),
                    false => format!("{}-{}", escaped(from), escaped(to)),
                };
                let not = if *negated { "^" } else { "" };
                format!("/[{not}{}]/", ranges.iter().map(range).collect::<String>())
            }
            Node::Any => "/(?s:.)/".to_owned(),
            Node::Sequence(items) | Node::Either(items) if items.len() == 1 => self.atom(&items[0]),
            Node::Sequence(_) | Node::Either(_) | Node::Repeat(..) => {
                let body = self.body(node);
                let name = format!("{}{}", if self.is_regular(node) { "TP" } else { "rp" }, self.parts);
                self.parts += 1;
                self.define(&name, &body);
                name
            }
        }
    }
}

/// A character in a regular expression.
fn escaped(c: char) -> String {
    if c.is_ascii_alphanumeric() { c.to_string() } else { format!(r"\x{{{:X}}}", u32::from(c)) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;
    use crate::{
        demo,
        engine::{EncodeOptions, Grammar as Compiled, GrammarVocabulary, Sampler, Sampling, Syntax, Tokenizer},
    };

    /// Where `node` can end in `text` when it starts at `at`: the definition, by trying everything.
    fn ends(grammar: &Grammar, node: &Node, text: &[char], at: usize) -> BTreeSet<usize> {
        let one = |matches: bool| if matches { BTreeSet::from([at + 1]) } else { BTreeSet::new() };
        let then = |starts: BTreeSet<usize>, node: &Node| -> BTreeSet<usize> {
            starts.into_iter().flat_map(|at| ends(grammar, node, text, at)).collect()
        };
        match node {
            Node::Text(t) => {
                let t: Vec<char> = t.chars().collect();
                if text[at..].starts_with(&t) { BTreeSet::from([at + t.len()]) } else { BTreeSet::new() }
            }
            Node::Class { ranges, negated } => {
                let within = |c: &char| ranges.iter().any(|(from, to)| (from..=to).contains(&c));
                one(text.get(at).is_some_and(|c| within(c) != *negated))
            }
            Node::Any => one(at < text.len()),
            Node::Rule(rule) => ends(grammar, &grammar.rules[*rule], text, at),
            Node::Sequence(items) => items.iter().fold(BTreeSet::from([at]), then),
            Node::Either(options) => options.iter().flat_map(|option| ends(grammar, option, text, at)).collect(),
            Node::Repeat(item, min, max) => {
                let mut now = (0..*min).fold(BTreeSet::from([at]), |starts, _| then(starts, item));
                let mut all = now.clone();
                for _ in *min..max.unwrap_or(u32::MAX) {
                    now = &then(now, item) - &all;
                    if now.is_empty() {
                        break;
                    }
                    all.extend(&now);
                }
                all
            }
        }
    }

    /// A text of the grammar, made by chance.
    fn example(grammar: &Grammar, node: &Node, depth: u32, rng: &mut SmallRng, out: &mut String) {
        match node {
            Node::Text(t) => out.push_str(t),
            Node::Class { ranges, negated: false } => {
                let (from, to) = ranges[rng.random_range(0..ranges.len())];
                out.push(rng.random_range(from..=to));
            }
            Node::Class { ranges, .. } => {
                let within = |c: char| ranges.iter().any(|(from, to)| (*from..=*to).contains(&c));
                let chars: Vec<char> = "aZ 0\n\"\\{\u{e4}\u{1f600}".chars().filter(|c| !within(*c)).collect();
                out.push(chars[rng.random_range(0..chars.len())]);
            }
            Node::Any => out.push(['a', '\n', '\u{4e2d}'][rng.random_range(0..3)]),
            Node::Rule(rule) => example(grammar, &grammar.rules[*rule], depth + 1, rng, out),
            Node::Sequence(items) => items.iter().for_each(|item| example(grammar, item, depth, rng, out)),
            // The last alternatives come to an end.
            Node::Either(options) => {
                let first = if depth > 8 { options.len() - 1 } else { 0 };
                example(grammar, &options[rng.random_range(first..options.len())], depth, rng, out);
            }
            Node::Repeat(item, min, max) => {
                let most = if depth > 8 { *min } else { max.unwrap_or(min + 3).min(min + 3) };
                (0..rng.random_range(*min..=most)).for_each(|_| example(grammar, item, depth, rng, out));
            }
        }
    }

    const GRAMMARS: [&str; 8] = [
        // Recursive, as the JSON that llama.cpp has among its examples.
        "root ::= value\nvalue ::= \"{\" ws (pair (\",\" ws pair)*)? \"}\" ws | \"[\" ws (value (\",\" ws value)*)? \"]\" ws |\n\
         string | (\"true\" | \"null\" | \"-\"? [0-9]{1,3} (\".\" [0-9]+)?) ws\npair ::= string \":\" ws value\n\
         string ::= \"\\\"\" ([^\"\\\\\\x00-\\x1F] | \"\\\\\" [\"\\\\nt])* \"\\\"\" ws\nws ::= [ \\n]{0,2}",
        // Sums of products.
        "root ::= (sum \"=\" [0-9]+ \"\\n\"){1,2}\nsum ::= term ([-+*/] term)*\nterm ::= \"(\" sum \")\" | [a-z] [a-z0-9_]* | [0-9]+",
        // What follows a free text belongs to it as well: one regular expression.
        "root ::= [a-z]* \"end\" | \"enden\" .{2}",
        "root ::= line{2,4}\nline ::= \"- \" [^\\n]+ \"\\n\"",
        // From both sides, and from the left.
        "root ::= \"a\" root \"a\" | \"b\" root? \"b\" | \"c\"",
        "root ::= root \",\" item | item\nitem ::= [0-9] item | \"\u{e4}\\U0001F600\" | \"x\"",
        "root ::= \"\" | list\nlist ::= \"()\" list | \"<\" [a-b]? list? \">\"",
        "root ::= ([A-Z] [a-z]+ (\" \" | \"-\")){2} ([0-9]{2}){0,2}",
    ];

    #[test]
    fn means_what_the_grammar_says() {
        let tokenizer = Tokenizer::from_gguf(&demo::gguf().unwrap()).unwrap();
        let vocabulary = GrammarVocabulary::new(&tokenizer).unwrap();
        let mut rng = SmallRng::seed_from_u64(4);
        for text in GRAMMARS {
            let grammar = parse(text).unwrap();
            let compiled = Compiled::new(&vocabulary, Syntax::Gbnf, text).unwrap();
            let is_sentence = |text: &str| {
                let chars: Vec<char> = text.chars().collect();
                ends(&grammar, &Node::Rule(grammar.root), &chars, 0).contains(&chars.len())
            };
            let left_recursive = text.starts_with("root ::= root");

            // Each text of the grammar may be written, token by token, and may end.
            let mut lengths = BTreeSet::new();
            for _ in 0..60 {
                let mut sentence = String::new();
                example(&grammar, &Node::Rule(grammar.root), 0, &mut rng, &mut sentence);
                assert!(left_recursive || is_sentence(&sentence), "{text}: {sentence:?}");
                let mut place = compiled.clone();
                for token in tokenizer.encode(&sentence, EncodeOptions::default()).unwrap() {
                    let mut logits = vec![0.0; tokenizer.vocab_size()];
                    place.mask(&mut logits).unwrap_or_else(|e| panic!("{text}: {sentence:?}: {e}"));
                    assert_eq!(logits[token as usize], 0.0, "{text}: {sentence:?}");
                    place.accept(token).unwrap();
                }
                assert!(place.may_end(), "{text}: {sentence:?}");
                lengths.insert(sentence.len());
            }
            assert!(lengths.len() > 3, "{text}: {lengths:?}");

            // Each text that was written follows the grammar.
            for seed in 0..if left_recursive { 0 } else { 30 } {
                let sampling =
                    Sampling { seed, temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Sampling::default() };
                let mut sampler = Sampler::new(sampling, Some(compiled.clone()));
                let mut tokens = Vec::new();
                while tokens.len() < 40 && !sampler.is_complete() {
                    let logits: Vec<f32> = (0..tokenizer.vocab_size()).map(|_| rng.random_range(-4.0..4.0)).collect();
                    let token = sampler.sample(&logits, &tokens).unwrap();
                    if tokenizer.is_end(token) {
                        break;
                    }
                    tokens.push(token);
                }
                let written = String::from_utf8_lossy(&tokenizer.decode(&tokens)).into_owned();
                assert!(sampler.is_unfinished() || is_sentence(&written), "{text}, seed {seed}: {written:?}");
            }
        }
    }

    /// What the module's documentation says: a limit of the translation, and nothing that anyone wants.
    #[test]
    fn at_the_border_of_a_recursive_part_the_longest_lexeme_wins() {
        let tokenizer = Tokenizer::from_gguf(&demo::gguf().unwrap()).unwrap();
        let vocabulary = GrammarVocabulary::new(&tokenizer).unwrap();
        let written = |grammar: &str, text: &str| {
            let mut place = Compiled::new(&vocabulary, Syntax::Gbnf, grammar).unwrap();
            let tokens = tokenizer.encode(text, EncodeOptions::default()).unwrap();
            tokens.into_iter().all(|token| {
                let mut logits = vec![0.0; tokenizer.vocab_size()];
                place.mask(&mut logits).is_ok() && logits[token as usize] == 0.0 && place.accept(token).is_ok()
            }) && place.may_end()
        };
        // <> is one lexeme, though it could be < and > with a list to follow.
        let list = "root ::= \"<\" root? \">\" root | \"<>\"";
        assert!(written(list, "<>") && written(list, "<<>><>"));
        assert!(!written(list, "<><>"));
        // The same without the short form.
        let list = "root ::= (\"<\" root \">\")*";
        assert!(written(list, "<>") && written(list, "<<>><>") && written(list, "<><>"));
    }

    #[test]
    fn what_does_not_recurse_is_one_lexeme() {
        let lark = to_lark("root ::= [a-z]* \"end\" | num{2,3}\nnum ::= [^0-9-] .").unwrap();
        assert_eq!(
            lark,
            "start: T0\n\
             TP0: /[a-z]/*\n\
             T0: TP0 /end/ | T1{2,3}\n\
             T1: /[^0-9\\x{2D}]/ /(?s:.)/\n"
        );
    }

    #[test]
    fn recursion_stays_between_lexemes() {
        let lark =
            to_lark("root ::= \"[\" ws (root (\",\" ws root)*)? \"]\" ws | [0-9]+ | \"\"\nws ::= \" \"?").unwrap();
        assert_eq!(
            lark,
            "start: r0\n\
             TP0: /\\x{5B}/ T1\n\
             TP1: /\\x{2C}/ T1\n\
             rp2: TP1 r0\n\
             rp3: rp2*\n\
             rp4: r0 rp3\n\
             rp5: rp4?\n\
             TP6: /\\x{5D}/ T1\n\
             TP7: /[0-9]/+ | \"\"\n\
             r0: TP0 rp5 TP6 | TP7\n\
             T1: /\\x{20}/?\n"
        );
    }
}
