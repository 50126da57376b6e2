#!/usr/bin/env python3
"""Draws a part of a trace (`ntransformer --trace FILE`) as SVG: passes, compute, link and disk below each other.

    scripts/trace_picture.py trace.json -o docs/trace.svg              # two passes from the middle of the run
    scripts/trace_picture.py trace.json --passes 3-4 -o picture.svg    # these passes
    scripts/trace_picture.py trace.json --ms 120-180 -o picture.svg    # this time

The same trace and options give the same bytes. Needs nothing but Python.
"""

import argparse
import html
import json
import sys

WIDTH, LEFT, RIGHT, TOP = 960, 74, 14, 46
LANE, GAP, AXIS, LEGEND, LINE = 34, 12, 30, 44, 18
# Layers of even and odd number, so that neighbours differ.
FILL = {
    "pass": ("#e8e8ee", "#d8d8e2"),
    "compute": ("#2f7d5b", "#58a985"),
    "link": ("#2c63a6", "#6a9bd4"),
    "disk": ("#b06a1f", "#b06a1f"),
}
WAIT = {
    "waits for weights": "#e9b9b5",
    "waits for room in the ring": "#f3dfa2",
    "waits for the disk": "#e7c8a4",
    "waits for the host": "#d9c8e8",
}
STYLE = "font-family:sans-serif;font-size:11px;fill:#333"
# Characters of this size, at most.
CHARACTER = 6.4


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("-o", "--output", default="trace.svg")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--passes", metavar="A-B", type=interval, help="the first and the last pass")
    part.add_argument("--ms", metavar="A-B", type=interval, help="from and to, in ms from the trace's beginning")
    parser.add_argument("--title")
    args = parser.parse_args()
    try:
        with open(args.trace, encoding="utf-8") as file:
            trace = json.load(file)
        spans = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
        picture = draw(spans, trace.get("otherData", {}), window(spans, args), args.title)
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{args.trace}: {error!r}; a trace that ntransformer --trace wrote was expected")
    with open(args.output, "w", encoding="utf-8") as file:
        file.write(picture)


def interval(text):
    ends = [float(end) for end in text.split("-")]
    if len(ends) == 1:
        ends *= 2
    if len(ends) != 2 or ends[0] > ends[1]:
        raise argparse.ArgumentTypeError("expected two numbers, such as 3-4")
    return ends


def window(spans, args):
    """The time that is drawn, in us."""
    if args.ms:
        if args.ms[0] == args.ms[1]:
            raise ValueError("no time between the two of --ms")
        return [ms * 1e3 for ms in args.ms]
    passes = sorted((span for span in spans if span["cat"] == "pass"), key=lambda span: span["args"]["pass"])
    if not passes:
        raise ValueError("it has no passes")
    if args.passes:
        chosen = [span for span in passes if args.passes[0] <= span["args"]["pass"] <= args.passes[1]]
    else:
        middle = len(passes) // 2
        chosen = passes[middle : middle + 2]
    if not chosen:
        raise ValueError(f"it has the passes {passes[0]['args']['pass']} to {passes[-1]['args']['pass']}")
    return [chosen[0]["ts"], chosen[-1]["ts"] + chosen[-1]["dur"]]


