"""Small vocabularies, and the ids that Hugging Face tokenizers and SentencePiece give for awkward texts."""

import io
import json

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers

CORPUS = """The old lighthouse keeper climbed the stairs every evening. He'd lit the lamp 1234 times, and it's still bright.
"We're late," said Mara; "they'll have left by now!" The boats were gone, and the harbour lay as quiet as a mirror.
In 1987 the storm took 35 boats, 12 sheds and the keeper's hat (the blue one).  He never found it again...
Der Leuchtturmwärter stieg die Treppe hinauf. Über dem Meer zog Nebel auf; die Möwen schrien.
Маяк стоял на скале. Смотритель зажигал лампу каждый вечер.
for i in range(10):\n    if i % 2 == 0:\n        print(i, "even")\n\n\treturn None\n
灯塔在海边。灯光照亮了海。
""" * 3

TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n \n",
    "\t x",
    "The keeper lit the lamp.",
    " The keeper",
    "   The   keeper  ",
    "He'd they'll WE'RE it's I'M can't",
    "1 12 123 1234 12345 x12y",
    "Über dem Meer; Möwen",
    "Маяк стоял на скале",
    "灯塔在海边。🙂👍🏽",
    "e\u0301 a\u00a0b\u3000c\u200dd",
    "zebras zebras' zebra",
    "  \n\n   def f(x):\r\n\t\treturn x  \n",
    "!!! ... (the) --\n\n[x]",
    "a" * 40,
    "the the\u2028the \u0085 end ",
    "<|eot_id|> </s> <s> [TOOL]",
    "camelCase HTMLParser Über ÉCOLE éCole ΑΒΓαβγ МАЯКмаяк we'LL'S",
    "x!y ;z `a` $5 +1 ~b ^c |d| <e> =f ,g. _h",
    "/a/b //\n\n#!/bin\r\n\r\n;;\n/\n  /",
    "n\u0303o \u0301x ç\u0327! 5\u0301 ไทย नमस्ते é\u0301e",
    "٣٤٥ ½ ²3 Ⅷ １２３ a1b22c333d4444",
    "日本語ひらがなカタカナー漢字。한국어ㄱ灯a塔",
    "a   b\t\tc \t d\n \n\n  e   \n   \n f    ",
    "a \u2003b\u2003\u2003 c\u3000。d ！e",
    "“the” ‘a’s’ —– … «x»",
    "\x00a\x1f b\x7f\x0bc\x0c d",
    "©x ™ 🙂🙂 👩‍👩‍👧!?🇩🇪 ",
]

# What the tokenizer.json of a model of each family has, but for Falcon's `Digits` after `ByteLevel`: it sees the characters
# that stand for bytes, and would cut Cyrillic letters. llama.cpp leaves it out, and Falcon's merges are the same without.
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + BLANKS
QWEN35 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + BLANKS
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def cased(suffix, digits):
    words = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{suffix}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{suffix}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{BLANKS}"


LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def digits(individual):
    return pre_tokenizers.Digits(individual_digits=individual)


FAMILIES = {
    "default": [split(r"[\p{P}$+<=>^~|]+"), split(GPT2), digits(False), split("[0-9][0-9][0-9]")],
    "llama-bpe": [split(LLAMA3)],
    "dbrx": [split(LLAMA3)],
    "qwen2": [split(LLAMA3.replace("{1,3}", ""))],
    "qwen35": [split(QWEN35)],
    "gpt-2": [split(GPT2)],
    "starcoder": [digits(True), split(GPT2)],
    "falcon": [pre_tokenizers.Punctuation("contiguous"), split(GPT2), split("[0-9][0-9][0-9]")],
    "deepseek-llm": [
        split(r"[\r\n]"), split(rf"\s?[{LETTERS}]+"),
        split(r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"), split(r"\s+$"), split(CJK), split(r"\p{N}+"),
    ],
    "deepseek-coder": [split(r"[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split(CJK), digits(True)],
    "deepseek-v3": [
        split(r"\p{N}{1,3}"), split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
        split(r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
              r"""| ?[\p{P}\p{S}]+[\r\n]*|""" + BLANKS),
    ],
    "tekken": [split(cased("", r"\p{N}"))],
    "gpt-4o": [split(cased(CONTRACTIONS + "?", r"\p{N}{1,3}"))],
}
# `ignore_merges` in tokenizer.json: a word that is a token as a whole becomes it.
WHOLE_WORDS = {"llama-bpe", "tekken"}


def byte_level(splits):
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def bpe():
    """A vocabulary whose merges cross every border between words, so that a border in the wrong place changes the ids."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = byte_level([])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(CORPUS.splitlines(keepends=True) + TEXTS * 2, trainer)
    model = json.loads(trained.to_str())["model"]
    vocab = model["vocab"]
    # A token that no merges lead to: taken where whole words are looked up first.
    vocab["Ġzebras"] = len(vocab)
    merges = [tuple(pair) for pair in model["merges"]]
    vectors = {}
    for name, splits in FAMILIES.items():
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=name in WHOLE_WORDS))
        tokenizer.pre_tokenizer = byte_level(splits)
        tokenizer.add_special_tokens(["<|begin|>", "<|eot_id|>"])
        tokenizer.add_tokens([AddedToken("[TOOL]", normalized=False)])
        special = [tokenizer.encode(text).ids for text in TEXTS]
        tokenizer.encode_special_tokens = True
        vectors[name] = {"plain": [tokenizer.encode(text).ids for text in TEXTS], "special": special}
    tokens = sorted(vocab, key=vocab.get) + ["<|begin|>", "<|eot_id|>", "[TOOL]"]
    types = [1] * len(vocab) + [3, 3, 4]
    return {"tokens": tokens, "types": types, "merges": [" ".join(pair) for pair in merges], "vectors": vectors}


def spm():
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines()), model_writer=file, model_type="bpe", vocab_size=420,
        byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity",
        remove_extra_whitespaces=False, split_digits=True, minloglevel=2,
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(file.getvalue())
    vectors = {}
    for name, prefix in {"prefix": True, "no_prefix": False}.items():
        proto.normalizer_spec.add_dummy_prefix = prefix
        processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        vectors[name] = [processor.encode(text) for text in TEXTS]
    return {
        "tokens": [piece.piece for piece in proto.pieces],
        "scores": [piece.score for piece in proto.pieces],
        "types": [piece.type for piece in proto.pieces],
        "vectors": vectors,
    }


def write(path):
    data = json.dumps({"texts": TEXTS, "bpe": bpe(), "spm": spm()}, ensure_ascii=False, separators=(",", ":"))
    path.write_text(data + "\n", encoding="utf-8")
