//! The tokenizers, against small vocabularies with the ids that the reference libraries gave
//! (tokenizer_vectors.py), and against the vectors of two real ones where those are at hand.

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
    serde_json::from_str(include_str!("tokenizer_vectors.json")).unwrap()
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

/// llama.cpp's own test vectors for a real vocabulary, in the folder `vocab` of what NT_TEST_DATA names.
fn agrees_with_llama_cpp(name: &str) {
    let data = std::env::var_os("NT_TEST_DATA").expect("NT_TEST_DATA names the folder with vocab/ in it");
    let folder = PathBuf::from(data).join("vocab");
    let path = folder.join(name);
    let read = |suffix| std::fs::read_to_string(folder.join(format!("{name}.{suffix}"))).unwrap();
    let (texts, expected) = (read("inp"), read("out"));
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
    let mut checked = 0;
    for (text, line) in texts.split("\n__ggml_vocab_test__\n").zip(expected.lines()) {
        let expected: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
        assert_eq!(tokenizer.encode(text, PLAIN).unwrap(), expected, "{text:?}");
        round_trip(&tokenizer, text);
        checked += 1;
    }
    assert_eq!(checked, expected.lines().count());
    assert!(checked >= 40);
    assert!(tokenizer.adds_bos());
    assert!(tokenizer.bos().is_some());
}

#[test]
#[ignore = "needs the vocabularies of llama.cpp: NT_TEST_DATA"]
fn llama_bpe_agrees_with_llama_cpp() {
    agrees_with_llama_cpp("ggml-vocab-llama-bpe.gguf");
}

#[test]
#[ignore = "needs the vocabularies of llama.cpp: NT_TEST_DATA"]
fn llama_spm_agrees_with_llama_cpp() {
    agrees_with_llama_cpp("ggml-vocab-llama-spm.gguf");
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
fn bytes_without_a_token_are_an_error() {
    let tiny = [("a", 0.0, 1), ("<0x62>", 0.0, 6), ("<unk>", 0.0, 2)];
    let without = Vocabulary::tiny_spm(&tiny).set("add_space_prefix", &false).load();
    assert_eq!(without.encode("ab", PLAIN).unwrap(), [0, 1]);
    assert_eq!(without.token_bytes(1), b"b");
    let error = without.encode("ac", PLAIN).unwrap_err().to_string();
    assert_eq!(error, "vocab: the text has the byte 0x63, for which the vocabulary has no token");
    let unknown = Vocabulary::tiny_spm(&tiny).set("add_space_prefix", &false).set("unknown_token_id", &2u32).load();
    assert_eq!(unknown.encode("ac", PLAIN).unwrap(), [0, 2]);

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
    check(Vocabulary::bpe("tekken"), r#""tekken" is not supported (supported: llama-bpe llama3"#);
    check(Vocabulary::new("gpt2").set("tokens", words), r#"no metadata "tokenizer.ggml.pre""#);
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
