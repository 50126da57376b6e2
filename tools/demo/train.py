#!/usr/bin/env python3
"""Trains the demo model and its small sibling on generated stories. One GPU, minutes.

    train.py --out DIR [--stories 400000] [--minutes 3.6 1.2]

Writes DIR/tokenizer.json, DIR/demo and DIR/demo-small (config.json, model.safetensors) and DIR/log.txt.
"""

import argparse
import math
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import tokenizer as bpe
from model import SHAPES, Llama, save
from protocol import perplexity
from stories import check, story

os.environ["TOKENIZERS_PARALLELISM"] = "false"
HELDOUT_STORIES = 64
PEAK_RATE = {"demo": 2e-3, "demo-small": 4e-3}
LOG = []
TOKENIZER = None


def log(text):
    print(text, flush=True)
    LOG.append(text)


def heldout_text() -> str:
    """What assets/heldout.txt holds."""
    return "\n\n".join(story("heldout", n) for n in range(HELDOUT_STORIES)) + "\n"


def documents(split, first, count):
    """One story each, and every tenth a collection of four, as heldout.txt is one."""
    numbers = range(first, first + count)
    index = first
    while index < numbers.stop:
        size = 4 if index % 10 == 0 else 1
        texts = [story(split, n) for n in range(index, min(index + size, numbers.stop))]
        for text in texts:
            check(text)
        yield "\n\n".join(texts)
        index += size


def encode(job):
    """(split, first, count) -> the documents' tokens as rows of context + 1, each row beginning with a document."""
    split, first, count, width = job
    bos, eos = TOKENIZER.token_to_id(bpe.BOS), TOKENIZER.token_to_id(bpe.EOS)
    rows, row = [], []
    for coded in TOKENIZER.encode_batch(list(documents(split, first, count)), add_special_tokens=False):
        row += [bos, *coded.ids, eos]
        if len(row) >= width:
            rows.append(row[:width])
            row = []
    return np.array(rows, dtype=np.int16).reshape(-1, width)


def rows_of(split, stories, width, workers):
    chunk = 500
    jobs = [(split, first, min(chunk, stories - first), width) for first in range(0, stories, chunk)]
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        return np.concatenate(pool.map(encode, jobs, chunksize=4))


def heldout_perplexity(model, device):
    """By the protocol, in float32."""
    bos = TOKENIZER.token_to_id(bpe.BOS)
    ids = [bos] + TOKENIZER.encode(heldout_text(), add_special_tokens=False).ids

    @torch.no_grad()
    def nll(window):
        x = torch.tensor([window], device=device)
        return F.cross_entropy(model(x[:, :-1])[0].float(), x[0, 1:], reduction="none").tolist()

    return perplexity(nll, ids, bos)


@torch.no_grad()
def sample(model, device, prompt="", tokens=500, temperature=0.7, seed=1):
    generator = torch.Generator(device).manual_seed(seed)
    ids = [TOKENIZER.token_to_id(bpe.BOS)] + TOKENIZER.encode(prompt, add_special_tokens=False).ids
    for _ in range(tokens):
        p = torch.softmax(model(torch.tensor([ids], device=device))[0, -1].float() / temperature, -1)
        ids.append(int(torch.multinomial(p, 1, generator=generator)))
        if ids[-1] == TOKENIZER.token_to_id(bpe.EOS):
            break
    return TOKENIZER.decode(ids)


def fit(name, rows, held, minutes, batch, max_steps, device):
    """Trains one model for so many minutes; the learning rate follows the clock, so that it always ends low."""
    torch.manual_seed(0)
    model = Llama(SHAPES[name]).to(device)
    log(f"{name}: {sum(p.numel() for p in model.parameters())} parameters")
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
    order, step, began = None, 0, None
    total = torch.zeros((), device=device)
    while True:
        if order is None or len(order) < batch:
            order = torch.randperm(len(rows), generator=generator)
        pick, order = order[:batch].to(rows.device), order[batch:]
        loss = step_loss(rows[pick].long())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if step == 2:
            began = time.time()  # compiled by now
        clock = 0.0 if began is None else max((time.time() - began) / (minutes * 60), step / max_steps)
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
        if clock >= 1.0:
            break
    with torch.no_grad():
        loss = torch.stack([loss_of(h.long()) for h in held.split(16)]).mean().item()
    ppl, scored = heldout_perplexity(model, device)
    log(f"{name}: {step} steps of {batch} rows of {rows.shape[1] - 1} tokens; loss on held-out documents {loss:.4f}; perplexity of "
        f"heldout.txt {ppl:.4f} ({scored} tokens scored)")
    return model


def main():
    global TOKENIZER
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stories", type=int, default=400000)
    parser.add_argument("--tokenizer-stories", type=int, default=20000)
    parser.add_argument("--minutes", type=float, nargs=2, default=[3.6, 1.2])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--max-steps", type=int, default=10**9)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.time()
    TOKENIZER = bpe.train("\n\n".join(story("tokenizer", n + i) for i in range(4)) for n in range(0, args.tokenizer_stories, 4))
    TOKENIZER.save(str(args.out / "tokenizer.json"))
    log(f"tokenizer: {time.time() - began:.0f} s")
    width = SHAPES["demo"].context + 1
    rows = rows_of("train", args.stories, width, args.workers)
    held = rows_of("heldout", 2000, width, args.workers)[:400]
    log(f"data: {args.stories} stories, {rows.size / 1e6:.1f} M tokens, {time.time() - began:.0f} s")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    rows, held = torch.from_numpy(rows).to(device), torch.from_numpy(held).to(device)
    for (name, minutes) in zip(SHAPES, args.minutes):
        model = fit(name, rows, held, minutes, args.batch, args.max_steps, device)
        save(model, args.out / name)
        for seed, prompt in ((1, "Once upon a time"), (2, "")):
            log(f"--- {name}, seed {seed}:\n{sample(model, device, prompt, seed=seed)}")
        (args.out / "log.txt").write_text("\n".join(LOG) + "\n")
    log(f"all: {time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
