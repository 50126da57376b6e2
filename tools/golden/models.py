"""Tiny random models as GGUF, with the logits that Hugging Face transformers gives."""

import json

import numpy as np
import torch
from gguf import GGUFWriter, TokenType
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from export import adjacent_pairs, gguf_name

VOCAB, CONTEXT, TOKENS = 104, 64, 24
ROPE_LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
SMALL = dict(vocab_size=VOCAB, num_hidden_layers=2, max_position_embeddings=CONTEXT, attn_implementation="eager", hidden_act="silu",
             bos_token_id=0, eos_token_id=1)

MODELS = {
    # Grouped queries; the head is the embedding table.
    "llama-gqa-tied": LlamaConfig(hidden_size=48, intermediate_size=80, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5,
                                  rope_parameters=dict(rope_type="default", rope_theta=10000.0), tie_word_embeddings=True, **SMALL),
    # A head_dim that is not hidden / heads; a head of its own; another theta.
    "llama-head-dim": LlamaConfig(hidden_size=48, intermediate_size=64, num_attention_heads=3, num_key_value_heads=1, head_dim=32,
                                  rms_norm_eps=1e-6, rope_parameters=dict(rope_type="default", rope_theta=500.0), tie_word_embeddings=False, **SMALL),
    # Llama 3.1's rotary scaling: the tensor rope_freqs.weight.
    "llama-rope-freqs": LlamaConfig(hidden_size=32, intermediate_size=48, num_attention_heads=2, num_key_value_heads=2, rms_norm_eps=1e-5,
                                    rope_parameters=ROPE_LLAMA3 | dict(rope_theta=10000.0), tie_word_embeddings=True, **SMALL),
    # Biases on q, k, v and half-split rotary pairs.
    "qwen2-tied": Qwen2Config(hidden_size=32, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6,
                              rope_parameters=dict(rope_type="default", rope_theta=1000000.0), tie_word_embeddings=True, **SMALL),
    # head_dim 20; a head of its own.
    "qwen2-head-20": Qwen2Config(hidden_size=60, intermediate_size=52, num_attention_heads=3, num_key_value_heads=1, rms_norm_eps=1e-5,
                                 rope_parameters=dict(rope_type="default", rope_theta=10000.0), tie_word_embeddings=False, **SMALL),
}


def randomise(model, generator):
    """Weights with which attention is far from uniform and logits are far from zero."""
    for name, p in model.named_parameters():
        std = 0.5 if name.endswith("bias") else 1.0 if "embed_tokens" in name else p.shape[-1] ** -0.5
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            std *= 1.5
        p.data = torch.randn(p.shape, generator=generator) * std
        if "norm" in name:
            p.data = 1.0 + 0.3 * torch.randn(p.shape, generator=generator)


def rope_factors(head_dim, theta, scaling):
    """What each rotary frequency is divided by: Llama 3.1's rule, as GGUF's rope_freqs.weight holds it."""
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    turns = scaling["original_max_position_embeddings"] / wavelength
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    blend = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - blend) / scaling["factor"] + blend)).astype(np.float32)


def add_small_tokenizer(writer, pre):
    """Two control tokens, the printable characters, blank, newline and six merges."""
    single = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ"]
    merges = ["t h", "th e", "i n", "e r", "a n", "Ġ t"]
    tokens = ["<bos>", "<eos>"] + single + [m.replace(" ", "") for m in merges]
    assert len(tokens) == VOCAB
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * 2 + [TokenType.NORMAL] * (VOCAB - 2))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)


def write_gguf(path, name, model):
    c = model.config
    arch = c.model_type
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    writer = GGUFWriter(path, arch)
    writer.add_name(name)
    writer.add_file_type(0)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_vocab_size(VOCAB)
    if head_dim * c.num_attention_heads != c.hidden_size:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if arch == "llama":
        writer.add_rope_dimension_count(head_dim)
    add_small_tokenizer(writer, {"llama": "llama-bpe", "qwen2": "qwen2"}[arch])
    if c.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_factors(head_dim, c.rope_parameters["rope_theta"], c.rope_parameters))
    for key, weight in model.state_dict().items():
        if key == "lm_head.weight" and c.tie_word_embeddings:
            continue
        weight = weight.numpy().astype(np.float32)
        if arch == "llama" and key.endswith("q_proj.weight"):
            weight = adjacent_pairs(weight, c.num_attention_heads)
        if arch == "llama" and key.endswith("k_proj.weight"):
            weight = adjacent_pairs(weight, c.num_key_value_heads)
        writer.add_tensor(gguf_name(key), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write(folder):
    """Writes NAME.gguf and NAME.logits.f32; returns their entries of golden.json."""
    entries = []
    for seed, (name, config) in enumerate(MODELS.items()):
        generator = torch.Generator().manual_seed(seed)
        model = {"llama": LlamaForCausalLM, "qwen2": Qwen2ForCausalLM}[config.model_type](config).float().eval()
        randomise(model, generator)
        tokens = [0] + torch.randint(2, VOCAB, (TOKENS - 1,), generator=generator).tolist()
        with torch.no_grad():
            out = model(torch.tensor([tokens]), output_attentions=True)
            swapped = model(torch.tensor([tokens[:1] + tokens[1:-1][::-1] + tokens[-1:]])).logits[0, -1]
        logits = out.logits[0].numpy()
        # A golden that cannot tell a wrong engine from a right one is none: logits are spread, attention is not uniform, order matters.
        assert logits.std() > 1 and np.isfinite(logits).all(), name
        assert max(a[0, :, -1].max() for a in out.attentions) > 0.3, name
        assert (swapped - out.logits[0, -1]).abs().max() > 0.05 * out.logits.abs().max(), name
        if config.rope_parameters["rope_type"] == "llama3":
            size = config.hidden_size // config.num_attention_heads
            plain = config.rope_parameters["rope_theta"] ** -(np.arange(0, size, 2) / size)
            factors = rope_factors(size, config.rope_parameters["rope_theta"], config.rope_parameters)
            assert np.allclose(model.model.rotary_emb.inv_freq.numpy(), plain / factors, rtol=1e-6), name
        write_gguf(folder / f"{name}.gguf", name, model)
        (folder / f"{name}.logits.f32").write_bytes(logits.astype("<f4").tobytes())
        entries.append(dict(name=name, gguf=f"tests/data/{name}.gguf", logits=f"tests/data/{name}.logits.f32", dtype="f32", tokens=tokens,
                            n_vocab=VOCAB))
    return entries


def dump(value, path):
    """JSON, a line per entry."""
    path.write_text("{\n" + ",\n".join(
        f' "{key}": [\n' + ",\n".join("  " + json.dumps(entry) for entry in entries) + "\n ]" for key, entries in value.items()) + "\n}\n")
