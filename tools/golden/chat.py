#!/usr/bin/env python3
"""What Hugging Face transformers makes of chat templates: the texts of a few conversations.

    chat.py                     # tests/data/chat.json, of the templates in this repository
    chat.py DIR OUT.json        # the same of the *.jinja in DIR, published ones, say
"""

import json
import sys
from pathlib import Path

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ["tests/data/chat", "host/src/engine/chat/templates"]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

S, U, A = "system", "user", "assistant"
CONVERSATIONS = [
    [(U, "Hello")],
    [(S, "Be brief."), (U, "Why is the sky blue?")],
    [(U, "What is 2 < 3 && 'x'?"), (A, "True, \"x\" is 3.\n\n"), (U, "  Grüße, 世界 🌍!\nAnd\\you?  ")],
    [(S, "  You are a pirate.\nSpeak so. "), (U, "a"), (A, " Arr <b>matey</b>, é "), (U, "b"), (A, "Aye."), (U, "# c")],
    [(U, "Think."), (A, "<think>\nHm.\nWell.\n</think>\n\nDone."), (U, "Again."), (A, "<think>\n\n</think>\n\nNo."), (U, "So?")],
    [(U, "One"), (A, "Two")],
    [(U, "One"), (U, "Two")],
]


def render(source, conversation, prompt):
    messages = [{"role": role, "content": content} for role, content in conversation]
    try:
        texts, _ = render_jinja_template([messages], chat_template=source, add_generation_prompt=prompt, **TOKENS)
        return {"text": texts[0]}
    except Exception as error:
        # What raise_exception raises, or else a mistake of the template's.
        return {"refused" if type(error) is TemplateError else "error": str(error)}


def golden(files, with_source):
    templates = []
    for name, path in sorted(files.items()):
        source = path.read_text()
        renderings = [render(source, c, prompt) for c in CONVERSATIONS for prompt in (False, True)]
        templates.append({"name": name, **({"source": source} if with_source else {}), "renderings": renderings})
    conversations = [[{"role": role, "content": content} for role, content in c] for c in CONVERSATIONS]
    return {"tokens": TOKENS, "conversations": conversations, "templates": templates}


def dump(value, path):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write(data):
    """Writes chat.json to the folder `data`."""
    files = {f"{folder}/{path.name}": path for folder in FOLDERS for path in (ROOT / folder).glob("*.jinja")}
    dump(golden(files, False), data / "chat.json")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        folder = Path(sys.argv[1])
        dump(golden({path.name: path for path in folder.glob("*.jinja")}, True), Path(sys.argv[2]))
    else:
        write(ROOT / "tests/data")
