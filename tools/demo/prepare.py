#!/usr/bin/env python3
"""Writes what training needs: the tokenizer, and stories as tokens. CPU only, minutes.

    prepare.py --out DIR [--stories 300000] [--tokenizer FILE]
    prepare.py --heldout assets/heldout.txt

Writes DIR/tokenizer.json (or copies FILE) and DIR/train.npy, DIR/heldout.npy: rows of 1025 tokens, int16.
"""

import argparse
import multiprocessing
import os
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

import tokenizer as bpe
from stories import check, story

os.environ["TOKENIZERS_PARALLELISM"] = "false"
HELDOUT_STORIES = 64
WIDTH = 1025
TOKENIZER = None


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
    """(split, first, count) -> the documents' tokens as rows of WIDTH, each row beginning with a document."""
    split, first, count = job
    bos, eos = TOKENIZER.token_to_id(bpe.BOS), TOKENIZER.token_to_id(bpe.EOS)
    rows, row = [], []
    for coded in TOKENIZER.encode_batch(list(documents(split, first, count)), add_special_tokens=False):
        row += [bos, *coded.ids, eos]
        if len(row) >= WIDTH:
            rows.append(row[:WIDTH])
            row = []
    return np.array(rows, dtype=np.int16).reshape(-1, WIDTH)


def rows_of(split, stories, workers):
    chunk = 500
    jobs = [(split, first, min(chunk, stories - first)) for first in range(0, stories, chunk)]
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        return np.concatenate(pool.map(encode, jobs, chunksize=4))


def write(path, rows):
    np.save(path, rows)
    print(f"{path}: {rows.size / 1e6:.1f} M tokens", flush=True)


def main():
    global TOKENIZER
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--stories", type=int, default=300000)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--heldout", type=Path, help="only write the held-out text")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    if args.heldout:
        args.heldout.write_text(heldout_text())
        return
    args.out.mkdir(parents=True, exist_ok=True)
    TOKENIZER = Tokenizer.from_file(str(args.tokenizer)) if args.tokenizer else bpe.train(
        "\n\n".join(story("tokenizer", n + i) for i in range(4)) for n in range(0, 20000, 4))
    TOKENIZER.save(str(args.out / "tokenizer.json"))
    write(args.out / "heldout.npy", rows_of("heldout", 1000, args.workers))
    write(args.out / "train.npy", rows_of("train", args.stories, args.workers))


if __name__ == "__main__":
    main()
