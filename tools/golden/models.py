"""Tiny random models as GGUF, with the logits that Hugging Face transformers gives.

Each model has a feature or two that others lack. `off` says how to switch them off, one by one, and each must change the logits: a
golden that does not depend on a feature cannot tell whether an engine has it.
"""

import copy
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGUFWriter, RopeScalingType, TokenType, get_tensor_name_map
from transformers import (AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, GemmaConfig, LlamaConfig, Ministral3Config, MistralConfig,
                          Phi3Config, Qwen2Config, Qwen3Config)

from export import adjacent_pairs

VOCAB, CONTEXT, TOKENS = 104, 64, 24
# transformers' model_type -> GGUF's architecture.
ARCHS = {"llama": "llama", "mistral": "llama", "ministral3": "mistral3", "qwen2": "qwen2", "qwen3": "qwen3", "phi3": "phi3", "gemma": "gemma",
         "gemma2": "gemma2", "gemma3_text": "gemma3"}
# Those whose q and k rows the conversion reorders to adjacent rotary pairs.
ADJACENT = ["llama", "mistral3"]
ROPE_LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
SMALL = dict(vocab_size=VOCAB, num_hidden_layers=2, max_position_embeddings=CONTEXT, attn_implementation="eager", bos_token_id=0, eos_token_id=1,
             pad_token_id=None)
SILU = dict(hidden_act="silu")


def rope(theta=10000.0, **scaling):
    return dict(rope_type="default", rope_theta=theta) | scaling


def without(**norms):
    """Replaces the modules of these names by the identity."""
    def change(model):
        for layer in model.model.layers:
            for name, parent in norms.items():
                setattr(layer.get_submodule(parent), name, torch.nn.Identity())
    return change


def unscaled(model):
    model.model.embed_tokens.embed_scale.fill_(1.0)


@dataclass
class Case:
    config: Any
    # What is switched off -> other values in the configuration, or a function that changes the model.
    off: dict = field(default_factory=dict)
    # Lengths of the text, and the context that the engine is to be run with for each.
    texts: dict = field(default_factory=lambda: {"": (TOKENS, None)})


HEAD_NORMS = without(q_norm="self_attn", k_norm="self_attn")
POST_NORMS = dict(post_attention_layernorm="", post_feedforward_layernorm="")
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
LONGROPE = dict(rope_type="longrope", original_max_position_embeddings=32, partial_rotary_factor=0.75,
                short_factor=[1.0, 1.1, 1.2, 1.3, 1.5, 1.7], long_factor=[1.2, 2.0, 3.5, 5.0, 8.0, 12.0])

