//! Reads GBNF: `name ::= elements`, a rule ends with its line unless a group is open or an alternative follows. Elements
//! are `"text"`, `[classes]`, `.`, rules' names and `(groups)`, each with `*`, `+`, `?` or `{m,n}` behind it if need be;
//! `#` starts a comment.

use std::collections::HashMap;

use super::super::{GbnfError, GbnfFault};

/// As llama.cpp's.
const MAX_REPETITION: u32 = 2000;
/// Nobody writes deeper groups by hand.
const MAX_NESTING: usize = 100;
/// Elements, groups and repetitions of a grammar. Real ones have hundreds; this many compile in about a second.
const MAX_ELEMENTS: usize = 10_000;

/// A part of a rule.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Text(String),
    Class { ranges: Vec<(char, char)>, negated: bool },
    Any,
    Rule(usize),
    Sequence(Vec<Node>),
    Either(Vec<Node>),
    Repeat(Box<Node>, u32, Option<u32>),
}

impl Node {
    /// The rules that it names, with repetitions.
    pub(super) fn references(&self) -> Vec<usize> {
        match self {
            Node::Text(_) | Node::Class { .. } | Node::Any => Vec::new(),
            Node::Rule(rule) => vec![*rule],
            Node::Sequence(nodes) | Node::Either(nodes) => nodes.iter().flat_map(Node::references).collect(),
            Node::Repeat(node, ..) => node.references(),
        }
    }
}

/// All rules; each is used only by its number.
#[derive(Debug)]
pub(super) struct Grammar {
    pub(super) rules: Vec<Node>,
    /// Names of the rules and the lines that they start in.
    pub(super) places: Vec<(String, usize)>,
    pub(super) root: usize,
}

pub(super) fn parse(text: &str) -> Result<Grammar, GbnfError> {
    let mut parser = Parser { rest: text, line: 1, names: HashMap::new(), rules: Vec::new(), elements: 0 };
    parser.skip(true);
    while !parser.rest.is_empty() {
        parser.rule()?;
        parser.skip(true);
    }
    let end = parser.line;
    let Some(&root) = parser.names.get("root") else { return parser.fail(GbnfFault::NoRoot) };
    let mut missing = parser.rules.iter().filter(|rule| rule.body.is_none()).map(|rule| (rule.line, &rule.name));
    if let Some((line, name)) = missing.next() {
        return Err(GbnfError { line: line.min(end), fault: GbnfFault::NoRule(name.clone()) });
    }
    let rules = parser.rules.into_iter().filter_map(|rule| rule.body.map(|body| (body, (rule.name, rule.line))));
    let (rules, places) = rules.unzip();
    Ok(Grammar { rules, places, root })
}

struct Rule {
    name: String,
    /// Where it is defined, or was named first.
    line: usize,
    body: Option<Node>,
}

struct Parser<'a> {
    rest: &'a str,
    line: usize,
    names: HashMap<String, usize>,
    rules: Vec<Rule>,
    /// So far.
    elements: usize,
}

