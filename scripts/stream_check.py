#!/usr/bin/env python3
"""Streams a model in several ways, and compares each with what the link or the disk allows, and its tokens with the resident ones.

    stream_check.py ENGINE MODEL [CASE...]        CASE: NAME[,tokens=N][,bar=PERCENT][,env:NAME=VALUE]... then flags after a colon

For each case it asks for the plan (`--plan --json`: bytes per token, and the rates measured there), generates, and prints seconds
per token beside (bytes / rate). Tokens must be those of the first case, to the last one. Exit code 1 where they are not, or
where a case is slower than its bar allows.
"""

import json
import os
import subprocess
import sys

PROMPT = "Once upon a time"


def run(engine, model, flags, env):
    command = [engine, "--model", model, "--prompt", PROMPT, "--temperature", "0", *flags]
    done = subprocess.run(command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout), done.stderr


def main():
    engine, model, *cases = sys.argv[1:]
    reference, failed = None, []
    print(f"{'case':<28} {'GB/token':>9} {'GB/s':>7} {'of':>7} {'%':>6} {'s/token':>8} {'tok/s':>7}")
    for case in cases:
        head, _, flags = case.partition(":")
        name, *options = head.split(",")
        flags, tokens, bar, env = flags.split(), 8, None, {}
        for option in options:
            key, value = option.split("=", 1)
            if key == "tokens":
                tokens = int(value)
            elif key == "bar":
                bar = float(value)
            else:
                env[key] = value
        plan, _ = run(engine, model, [*flags, "--plan", "--json"], env)
        made, said = run(engine, model, [*flags, "--n-predict", str(tokens), "--json"], env)
        seconds = 1 / made["decode"]["tokens_per_second"]
        link, disk = plan["link_bytes_per_token"], plan["disk_bytes_per_token"]
        rates = {what: plan[f"{what}_bytes_per_second"] for what in ("link", "disk")}
        ideal = max(link / rates["link"] if link else 0, disk / rates["disk"] if disk else 0)
        what = ("disk", disk) if disk and disk / rates["disk"] >= link / rates["link"] else ("link", link)
        percent = 100 * ideal / seconds if link else 0
        rate = rates[what[0]] if link else 0
        print(f"{name:<28} {what[1] / 1e9:9.2f} {what[1] / seconds / 1e9:7.2f} {(rate or 0) / 1e9:7.2f} {percent:6.1f} {seconds:8.3f} {1 / seconds:7.2f}")
        for line in said.splitlines():
            if "streamed" in line or "loaded" in line or "read by" in line:
                print(f"    {line[:170]}")
        sys.stdout.flush()
        if bar and percent < bar:
            failed.append(f"{name}: {percent:.1f} % of {what[0]}, asked for {bar}")
        if reference is None:
            reference = made["tokens"]
        else:
            n = min(len(reference), len(made["tokens"]))
            if n == 0 or reference[:n] != made["tokens"][:n]:
                failed.append(f"{name}: other tokens than the first case's")
    if failed:
        print("failed:", *failed, sep="\n  ")
        sys.exit(1)


main()