MODELS = {
    # Grouped queries; the head is the embedding table.
    "llama-gqa-tied": Case(LlamaConfig(hidden_size=48, intermediate_size=80, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5,
                                       rope_parameters=rope(), tie_word_embeddings=True, **SMALL, **SILU)),
    # A head_dim that is not hidden / heads; a head of its own; another theta.
    "llama-head-dim": Case(LlamaConfig(hidden_size=48, intermediate_size=64, num_attention_heads=3, num_key_value_heads=1, head_dim=32,
                                       rms_norm_eps=1e-6, rope_parameters=rope(500.0), tie_word_embeddings=False, **SMALL, **SILU),
                           {"theta": dict(rope_parameters=rope())}),
    # Llama 3.1's rotary scaling: the tensor rope_freqs.weight.
    "llama-rope-freqs": Case(LlamaConfig(hidden_size=32, intermediate_size=48, num_attention_heads=2, num_key_value_heads=2, rms_norm_eps=1e-5,
                                         rope_parameters=rope(**ROPE_LLAMA3), tie_word_embeddings=True, **SMALL, **SILU),
                             {"scaling": dict(rope_parameters=rope())}),
    # Biases on q, k, v and half-split rotary pairs.
    "qwen2-tied": Case(Qwen2Config(hidden_size=32, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6,
                                   rope_parameters=rope(1000000.0), tie_word_embeddings=True, **SMALL, **SILU)),
    # head_dim 20; a head of its own.
    "qwen2-head-20": Case(Qwen2Config(hidden_size=60, intermediate_size=52, num_attention_heads=3, num_key_value_heads=1, rms_norm_eps=1e-5,
                                      rope_parameters=rope(), tie_word_embeddings=False, **SMALL, **SILU)),
    # Norms on the heads of q and k; a head_dim that is not hidden / heads; no biases.
    "qwen3": Case(Qwen3Config(hidden_size=32, intermediate_size=40, num_attention_heads=3, num_key_value_heads=1, head_dim=24, rms_norm_eps=1e-6,
                              rope_parameters=rope(1000000.0), tie_word_embeddings=False, **SMALL, **SILU),
                  {"head norms": HEAD_NORMS, "q's norm": without(q_norm="self_attn"), "k's norm": without(k_norm="self_attn")}),
    # YaRN with half-split pairs, as Qwen stretches its models.
    "qwen3-yarn": Case(Qwen3Config(hidden_size=32, intermediate_size=40, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
                                   rms_norm_eps=1e-6, rope_parameters=rope(1000000.0, **YARN), tie_word_embeddings=True, **SMALL, **SILU),
                       {"scaling": dict(rope_parameters=rope(1000000.0))}, {"": (40, None)}),
    # Linear scaling.
    "llama-linear": Case(LlamaConfig(hidden_size=32, intermediate_size=48, num_attention_heads=2, num_key_value_heads=1, rms_norm_eps=1e-5,
                                     rope_parameters=rope(rope_type="linear", factor=4.0), tie_word_embeddings=True, **SMALL, **SILU),
                         {"scaling": dict(rope_parameters=rope())}),
    # YaRN, with positions up to its whole context and pairs of all three kinds; a magnitude of its own.
    "llama-yarn": Case(LlamaConfig(hidden_size=32, intermediate_size=48, num_attention_heads=2, num_key_value_heads=1, rms_norm_eps=1e-5,
                                   rope_parameters=rope(100.0, **YARN, beta_fast=2.0, beta_slow=0.25, attention_factor=1.3),
                                   tie_word_embeddings=True, **SMALL, **SILU),
                       {"scaling": dict(rope_parameters=rope(100.0)),
                        "interpolation": dict(rope_parameters=rope(100.0, **YARN, beta_fast=200.0, beta_slow=100.0, attention_factor=1.3)),
                        "blend": dict(rope_parameters=rope(100.0, **YARN, beta_fast=1.0, beta_slow=0.999, attention_factor=1.3)),
                        "magnitude": dict(rope_parameters=rope(100.0, **YARN, beta_fast=2.0, beta_slow=0.25))}, {"": (40, None)}),
    # Every layer sees a window, and the text is longer.
    "mistral-window": Case(MistralConfig(hidden_size=32, intermediate_size=48, num_attention_heads=2, num_key_value_heads=1, rms_norm_eps=1e-5,
                                         rope_parameters=rope(), sliding_window=7, tie_word_embeddings=False, **SMALL, **SILU),
                           {"window": dict(sliding_window=None), "its edge": dict(sliding_window=8)}),
    # YaRN that leaves the magnitude, and queries that grow with their position.
    "mistral3": Case(Ministral3Config(hidden_size=32, intermediate_size=48, num_attention_heads=2, num_key_value_heads=1, head_dim=20,
                                      rms_norm_eps=1e-5, tie_word_embeddings=False, **SMALL, **SILU,
                                      rope_parameters=rope(**YARN, beta_fast=4.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0,
                                                           llama_4_scaling_beta=0.5)),
                     {"temperature": dict(rope_parameters=rope(**YARN, beta_fast=4.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0,
                                                               llama_4_scaling_beta=0.0)),
                      "unit magnitude": dict(rope_parameters=rope(**YARN, beta_fast=4.0, beta_slow=1.0, llama_4_scaling_beta=0.5))},
                     {"": (40, None)}),
    # Fused q, k, v and fused gate and up, with a window.
    "phi3-window": Case(Phi3Config(hidden_size=32, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5,
                                   original_max_position_embeddings=CONTEXT, rope_parameters=rope(), sliding_window=9, tie_word_embeddings=False,
                                   **SMALL, **SILU),
                        {"window": dict(sliding_window=None), "its edge": dict(sliding_window=10)}),
    # Three quarters of a head turn; factors for short and for long contexts.
    "phi3-longrope": Case(Phi3Config(hidden_size=32, intermediate_size=40, num_attention_heads=2, num_key_value_heads=1, rms_norm_eps=1e-5,
                                     original_max_position_embeddings=32, rope_parameters=rope(**LONGROPE), tie_word_embeddings=True, **SMALL,
                                     **SILU),
                          {"factors": dict(rope_parameters=rope(**LONGROPE | dict(short_factor=[1.0] * 6, long_factor=[1.0] * 6))),
                           "magnitude": dict(rope_parameters=rope(**LONGROPE, attention_factor=1.0))},
                          {"-short": (TOKENS, 32), "-long": (40, 64)}),
    # Scaled embeddings, GeGLU; heads of 256.
    "gemma-head-256": Case(GemmaConfig(hidden_size=16, intermediate_size=40, num_attention_heads=2, num_key_value_heads=1, head_dim=256,
                                       rms_norm_eps=1e-6, rope_parameters=rope(), hidden_act="gelu_pytorch_tanh", tie_word_embeddings=True,
                                       **SMALL | dict(num_hidden_layers=1)),
                           {"scaled embeddings": unscaled, "GeLU": SILU}),
    # Norms on both sides, two caps that bite, a window on every other layer.
    "gemma2": Case(Gemma2Config(hidden_size=32, intermediate_size=48, num_attention_heads=2, num_key_value_heads=1, head_dim=20, rms_norm_eps=1e-6,
                                rope_parameters=rope(), query_pre_attn_scalar=20, attn_logit_softcapping=3.0, final_logit_softcapping=9.0,
                                sliding_window=7, hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True, **SMALL),
                   {"scaled embeddings": unscaled, "post norms": without(**POST_NORMS),
                    "norm after attention": without(post_attention_layernorm=""), "norm after feed-forward": without(post_feedforward_layernorm=""),
                    "attention's cap": dict(attn_logit_softcapping=None), "the logits' cap": dict(final_logit_softcapping=None),
                    "attention's scale": dict(query_pre_attn_scalar=16), "window": dict(sliding_window=1000),
                    "which layer": dict(layer_types=["full_attention", "sliding_attention"]), "GeLU": dict(hidden_activation="silu")}),
    # Norms on both sides and on the heads; five layers of six see a window and turn by a rope of their own.
    "gemma3": Case(Gemma3TextConfig(hidden_size=24, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
                                    rms_norm_eps=1e-6, query_pre_attn_scalar=16, sliding_window=7, hidden_activation="gelu_pytorch_tanh",
                                    rope_parameters=dict(sliding_attention=rope(), full_attention=rope(1000000.0, rope_type="linear", factor=8.0)),
                                    tie_word_embeddings=True, **SMALL | dict(num_hidden_layers=7)),
                   {"head norms": HEAD_NORMS, "post norms": without(**POST_NORMS), "scaled embeddings": unscaled,
                    "window": dict(sliding_window=1000), "global layers": dict(layer_types=["sliding_attention"] * 7),
                    "global rope": dict(rope_parameters=dict(sliding_attention=rope(), full_attention=rope())),
                    "its scaling": dict(rope_parameters=dict(sliding_attention=rope(), full_attention=rope(1000000.0))),
                    "local rope": dict(rope_parameters=dict(sliding_attention=rope(1000000.0),
                                                            full_attention=rope(1000000.0, rope_type="linear", factor=8.0)))}),
}


