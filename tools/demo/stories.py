#!/usr/bin/env python3
"""Writes simple English stories from a seed.

    stories.py --split heldout --count 3            prints stories 0, 1, 2 of the held-out split
    stories.py --split train --first 100 --count 5

A story is a function of (split, number) alone, so the splits never share a seed.
"""

import argparse
import random
import re

from plots import PLOTS
from teller import Teller


def story(split: str, number: int) -> str:
    """The story with this number in this split: a few paragraphs, one per line."""
    rng = random.Random(f"{split}:{number}")
    teller = Teller(rng)
    rng.choice(PLOTS)(teller)
    return teller.text()


def check(text: str) -> None:
    """A template that was not filled in is a bug of the generator."""
    if re.search(r"[\[\]{}|^~]|  | [.,!?]|None", text):
        raise ValueError(f"unfinished template in: {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", default="heldout")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    args = parser.parse_args()
    stories = [story(args.split, n) for n in range(args.first, args.first + args.count)]
    for text in stories:
        check(text)
    print("\n\n".join(stories))


if __name__ == "__main__":
    main()
