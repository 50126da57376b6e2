#!/usr/bin/env python3
"""What scripts/gpu-check.sh makes of its measurements: tables, and with BARS=1 an error where one is too low.

gpu_report.py profile SPEED.json                     where a token's time goes
gpu_report.py speeds FOLDER                          all models beside llama.cpp: FOLDER/speed-*.json, FOLDER/peer-*.json
gpu_report.py streamed RESIDENT.json STREAMED.json   a streamed run, whose tokens must be the resident one's
gpu_report.py bench BENCH.json                       the kernels of `cargo bench`
"""

import glob
import json
import os
import sys

# Of a token at depth 512: per cent of what reading its bytes would take; times llama.cpp's speed; the same at depth 32768.
TOKENS = {
    "8b-Q8_0": (70, 1.55, 1.5),
    "8b-Q4_K_M": (55, 2.0, None),
    "1b-Q8_0": (50, 2.0, None),
    "70b-Q4_K_M": (68, 1.65, None),
}
DEPTH, DEEP = 512, 32768
# Attention at depth 32768: per cent of the read bandwidth.
ATTENTION = 70
# Matrix times vector: per cent of the read bandwidth by shape.
SHAPES = ("128256x4096", "28672x4096", "4096x14336", "4096x4096")
GEMV = {
    **dict.fromkeys(("Q8_0", "F16"), dict(zip(SHAPES, (93, 85, 75, 52)))),
    **dict.fromkeys(("Q4_K", "Q5_K", "Q6_K", "Q4_0"), dict(zip(SHAPES, (78, 72, 60, 40)))),
    **dict.fromkeys(("Q2_K", "Q3_K"), {"28672x4096": 60}),
}

strict = os.environ.get("BARS") == "1"
missed = []


def bar(what, found, least, unit):
    """Remembers what is below its bar. Where bars must be passed, what was not measured is not above them."""
    if least is not None and (found < least if found is not None else strict):
        missed.append(f"{what}: {'not measured' if found is None else f'{found:.2f}'}, {least} {unit} are asked for")


def load(path):
    with open(path) as file:
        return json.load(file)


def cell(value, width, digits):
    return "-".rjust(width) if value is None else f"{value:{width}.{digits}f}"


def kv_bytes(profile):
    """Bytes of keys and values that a token reads, and the seconds of the kernels that do."""
    kernels = [k for k in profile["kernels"] if k["of"].startswith("KV")]
    return sum(k["bytes"] for k in kernels), sum(k["us"] for k in kernels) / 1e6


def profile(path):
    for result in load(path):
        p = result["profile"]
        print(f"\n{result['test']}: a token takes {p['token_us']:.1f} us, its kernels one by one {p['kernels_us']:.1f};"
              f" {result['device']} reads {p['read_gbs']:.0f} GB/s")
        for k in p["kernels"][:12]:
            rate = k["bytes"] / k["us"] / 1e3 if k["us"] else 0
            read = f"{k['bytes'] / 1e6:9.1f} MB {rate:6.0f} GB/s {100 * rate / p['read_gbs']:4.0f} %" if k["bytes"] else ""
            print(f"  {k['kernel']:24} {k['of']:20} {k['launches']:6.1f} x {k['us']:9.1f} us {100 * k['us'] / p['kernels_us']:5.1f} % {read}")


def speeds(folder):
    print(f"{'model':14}{'depth':>8}{'tok/s':>9}{'llama.cpp':>11}{'ratio':>7}{'GB/token':>10}{'GB/s':>7}{'% of read':>11}{'KV: % of read':>15}")
    for path in sorted(glob.glob(f"{folder}/speed-*.json")):
        model = os.path.basename(path)[len("speed-"):-len(".json")]
        peers = {}
        for peer in glob.glob(f"{folder}/peer-{model}.json") + glob.glob(f"{folder}/peer-{model}-deep.json"):
            try:
                peers.update({r["n_depth"]: r["avg_ts"] for r in load(peer)})
            except (OSError, ValueError, KeyError) as error:
                print(f"{peer}: {error}")
        reads, ratio, deep_ratio = TOKENS.get(model, (None, None, None))
        for result in load(path):
            depth, rate, p = result["n_depth"], result["avg_ts"], result["profile"]
            cached, seconds = kv_bytes(p)
            read = result["read_per_pass"] + cached
            percent = 100 * read * rate / 1e9 / p["read_gbs"]
            attention = 100 * cached / seconds / 1e9 / p["read_gbs"] if seconds else None
            times = rate / peers[depth] if depth in peers else None
            print(f"{model:14}{depth:8}{rate:9.1f}{cell(peers.get(depth), 11, 1)}{cell(times, 7, 2)}"
                  f"{read / 1e9:10.3f}{read * rate / 1e9:7.0f}{percent:11.1f}{cell(attention, 15, 1)}")
            name = f"{model} at depth {depth}"
            if depth == DEPTH:
                bar(name, percent, reads, "% of what reading takes")
            # llama.cpp's usual figure is the one without a depth.
            if depth == 0:
                bar(name, times, ratio, "times llama.cpp's speed")
            if depth == DEEP:
                bar(name, times, deep_ratio, "times llama.cpp's speed")
                bar(f"{name}, attention", attention, ATTENTION if deep_ratio else None, "% of the read bandwidth")


def streamed(resident, streamed):
    resident, streamed = load(resident), load(streamed)
    moved, pace = streamed["memory"]["streamed_per_pass"], streamed["decode"]["tokens_per_second"]
    print(f"streamed: {pace:.2f} tok/s, {moved / 1e9:.2f} GB a token over the link, {moved * pace / 1e9:.1f} GB/s"
          " (the bench part measures the link)")
    if moved == 0 or streamed["decode"]["tokens"] < 32:
        sys.exit("nothing was streamed, or too few tokens")
    if streamed["tokens"] != resident["tokens"]:
        sys.exit("streamed and resident tokens differ")


def bench(path):
    found = {(r["name"], r["of"]): r["percent"] for r in load(path) if r.get("what") == "gemv"}
    for name, shapes in GEMV.items():
        for shape, least in shapes.items():
            bar(f"{name} {shape}", found.get((name, shape)), least, "% of the read bandwidth")


if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    {"profile": profile, "speeds": speeds, "streamed": streamed, "bench": bench}[command](*paths)
    if missed:
        print("below the bars:", *missed, sep="\n  ")
        sys.exit(strict)
