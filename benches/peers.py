#!/usr/bin/env python3
"""This client beside others: one load server, the same messages, rounds in turn. Prints the tables and a summary, draws benches/peers.svg.

  benches/peers.py [ROUNDS]        7 rounds by default: a quarter of an hour
  benches/peers.py --draw FILE..   draws the results of earlier runs, and measures nothing

Needs the load server and the drivers of the other clients, built as their README says, in the folder that PEERS names
(../shared/peers by default).
"""
import json, os, statistics, subprocess, sys, tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
OTHERS = [
    "raw-tcp", "raw-tcp-spin", "raw-tls-buf", "tungstenite", "tungstenite-mutex", "tokio-tungstenite", "sockudo-ws", "tokio-websockets",
    "fastwebsockets-raw", "beast", "go-gorilla-tuned", "picows-mv",
]
# They hand text on without a check of its UTF-8, which RFC 6455 section 8.1 asks for.
UNCHECKED = {"go-gorilla-tuned", "picows-mv"}
OURS = {"tautline": "", "tautline-events": "PULL=1 ", "tautline-spin": "SPIN=1 "}
PANELS = [
    # work, over TLS, what is drawn, its name, and whether more is better
    ("fire200", False, lambda row: row["msgs_per_s"] / 1e6, "messages of 200 bytes, millions a second", True),
    ("fire200", False, lambda row: row["cpu_s"] / row["msgs"] * 1e9, "CPU for each of them, ns", False),
    ("echo128", False, lambda row: row["p50_ns"] / 1e3, "round trip of 128 bytes, median, µs", False),
    ("echo128", False, lambda row: row["p99_ns"] / 1e3, "round trip of 128 bytes, 99th percentile, µs", False),
    ("paced200", False, lambda row: row["p50_ns"] / 1e3, "20,000 a second, wire to handler, median, µs", False),
    ("paced200", False, lambda row: row["cpu_s"] / row["n"] * 1e6, "CPU for each of them, µs", False),
    ("fire2k", False, lambda row: row["cpu_s"] / row["msgs"] * 1e9, "2 KiB: CPU for each message, ns", False),
    ("fire64k", False, lambda row: row["cpu_s"] / row["msgs"] * 1e6, "64 KiB: CPU for each message, µs", False),
    ("fire200", True, lambda row: row["msgs_per_s"] / 1e6, "TLS: messages of 200 bytes, millions a second", True),
    ("fire200", True, lambda row: row["cpu_s"] / row["msgs"] * 1e9, "TLS: CPU for each of them, ns", False),
    ("echo128", True, lambda row: row["p50_ns"] / 1e3, "TLS: round trip of 128 bytes, median, µs", False),
    ("echo128", True, lambda row: row["p99_ns"] / 1e3, "TLS: round trip of 128 bytes, 99th percentile, µs", False),
    ("paced200", True, lambda row: row["p50_ns"] / 1e3, "TLS: 20,000 a second, wire to handler, median, µs", False),
    ("fire2k", True, lambda row: row["cpu_s"] / row["msgs"] * 1e9, "TLS, 2 KiB: CPU for each message, ns", False),
    ("fire64k", True, lambda row: row["cpu_s"] / row["msgs"] * 1e6, "TLS, 64 KiB: CPU for each message, µs", False),
]


def measure(rounds):
    peers = os.environ.get("PEERS", os.path.join(HERE, "../../shared/peers"))
    built = subprocess.run(
        ["cargo", "bench", "--no-run", "--bench", "driver", "--message-format=json"],
        cwd=os.path.dirname(HERE), check=True, stdout=subprocess.PIPE, text=True,
    ).stdout
    drivers = [json.loads(line) for line in built.splitlines() if '"compiler-artifact"' in line]
    driver = next(one["executable"] for one in drivers if one["target"]["name"] == "driver" and one["executable"])
    out = tempfile.mktemp(suffix=".jsonl")
    command = [sys.executable, "run.py", "--rounds", str(rounds), "--both", "--out", out, "--peers", ",".join(OTHERS)]
    for name, settings in OURS.items():
        command += ["--add", f"{name}={settings}{driver}"]
    subprocess.run(command, cwd=peers, check=True)
    return out


