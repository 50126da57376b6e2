"""What Hugging Face transformers makes of the demo models: logits and perplexities, from the same dequantised weights."""

import re

import numpy as np
import torch
from gguf import GGUFReader, TokenType
from gguf.quants import dequantize
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from export import NAMES
from protocol import perplexity
from tokenizer import SPLIT

POSITIONS = 64
PARAMETERS = {gguf: hf for hf, gguf in NAMES.items()}


def half_split(weight, heads):
    """Undoes export.adjacent_pairs: from pairs (2i, 2i + 1) to (i, i + d/2)."""
    return weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def field(reader, key):
    return reader.get_field(key).contents()


def load(path):
    """(transformers' model, tokenizers' tokenizer, BOS) of a GGUF file of the demo's kind."""
    reader = GGUFReader(path)
    heads, kv_heads = field(reader, "llama.attention.head_count"), field(reader, "llama.attention.head_count_kv")
    config = LlamaConfig(
        hidden_size=field(reader, "llama.embedding_length"), intermediate_size=field(reader, "llama.feed_forward_length"),
        num_hidden_layers=field(reader, "llama.block_count"), num_attention_heads=heads, num_key_value_heads=kv_heads,
        head_dim=field(reader, "llama.attention.key_length"), rms_norm_eps=field(reader, "llama.attention.layer_norm_rms_epsilon"),
        rope_parameters=dict(rope_type="default", rope_theta=field(reader, "llama.rope.freq_base")),
        max_position_embeddings=field(reader, "llama.context_length"), vocab_size=field(reader, "llama.vocab_size"),
        tie_word_embeddings=True, attn_implementation="eager")
    model = LlamaForCausalLM(config).float().eval()
    state = {}
    for tensor in reader.tensors:
        weight = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32).reshape([int(n) for n in tensor.shape[::-1]])
        if tensor.name.endswith("attn_q.weight"):
            weight = half_split(weight, heads)
        if tensor.name.endswith("attn_k.weight"):
            weight = half_split(weight, kv_heads)
        name = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}.get(tensor.name)
        if name is None:
            layer, kind = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name).groups()
            name = f"model.layers.{layer}.{PARAMETERS[kind]}.weight"
        state[name] = torch.from_numpy(weight)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    tokens, kinds = field(reader, "tokenizer.ggml.tokens"), field(reader, "tokenizer.ggml.token_type")
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, ignore_merges=True,
                                     merges=[tuple(m.split(" ")) for m in field(reader, "tokenizer.ggml.merges")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    bos = field(reader, "tokenizer.ggml.bos_token_id")
    assert kinds[bos] == TokenType.CONTROL
    return model, tokenizer, bos


def write(root, folder):
    """Writes demo.logits.f16 and heldout.tokens.u16; returns the entries of golden.json: models, perplexities."""
    text = (root / "assets/heldout.txt").read_text()
    entries, perplexities = [], []
    for name in ("demo", "demo-small"):
        model, tokenizer, bos = load(root / f"assets/{name}.gguf")
        ids = [bos] + tokenizer.encode(text, add_special_tokens=False).ids

        @torch.no_grad()
        def nll(window):
            x = torch.tensor([window])
            return torch.nn.functional.cross_entropy(model(x[:, :-1]).logits[0], x[0, 1:], reduction="none").double().tolist()

        value, scored = perplexity(nll, ids, bos, 512)
        perplexities.append(dict(model=f"assets/{name}.gguf", text="assets/heldout.txt", context=512, tokens=len(ids), scored=scored,
                                 perplexity=round(value, 6)))
        if name == "demo":
            tokens = ids[:POSITIONS]
            with torch.no_grad():
                logits = model(torch.tensor([tokens])).logits[0].numpy()
            (folder / "demo.logits.f16").write_bytes(logits.astype("<f2").tobytes())
            (folder / "heldout.tokens.u16").write_bytes(np.array(ids, "<u2").tobytes())
            entries.append(dict(name=name, gguf="assets/demo.gguf", logits="tests/data/demo.logits.f16", dtype="f16", tokens=tokens,
                                n_vocab=logits.shape[1]))
    return entries, perplexities
