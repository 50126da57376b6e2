#!/usr/bin/env python3
"""Remakes the golden files in crates/quant/tests/data and tests/data with other people's implementations. See tests/data/README.md.

    pip install -r tools/golden/requirements.txt && python3 tools/golden/make.py
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/demo"))

import blocks  # noqa: E402
import chat  # noqa: E402
import demo  # noqa: E402
import models  # noqa: E402
import vocabularies  # noqa: E402


def main():
    data = ROOT / "tests/data"
    data.mkdir(parents=True, exist_ok=True)
    print("blocks", file=sys.stderr)
    blocks.write(ROOT / "crates/quant/tests/data")
    print("chat templates", file=sys.stderr)
    chat.write(data)
    print("vocabularies", file=sys.stderr)
    vocabularies.write(data / "tokenizers.json")
    print("tiny models", file=sys.stderr)
    entries = models.write(data)
    print("demo models", file=sys.stderr)
    demo_entries, perplexities = demo.write(ROOT, data)
    models.dump({"models": entries + demo_entries, "perplexity": perplexities}, data / "golden.json")


if __name__ == "__main__":
    main()
