#!/usr/bin/env python3
"""Writes a checkpoint of train.py as GGUF: matrices Q8_0, norms F32.

    export.py --checkpoint DIR/demo --tokenizer DIR/tokenizer.json --name "Demo" --out assets/demo.gguf
"""

import argparse
import json
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import quantize
from safetensors.numpy import load_file

from tokenizer import BOS, EOS, SPECIAL

NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
         "post_attention_layernorm": "ffn_norm"}


def gguf_name(name: str) -> str:
    """transformers' name of a parameter -> GGUF's."""
    if name.startswith("model.layers."):
        _, _, layer, rest = name.split(".", 3)
        return f"blk.{layer}.{NAMES[rest.rsplit('.', 1)[0]]}.{name.rsplit('.', 1)[1]}"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}[name]


def adjacent_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the rows of q or k from half-split rotary pairs (i, i + d/2) to GGUF's adjacent ones (2i, 2i + 1)."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def add_tokenizer(writer: GGUFWriter, path) -> None:
    """The vocabulary, merges and kinds of tokens of a tokenizers JSON file."""
    spec = json.loads(Path(path).read_text())["model"]
    tokens = sorted(spec["vocab"], key=spec["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if t in SPECIAL else TokenType.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in spec["merges"]])
    writer.add_bos_token_id(spec["vocab"][BOS])
    writer.add_eos_token_id(spec["vocab"][EOS])
    writer.add_eot_token_id(spec["vocab"]["<|eot_id|>"])
    writer.add_add_bos_token(True)
    writer.add_chat_template((Path(__file__).parent / "chat.jinja").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    shape = json.loads((args.checkpoint / "config.json").read_text())["shape"]
    writer = GGUFWriter(args.out, "llama")
    writer.add_name(args.name)
    writer.add_description("Trained on the stories that tools/demo/stories.py writes")
    writer.add_license("CC0-1.0")
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(2)
    writer.add_context_length(shape["context"])
    writer.add_embedding_length(shape["hidden"])
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(shape["ff"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_key_length(shape["head_dim"])
    writer.add_value_length(shape["head_dim"])
    writer.add_rope_dimension_count(shape["head_dim"])
    writer.add_rope_freq_base(shape["theta"])
    writer.add_layer_norm_rms_eps(shape["eps"])
    writer.add_vocab_size(shape["vocab"])
    add_tokenizer(writer, args.tokenizer)
    for name, weight in load_file(args.checkpoint / "model.safetensors").items():
        if name.endswith("q_proj.weight"):
            weight = adjacent_pairs(weight, shape["heads"])
        if name.endswith("k_proj.weight"):
            weight = adjacent_pairs(weight, shape["kv_heads"])
        if weight.ndim == 2:
            q8 = GGMLQuantizationType.Q8_0
            writer.add_tensor(gguf_name(name), quantize(weight, q8), raw_dtype=q8)
        else:
            writer.add_tensor(gguf_name(name), weight.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
