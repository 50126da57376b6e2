//! The pre-tokenizers that there are.
//!
//! Each is one or more [`Step`]s, each of which cuts what the ones before it have left. The patterns are those of the
//! `tokenizer.json` of the model that is named beside them; the names are what llama.cpp writes into
//! `tokenizer.ggml.pre`, and maps to the same rules (`llama-vocab.cpp`).
//!
//! Published patterns end in `\s+(?!\S)|\s+`: a run of blanks leaves its last one to the word that follows. Look-ahead
//! needs a backtracking matcher, which gives up on long runs, so the patterns here end without it, and the step is
//! [`Step::Words`].

/// One cut of the text.
#[derive(Debug)]
pub(super) enum Step {
    /// Matches are words of their own, and so is what lies between them.
    Isolate(&'static str),
    /// As [`Step::Isolate`] with the pattern and `|\s+(?!\S)|\s+`.
    Words(&'static str),
}

/// Pre-tokenizers with the same rules.
#[derive(Debug)]
pub(super) struct Family {
    /// What files call them.
    names: &'static [&'static str],
    pub(super) steps: &'static [Step],
    /// Whether a word that is a token as a whole becomes it, whatever the merges say (`ignore_merges` in
    /// `tokenizer.json`).
    pub(super) whole_words: bool,
    /// Whether models start with BOS unless the file says otherwise.
    pub(super) adds_bos: bool,
}

/// What files without a name have.
pub(super) const DEFAULT: &str = "default";

pub(super) fn by_name(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.names.contains(&name))
}

/// All names, for messages.
pub(super) fn names() -> String {
    FAMILIES.iter().flat_map(|family| family.names).copied().collect::<Vec<_>>().join(" ")
}

use Step::{Isolate, Words};

/// GPT-2, encoder.py; ByteLevel's own pattern in tokenizer.json.
const GPT2: Step = Words(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+");

/// Llama 3; the same as tiktoken's cl100k_base.
const LLAMA3: Step =
    Words(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+");

/// Qwen2: as Llama 3's, but every digit is a word.
const QWEN2: Step =
    Words(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+");

/// Qwen3.5: as Qwen2's, but marks belong to words.
const QWEN35: Step = Words(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+",
);

/// Mistral NeMo (tekken): words are cut where a lower-case letter meets an upper-case one.
const TEKKEN: Step = Words(concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
));

/// GPT-4o (tiktoken's o200k_base), Phi-4-mini, Llama 4.
const GPT4O: Step = Words(concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
));

/// DeepSeek LLM: letters that have a case, but for some. Written as numbers, because some of them look alike, and editors
/// replace them.
const DEEPSEEK_LLM_LETTERS: Step = Isolate(concat!(
    r"\s?[",
    r"A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}\u{295}-\u{2AF}",
    r"\u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}\u{38C}\u{38E}-\u{3A1}",
    r"\u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}",
    r"\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}\u{1D79}-\u{1D9A}",
    r"\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}",
    r"\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}",
    r"\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}",
    r"\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}",
    r"\u{2139}\u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}",
    r"\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}\u{A722}-\u{A76F}\u{A771}-\u{A787}",
    r"\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}",
    r"\u{10400}-\u{1044F}\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}",
    r"\u{118A0}-\u{118DF}\u{1E900}-\u{1E943}",
    r"]+",
));

/// DeepSeek LLM: ASCII's punctuation, the same at full width, quotation marks, and the first of CJK's.
const DEEPSEEK_LLM_PUNCTUATION: Step =
    Isolate(r"\s?[!-/:-~\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}\u{2018}-\u{201F}\u{3000}-\u{3002}]+");

/// DeepSeek's first models: Chinese characters, Hangul, and most that lies below them in Unicode.
const DEEPSEEK_CJK: Step = Isolate(r"[\u{4E00}-\u{9FA5}\u{800}-\u{4E00}\u{AC00}-\u{D7FF}]+");

/// Falcon: runs of punctuation, in Unicode's and in ASCII's sense.
const PUNCTUATION: Step = Isolate(r"[\p{P}$+<=>^~|`]+");

static FAMILIES: &[Family] = &[
    // What llama.cpp takes for files that name none.
    Family {
        names: &[DEFAULT],
        steps: &[Isolate(r"[\p{P}$+<=>^~|]+"), GPT2, Isolate(r"\p{N}+"), Isolate("[0-9][0-9][0-9]")],
        whole_words: false,
        adds_bos: false,
    },
    Family {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        steps: &[LLAMA3],
        whole_words: true,
        adds_bos: true,
    },
    Family { names: &["glm4", "glm5"], steps: &[LLAMA3], whole_words: true, adds_bos: false },
    Family { names: &["dbrx", "smaug-bpe", "chatglm-bpe"], steps: &[LLAMA3], whole_words: false, adds_bos: false },
    Family {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "megrez",
            "kormo",
            "f2llmv2",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        steps: &[QWEN2],
        whole_words: false,
        adds_bos: false,
    },
    Family { names: &["qwen35"], steps: &[QWEN35], whole_words: false, adds_bos: false },
    Family {
        names: &[
            "gpt-2",
            "phi-2",
            "olmo",
            "mpt",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "roberta-bpe",
            "jina-es",
            "jina-de",
            "jina-v1-en",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v2-code",
        ],
        steps: &[GPT2],
        whole_words: false,
        adds_bos: false,
    },
    // Digits on their own, then as GPT-2.
    Family {
        names: &["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"],
        steps: &[Isolate(r"\p{N}"), GPT2],
        whole_words: false,
        adds_bos: false,
    },
    Family {
        names: &["falcon"],
        steps: &[PUNCTUATION, GPT2, Isolate("[0-9][0-9][0-9]")],
        whole_words: false,
        adds_bos: false,
    },
    Family {
        names: &["deepseek-llm"],
        steps: &[
            Isolate(r"[\r\n]"),
            DEEPSEEK_LLM_LETTERS,
            DEEPSEEK_LLM_PUNCTUATION,
            Isolate(r"\s+$"),
            DEEPSEEK_CJK,
            Isolate(r"\p{N}+"),
        ],
        whole_words: false,
        adds_bos: false,
    },
    Family {
        names: &["deepseek-coder"],
        steps: &[Isolate(r"[\r\n]"), Isolate(r"\s?\p{L}+"), Isolate(r"\s?\p{P}+"), DEEPSEEK_CJK, Isolate(r"\p{N}")],
        whole_words: false,
        adds_bos: false,
    },
    Family {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        steps: &[
            Isolate(r"\p{N}{1,3}"),
            Isolate(r"[\u{4E00}-\u{9FA5}\u{3040}-\u{30FF}]+"),
            Words(concat!(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
                r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+",
            )),
        ],
        whole_words: false,
        adds_bos: false,
    },
    Family { names: &["tekken"], steps: &[TEKKEN], whole_words: true, adds_bos: true },
    Family {
        names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        steps: &[GPT4O],
        whole_words: false,
        adds_bos: false,
    },
];