def medians(rows, work, tls, value):
    """The median of each peer over its rounds."""
    by_peer = {}
    for row in rows:
        if row.get("work") == work and row["tls"] == tls and "error" not in row:
            by_peer.setdefault(row["peer"], []).append(value(row))
    return {peer: statistics.median(values) for peer, values in by_peer.items()}


def summary(rows):
    """One line for each panel: this client, the bare socket, and the best of the others that check what they hand on."""
    lines = ["| | tautline | bare socket | ratio | best peer | ratio |", "|---|---:|---:|---:|---:|---:|"]
    for work, tls, value, title, more_is_better in PANELS:
        figures = medians(rows, work, tls, value)
        if not {"tautline", "raw-tcp"} <= figures.keys():
            continue
        ours, floor = figures["tautline"], figures["raw-tcp"]
        peers = {name: figure for name, figure in figures.items() if not name.startswith(("raw", "tautline")) and name not in UNCHECKED}
        best = (max if more_is_better else min)(peers, key=peers.get)
        lines.append(f"| {title} | {shown(ours)} | {shown(floor)} | {ours / floor:.2f} | {best} {shown(peers[best])} | {ours / peers[best]:.2f} |")
    return "\n".join(lines)


def shown(figure):
    return f"{figure:,.0f}" if figure >= 1000 else f"{figure:.3g}"


def panel(figures, title, more_is_better, x, y):
    """Bars, ours in colour and the bare socket in grey, the best on top; and how high they are together."""
    width, bar, left = WIDTH, 16, 130
    figures = sorted(figures.items(), key=lambda pair: pair[1], reverse=more_is_better)
    # Whoever is ten times off would leave nothing of the others to be seen.
    longest = min(max(figure for _, figure in figures), 4 * statistics.median(figure for _, figure in figures))
    out = [f'<text x="{x + 10}" y="{y + 14}" class="title">{title}</text>']
    for place, (peer, figure) in enumerate(figures):
        top = y + 24 + place * bar
        kind = "ours" if peer.startswith("tautline") else "floor" if peer.startswith("raw") else "peer"
        length = (width - left - 60) * min(figure / longest, 1)
        out.append(f'<text x="{x + left - 6}" y="{top + 12}" text-anchor="end">{peer}</text>')
        out.append(f'<rect x="{x + left}" y="{top + 1}" width="{length:.1f}" height="{bar - 3}" class="{kind}"/>')
        out.append(f'<text x="{x + left + length + 5:.1f}" y="{top + 12}">{shown(figure)}</text>')
    return "".join(out), 24 + bar * len(figures) + 16


WIDTH = 440


def draw(rows):
    """All panels, three beside each other."""
    body, y, high = [], 10, 0
    shown = [(medians(rows, work, tls, value), title, more) for work, tls, value, title, more in PANELS]
    for place, (figures, title, more_is_better) in enumerate(one for one in shown if one[0]):
        column = place % 3
        y, high = (y + high, 0) if column == 0 else (y, high)
        drawn, height = panel(figures, title, more_is_better, column * WIDTH, y)
        body.append(drawn)
        high = max(high, height)
    style = (
        "text{font:11px sans-serif;fill:#444}.title{font-weight:bold;fill:#222}"
        ".ours{fill:#c7522a}.peer{fill:#7a9cc6}.floor{fill:#bbb}.back{fill:#fff}"
    )
    size = f'viewBox="0 0 {3 * WIDTH} {y + high}" width="{3 * WIDTH}" height="{y + high}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>'
        f'<rect class="back" width="{3 * WIDTH}" height="{y + high}"/>' + "".join(body) + "</svg>\n"
    )


def main():
    words = sys.argv[1:]
    files = words[1:] if words[:1] == ["--draw"] else [measure(int(words[0]) if words else 7)]
    rows = [json.loads(line) for file in files for line in open(file)]
    print(summary(rows))
    with open(os.path.join(HERE, "peers.svg"), "w") as svg:
        svg.write(draw(rows))
    print(f"{files[0]}\n{os.path.join('benches', 'peers.svg')}")


main()
