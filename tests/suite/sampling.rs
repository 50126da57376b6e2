//! How tokens are chosen, in a generation: penalties, bias, grammars.

use std::{
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use ntransformer::{
    demo,
    engine::{Grammar, GrammarVocabulary, SampleError, Sampler, Sampling, Syntax, Tokenizer, Wanted},
    gguf::{Gguf, Writer},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use serde_json::Value;

use crate::{reference, setup};

fn run(args: &[&str]) -> Output {
    Command::new(setup::ntransformer()).args(["--device", "cpu"]).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Standard output of a run that worked.
fn text(args: &[&str]) -> String {
    let output = run(&[&["-q"], args].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn report(args: &[&str]) -> Value {
    serde_json::from_str(&text(&[&["--json"], args].concat())).unwrap()
}

#[test]
fn flags_reach_the_model() {
    let story = |flags: &[&str]| report(&[&["-n", "60", "-t", "0", "-p", "Once upon a time"], flags].concat());
    let plain = story(&[]);
    let first = &plain["tokens"][0];
    let banned = story(&["--logit-bias", &format!("{first}-inf")]);
    assert_ne!(banned["tokens"][0], *first);
    assert!(!banned["tokens"].as_array().unwrap().contains(first));
    assert_eq!(banned["sampling"]["logit_bias"], serde_json::json!([[first, false]]));
    let distinct = |report: &Value| {
        let tokens: Vec<u64> = report["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap()).collect();
        tokens.iter().collect::<std::collections::BTreeSet<_>>().len()
    };
    for penalty in ["--repeat-penalty", "--frequency-penalty", "--presence-penalty"] {
        let penalized = story(&[penalty, "8", "--repeat-last-n", "-1"]);
        assert!(distinct(&penalized) > distinct(&plain), "{penalty}: {penalized:#} {plain:#}");
        assert_eq!(story(&[penalty, "8", "--repeat-last-n", "0"])["text"], plain["text"]);
    }
}

#[test]
fn all_settings_are_told() {
    let output = run(&["-v", "-n", "1", "--seed", "9", "--repeat-last-n", "-1", "--min-p", "0.1", "--json-mode"]);
    let log = String::from_utf8(output.stderr).unwrap();
    let line = log.lines().find(|line| line.starts_with("sampling:")).expect("a line for all settings");
    assert_eq!(
        line,
        "sampling: repeat penalty 1, frequency penalty 0, presence penalty 0 (over all tokens), top-k 40, top-p 0.95, \
         min-p 0.1, temperature 0.8, logit bias none, seed 9, grammar of --json-mode"
    );
    assert!(log.contains("the text ends before the grammar is complete"), "{log}");
    assert_eq!(
        report(&["-n", "1", "--seed", "9"])["sampling"],
        serde_json::json!({
            "repeat_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "repeat_last_n": 64,
            "top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8, "logit_bias": [], "seed": 9,
            "constraint": null,
        })
    );
}

#[test]
fn wrong_flags_say_what_is_right() {
    for (args, part) in [
        (&["--min-p", "2"][..], "from 0 to 1"),
        (&["--repeat-penalty", "0"], "above 0"),
        (&["--repeat-last-n", "-2"], "-1 for all"),
        (&["--frequency-penalty", "nan"], "expected a number"),
        (&["--logit-bias", "5"], "15043-inf"),
        (&["--logit-bias", "5+inf"], "15043-inf"),
        (&["--json-mode", "--grammar", "root ::= \"a\""], "cannot be used with"),
    ] {
        let output = run(args);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {message}");
        assert!(message.contains(part), "{args:?}: {message}");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("broken.gbnf");
    std::fs::write(&file, "root ::= a\na ::= [z-a]\n").unwrap();
    for (args, part) in [
        (&["--logit-bias", "999999+1"][..], "there is no token 999999"),
        (&["--grammar-file", file.to_str().unwrap()], "broken.gbnf: line 2: the range 'z' to 'a' runs backwards"),
        (&["--grammar-file", "/nonexistent/g"], "/nonexistent/g: cannot be read"),
        (&["--json-schema", "{"], "--json-schema: the JSON schema is not JSON: EOF"),
        (&["--json-schema", r#"{"type": "foo"}"#], "--json-schema: the grammar cannot be used: Invalid type: foo"),
        (&["--json-schema", r#"{"not": {}}"#], r#"Unimplemented keys: ["not"]"#),
        (&["--json-schema", r##"{"$ref": "#"}"##], "the grammar cannot go on: no token of the model fits"),
        (&["--grammar", "%llguidance {}\nstart: (\"a\"\n"], "--grammar: the grammar cannot be used: 2(12)"),
        (&["--grammar", "%llguidance {}\nstart: /(/\n"], "unclosed group"),
    ] {
        let output = run(&[&["-q", "-n", "2"], args].concat());
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {message}");
        assert!(message.contains(part) && message.trim_end().lines().count() == 1, "{args:?}: {message}");
    }
}

/// Settings of every kind, by case number.
fn settings(rng: &mut SmallRng, vocab: u32) -> Sampling {
    let pick = |rng: &mut SmallRng, values: &[f32]| values[rng.random_range(0..values.len())];
    Sampling {
        temperature: pick(rng, &[0.0, 0.3, 0.8, 1.5]),
        top_k: [0, 1, 2, 5, 40, 300, 5000][rng.random_range(0..7)],
        top_p: pick(rng, &[0.3, 0.95, 1.0]),
        min_p: pick(rng, &[0.0, 0.05, 0.3]),
        repeat_penalty: pick(rng, &[1.0, 1.0, 1.3, 5.0, 0.8]),
        frequency_penalty: pick(rng, &[0.0, 0.0, 0.5, 2.0, -0.5]),
        presence_penalty: pick(rng, &[0.0, 0.0, 1.0, f32::MAX, -1.0]),
        repeat_last_n: [None, Some(0), Some(5), Some(64)][rng.random_range(0..4)],
        logit_bias: (0..rng.random_range(0..4))
            .map(|_| (rng.random_range(0..vocab), pick(rng, &[-1.0, -3.0, f32::NEG_INFINITY, 2.0])))
            .collect(),
        seed: rng.random(),
    }
}

/// The `k` best by the device, where the sampler wants no more, give what all logits give.
#[test]
fn the_best_few_give_the_same_tokens_as_all_logits() {
    let mut rng = SmallRng::seed_from_u64(5);
    let mut seen = [0; 3];
    for case in 0..4000 {
        let vocab = [3, 60, 2000][case % 3];
        // In every other case few different values, so that there are ties at every edge, and zeros of both signs.
        let step = [4.0, f32::EPSILON][case / 3 % 2];
        let mut logits: Vec<f32> = (0..vocab).map(|_| (rng.random_range(-8.0f32..8.0) / step).trunc() * step).collect();
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            logits[rng.random_range(0..vocab)] = odd;
        }
        // What is likely comes again, as in a text.
        let likely = reference::top_k(&logits, 20);
        let sampling = settings(&mut rng, vocab as u32);
        let (mut all, mut few) = (Sampler::new(sampling.clone(), None), Sampler::new(sampling.clone(), None));
        let mut context: Vec<u32> =
            (0..rng.random_range(0..40)).map(|_| rng.random_range(0..vocab as u32 + 2)).collect();
        context.extend(likely.iter().take(rng.random_range(0..20)).map(|c| c.0));
        for _ in 0..6 {
            let expected = all.sample(&logits, &context).map_err(|e| e.to_string());
            let found = match few.wants(&context) {
                Wanted::Best => {
                    seen[0] += 1;
                    // Of infinities the device's choice knows that they are numbers.
                    let finite: Vec<f32> = logits.iter().map(|l| if l.is_finite() { *l } else { f32::NAN }).collect();
                    Some(reference::argmax(&finite))
                        .filter(|best| *best != u32::MAX)
                        .ok_or_else(|| SampleError::NotANumber.to_string())
                }
                Wanted::Top(k) => {
                    seen[1] += 1;
                    few.sample_top(reference::top_k(&logits, k), &context).map_err(|e| e.to_string())
                }
                Wanted::All => {
                    seen[2] += 1;
                    few.sample(&logits, &context).map_err(|e| e.to_string())
                }
            };
            assert_eq!(found, expected, "case {case}: {sampling}, {} of context", context.len());
            let Ok(token) = expected else { break };
            context.push(token);
        }
    }
    assert!(seen.iter().all(|&n| n > 500), "{seen:?}");
}

/// Whether a document is as its schema says.
type Check = fn(&Value) -> bool;

/// Schemas, and what a document of each has to be.
fn schemas() -> Vec<(&'static str, Check)> {
    fn person(v: &Value) -> bool {
        let object = v.as_object().unwrap();
        let name = object["name"].as_str().unwrap();
        let tags = object.get("tags").is_none_or(|tags| {
            tags.as_array().unwrap().len() <= 3 && tags.as_array().unwrap().iter().all(|t| t == "a" || t == "b\"c")
        });
        let known = object.keys().all(|key| ["name", "age", "tags"].contains(&key.as_str()));
        name.chars().count() <= 20 && (3..=99).contains(&object["age"].as_i64().unwrap()) && tags && known
    }
    fn tree(v: &Value) -> bool {
        let next = v["next"].is_null() || tree(&v["next"]);
        v.as_object().unwrap().len() == 2 && v["value"].is_number() && next
    }
    vec![
        (
            r#"{"type": "object", "properties": {"name": {"type": "string", "maxLength": 20},
                "age": {"type": "integer", "minimum": 3, "maximum": 99},
                "tags": {"type": "array", "items": {"enum": ["a", "b\"c"]}, "maxItems": 3}},
                "required": ["name", "age"], "additionalProperties": false}"#,
            person,
        ),
        (
            r##"{"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"value": {"type": "number"},
                "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
                "required": ["value", "next"], "additionalProperties": false}}}"##,
            tree,
        ),
        (r#"{"type": "string", "pattern": "^[a-c]{2,4}-[0-9]+$"}"#, |v| {
            let (letters, digits) = v.as_str().unwrap().split_once('-').unwrap();
            (2..=4).contains(&letters.len())
                && letters.bytes().all(|b| (b'a'..=b'c').contains(&b))
                && !digits.is_empty()
        }),
        (r#"{"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 5}"#, |v| {
            (2..=5).contains(&v.as_array().unwrap().len()) && v.as_array().unwrap().iter().all(Value::is_boolean)
        }),
        ("true", |_| true),
    ]
}

/// A text of random logits, and whether it came to an end of its own within `length` tokens.
fn babble(tokenizer: &Tokenizer, grammar: Option<Grammar>, seed: u64, length: usize) -> (Vec<u8>, bool) {
    let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed, ..Sampling::default() };
    let mut sampler = Sampler::new(sampling, grammar);
    let mut rng = SmallRng::seed_from_u64(seed);
    // More logits than tokens, as models with padded matrices have them.
    let mut logits = vec![0.0; tokenizer.vocab_size() + 7];
    // What closes strings, objects and arrays is likely, or a text of chance would hardly ever end.
    let closing: Vec<usize> = (0..tokenizer.vocab_size())
        .filter(|&id| matches!(&*tokenizer.token_bytes(id as u32), b"\"" | b"}" | b"]" | b" "))
        .collect();
    let mut tokens = Vec::new();
    while tokens.len() < length {
        logits.iter_mut().for_each(|logit| *logit = rng.random_range(-4.0..4.0));
        closing.iter().for_each(|&id| logits[id] += 6.0);
        let token = sampler.sample(&logits, &tokens).unwrap();
        if tokenizer.is_end(token) {
            return (tokenizer.decode(&tokens), true);
        }
        tokens.push(token);
        if sampler.is_complete() {
            return (tokenizer.decode(&tokens), true);
        }
    }
    (tokenizer.decode(&tokens), false)
}

#[test]
fn random_tokens_under_a_schema_are_documents_of_it() {
    let tokenizer = Tokenizer::from_gguf(&demo::gguf().unwrap()).unwrap();
    let vocabulary = GrammarVocabulary::new(&tokenizer).unwrap();
    for (schema, is_valid) in schemas() {
        let grammar = Grammar::new(&vocabulary, Syntax::JsonSchema, schema).unwrap();
        for seed in 0..20 {
            let (text, ended) = babble(&tokenizer, Some(grammar.clone()), seed, 3000);
            let text = String::from_utf8(text).unwrap();
            assert!(ended, "{schema}, seed {seed}: {text}");
            let document = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{schema}, seed {seed}: {e}: {text}"));
            assert!(is_valid(&document), "{schema}, seed {seed}: {text}");
        }
    }
    // Without a grammar the same logits make no JSON.
    let json = (0..20).filter(|&seed| {
        let (text, _) = babble(&tokenizer, None, seed, 50);
        serde_json::from_slice::<Value>(&text).is_ok()
    });
    assert_eq!(json.count(), 0);
}

#[test]
fn the_demo_model_writes_documents() {
    let (schema, is_valid) = schemas().remove(0);
    for seed in ["1", "2", "3", "4", "5"] {
        let hot = ["--json-schema", schema, "--seed", seed, "-t", "3", "--top-k", "0", "--top-p", "1", "--min-p", "0"];
        let report = report(&[&["-n", "400", "-p", "A child:"], &hot[..]].concat());
        assert_eq!(report["stop"], "end", "{report:#}");
        let document = serde_json::from_str(report["text"].as_str().unwrap()).unwrap();
        assert!(is_valid(&document), "{document:#}");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("schema.json");
    std::fs::write(&file, r#"{"const": {"a": [1, null]}}"#).unwrap();
    let document: Value = serde_json::from_str(&text(&["--json-schema-file", file.to_str().unwrap()])).unwrap();
    assert_eq!(document, serde_json::json!({"a": [1, null]}));
}

#[test]
fn grammars_from_flags_and_files() {
    let answer = text(&["--grammar", "root ::= (\"yes\" | \"no\") \", \" [a-z]{3}", "-t", "2"]);
    let (first, rest) = answer.trim_end().split_once(", ").unwrap();
    assert!(["yes", "no"].contains(&first) && rest.len() == 3, "{answer}");
    // Nothing but the end can follow: it is not waited for, and the model is not asked.
    let done = report(&["--grammar", "root ::= \"yes\"", "-n", "50"]);
    assert_eq!((done["text"].as_str(), done["stop"].as_str()), (Some("yes"), Some("end")));
    assert!(done["decode"]["passes"].as_u64().unwrap() < done["tokens"].as_array().unwrap().len() as u64, "{done:#}");
    let empty = report(&["--grammar", "root ::= \"\""]);
    assert_eq!((empty["text"].as_str(), empty["stop"].as_str()), (Some(""), Some("end")));

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("letters.lark");
    std::fs::write(&file, "start: A \"-\" A\nA: /[A-C]{2}/\n").unwrap();
    let letters = text(&["--grammar-file", file.to_str().unwrap()]);
    assert!(letters.len() == 6 && letters.as_bytes()[2] == b'-', "{letters:?}");
    // The end of a text by the model itself is for a grammar that allows it.
    let ended = text(&["--grammar", "root ::= [ -~]{700}", "-n", "900"]);
    assert_eq!(ended.trim_end_matches('\n').len(), 700, "{ended:?}");
}

/// A vocabulary of a file with `tokens` and their types.
fn vocabulary(tokens: &[&str], types: &[i32]) -> Tokenizer {
    let mut writer = Writer::new();
    writer.set("tokenizer.ggml.model", "llama").unwrap();
    writer.set("tokenizer.ggml.tokens", tokens).unwrap().set("tokenizer.ggml.token_type", types).unwrap();
    writer.set("tokenizer.ggml.scores", &vec![0.0f32; tokens.len()][..]).unwrap();
    let bytes = writer.begin(Vec::new()).unwrap().finish().unwrap();
    Tokenizer::from_gguf(&Gguf::from_vec("odd.gguf", bytes).unwrap()).unwrap()
}

#[test]
fn odd_vocabularies_serve() {
    let long = "x".repeat(5000);
    // A byte that no text has, a byte twice, an empty token, a long one, a control token without brackets, and no end.
    let tokens = ["<0xFF>", "<0x61>", "a", "", &long, "stop", "<s>", "b"];
    let tokenizer = vocabulary(&tokens, &[6, 6, 1, 1, 1, 3, 3, 1]);
    let prepared = GrammarVocabulary::new(&tokenizer).unwrap();
    let grammar = Grammar::new(&prepared, Syntax::Gbnf, "root ::= [a-z]{6}").unwrap();
    let mut seen = [false; 8];
    for seed in 0..20 {
        let sampling = Sampling { temperature: 1.0, min_p: 0.0, top_p: 1.0, seed, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling, Some(grammar.clone()));
        for _ in 0..6 {
            seen[sampler.sample(&[0.0; 8], &[]).unwrap() as usize] = true;
        }
        assert!(sampler.is_complete());
    }
    assert_eq!(seen, [false, true, true, false, false, false, false, true], "a as either token, and b");
    // A text that the vocabulary cannot write.
    let grammar = Grammar::new(&prepared, Syntax::Gbnf, "root ::= \"ac\"").unwrap();
    let mut sampler = Sampler::new(Sampling::greedy(), Some(grammar));
    assert!(sampler.sample(&[0.0; 8], &[]).is_ok());
    let stuck = sampler.sample(&[0.0; 8], &[]).unwrap_err().to_string();
    assert!(stuck.contains("no token of the model fits"), "{stuck}");
}

#[test]
fn grammars_that_take_too_much_work_are_refused() {
    let tokenizer = Tokenizer::from_gguf(&demo::gguf().unwrap()).unwrap();
    let vocabulary = GrammarVocabulary::new(&tokenizer).unwrap();
    let doubling: String = (0..60).map(|i| format!("r{i} ::= r{0} r{0}\n", i + 1)).collect();
    let chain = |rules: usize, end: &str| -> String {
        let rules: String = (1..rules).map(|i| format!("r{i} ::= r{}{end}\n", i + 1)).collect();
        format!("root ::= r1\n{rules}")
    };
    let cases = [
        (Syntax::Gbnf, format!("root ::= r0\n{doubling}r60 ::= \"a\""), "too big"),
        (Syntax::Gbnf, chain(12_000, "|\"\"") + "r12000 ::= \"a\" root", "line 5001: more than 10000 elements"),
        (
            Syntax::Gbnf,
            chain(4000, "*") + "r4000 ::= \"a\"",
            "with the rules that it names, are nested deeper than 500",
        ),
        (Syntax::Gbnf, format!("root ::= {}", "\"a\"? ".repeat(45_000)), "line 1: more than 10000 elements"),
        (
            Syntax::Gbnf,
            format!("root ::= root \"b\" | .{}", "{1,2}".repeat(4000)),
            "line 1: the parts of rule \"root\"",
        ),
        (Syntax::Lark, format!("start: {}\"a\"{}", "(".repeat(100_000), ")".repeat(100_000)), "nested"),
        (Syntax::JsonSchema, "[".repeat(100_000), "not JSON"),
        (Syntax::Gbnf, " ".repeat(1 << 20), "the limit is"),
    ];
    for (syntax, text, part) in cases {
        let started = Instant::now();
        match Grammar::new(&vocabulary, syntax, &text) {
            Err(e) => assert!(e.to_string().contains(part), "{e}"),
            Ok(_) => panic!("not refused: {}", &text[..100]),
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{part}: {:?}", started.elapsed());
    }
    // What looks bad and is not: repetitions that are one, long lists, and a long way through a recursive rule.
    let words: Vec<String> = (0..9000).map(|i| format!("\"word {i}\"")).collect();
    for text in [
        format!("root ::= \"a\"{}", "*".repeat(100_000)),
        format!("root ::= {}", words.join(" | ")),
        chain(4000, "*") + "r4000 ::= \"a\" root",
    ] {
        let started = Instant::now();
        assert!(Grammar::new(&vocabulary, Syntax::Gbnf, &text).is_ok(), "{}", &text[..100]);
        assert!(started.elapsed() < Duration::from_secs(10), "{}: {:?}", &text[..100], started.elapsed());
    }
}

/// Time for tokens of a real vocabulary of 128 k, in the folder `vocab` of what NT_TEST_DATA names.
#[test]
#[ignore = "needs the vocabularies of llama.cpp: NT_TEST_DATA"]
fn a_large_vocabulary_is_fast() {
    let data = std::env::var_os("NT_TEST_DATA").expect("NT_TEST_DATA names the folder with vocab/ in it");
    let path = std::path::PathBuf::from(data).join("vocab/ggml-vocab-llama-bpe.gguf");
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
    let mut rng = SmallRng::seed_from_u64(1);
    for vocab in [tokenizer.vocab_size(), 2 * tokenizer.vocab_size()] {
        // Roughly a bell, as logits are.
        let logits: Vec<f32> = (0..vocab).map(|_| (0..6).map(|_| rng.random_range(-2.0f32..2.0)).sum()).collect();
        let context: Vec<u32> = (0..4096).map(|_| rng.random_range(0..vocab as u32)).collect();
        let all = Sampling { top_k: 0, ..Sampling::default() };
        for (name, sampling, limit) in [
            ("defaults", Sampling::default(), 5.0),
            ("penalties over 4096", Sampling { repeat_penalty: 1.1, repeat_last_n: None, ..Sampling::default() }, 5.0),
            ("top-k 0", all.clone(), 100.0),
            ("no filter", Sampling { top_p: 1.0, min_p: 0.0, ..all }, 500.0),
        ] {
            let mut sampler = Sampler::new(sampling, None);
            // The median, because other programs take their time too.
            let mut times: Vec<f64> = (0..41)
                .map(|_| {
                    let started = Instant::now();
                    assert!(sampler.sample(&logits, &context).is_ok());
                    started.elapsed().as_secs_f64() * 1e3
                })
                .collect();
            times.sort_by(f64::total_cmp);
            let ms = times[20];
            println!("{vocab} tokens, {name}: {ms:.2} ms per token");
            assert!(ms < limit, "{name}: {ms} ms");
        }
    }
    let started = Instant::now();
    let vocabulary = GrammarVocabulary::new(&tokenizer).unwrap();
    println!("vocabulary sorted in {:.0} ms", started.elapsed().as_secs_f64() * 1e3);
    let (schema, is_valid) = schemas().remove(0);
    let recursive = "root ::= \"[\" ws (item (\",\" ws item)*)? \"]\" ws\nitem ::= root | \"\\\"\" [^\"\\\\]* \"\\\"\" ws\n\
                     ws ::= [ \\n]{0,3}";
    for (name, syntax, text) in [
        ("schema", Syntax::JsonSchema, schema),
        ("any JSON", Syntax::JsonSchema, "{}"),
        ("GBNF", Syntax::Gbnf, recursive),
    ] {
        let started = Instant::now();
        let grammar = Grammar::new(&vocabulary, syntax, text).unwrap();
        let compiled = started.elapsed().as_secs_f64() * 1e3;
        let mut logits: Vec<f32> = (0..tokenizer.vocab_size()).map(|_| rng.random_range(-4.0..4.0)).collect();
        let (mut tokens, mut longest, mut total, mut written) = (0, 0.0f64, 0.0, Vec::new());
        for seed in 0..5 {
            let mut sampler =
                Sampler::new(Sampling { seed, temperature: 1.0, ..Sampling::default() }, Some(grammar.clone()));
            written.clear();
            for _ in 0..100 {
                logits.rotate_left(7919);
                let started = Instant::now();
                let token = sampler.sample(&logits, &[]).unwrap();
                let ms = started.elapsed().as_secs_f64() * 1e3;
                (tokens, total, longest) = (tokens + 1, total + ms, longest.max(ms));
                if tokenizer.is_end(token) {
                    break;
                }
                written.push(token);
                if sampler.is_complete() {
                    assert!(
                        name != "schema" || is_valid(&serde_json::from_slice(&tokenizer.decode(&written)).unwrap())
                    );
                    break;
                }
            }
        }
        println!(
            "{name}: compiled in {compiled:.1} ms; {:.2} ms per token, at most {longest:.1}",
            total / f64::from(tokens)
        );
        assert!(total / f64::from(tokens) < 100.0);
    }
}
