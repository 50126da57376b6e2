"""The Llama architecture in PyTorch, as small as it gets, with Hugging Face's parameter names and its half-split rotary pairs."""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Config:
    """The shape of a model. `asdict` of it and `hugging_face()` go into the checkpoint."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ff: int
    head_dim: int = 64
    context: int = 1024
    vocab: int = 2048
    theta: float = 10000.0
    eps: float = 1e-5

    def hugging_face(self) -> dict:
        """The same shape as a transformers config.json for LlamaForCausalLM."""
        return dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=self.hidden, num_hidden_layers=self.layers,
                    num_attention_heads=self.heads, num_key_value_heads=self.kv_heads, head_dim=self.head_dim,
                    intermediate_size=self.ff, max_position_embeddings=self.context, vocab_size=self.vocab,
                    rope_theta=self.theta, rms_norm_eps=self.eps, tie_word_embeddings=True, hidden_act="silu")


SHAPES = {
    "demo": Config(hidden=256, layers=8, heads=4, kv_heads=2, ff=1024),
    "demo-small": Config(hidden=128, layers=3, heads=2, kv_heads=1, ff=384),
}


class Norm(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(c.hidden)), c.eps

    def forward(self, x):
        f = x.float()
        return (f * torch.rsqrt(f.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight.to(x.dtype)


class Attention(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.q_proj = nn.Linear(c.hidden, c.heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.heads * c.head_dim, c.hidden, bias=False)

    def forward(self, x, cos, sin):
        """x: [rows, tokens, hidden]; cos, sin: [tokens, head_dim]."""
        rows, tokens, _ = x.shape
        q, k, v = (p(x).view(rows, tokens, -1, self.c.head_dim).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = self.c.heads // self.c.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(rows, tokens, -1))


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos.to(x.dtype) + torch.cat((-b, a), -1) * sin.to(x.dtype)


class Mlp(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden, c.ff, bias=False)
        self.up_proj = nn.Linear(c.hidden, c.ff, bias=False)
        self.down_proj = nn.Linear(c.ff, c.hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.input_layernorm, self.self_attn = Norm(c), Attention(c)
        self.post_attention_layernorm, self.mlp = Norm(c), Mlp(c)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab, c.hidden)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = Norm(c)


class Llama(nn.Module):
    """The language model; the output head is the embedding table."""

    def __init__(self, c: Config):
        super().__init__()
        self.c, self.model = c, Body(c)
        angle = torch.outer(torch.arange(c.context), c.theta ** (-torch.arange(0, c.head_dim, 2) / c.head_dim))
        angle = torch.cat((angle, angle), -1)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:  # projections that write to the residual stream start smaller, the more layers there are
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / (2 * c.layers) ** 0.5 if last else 0.02 if "embed" in name else p.shape[1] ** -0.5 / 2)

    def forward(self, ids):
        """ids: [rows, tokens] -> logits [rows, tokens, vocab]."""
        tokens = ids.shape[1]
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, self.cos[:tokens], self.sin[:tokens])
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)


def save(model: Llama, folder) -> None:
    """Writes config.json and model.safetensors (float32), which transformers reads too."""
    import json
    from pathlib import Path

    from safetensors.torch import save_file
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.c.hugging_face() | {"shape": asdict(model.c)}, indent=1))
    save_file({k: v.detach().float().cpu().contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