impl Parser<'_> {
    fn fail<T>(&self, fault: GbnfFault) -> Result<T, GbnfError> {
        Err(GbnfError { line: self.line, fault })
    }

    fn expected<T>(&self, expected: &'static str) -> Result<T, GbnfError> {
        self.fail(GbnfFault::Expected { expected, found: self.peek() })
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.rest = &self.rest[c.len_utf8()..];
        self.line += usize::from(c == '\n');
        Some(c)
    }

    fn take(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        if found {
            self.next();
        }
        found
    }

    /// Passes over blanks and comments; over ends of lines only with `lines`.
    fn skip(&mut self, lines: bool) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => {}
                '\r' | '\n' if lines => {}
                '#' => {
                    let end = self.rest.find(['\r', '\n']).unwrap_or(self.rest.len());
                    self.rest = &self.rest[end..];
                    continue;
                }
                _ => return,
            }
            self.next();
        }
    }

    fn rule(&mut self) -> Result<(), GbnfError> {
        let line = self.line;
        let rule = self.name()?;
        if self.rules[rule].body.is_some() {
            return self.fail(GbnfFault::Twice(self.rules[rule].name.clone()));
        }
        self.skip(false);
        match self.rest.strip_prefix("::=") {
            Some(rest) => self.rest = rest,
            None => return self.expected("::="),
        }
        self.skip(true);
        let body = self.alternatives(0)?;
        if !matches!(self.peek(), None | Some('\r' | '\n')) {
            return self.expected("an element or the end of the rule");
        }
        (self.rules[rule].body, self.rules[rule].line) = (Some(body), line);
        Ok(())
    }

    /// The number of the rule whose name comes next.
    fn name(&mut self) -> Result<usize, GbnfError> {
        let end = self.rest.find(|c: char| !is_name(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        if name.is_empty() {
            return self.expected("a rule's name");
        }
        self.rest = rest;
        let (rules, line) = (&mut self.rules, self.line);
        Ok(*self.names.entry(name.to_owned()).or_insert_with(|| {
            rules.push(Rule { name: name.to_owned(), line, body: None });
            rules.len() - 1
        }))
    }

    fn alternatives(&mut self, depth: usize) -> Result<Node, GbnfError> {
        if depth > MAX_NESTING {
            return self.fail(GbnfFault::Nesting { limit: MAX_NESTING });
        }
        let mut options = Vec::new();
        loop {
            options.push(Node::Sequence(self.sequence(depth)?));
            // The rule may go on in the next line when that starts with another alternative.
            let (rest, line) = (self.rest, self.line);
            self.skip(true);
            if !self.take('|') {
                (self.rest, self.line) = (rest, line);
                return Ok(if options.len() == 1 { options.remove(0) } else { Node::Either(options) });
            }
            self.skip(true);
        }
    }

    fn count(&mut self) -> Result<(), GbnfError> {
        self.elements += 1;
        if self.elements > MAX_ELEMENTS {
            return self.fail(GbnfFault::Elements { limit: MAX_ELEMENTS });
        }
        Ok(())
    }

    fn sequence(&mut self, depth: usize) -> Result<Vec<Node>, GbnfError> {
        let mut items = Vec::new();
        loop {
            self.skip(depth > 0);
            let item = match self.peek() {
                Some('"') => self.text()?,
                Some('[') => self.class()?,
                Some('.') => {
                    self.next();
                    Node::Any
                }
                Some('(') => {
                    self.next();
                    let group = self.alternatives(depth + 1)?;
                    self.skip(true);
                    if !self.take(')') {
                        return self.expected("an element or )");
                    }
                    group
                }
                Some(c @ ('<' | '!')) => return self.fail(GbnfFault::Token(c)),
                Some(c) if is_name(c) => Node::Rule(self.name()?),
                _ => return Ok(items),
            };
            self.count()?;
            self.skip(false);
            items.push(self.repeated(item)?);
        }
    }

    /// `item` with the repetitions behind it.
    fn repeated(&mut self, mut item: Node) -> Result<Node, GbnfError> {
        loop {
            let (min, max) = match self.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    self.next();
                    let bounds = self.bounds()?;
                    if self.peek() != Some('}') {
                        return self.expected("}");
                    }
                    bounds
                }
                _ => return Ok(item),
            };
            self.next();
            self.skip(false);
            item = match item {
                // (x*)* and its like are one repetition: of `*`, `+` and `?` each bound is none, one, or any number.
                Node::Repeat(inner, least, most) if is_simple(least, most) && is_simple(min, max) => {
                    Node::Repeat(inner, least * min, most.and(max))
                }
                item => {
                    self.count()?;
                    Node::Repeat(Box::new(item), min, max)
                }
            };
        }
    }

    /// What stands in the braces of a repetition.
    fn bounds(&mut self) -> Result<(u32, Option<u32>), GbnfError> {
        let min = self.number()?;
        if !self.take(',') {
            return Ok((min, Some(min)));
        }
        self.skip(false);
        if self.peek() == Some('}') {
            return Ok((min, None));
        }
        let max = self.number()?;
        if max < min {
            return self.fail(GbnfFault::Repetition { min, max });
        }
        Ok((min, Some(max)))
    }

    fn number(&mut self) -> Result<u32, GbnfError> {
        self.skip(false);
        let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        if digits.is_empty() {
            return self.expected("a number");
        }
        self.rest = rest;
        self.skip(false);
        match digits.parse() {
            Ok(number) if number <= MAX_REPETITION => Ok(number),
            _ => self.fail(GbnfFault::LongRepetition { limit: MAX_REPETITION }),
        }
    }

    fn text(&mut self) -> Result<Node, GbnfError> {
        self.next();
        let mut text = String::new();
        while !self.take('"') {
            text.push(self.character('"')?);
        }
        Ok(Node::Text(text))
    }

    fn class(&mut self) -> Result<Node, GbnfError> {
        self.next();
        let negated = self.take('^');
        let mut ranges = Vec::new();
        while !self.take(']') {
            let from = self.character(']')?;
            // A - at the end stands for itself.
            let to = if self.rest.starts_with('-') && !self.rest.starts_with("-]") {
                self.next();
                self.character(']')?
            } else {
                from
            };
            if to < from {
                return self.fail(GbnfFault::Range { from, to });
            }
            ranges.push((from, to));
        }
        if ranges.is_empty() {
            return self.fail(GbnfFault::EmptyClass);
        }
        Ok(Node::Class { ranges, negated })
    }

    /// A character of what ends with `close`.
    fn character(&mut self, close: char) -> Result<char, GbnfError> {
        let Some(c) = self.next() else { return self.fail(GbnfFault::Unclosed(close)) };
        if c != '\\' {
            return Ok(c);
        }
        let Some(kind) = self.next() else { return self.fail(GbnfFault::Unclosed(close)) };
        let digits = match kind {
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            '\\' | '"' | '[' | ']' | '-' => return Ok(kind),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => return self.fail(GbnfFault::Escape(format!("\\{kind}"))),
        };
        let hex: String = self.rest.chars().take(digits).take_while(char::is_ascii_hexdigit).collect();
        self.rest = &self.rest[hex.len()..];
        if hex.len() < digits {
            return self.fail(GbnfFault::Escape(format!("\\{kind}{hex}")));
        }
        let code = u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32);
        code.map_or_else(|| self.fail(GbnfFault::NoCharacter(format!("\\{kind}{hex}"))), Ok)
    }
}

