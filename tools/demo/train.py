#!/usr/bin/env python3
"""Trains the demo model or its small sibling on what prepare.py wrote. One GPU, minutes.

    train.py --data DIR --model demo --minutes 4 --out DIR/demo
    train.py --data DIR --model demo-small --minutes 1 --out DIR/demo-small

Writes config.json, model.safetensors and log.txt. `--init` continues from an earlier checkpoint.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer

from model import SHAPES, Llama, save
from prepare import heldout_text
from protocol import perplexity
from tokenizer import BOS, EOS

PEAK_RATE = {"demo": 2e-3, "demo-small": 4e-3}
LOG = []


def log(text):
    print(text, flush=True)
    LOG.append(text)


def heldout_perplexity(model, tokenizer, device):
    """Of heldout.txt, by the protocol."""
    bos = tokenizer.token_to_id(BOS)
    ids = [bos] + tokenizer.encode(heldout_text(), add_special_tokens=False).ids

    @torch.no_grad()
    def nll(window):
        x = torch.tensor([window], device=device)
        return F.cross_entropy(model(x[:, :-1])[0].float(), x[0, 1:], reduction="none").tolist()

    return perplexity(nll, ids, bos)


def fit(name, model, rows, minutes, batch, max_steps):
    """Trains for so many minutes; the learning rate follows the clock, so that it always ends low."""
    device = rows.device.type
    matrices = [p for p in model.parameters() if p.dim() == 2]
    norms = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([dict(params=matrices, weight_decay=0.1), dict(params=norms, weight_decay=0.0)],
                                  lr=0.0, betas=(0.9, 0.95), fused=device == "cuda")

    def loss_of(x):
        with torch.autocast(device, torch.bfloat16):
            logits = model(x[:, :-1])
        return F.cross_entropy(logits.float().flatten(0, 1), x[:, 1:].flatten())

    torch._dynamo.config.suppress_errors = True  # slower, rather than nothing, where the compiler fails
    step_loss = torch.compile(loss_of) if device == "cuda" else loss_of
    generator = torch.Generator().manual_seed(0)
    order, step, began, clock = None, 0, None, 0.0
    total = torch.zeros((), device=device)
    while clock < 1.0:
        if order is None or len(order) < batch:
            order = torch.randperm(len(rows), generator=generator)
        pick, order = order[:batch].to(rows.device), order[batch:]
        loss = step_loss(rows[pick].long())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if step == 2:
            began = time.time()  # compiled by now
        if began is not None:
            clock = max((time.time() - began) / (minutes * 60), step / max_steps)
        rate = PEAK_RATE[name] * min(1.0, (step + 1) / 200) * (0.02 + 0.98 * (1 + math.cos(math.pi * min(1.0, clock))) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total += loss.detach()
        step += 1
        if step % 500 == 0:
            log(f"{name}: step {step}, {time.time() - began:.0f} s, rate {rate:.2e}, loss {total.item() / 500:.4f}")
            total.zero_()
        elif step % 20 == 0 and device == "cuda":
            torch.cuda.synchronize()  # or the clock would run ahead of the GPU
    log(f"{name}: {step} steps of {batch} rows of {rows.shape[1] - 1} tokens in {time.time() - began:.0f} s")
    return loss_of


@torch.no_grad()
def sample(model, tokenizer, device, prompt, tokens=500, temperature=0.7, seed=1):
    """A story by the model, without any cache: for a look at it."""
    generator = torch.Generator(device).manual_seed(seed)
    ids = [tokenizer.token_to_id(BOS)] + tokenizer.encode(prompt, add_special_tokens=False).ids
    for _ in range(tokens):
        p = torch.softmax(model(torch.tensor([ids], device=device))[0, -1].float() / temperature, -1)
        ids.append(int(torch.multinomial(p, 1, generator=generator)))
        if ids[-1] == tokenizer.token_to_id(EOS):
            break
    return tokenizer.decode(ids)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", choices=SHAPES, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, nargs="*", default=[], help="safetensors files to start from")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--max-steps", type=int, default=10**9)
    parser.add_argument("--samples", type=int, default=0)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    model = Llama(SHAPES[args.model])
    if args.init:
        model.load_state_dict({k: v.float() for file in args.init for k, v in load_file(file).items()})
    model.to(device)
    log(f"{args.model}: {sum(p.numel() for p in model.parameters())} parameters")
    tokenizer = Tokenizer.from_file(str(args.data / "tokenizer.json"))
    rows, held = (torch.from_numpy(np.load(args.data / name)).to(device) for name in ("train.npy", "heldout.npy"))
    loss_of = fit(args.model, model, rows, args.minutes, args.batch, args.max_steps)
    save(model, args.out)
    with torch.no_grad():
        loss = torch.stack([loss_of(h.long()) for h in held[:256].split(16)]).mean().item()
    ppl, scored = heldout_perplexity(model, tokenizer, device)
    log(f"{args.model}: loss on held-out documents {loss:.4f}; perplexity of heldout.txt {ppl:.4f} ({scored} tokens scored)")
    for seed in range(args.samples):
        log(f"--- sample {seed}:\n{sample(model, tokenizer, device, 'Once upon a time', seed=seed)}")
    (args.out / "log.txt").write_text("\n".join(LOG) + "\n")


if __name__ == "__main__":
    main()
