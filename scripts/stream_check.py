#!/usr/bin/env python3
"""Streams a model in several ways, and compares each with what the link or the disk allows, its tokens with the resident ones, and the
memory that it takes with the plan.

    stream_check.py [--only PATTERN] ENGINE MODEL [CASE...]
                    CASE: NAME[,tokens=N | ,prompt=N | ,interrupt=SECONDS][,bar=PERCENT][,NAME=VALUE]... then flags after a colon

For each case it asks for the plan (`--plan --json`: bytes per token, and the rates measured there), generates, and prints seconds per
token beside (bytes / rate). Tokens must be those of the first case, to the last one. A case with `prompt` processes a prompt of N tokens
instead; the first of these is the resident one, and a streamed one is compared with a pass over the link plus the resident prompt's
time. One with `interrupt` gets a Ctrl-C so many seconds after it has loaded (a negative number: after it began to), and must end within a
second, with exit code 130, and nothing left in device memory. VARIABLE=VALUE sets one in the environment. BELOW_RING in the flags stands
for a byte less than the least device memory that streams by copies.

Memory: the device's, as nvidia-smi has it, less what was in use before; and the process's own (anonymous) RAM, page-locked memory
included. From both comes off what the built-in demo model takes beyond its plan: context, kernels, buffers. Each peak must be what the
plan says, within 2 % and 64 MiB. Before, each model runs once unmeasured: the driver's compiler, which a model's first run on a machine
needs, takes RAM of its own.

--only runs the cases whose names match the pattern, and the first of each kind, which the others are compared with. Exit code 1 where
tokens are others, a case is slower than its bar allows, or takes other memory than planned.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

PROMPT = "Once upon a time"
MIB = 1 << 20
NVIDIA_SMI = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]


def vram_used():
    """Bytes of the first GPU's memory in use; none where there is no GPU."""
    try:
        done = subprocess.run(NVIDIA_SMI, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return int(done.stdout.split()[0]) * MIB
    except (OSError, ValueError, IndexError):
        return None


class Peaks(threading.Thread):
    """Follows the memory of a process and of the GPU."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.ram, self.vram, self.over = pid, 0, 0, threading.Event()
        self.start()

    def run(self):
        while not self.over.is_set():
            try:
                with open(f"/proc/{self.pid}/status") as status:
                    sizes = dict(line.split(":", 1) for line in status)
                ram = sum(int(sizes[key].split()[0]) << 10 for key in ("RssAnon", "RssShmem"))
                self.ram = max(self.ram, ram)
            except (OSError, KeyError, ValueError):
                pass
            self.vram = max(self.vram, vram_used() or 0)
            time.sleep(0.01)


class Run:
    """A command's output and its memory."""

    def __init__(self, command, env):
        before = vram_used()
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(command, env={**os.environ, **env}, stdout=out, stderr=log, text=True)
            peaks = Peaks(process.pid)
            code = process.wait()
            peaks.over.set()
            peaks.join()
            out.seek(0), log.seek(0)
            text, self.said = out.read(), log.read()
        if code:
            sys.exit(f"{' '.join(command)}\n{self.said[-2000:]}")
        self.json = json.loads(text)
        self.ram, self.vram = peaks.ram, None if before is None else peaks.vram - before


def planned(plan):
    """Bytes of RAM and of device memory. What the CPU has in device memory is RAM, but for what it reads in the file's map."""
    ram, vram = plan["ram_bytes"] + plan["staging_bytes"] + plan["loading_bytes"], plan["vram_bytes"]
    if plan["devices"][0]["name"].startswith("cuda"):
        return ram, vram
    return ram + vram - plan["resident_bytes"], None


class Case:
    def __init__(self, text):
        head, _, flags = text.partition(":")
        self.name, *options = head.split(",")
        self.flags, self.tokens, self.prompt, self.interrupt, self.bar, self.env = flags.split(), 8, None, None, None, {}
        for option in options:
            key, value = option.split("=", 1)
            if key in ("tokens", "prompt"):
                setattr(self, key, int(value))
            elif key in ("bar", "interrupt"):
                setattr(self, key, float(value))
            else:
                self.env[key] = value

    @property
    def kind(self):
        return "prompt" if self.prompt else "interrupt" if self.interrupt else "tokens"


class Check:
    def __init__(self, engine, model):
        self.engine, self.model, self.failed = engine, model, []
        self.reference, self.resident_prompts = None, {}
        self.device = os.environ.get("DEVICE", "cuda")
        if self.device == "cuda" and vram_used() is None:
            self.failed.append("device memory: nvidia-smi does not tell how much is in use")
        self.compiled([])
        self.beyond = self.beyond_plan()
        self.compiled(["--model", self.model])

    def generate(self, model, flags, env):
        return Run([self.engine, *model, "--device", self.device, "--prompt", PROMPT, "--temperature", "0", *flags], env)

    def compiled(self, model):
        """The driver's cache has the model's kernels."""
        ran = self.generate(model, ["--n-predict", "1", "--json"], {})
        print(f"first run of {model[-1] if model else 'the demo model'}: {ran.ram / MIB:.0f} MiB of RAM at most")

    def beyond_plan(self):
        """RAM and device memory that a run takes beyond its plan, whatever the model."""
        plan = self.generate([], ["--plan", "--json"], {}).json
        ran = self.generate([], ["--n-predict", "64", "--json"], {})
        ram, vram = planned(plan)
        return ran.ram - ram, ran.vram - vram if ran.vram and vram is not None else None

    def plan(self, case):
        """The case's plan. In its flags, BELOW_RING becomes a number before."""
        model = ["--model", self.model]
        if "BELOW_RING" in case.flags:
            copy = ["--streaming", "--ram-access", "copy", "--vram-budget", "100%", "--plan", "--json"]
            least = self.generate(model, copy, case.env).json["vram_least_bytes"]
            case.flags = [str(least - 1) if flag == "BELOW_RING" else flag for flag in case.flags]
        return self.generate(model, [*case.flags, "--plan", "--json"], case.env).json

    def memory(self, case, ran, plan):
        for what, found, wanted, beyond in zip(("RAM", "device memory"), (ran.ram, ran.vram), planned(plan), self.beyond):
            if found is None or wanted is None or beyond is None:
                continue
            off, allowed = found - beyond - wanted, 0.02 * wanted + 64 * MIB
            print(f"    {what}: {(found - beyond) / MIB:.0f} MiB at most, {wanted / MIB:.0f} planned: {off / MIB:+.0f}")
            # The CPU's cache and activations become real when they are used, so that there may be less.
            if off > allowed or (self.device == "cuda" and -off > allowed):
                self.failed.append(f"{case.name}: {what} is off the plan by {off / MIB:.0f} MiB, {allowed / MIB:.0f} allowed")

    def tokens_of(self, case):
        model = ["--model", self.model]
        plan = self.plan(case)
        ran = self.generate(model, [*case.flags, "--n-predict", str(case.tokens), "--json"], case.env)
        made = ran.json
        seconds = 1 / made["decode"]["tokens_per_second"]
        link, disk = plan["link_bytes_per_token"], plan["disk_bytes_per_token"]
        rates = {what: plan[f"{what}_bytes_per_second"] for what in ("link", "disk")}
        ideal = max(link / rates["link"] if link else 0, disk / rates["disk"] if disk else 0)
        by_disk = disk and disk / rates["disk"] >= link / rates["link"]
        what, moved = ("disk", disk) if by_disk else ("link", link)
        percent = 100 * ideal / seconds
        rate = rates[what] if link else 0
        print(f"{case.name:<28} {moved / 1e9:9.2f} {moved / seconds / 1e9:7.2f} {rate / 1e9:7.2f} {percent:6.1f} {seconds:8.3f} {1 / seconds:7.2f}")
        zero_copy, predicted = plan["zero_copy_bytes_per_second"], plan["predicted_seconds_per_token"]
        if zero_copy and predicted:
            bytes_read = plan["zero_copy_bytes_per_token"] / 1e9
            print(f"    zero-copy: {bytes_read:.2f} GB a token, {zero_copy / 1e9:.2f} GB/s measured for the plan, which predicts {predicted:.3f} s")
        self.said(ran)
        self.memory(case, ran, plan)
        if case.bar and percent < case.bar:
            self.failed.append(f"{case.name}: {percent:.1f} % of {what}, asked for {case.bar}")
        if self.reference is None:
            self.reference = made["tokens"]
        else:
            n = min(len(self.reference), len(made["tokens"]))
            if n == 0 or self.reference[:n] != made["tokens"][:n]:
                self.failed.append(f"{case.name}: other tokens than the first case's")

    def prompt_of(self, case):
        test = ["-p", str(case.prompt), "-n", "0", "-r", "1", "-o", "json"]
        command = [self.engine, "bench", "--model", self.model, "--device", self.device, *test, *case.flags]
        ran = Run(command, case.env)
        [row] = ran.json
        seconds, link = row["avg_ns"] / 1e9, row["streamed_per_pass"] * row["n_passes"]
        if not link:
            self.resident_prompts.setdefault(case.prompt, seconds)
        resident = self.resident_prompts.get(case.prompt, 0)
        # Not measured where nothing is copied.
        over_link = link / row["link_measured_gbs"] / 1e9 if link and row["link_measured_gbs"] else 0
        percent = 100 * (over_link + resident) / seconds
        print(
            f"{case.name:<28} {case.prompt} tokens in {seconds:.3f} s and {row['n_passes']} passes; "
            f"{over_link:.3f} s over the link, {resident:.3f} s when resident: {percent:.1f} %"
        )
        self.said(ran)
        if case.bar and percent < case.bar:
            self.failed.append(f"{case.name}: {percent:.1f} % of a pass plus its compute, asked for {case.bar}")

    def interrupt_of(self, case):
        command = [self.engine, "--model", self.model, "--device", self.device, "--prompt", PROMPT, *case.flags]
        before = vram_used()
        process = subprocess.Popen(
            command, env={**os.environ, **case.env}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        begins = "device: " if case.interrupt < 0 else "streaming: "
        said = ""
        for line in process.stderr:
            said += line
            if line.startswith(begins):
                break
        time.sleep(abs(case.interrupt))
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        said += process.stderr.read()
        code, took = process.wait(), time.monotonic() - sent
        time.sleep(0.5)
        left = 0 if before is None else (vram_used() or 0) - before
        print(f"{case.name:<28} exit code {code} after {took:.2f} s; {left / MIB:.0f} MiB of device memory left in use")
        print("    " + (said.strip().splitlines() or [""])[-1][:170])
        while_loading = "interrupted while loading" in said
        if while_loading != (case.interrupt < 0):
            self.failed.append(f"{case.name}: it was {'' if while_loading else 'not '}loading when it was interrupted")
        if code != 130 or took > 1 or left > 64 * MIB:
            self.failed.append(f"{case.name}: exit code {code} after {took:.2f} s, {left / MIB:.0f} MiB left")

    def said(self, ran):
        for line in ran.said.splitlines():
            if any(words in line for words in ("streamed", "loaded", "read by", "stay on the device")):
                print(f"    {line[:170]}")
        sys.stdout.flush()


def main():
    args, only = sys.argv[1:], ""
    if args[0] == "--only":
        only, args = args[1], args[2:]
    check = Check(*args[:2])
    cases = [Case(text) for text in args[2:]]
    first = [next((case for case in cases if case.kind == kind), None) for kind in ("tokens", "prompt")]
    print(f"{'case':<28} {'GB/token':>9} {'GB/s':>7} {'of':>7} {'%':>6} {'s/token':>8} {'tok/s':>7}")
    chosen = [case for case in cases if re.search(only, case.name)]
    kinds = {case.kind for case in chosen}
    for case in cases:
        if case in chosen or (case in first and case.kind in kinds):
            getattr(check, f"{case.kind}_of")(case)
    if check.failed:
        print("failed:", *check.failed, sep="\n  ")
        sys.exit(1)


main()