/// Whether a repetition is `*`, `+` or `?`.
fn is_simple(min: u32, max: Option<u32>) -> bool {
    matches!((min, max), (0 | 1, None) | (0, Some(1)))
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Node {
        Node::Text(text.to_owned())
    }

    #[test]
    fn reads_every_element() {
        let grammar = parse(
            "# a comment\n\
             root ::= \"a\\n\\x41\\u00e4\\U0001F600\\\"\" [a-z_\\]\\-x-] . # another\n\
             \n\
             other-1 ::= ( root |\n other-1? # inside\n )* | root{3}\n  | root{2,} root{0,7}+ |\n",
        )
        .unwrap();
        let repeat = |node, min, max| Node::Repeat(Box::new(node), min, max);
        let single = |c| (c, c);
        assert_eq!(grammar.root, 0);
        assert_eq!(
            grammar.rules[0],
            Node::Sequence(vec![
                text("a\nA\u{e4}\u{1f600}\""),
                Node::Class {
                    ranges: vec![('a', 'z'), single('_'), single(']'), single('-'), single('x'), single('-')],
                    negated: false
                },
                Node::Any,
            ])
        );
        let group = Node::Either(vec![
            Node::Sequence(vec![Node::Rule(0)]),
            Node::Sequence(vec![repeat(Node::Rule(1), 0, Some(1))]),
        ]);
        assert_eq!(
            grammar.rules[1],
            Node::Either(vec![
                Node::Sequence(vec![repeat(group, 0, None)]),
                Node::Sequence(vec![repeat(Node::Rule(0), 3, Some(3))]),
                Node::Sequence(vec![
                    repeat(Node::Rule(0), 2, None),
                    repeat(repeat(Node::Rule(0), 0, Some(7)), 1, None),
                ]),
                Node::Sequence(vec![]),
            ])
        );
    }

    #[test]
    fn stacked_repetitions_are_one() {
        let repetition = |stack: &str| match parse(&format!("root ::= .{stack}")).unwrap().rules.remove(0) {
            Node::Sequence(items) => match &items[..] {
                [Node::Repeat(item, min, max)] if **item == Node::Any => (*min, *max),
                other => panic!("{stack}: {other:?}"),
            },
            other => panic!("{stack}: {other:?}"),
        };
        for (stack, is) in [("**", "*"), ("*+", "*"), ("*?", "*"), ("+*", "*"), ("++", "+"), ("+?", "*"), ("?*", "*")] {
            assert_eq!(repetition(stack), repetition(is), "{stack}");
        }
        assert_eq!((repetition("?+"), repetition("??")), (repetition("*"), repetition("?")));
        assert_eq!(repetition(&"*".repeat(50_000)), (0, None));
    }

    #[test]
    fn faults_name_the_line() {
        let deep = format!("root ::= {}", "(".repeat(200));
        let long = format!("root ::=\n | {}", "\"a\"? ".repeat(6000));
        for (grammar, message) in [
            ("", "line 1: there is no rule \"root\", which the text has to follow"),
            ("a ::= \"x\"\n", "line 2: there is no rule \"root\", which the text has to follow"),
            ("root ::= a\n\na ::= b\n", "line 3: there is no rule \"b\""),
            ("root ::= \"a\"\nroot ::= \"b\"", "line 2: the rule \"root\" is defined twice"),
            ("\nroot = \"a\"", "line 2: expected ::=, found '='"),
            ("root ::= \"a\" )", "line 1: expected an element or the end of the rule, found ')'"),
            ("root ::= (\"a\"\n", "line 2: expected an element or ), found the end"),
            ("root ::= \"a", "line 1: the text ends before the closing \""),
            ("root ::= [a", "line 1: the text ends before the closing ]"),
            ("root ::= [z-a]", "line 1: the range 'z' to 'a' runs backwards"),
            ("root ::= []", "line 1: the class [] matches nothing"),
            ("root ::= \"\\q\"", "line 1: the escape \"\\\\q\" is not known"),
            ("root ::= \"\\x4\"", "line 1: the escape \"\\\\x4\" is not known"),
            ("root ::= \"\\uD800\"", "line 1: \"\\\\uD800\" is no character"),
            ("root ::= \"a\"{3,2}", "line 1: a repetition of 3 to 2 runs backwards"),
            ("root ::= \"a\"{3000}", "line 1: a repetition of more than 2000 is too long"),
            ("root ::= \"a\"{,3}", "line 1: expected a number, found ','"),
            ("root ::= \"a\"{3", "line 1: expected }, found the end"),
            ("root ::= <think>", "line 1: elements for tokens (<...) are not supported"),
            ("+", "line 1: expected a rule's name, found '+'"),
            (&*deep, "line 1: groups are nested deeper than 100"),
            (&*long, "line 2: more than 10000 elements are too many"),
        ] {
            let found = parse(grammar).unwrap_err().to_string();
            assert!(found.starts_with(message), "{grammar:?}: {found}");
        }
    }
}