def adds_one_to_norms(config):
    """Gemma's norms multiply by 1 + weight; GGUF holds the sum."""
    return config.model_type.startswith("gemma")


def randomise(model, generator):
    """Weights with which attention is far from uniform and logits are far from zero."""
    for name, p in model.named_parameters():
        std = 0.5 if name.endswith("bias") else 1.0 if "embed_tokens" in name else p.shape[-1] ** -0.5
        if name.endswith(("q_proj.weight", "k_proj.weight", "qkv_proj.weight")):
            std *= 1.25 if "qkv" in name else 1.5
        p.data = torch.randn(p.shape, generator=generator) * std
        if "norm" in name:
            mean = 1.5 if name.endswith(("q_norm.weight", "k_norm.weight")) else 1.0
            p.data = mean - adds_one_to_norms(model.config) + 0.3 * torch.randn(p.shape, generator=generator)


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


def head_dim_of(config):
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rope_of(config):
    """The rope of most models' layers, or of those that see everything."""
    return config.rope_parameters.get("full_attention", config.rope_parameters)


def write_rope(writer, arch, config):
    """The keys and tensors that llama.cpp's conversion makes of a model's rotary embedding."""
    parameters, dims = rope_of(config), head_dim_of(config)
    kind = parameters["rope_type"]
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(parameters["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(parameters["original_max_position_embeddings"])
        optional = dict(attention_factor=writer.add_rope_scaling_yarn_attn_factor, beta_fast=writer.add_rope_scaling_yarn_beta_fast,
                        beta_slow=writer.add_rope_scaling_yarn_beta_slow, mscale_all_dim=writer.add_rope_scaling_yarn_log_mul,
                        llama_4_scaling_beta=writer.add_attn_temperature_scale)
        for key, add in optional.items():
            if key in parameters:
                add(parameters[key])
    if kind == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_factors(dims, parameters["rope_theta"], parameters))
    if arch == "phi3":
        original = parameters["original_max_position_embeddings"] if kind == "longrope" else config.original_max_position_embeddings
        dims = int(parameters.get("partial_rotary_factor", 1.0) * dims)
        writer.add_rope_scaling_orig_ctx_len(original)
    if kind == "longrope":
        scale = config.max_position_embeddings / original
        writer.add_rope_scaling_attn_factors((1 + np.log(scale) / np.log(original)) ** 0.5)
        for length in ("long", "short"):
            writer.add_tensor(f"rope_factors_{length}.weight", np.array(parameters[f"{length}_factor"], np.float32))
    if arch in ("llama", "mistral3", "phi3"):
        writer.add_rope_dimension_count(dims)


def write_gguf(path, name, model):
    c = model.config
    arch, head_dim = ARCHS[c.model_type], head_dim_of(c)
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
    writer.add_rope_freq_base(rope_of(c)["rope_theta"])
    writer.add_vocab_size(VOCAB)
    if head_dim * c.num_attention_heads != c.hidden_size or arch == "qwen3" or adds_one_to_norms(c):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if c.model_type in ("mistral", "phi3", "gemma2", "gemma3_text"):
        writer.add_sliding_window(c.sliding_window or 0)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(c.attn_logit_softcapping)
        writer.add_final_logit_softcapping(c.final_logit_softcapping)
    write_rope(writer, arch, c)
    add_small_tokenizer(writer, "qwen2" if arch.startswith("qwen") else "llama-bpe")
    names = get_tensor_name_map({name: arch for arch, name in MODEL_ARCH_NAMES.items()}[arch], c.num_hidden_layers)
    for key, weight in model.state_dict().items():
        if key == "lm_head.weight" and c.tie_word_embeddings:
            continue
        weight = weight.numpy().astype(np.float32)
        if arch in ADJACENT and key.endswith("q_proj.weight"):
            weight = adjacent_pairs(weight, c.num_attention_heads)
        if arch in ADJACENT and key.endswith("k_proj.weight"):
            weight = adjacent_pairs(weight, c.num_key_value_heads)
        if adds_one_to_norms(c) and key.endswith("norm.weight"):
            weight = weight + 1
        writer.add_tensor(names.get_name(key, try_suffixes=(".weight", ".bias")), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def switched_off(model, change):
    """A copy of the model that lacks something."""
    if callable(change):
        other = copy.deepcopy(model)
        change(other)
        return other
    config = copy.deepcopy(model.config)
    for key, value in change.items():
        assert hasattr(config, key), key
        setattr(config, key, value)
    other = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    other.load_state_dict(model.state_dict())
    return other


@torch.no_grad()
def check(name, case, model, tokens, out):
    """That the golden can tell a wrong engine from a right one: logits are spread, attention is not uniform, order and features matter."""
    largest = out.logits.abs().max()
    assert out.logits.std() > 0.7 and out.logits.isfinite().all(), (name, out.logits.std())
    assert max(a[0, :, -1].max() for a in out.attentions) > 0.3, name
    swapped = model(torch.tensor([tokens[:1] + tokens[1:-1][::-1] + tokens[-1:]])).logits[0, -1]
    assert (swapped - out.logits[0, -1]).abs().max() > 0.05 * largest, name
    for what, change in case.off.items():
        apart = (switched_off(model, change)(torch.tensor([tokens])).logits - out.logits).abs().max() / largest
        assert apart > 0.02, (name, what, apart)


def write(folder):
    """Writes NAME.gguf and NAME.logits.f32; returns their entries of golden.json."""
    entries = []
    for seed, (name, case) in enumerate(MODELS.items()):
        generator = torch.Generator().manual_seed(seed)
        config = case.config
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        randomise(model, generator)
        if config.rope_parameters.get("rope_type") == "llama3":
            size, theta = head_dim_of(config), config.rope_parameters["rope_theta"]
            plain = theta ** -(np.arange(0, size, 2) / size)
            factors = rope_factors(size, theta, config.rope_parameters)
            assert np.allclose(model.model.rotary_emb.inv_freq.numpy(), plain / factors, rtol=1e-6), name
        write_gguf(folder / f"{name}.gguf", name, model)
        for suffix, (length, context) in case.texts.items():
            tokens = [0] + torch.randint(2, VOCAB, (length - 1,), generator=generator).tolist()
            with torch.no_grad():
                out = model(torch.tensor([tokens]), output_attentions=True)
            check(name, case, model, tokens, out)
            (folder / f"{name}{suffix}.logits.f32").write_bytes(out.logits[0].numpy().astype("<f4").tobytes())
            entry = dict(name=name + suffix, gguf=f"tests/data/{name}.gguf", logits=f"tests/data/{name}{suffix}.logits.f32", dtype="f32",
                         tokens=tokens, n_vocab=VOCAB)
            entries.append(entry | (dict(context=context) if context else {}))
    return entries


def dump(value, path):
    """JSON, a line per entry."""
    path.write_text("{\n" + ",\n".join(
        f' "{key}": [\n' + ",\n".join("  " + json.dumps(entry) for entry in entries) + "\n ]" for key, entries in value.items()) + "\n}\n")
