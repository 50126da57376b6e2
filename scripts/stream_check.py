#!/usr/bin/env python3
"""Streams a model in several ways, and compares each with what the link or the disk allows, and its tokens with the resident ones.

    stream_check.py ENGINE MODEL [CASE...]        CASE: NAME[,tokens=N|,prompt=N][,bar=PERCENT][,NAME=VALUE]... then flags after a colon

For each case it asks for the plan (`--plan --json`: bytes per token, and the rates measured there), generates, and prints seconds
per token beside (bytes / rate). Tokens must be those of the first case, to the last one. Exit code 1 where they are not, or
where a case is slower than its bar allows. NAME=VALUE is an environment variable. A case with a prompt is one of `bench -p N -n 0`,
whose tokens nobody compares: its seconds are those of the prompt, its bytes counted once. BELOW_RING in the flags stands for a byte less than the least device
memory that streams by copies. STREAM_CASES=REGEX runs the cases whose names match, and the first one.
"""

import json
import os
import re
import subprocess
import sys

PROMPT = "Once upon a time"


def run(engine, model, flags, env):
    command = [engine, "--model", model, "--prompt", PROMPT, "--temperature", "0", *flags]
    done = subprocess.run(command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout), done.stderr


def below_ring(engine, model, env):
    """The most device memory, in bytes, in which no ring has room."""
    plan, _ = run(engine, model, ["--streaming", "--ram-access", "copy", "--vram-budget", "100%", "--plan", "--json"], env)
    return plan["vram_least_bytes"] - 1


def prompt_seconds(engine, model, tokens, flags, env):
    command = [engine, "bench", "--model", model, "-p", str(tokens), "-n", "0", "-r", "2", "-o", "json", *flags]
    done = subprocess.run(command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)[0]["avg_ns"] / 1e9, done.stderr


def main():
    engine, model, *cases = sys.argv[1:]
    wanted = os.environ.get("STREAM_CASES", "")
    cases = [case for i, case in enumerate(cases) if i == 0 or re.search(wanted, case.partition(":")[0])]
    reference, failed = None, []
    print(f"{'case':<28} {'GB/token':>9} {'GB/s':>7} {'of':>7} {'%':>6} {'s/token':>8} {'tok/s':>7}")
    for case in cases:
        head, _, flags = case.partition(":")
        name, *options = head.split(",")
        tokens, prompt, bar, env = 8, None, None, {}
        for option in options:
            key, value = option.split("=", 1)
            if key == "tokens":
                tokens = int(value)
            elif key == "prompt":
                prompt = int(value)
            elif key == "bar":
                bar = float(value)
            else:
                env[key] = value
        if "BELOW_RING" in flags:
            flags = flags.replace("BELOW_RING", str(below_ring(engine, model, env)))
        flags = flags.split()
        plan, _ = run(engine, model, [*flags, "--plan", "--json"], env)
        if prompt:
            made = None
            seconds, said = prompt_seconds(engine, model, prompt, flags, env)
        else:
            made, said = run(engine, model, [*flags, "--n-predict", str(tokens), "--json"], env)
            seconds = 1 / made["decode"]["tokens_per_second"]
        link, disk = plan["link_bytes_per_token"], plan["disk_bytes_per_token"]
        rates = {what: plan[f"{what}_bytes_per_second"] for what in ("link", "disk")}
        ideal = max(link / rates["link"] if link else 0, disk / rates["disk"] if disk else 0)
        what = ("disk", disk) if disk and disk / rates["disk"] >= link / rates["link"] else ("link", link)
        percent = 100 * ideal / seconds if link else 0
        rate = rates[what[0]] if link else 0
        print(f"{name:<28} {what[1] / 1e9:9.2f} {what[1] / seconds / 1e9:7.2f} {(rate or 0) / 1e9:7.2f} {percent:6.1f} {seconds:8.3f} {(prompt or 1) / seconds:7.2f}")
        predicted, zero_copy = plan["predicted_seconds_per_token"], plan["zero_copy_bytes_per_second"]
        if zero_copy:
            print(f"    zero-copy: {plan['zero_copy_bytes_per_token'] / 1e9:.2f} GB a token; measured for the plan {zero_copy / 1e9:.2f} GB/s")
        if predicted and not prompt:
            print(f"    predicted: {predicted:.3f} s a token, {plan['bound']}; {plan['vram_bytes']} bytes on the device")
        for line in said.splitlines():
            if any(part in line for part in ("streamed", "loaded", "read by", "zero-copy")):
                print(f"    {line[:170]}")
        sys.stdout.flush()
        if bar and percent < bar:
            failed.append(f"{name}: {percent:.1f} % of {what[0]}, asked for {bar}")
        if made is None:
            continue
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