def draw(spans, about, part, title):
    begin, end = part
    scale = (WIDTH - LEFT - RIGHT) / (end - begin)
    seen = [span for span in spans if span["ts"] < end and span["ts"] + span["dur"] > begin]
    lanes = [lane for lane in ("pass", "compute", "link", "disk") if lane_of(seen, lane) or lane in ("compute", "link")]
    height = TOP + len(lanes) * (LANE + GAP) + AXIS + LEGEND
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    text(out, LEFT, 18, title or " · ".join(filter(None, [about.get("model"), about.get("device")])), "font-weight:bold")
    text(out, LEFT, 34, figures(seen, about, begin, end))

    def box(span, y, fill, label, color):
        left, right = max(span["ts"], begin), min(span["ts"] + span["dur"], end)
        x, width = LEFT + (left - begin) * scale, (right - left) * scale
        if width < 0.05:
            return
        out.append(f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{LANE}" fill="{fill}"/>')
        if label and len(label) * CHARACTER < width:
            text(out, x + width / 2, y + LANE / 2 + 4, label, f"text-anchor:middle;fill:{color}")

    y = TOP
    for lane in lanes:
        text(out, LEFT - 8, y + LANE / 2 + 4, {"pass": "passes"}.get(lane, lane), "text-anchor:end")
        if lane == "disk":
            for x, width, share in busy(lane_of(seen, lane), begin, end, scale):
                tall = LANE * share
                out.append(f'<rect x="{x:.2f}" y="{y + LANE - tall:.2f}" width="{width:.2f}" height="{tall:.2f}" fill="{FILL[lane][0]}"/>')
        else:
            for span in lane_of(seen, lane):
                wait = span["cat"] == "wait"
                fill = WAIT.get(span["name"], "#ddd") if wait else FILL[lane][parity(span)]
                box(span, y, fill, "" if wait else short(span, lane), "#333" if lane == "pass" else "#fff")
        out.append(f'<line x1="{LEFT}" y1="{y + LANE + 0.5}" x2="{WIDTH - RIGHT}" y2="{y + LANE + 0.5}" stroke="#bbb"/>')
        y += LANE + GAP
    for at, label in ticks(begin, end):
        x = LEFT + (at - begin) * scale
        out.append(f'<line x1="{x:.2f}" y1="{TOP}" x2="{x:.2f}" y2="{y - GAP + 4}" stroke="#000" stroke-opacity="0.12"/>')
        text(out, x, y + 6, label, "text-anchor:middle")
    legend(out, seen, y + AXIS)
    out.append("</svg>\n")
    return "\n".join(out)


def lane_of(spans, lane):
    """The spans of a lane, its waits included."""
    causes = {"compute": ["waits for weights"], "link": [name for name in WAIT if name != "waits for weights"]}.get(lane, [])
    return sorted((span for span in spans if span["cat"] == lane or span["name"] in causes), key=lambda span: span["ts"])


def parity(span):
    number = span["args"]["pass"] if span["cat"] == "pass" else span["name"].rsplit(" ", 1)[-1]
    return int(number) % 2 if str(number).isdigit() else 0


def short(span, lane):
    return span["name"] if lane == "pass" else span["name"].removeprefix("layer ")


def busy(spans, begin, end, scale):
    """How many reads are under way, as steps: x, width, and the share of the most that there are."""
    changes = sorted([(max(s["ts"], begin), 1) for s in spans] + [(min(s["ts"] + s["dur"], end), -1) for s in spans])
    steps, count, most = [], 0, 1
    for (at, change), following in zip(changes, changes[1:] + [(end, 0)]):
        count += change
        most = max(most, count)
        if following[0] > at and count:
            steps.append((at, following[0], count))
    return [(LEFT + (a - begin) * scale, (b - a) * scale, count / most) for a, b, count in steps]


def figures(spans, about, begin, end):
    """What a reader wants to know of the time that is drawn."""
    def within(span):
        return max(0.0, min(span["ts"] + span["dur"], end) - max(span["ts"], begin))

    def rate(cat):
        moved = sum(span["args"]["bytes"] * within(span) / span["dur"] for span in spans if span["cat"] == cat and span["dur"] > 0)
        return moved / (end - begin) / 1e3

    line = f"{(end - begin) / 1e3:.4g} ms"
    for cat in ("link", "disk"):
        if any(span["cat"] == cat for span in spans):
            gbs, alone = rate(cat), about.get(f"{cat}_bytes_per_second")
            share = f" ({100e9 * gbs / alone:.0f} % of {alone / 1e9:.3g})" if alone else ""
            line += f", {cat} {gbs:.3g} GB/s{share}"
    computing = sum(within(span) for span in spans if span["cat"] == "compute")
    return line + f", computing {100 * computing / (end - begin):.0f} % of the time"


def ticks(begin, end):
    """About eight times between begin and end, in us, and their names in ms from begin."""
    step = 1.0
    for factor in [2, 2.5, 2] * 12:
        if (end - begin) / step <= 9:
            break
        step *= factor
    count = int((end - begin) / step)
    return [(begin + i * step, f"{i * step / 1e3:g}" + (" ms" if i == 0 else "")) for i in range(count + 1)]


def legend(out, spans, y):
    x = LEFT
    names = {span["name"] for span in spans if span["cat"] == "wait"}
    rows = [("computes", FILL["compute"][0]), ("copies", FILL["link"][0])]
    if any(span["cat"] == "disk" for span in spans):
        rows.append(("reads (height: how many at once)", FILL["disk"][0]))
    who = {"waits for weights": "compute", "waits for room in the ring": "link", "waits for the disk": "link", "waits for the host": "link"}
    rows += [(f"{who[name]} {name}", fill) for name, fill in WAIT.items() if name in names]
    for label, fill in rows:
        if x + 15 + len(label) * CHARACTER > WIDTH - RIGHT:
            x, y = LEFT, y + LINE
        out.append(f'<rect x="{x:.1f}" y="{y - 9}" width="11" height="11" fill="{fill}"/>')
        text(out, x + 15, y, label)
        x += 15 + len(label) * CHARACTER + 12


def text(out, x, y, content, style=""):
    style = f"{STYLE};{style}" if style else STYLE
    out.append(f'<text x="{x:.2f}" y="{y:g}" style="{style}">{html.escape(content)}</text>')


if __name__ == "__main__":
    main()
