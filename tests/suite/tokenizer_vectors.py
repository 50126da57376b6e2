"""Makes tokenizer_vectors.json: small vocabularies and the ids that the reference libraries give for awkward texts.

    pip install tokenizers==0.23.3 sentencepiece==0.2.3 protobuf
    python tests/suite/tokenizer_vectors.py > tests/suite/tokenizer_vectors.json
"""

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
]

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {
    "llama-bpe": LLAMA3,
    "qwen2": LLAMA3.replace("{1,3}", ""),
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}


def byte_level(pattern):
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def bpe():
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = byte_level(LLAMA3)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        CORPUS.splitlines(keepends=True), trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    vocab = model["vocab"]
    # A token that no merges lead to: taken where whole words are looked up first.
    vocab["Ġzebras"] = len(vocab)
    merges = [tuple(pair) for pair in model["merges"]]
    vectors = {}
    for name, pattern in PATTERNS.items():
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=name == "llama-bpe"))
        tokenizer.pre_tokenizer = byte_level(pattern)
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


print(json.dumps({"texts": TEXTS, "bpe": bpe(), "spm": spm()}, ensure_ascii=False, separators=(",", ":")))
