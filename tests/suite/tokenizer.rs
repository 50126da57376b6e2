//! The tokenizers, against small vocabularies with the ids that the reference libraries gave
//! (tools/golden/vocabularies.py), and against llama.cpp's vectors for real ones where those are at hand.

use ntransformer::{
    engine::tokenizer::{EncodeOptions, Tokenizer, Utf8Stream},
    gguf::{Encode, Gguf, Writer},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use serde_json::Value;
use std::path::PathBuf;

const PLAIN: EncodeOptions = EncodeOptions { bos: false, special: false };
const SPECIAL: EncodeOptions = EncodeOptions { bos: false, special: true };

fn vectors() -> Value {
    serde_json::from_str(include_str!("../data/tokenizers.json")).unwrap()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect()
}

fn numbers(value: &Value) -> Vec<i32> {
    value.as_array().unwrap().iter().map(|v| v.as_i64().unwrap() as i32).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|id| id as u32).collect()
}

/// Builds the metadata of a vocabulary.
struct Vocabulary(Writer);

impl Vocabulary {
    fn new(model: &str) -> Self {
        Self(Writer::new()).set("model", model)
    }
    fn set<T: Encode + ?Sized>(mut self, key: &str, value: &T) -> Self {
        self.0.set(&format!("tokenizer.ggml.{key}"), value).unwrap();
        self
    }
    fn bpe(pre: &str) -> Self {
        let bpe = &vectors()["bpe"];
        Self::new("gpt2")
            .set("pre", pre)
            .set("tokens", &strings(&bpe["tokens"]))
            .set("token_type", &numbers(&bpe["types"]))
            .set("merges", &strings(&bpe["merges"]))
    }
    fn spm() -> Self {
        let spm = &vectors()["spm"];
        let scores: Vec<f32> = spm["scores"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
        Self::new("llama")
            .set("tokens", &strings(&spm["tokens"]))
            .set("scores", &scores)
            .set("token_type", &numbers(&spm["types"]))
    }
    /// A vocabulary whose tokens are all normal but for those that the test names.
    fn tiny_spm(tokens: &[(&str, f32, i32)]) -> Self {
        Self::new("llama")
            .set("tokens", &tokens.iter().map(|t| t.0).collect::<Vec<_>>())
            .set("scores", &tokens.iter().map(|t| t.1).collect::<Vec<_>>())
            .set("token_type", &tokens.iter().map(|t| t.2).collect::<Vec<_>>())
    }
    fn gguf(self) -> Gguf {
        Gguf::from_vec("vocab", self.0.begin(Vec::new()).unwrap().finish().unwrap()).unwrap()
    }
    fn load(self) -> Tokenizer {
        Tokenizer::from_gguf(&self.gguf()).unwrap()
    }
    fn error(self) -> String {
        Tokenizer::from_gguf(&self.gguf()).expect_err("the vocabulary is bad, and was loaded").to_string()
    }
}

fn round_trip(tokenizer: &Tokenizer, text: &str) {
    for options in [PLAIN, SPECIAL] {
        let ids = tokenizer.encode(text, options).unwrap();
        assert_eq!(String::from_utf8(tokenizer.decode(&ids)).as_deref(), Ok(text), "{ids:?}");
    }
}

#[test]
fn bpe_agrees_with_tokenizers() {
    let data = vectors();
    for (pre, expected) in data["bpe"]["vectors"].as_object().unwrap() {
        let tokenizer = Vocabulary::bpe(pre).load();
        for (i, text) in strings(&data["texts"]).into_iter().enumerate() {
            assert_eq!(tokenizer.encode(text, PLAIN).unwrap(), ids(&expected["plain"][i]), "{pre}, plain: {text:?}");
            assert_eq!(tokenizer.encode(text, SPECIAL).unwrap(), ids(&expected["special"][i]), "{pre}: {text:?}");
            round_trip(&tokenizer, text);
        }
    }
    // The texts tell every two of them apart.
    let families: Vec<_> = data["bpe"]["vectors"].as_object().unwrap().iter().collect();
    for (i, (name, one)) in families.iter().enumerate() {
        for (other_name, other) in &families[..i] {
            assert_ne!(one["plain"], other["plain"], "{name} and {other_name}");
        }
    }
}

#[test]
fn pre_tokenizers_by_name() {
    let error = Vocabulary::bpe("tekkenn").error();
    let names = error.split_once(r#""tekkenn" is not supported (supported: "#).unwrap().1.trim_end_matches(')');
    let names: Vec<&str> = names.split(' ').collect();
    assert!(names.len() > 60, "{error}");
    let text = "camelCase's 1234 Über\u{301}x?!\n\n  /a";
    let ids = |vocabulary: Vocabulary| vocabulary.load().encode(text, PLAIN).unwrap();
    let of = |name: &str| ids(Vocabulary::bpe(name));
    for name in &names {
        of(name);
    }
    for (family, others) in [
        ("llama-bpe", ["llama3", "llama-v3", "falcon3", "pixtral"]),
        ("qwen2", ["deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"]),
        ("gpt-2", ["phi-2", "mpt", "olmo", "jais"]),
        ("starcoder", ["refact", "command-r", "smollm", "codeshell"]),
        ("gpt-4o", ["llama4", "kanana2", "minimax-m2", "talkie"]),
    ] {
        others.iter().for_each(|other| assert_eq!(of(other), of(family), "{other}"));
    }
    // The oldest files have no name.
    let mut without = Vocabulary::new("gpt2");
    for (key, kind) in [("tokens", "tokens"), ("merges", "merges")] {
        without = without.set(key, &strings(&vectors()["bpe"][kind]));
    }
    assert_eq!(ids(without), of("default"));
}

#[test]
fn spm_agrees_with_sentencepiece() {
    let data = vectors();
    for (name, prefix) in [("prefix", true), ("no_prefix", false)] {
        let tokenizer = Vocabulary::spm().set("add_space_prefix", &prefix).load();
        for (i, text) in strings(&data["texts"]).into_iter().enumerate() {
            let expected = ids(&data["spm"]["vectors"][name][i]);
            assert_eq!(tokenizer.encode(text, PLAIN).unwrap(), expected, "{name}: {text:?}");
            round_trip(&tokenizer, text);
        }
    }
}

/// llama.cpp's own test vectors: every `ggml-vocab-NAME.gguf` with `.inp` (texts) and `.out` (ids) in the folder `vocab` of
/// what NT_TEST_DATA names. What is skipped is named, and why.
#[test]
#[ignore = "needs the vocabularies of llama.cpp: NT_TEST_DATA"]
fn real_vocabularies_agree_with_llama_cpp() {
    let data = std::env::var_os("NT_TEST_DATA").expect("NT_TEST_DATA names the folder with vocab/ in it");
    let folder = PathBuf::from(data).join("vocab");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    files.sort();
    let (mut checked, mut wrong) = (0, Vec::new());
    for path in &files {
        let name = path.file_name().unwrap().to_string_lossy();
        let read = |suffix: &str| std::fs::read_to_string(folder.join(format!("{name}.{suffix}")));
        let (Ok(texts), Ok(expected)) = (read("inp"), read("out")) else {
            eprintln!("SKIPPED {name}: there is no {name}.inp with {name}.out beside it");
            continue;
        };
        let tokenizer = match Tokenizer::from_gguf(&Gguf::open(path).unwrap()) {
            Ok(tokenizer) => tokenizer,
            Err(error) if error.to_string().contains("the tokenizer model") => {
                eprintln!("SKIPPED {name}: {error}");
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        let expected: Vec<Vec<u32>> =
            expected.lines().map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect()).collect();
        assert!(texts.len() >= 40 && texts.len() >= expected.len(), "{name}: {} texts", texts.len());
        for (i, text) in texts.iter().enumerate() {
            // The ids of an empty text at the end are an empty line, which is none.
            let expected = expected.get(i).map_or(&[][..], |ids| ids);
            let ids = tokenizer.encode(text, PLAIN).unwrap();
            if ids != expected || tokenizer.decode(&ids) != text.as_bytes() {
                wrong.push(format!("{name}: {text:?}: {ids:?}, expected {expected:?}"));
            }
        }
        eprintln!("{name}: {} texts", texts.len());
        checked += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked > 0, "{}: none of {} vocabularies was checked", folder.display(), files.len());
}

#[test]
fn any_text_survives_the_round_trip() {
    let tokenizers = [Vocabulary::bpe("llama-bpe").load(), Vocabulary::bpe("gpt-2").load(), Vocabulary::spm().load()];
    let mut rng = SmallRng::seed_from_u64(11);
    for _ in 0..500 {
        let len = rng.random_range(0..60);
        let text: String = (0..len)
            .map(|_| match rng.random_range(0..6) {
                0 => ' ',
                1 => ['\n', '\t', '\r', '\u{a0}', '\u{2028}'][rng.random_range(0..5)],
                2 => rng.random_range('0'..='9'),
                3 => rng.random_range('a'..='z'),
                4 => rng.random_range('!'..='~'),
                _ => rng.random(),
            })
            .filter(|&c| c != '\u{2581}')
            .collect();
        tokenizers.iter().for_each(|tokenizer| round_trip(tokenizer, &text));
    }
}

#[test]
fn long_runs_are_cut_as_short_ones() {
    // Past a million blanks a backtracking matcher gives up on the published patterns.
    let tokenizer = Vocabulary::bpe("llama-bpe").load();
    let tail = |blanks| {
        let ids = tokenizer.encode(&(" ".repeat(blanks) + "The keeper 1234567"), PLAIN).unwrap();
        ids[ids.len() - 6..].to_vec()
    };
    assert_eq!(tail(1_500_000), tail(3));
    round_trip(&tokenizer, &"ab".repeat(100_000));
    round_trip(&Vocabulary::spm().load(), &"a b".repeat(100_000));
}

#[test]
fn equal_scores_merge_from_the_left() {
    let tokens = [("a", -9.0, 1), ("b", -9.0, 1), ("c", -9.0, 1), ("ab", -1.0, 1), ("bc", -1.0, 1), ("aa", -1.0, 1)];
    let tokenizer = Vocabulary::tiny_spm(&tokens).set("add_space_prefix", &false).load();
    assert_eq!(tokenizer.encode("abc", PLAIN).unwrap(), [3, 2]);
    assert_eq!(tokenizer.encode("aaaaabc", PLAIN).unwrap(), [5, 5, 3, 2]);
    let better = [("a", -9.0, 1), ("b", -9.0, 1), ("c", -9.0, 1), ("ab", -2.0, 1), ("bc", -1.0, 1)];
    let tokenizer = Vocabulary::tiny_spm(&better).set("add_space_prefix", &false).load();
    assert_eq!(tokenizer.encode("abc", PLAIN).unwrap(), [0, 4]);
}

#[test]
fn special_tokens_are_text_unless_asked_for() {
    let tokens = [
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("</s>", 0.0, 3),
        ("<", -1.0, 1),
        ("s", -1.0, 1),
        (">", -1.0, 1),
        ("/", -1.0, 1),
        ("\u{2581}", -1.0, 1),
        ("<s", -0.5, 1),
        ("[X]", 0.0, 4),
        ("[X]]", 0.0, 4),
    ];
    let load =
        |prefix| Vocabulary::tiny_spm(&tokens).set("add_space_prefix", &prefix).set("bos_token_id", &1u32).load();
    let tokenizer = load(false);
    // The merge of "<s" and ">" would give the text of a control token: it must not become one.
    assert_eq!(tokenizer.encode("<s>", PLAIN).unwrap(), [8, 5]);
    assert_eq!(tokenizer.encode("<s>", SPECIAL).unwrap(), [1]);
    assert_eq!(tokenizer.encode("s</s>", EncodeOptions { bos: true, special: true }).unwrap(), [1, 4, 2]);
    // User-defined tokens are always matched, the longest first.
    assert_eq!(tokenizer.encode("s[X]s[X]]", PLAIN).unwrap(), [4, 9, 4, 10]);
    // Text after a special token gets its blank in front, as at the start.
    assert_eq!(load(true).encode("s<s>s", SPECIAL).unwrap(), [7, 4, 1, 7, 4]);
    assert_eq!(load(true).decode(&[7, 4, 1, 7, 4]), b"s<s>s");
}

#[test]
fn special_tokens_are_found_as_llama_cpp_does() {
    let tokens = [
        ("a", -1.0, 1),
        ("b", -1.0, 1),
        ("c", -1.0, 1),
        ("d", -1.0, 1),
        (" ", -1.0, 1),
        ("\u{2581}", -1.0, 1),
        ("\n", -1.0, 1),
        ("ab", 0.0, 4),
        ("bcd", 0.0, 4),
        ("<|end|>", 0.0, 4),
        ("<s>", 0.0, 3),
    ];
    let load = || Vocabulary::tiny_spm(&tokens).set("add_space_prefix", &false);
    let tokenizer = load().load();
    // The longest token goes first, also where a shorter one starts before it.
    assert_eq!(tokenizer.encode("abcd", PLAIN).unwrap(), [0, 8]);
    assert_eq!(tokenizer.encode("ababab", PLAIN).unwrap(), [7, 7, 7]);
    assert_eq!(tokenizer.encode("<|end|> \n a", SPECIAL).unwrap(), [9, 5, 6, 5, 0]);
    // Phi-3's tokens take the blanks behind them along, but for a few.
    let mut phi3 = load();
    phi3.0.set("general.name", "Phi-3 mini").unwrap();
    let phi3 = phi3.load();
    assert_eq!(phi3.encode("<|end|> \n a", SPECIAL).unwrap(), [9, 0]);
    assert_eq!(phi3.encode("<s> a", SPECIAL).unwrap(), [10, 5, 0]);
    assert_eq!(phi3.encode("ab  cbcd\n", PLAIN).unwrap(), [7, 2, 8]);
}

#[test]
fn tokens_that_end_a_turn_are_control_tokens() {
    let tokens =
        [("<|im_end|>", 0.0, 4), ("<fim_prefix>", 0.0, 4), ("</s>", 0.0, 4), ("<tag>", 0.0, 4), ("x", -1.0, 1)];
    let bytes: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let with = |more: &'static str| {
        let mut all = tokens.to_vec();
        all.push((more, 0.0, 3));
        all.extend(bytes.iter().map(|byte| (byte.as_str(), 0.0, 6)));
        Vocabulary::tiny_spm(&all).set("add_space_prefix", &false).load()
    };
    let tokenizer = with("<s>");
    let text = "<|im_end|><fim_prefix></s><tag>x";
    assert_eq!(tokenizer.encode(text, SPECIAL).unwrap(), [0, 1, 2, 3, 4]);
    let plain = tokenizer.encode(text, PLAIN).unwrap();
    assert!(plain.ends_with(&[3, 4]) && !plain.iter().any(|&id| id < 3), "{plain:?}");
    assert_eq!([0, 1, 2, 3].map(|id| tokenizer.is_end(id)), [true, false, true, false]);
    assert_eq!([0, 1, 2, 3].map(|id| tokenizer.is_control(id)), [true, true, true, false]);
    // Where `<eos>` ends documents, `</s>` is HTML.
    let gemma = with("<eos>");
    assert!(gemma.is_end(5) && !gemma.is_end(2));
    assert!(gemma.encode(text, PLAIN).unwrap().ends_with(&[2, 3, 4]));
}

#[test]
fn merges_never_make_control_tokens() {
    let bpe = |types: &[i32]| {
        let tokens = Vocabulary::new("gpt2").set("pre", "gpt-2").set("tokens", &["<", "s", ">", "<s", "<s>"][..]);
        tokens.set("merges", &["< s", "<s >"][..]).set("token_type", types).load()
    };
    // A word of letters and one of signs never merge: signs only.
    let signs = |types: &[i32]| {
        let tokens = Vocabulary::new("gpt2").set("pre", "gpt-2").set("tokens", &["<", "|", "<|", "<|<"][..]);
        tokens.set("merges", &["< |", "<| <"][..]).set("token_type", types).load()
    };
    assert_eq!(bpe(&[1, 1, 1, 1, 3]).encode("<s>", SPECIAL).unwrap(), [4]);
    assert_eq!(signs(&[1, 1, 1, 1]).encode("<|<", PLAIN).unwrap(), [3]);
    assert_eq!(signs(&[1, 1, 1, 3]).encode("<|<", PLAIN).unwrap(), [2, 0]);
    assert_eq!(signs(&[1, 1, 1, 3]).encode("<|<", SPECIAL).unwrap(), [3]);
}

#[test]
fn words_are_apart_only_where_no_token_joins_them() {
    // "a▁" joins what "▁b" would start: the text may not be cut there before merging.
    let tokens = [
        ("\u{2581}", -9.0, 1),
        ("a", -9.0, 1),
        ("b", -9.0, 1),
        ("\u{2581}b", -3.0, 1),
        ("a\u{2581}", -2.0, 1),
        ("a\u{2581}b", -1.0, 1),
        ("b\u{2581}", -20.0, 1),
    ];
    let load = |tokens| Vocabulary::tiny_spm(tokens).set("add_space_prefix", &false).load();
    assert_eq!(load(&tokens).encode("a b", PLAIN).unwrap(), [5]);
    assert_eq!(load(&tokens).encode("b b b", PLAIN).unwrap(), [2, 3, 3]);
    assert_eq!(load(&tokens[..4]).encode("a b a", PLAIN).unwrap(), [1, 3, 0, 1]);
}

#[test]
fn bytes_without_a_token_are_an_error() {
    let tiny = [("a", 0.0, 1), ("<0x62>", 0.0, 6), ("<unk>", 0.0, 2)];
    let without = Vocabulary::tiny_spm(&tiny[..2]).set("add_space_prefix", &false).load();
    assert_eq!(without.encode("ab", PLAIN).unwrap(), [0, 1]);
    assert_eq!(without.token_bytes(1), b"b");
    let error = without.encode("ac", PLAIN).unwrap_err().to_string();
    assert_eq!(error, "vocab: the text has the byte 0x63, for which the vocabulary has no token");
    // The unknown token stands for a run of characters without a token, whatever their bytes.
    let unknown = || Vocabulary::tiny_spm(&tiny).set("add_space_prefix", &false);
    for tokenizer in [unknown().load(), unknown().set("unknown_token_id", &2u32).load()] {
        assert_eq!(tokenizer.encode("acéba\u{1f642}", PLAIN).unwrap(), [0, 2, 1, 0, 2]);
    }

    let bpe = Vocabulary::new("gpt2").set("pre", "gpt-2").set("tokens", &["a", "Ġ"][..]);
    let bpe = bpe.set("merges", &Vec::<String>::new()).load();
    assert_eq!(bpe.encode("a a", PLAIN).unwrap(), [0, 1, 0]);
    assert!(bpe.encode("b", PLAIN).unwrap_err().to_string().contains("the byte 0x62"));
}

#[test]
fn start_and_end_tokens() {
    let bpe = || Vocabulary::bpe("llama-bpe");
    let size = vectors()["bpe"]["tokens"].as_array().unwrap().len() as u32;
    let (begin, eot) = (size - 3, size - 2);
    let plain = bpe().load();
    assert_eq!((plain.bos(), plain.adds_bos(), plain.vocab_size()), (None, false, size as usize));
    assert!(plain.is_end(eot) && !plain.is_end(begin) && !plain.is_end(0));
    assert!(plain.encode("a", EncodeOptions { bos: true, special: false }).is_err());
    assert_eq!(plain.token_bytes(eot), b"<|eot_id|>");
    assert_eq!(plain.token_bytes(size), b"");
    let with = bpe().set("bos_token_id", &begin).set("eos_token_id", &3u32).set("eom_token_id", &4u32).load();
    assert_eq!((with.bos(), with.adds_bos()), (Some(begin), true));
    assert!(with.is_end(3) && with.is_end(4) && with.is_end(eot));
    assert_eq!(with.encode("", EncodeOptions { bos: true, special: false }).unwrap(), [begin]);
    assert!(!bpe().set("bos_token_id", &begin).set("add_bos_token", &false).load().adds_bos());
    assert!(!Vocabulary::bpe("qwen2").set("bos_token_id", &begin).load().adds_bos());
    assert!(Vocabulary::spm().set("bos_token_id", &1u32).load().adds_bos());
}

#[test]
fn tokens_by_id_and_by_text() {
    let tokens =
        [("<s>", 0.0, 3), ("x", 0.0, 3), ("x", 0.0, 1), ("x", 0.0, 5), ("<0x41>", 0.0, 6), ("\u{2581}a", 0.0, 1)];
    let load = || Vocabulary::tiny_spm(&tokens).set("bos_token_id", &0u32);
    let tokenizer = load().load();
    assert_eq!(tokenizer.token_id_by_text("<s>"), Some(0));
    assert_eq!(tokenizer.token_id_by_text("x"), Some(2), "the one that text becomes");
    assert_eq!(tokenizer.token_id_by_text("\u{2581}a"), Some(5));
    assert_eq!((tokenizer.token_id_by_text(" a"), tokenizer.token_id_by_text("")), (None, None));
    assert_eq!((tokenizer.token_text(4), tokenizer.token_text(6)), (Some("<0x41>"), None));
    assert_eq!((0..8).map(|id| tokenizer.is_control(id)).filter(|&control| control).count(), 2);
    assert!(tokenizer.is_control(0) && tokenizer.is_control(1));
    let bytes: Vec<_> = tokenizer.all_token_bytes().collect();
    assert_eq!(bytes, [&b"<s>"[..], b"x", b"x", b"x", b"A", b" a"]);
    assert_eq!(tokenizer.eos(), None);
    assert_eq!(load().set("eos_token_id", &1u32).load().eos(), Some(1));
}

#[test]
fn bad_vocabularies() {
    let words = &["a", "b", "ab"][..];
    let bpe = || Vocabulary::new("gpt2").set("pre", "gpt-2").set("tokens", words);
    let check = |vocabulary: Vocabulary, expected: &str| {
        let error = vocabulary.error();
        assert!(error.starts_with("vocab: ") && error.contains(expected), "{error}");
    };
    check(Vocabulary(Writer::new()), r#"no metadata "tokenizer.ggml.tokens""#);
    check(Vocabulary::new("gpt2").set("tokens", &1u32), "expected an array of strings, found u32 1");
    check(Vocabulary::new("gpt2").set("tokens", &Vec::<String>::new()), "a vocabulary of 0 tokens");
    check(Vocabulary::new("t5").set("tokens", words), r#"model "t5" is not supported (supported: gpt2 llama)"#);
    check(Vocabulary::new("bert").set("tokens", words), r#"model "bert" is not supported (supported: gpt2 llama)"#);
    check(Vocabulary::bpe("kimi-k2"), r#""kimi-k2" is not supported (supported: default llama-bpe"#);
    check(bpe(), r#"no metadata "tokenizer.ggml.merges""#);
    check(bpe().set("merges", &["a b", "ab"][..]), "merge 1 is not two tokens");
    check(bpe().set("merges", &["a c"][..]), r#"merge 0: "c" is not in the vocabulary"#);
    check(bpe().set("merges", &["b a"][..]), r#"merge 0: "ba" is not in the vocabulary"#);
    check(bpe().set("merges", &["a b"][..]).set("token_type", &[1i32][..]), "has 1 elements for 3 tokens");
    check(bpe().set("merges", &["a b"][..]).set("eos_token_id", &3u32), "is 3, but there are only 3 tokens");
    check(bpe().set("merges", &["a b"][..]).set("add_bos_token", &true), "the vocabulary has none");
    let spm = || Vocabulary::new("llama").set("tokens", words);
    check(spm(), r#"no metadata "tokenizer.ggml.scores""#);
    check(spm().set("scores", &[0f32][..]), "has 1 elements for 3 tokens");
    check(spm().set("scores", &[0f32, f32::NAN, 0.0][..]), "token 1 has no number");
    check(Vocabulary::tiny_spm(&[("<0x1>", 0.0, 6)]), r#"byte token 0 is "<0x1>""#);
}

#[test]
fn mutated_vocabularies_never_panic() {
    let bytes = |vocabulary: Vocabulary| vocabulary.0.begin(Vec::new()).unwrap().finish().unwrap();
    let originals = [bytes(Vocabulary::bpe("llama-bpe")), bytes(Vocabulary::spm())];
    let mut rng = SmallRng::seed_from_u64(13);
    let (mut loaded, mut refused) = (0, 0);
    for round in 0..6000 {
        let mut bytes = originals[round % 2].clone();
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..bytes.len());
            bytes[at] = rng.random();
        }
        let Ok(gguf) = Gguf::from_vec("mutated", bytes) else { continue };
        match Tokenizer::from_gguf(&gguf) {
            Ok(tokenizer) => {
                loaded += 1;
                let ids = tokenizer.encode("  The keeper's 1234 <s> Über 🙂\n", SPECIAL).unwrap_or_default();
                tokenizer.decode(&ids);
                (0..tokenizer.vocab_size() as u32 + 2).for_each(|id| drop(tokenizer.token_bytes(id)));
            }
            Err(_) => refused += 1,
        }
    }
    assert!(loaded > 50 && refused > 50, "the mutations test one side only: {loaded} loaded, {refused} refused");
}

#[test]
fn characters_are_streamed_whole() {
    let text = "aä€🙂\u{10ffff}z";
    for step in 1..5 {
        let mut stream = Utf8Stream::default();
        let mut out = String::new();
        for piece in text.as_bytes().chunks(step) {
            out.push_str(&stream.push(piece));
        }
        out.push_str(&stream.flush());
        assert_eq!(out, text);
    }
    // What cannot become a character is replaced at once, and what follows is not swallowed.
    let mut stream = Utf8Stream::default();
    assert_eq!(stream.push(b"\xf0\x9f"), "");
    assert_eq!(stream.push(b"ok\xff!"), "\u{fffd}ok\u{fffd}!");
    assert_eq!(stream.push(b"\xc3"), "");
    assert_eq!((stream.flush(), stream.flush()), ("\u{fffd}".to_owned(), String::new()));
}
