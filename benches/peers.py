#!/usr/bin/env python3
"""Measures this client beside others: one load server, the same messages, rounds in turn.

  benches/peers.py                  measures, prints the table, draws benches/peers.svg
  benches/peers.py --rounds 3       7 rounds by default, which take a quarter of an hour
  benches/peers.py --only WORK...   measures some of it, prints their rows, draws nothing
  benches/peers.py --save FILE      also saves the medians as JSON lines (benches/figures.jsonl);
                                    those of what was not measured stay
  benches/peers.py --from FILE...   measures nothing: draws saved medians or a runner's own rows

Needs the load server and the drivers of the other clients, built as their README says, in the
folder that PEERS names (../shared/peers by default). The drivers in C (capi/bench) need a C compiler
and pkg-config, that of libwebsockets also Debian's libwebsockets-dev; those that cannot be built are
left out. The load server does not compress: the work
`compressed250` has a server of its own (compressed.rs), needs none of that folder, and needs g++
and Boost (Debian's libboost1.81-dev) for Beast's driver (beast.cpp).
"""
import argparse, json, os, statistics, subprocess, sys, tempfile

from figures import HERE, load, save, shown, text, write

OTHERS = [
    "raw-tcp", "raw-tcp-spin", "raw-tls-buf", "tungstenite", "tungstenite-mutex",
    "tokio-tungstenite", "sockudo-ws", "tokio-websockets", "fastwebsockets-raw", "beast",
    "go-gorilla-tuned", "picows-mv",
]
# These hand text on without checking its UTF-8, which RFC 6455 section 8.1 asks for.
UNCHECKED = {"go-gorilla-tuned", "picows-mv"}
# The client's names and the settings of its driver.
OURS = {
    "tautline": "", "tautline-events": "PULL=1 ", "tautline-batches": "BATCH=1 ",
    "tautline-spin": "SPIN=1 ", "tautline-rustls": "ENGINE=rustls ",
}
# These have figures over TLS alone.
TLS_ONLY = {"tautline-rustls"}
# The C interface, by callbacks and in batches, with what each compares with.
IN_C = {"tautline-c": "", "tautline-c-batches": "BATCH=1 "}
RUST = {"tautline-c": "tautline", "tautline-c-batches": "tautline-batches"}
# The ways to pull, and what the table calls them.
PULLED = {"tautline-events": "`events()`", "tautline-batches": "`next_batch()`"}

# Each figure of a run: its name, and its value in one row of the runner.
FIGURES = {
    "msgs_per_s": lambda row: row["msgs_per_s"],
    "cpu_ns": lambda row: row["cpu_s"] / (row["msgs"] if "msgs" in row else row["n"]) * 1e9,
    "p50_ns": lambda row: row["p50_ns"],
    "p99_ns": lambda row: row["p99_ns"],
}
# Work, figure, divisor, title with unit, and "more" or "less": which is better. Each but
# `compressed250` is measured plain and over TLS.
TABLE = [
    ("fire200", "msgs_per_s", 1e6, "200-byte messages, millions per second", "more"),
    ("fire200", "cpu_ns", 1, "CPU per 200-byte message, ns", "less"),
    ("fire2k", "cpu_ns", 1, "CPU per 2 KiB message, ns", "less"),
    ("fire64k", "cpu_ns", 1e3, "CPU per 64 KiB message, µs", "less"),
    ("echo128", "p50_ns", 1e3, "128-byte round trip, median, µs", "less"),
    ("echo128", "p99_ns", 1e3, "128-byte round trip, 99th percentile, µs", "less"),
    ("paced200", "p50_ns", 1e3, "20,000 per second, wire to handler, median, µs", "less"),
    ("paced200", "cpu_ns", 1e3, "CPU per message at 20,000 per second, µs", "less"),
    ("compressed250", "msgs_per_s", 1e6, "compressed 250-byte messages, millions per second",
     "more"),
    ("compressed250", "cpu_ns", 1, "CPU per compressed 250-byte message, ns", "less"),
]
DRAWN = [TABLE[0], TABLE[1], TABLE[4]]
WORKS = list(dict.fromkeys(work for work, *_ in TABLE))

NAMES = {
    "tautline-events": "tautline, events()", "tautline-batches": "tautline, next_batch()",
    "tautline-spin": "tautline, busy_poll", "tautline-rustls": "tautline, rustls",
    "tautline-c": "tautline, C", "tautline-c-batches": "tautline, C, batches",
    "libwebsockets": "libwebsockets (C)", "tungstenite-mutex": "tungstenite + mutex", "fastwebsockets-raw": "fastwebsockets",
    "beast": "Beast (C++)", "go-gorilla-tuned": "gorilla (Go)", "picows-mv": "picows (Python)",
}
BARE = {
    False: {"raw-tcp": "bare socket", "raw-tcp-spin": "bare socket, spinning"},
    True: {"raw-tcp": "bare native-tls", "raw-tls-buf": "native-tls, 128 KiB buffer"},
}


COMPRESSED = "compressed250"
COMPRESSED_COUNT, COMPRESSED_SIZE = 1_000_000, 250


def measure(rounds, only):
    """Runs everything, or what `only` names; returns the path of the rows."""
    built = subprocess.run(
        ["cargo", "bench", "--no-run", "--features", "rustls", "--bench", "driver",
         "--bench", "compressed", "--message-format=json"],
        cwd=os.path.dirname(HERE), check=True, stdout=subprocess.PIPE, text=True,
    ).stdout
    artifacts = [json.loads(line) for line in built.splitlines() if '"compiler-artifact"' in line]
    programs = {one["target"]["name"]: one["executable"] for one in artifacts if one["executable"]}
    out = tempfile.mkstemp(suffix=".jsonl")[1]
    works = [work for work in only or WORKS if work != COMPRESSED]
    if works:
        run_peers(rounds, works, programs["driver"], out)
    if COMPRESSED in (only or WORKS):
        run_compressed(rounds, programs, out)
    return out


def run_peers(rounds, works, driver, out):
    """Runs all clients against the load server; writes their rows."""
    peers = os.environ.get("PEERS", os.path.join(HERE, "../../shared/peers"))
    command = [sys.executable, "run.py", "--rounds", str(rounds), "--both", "--out", out]
    command += ["--peers", ",".join(OTHERS), "--workloads", ",".join(works)]
    for name, settings in OURS.items():
        command += ["--add", f"{name}={settings}{driver}"]
    with tempfile.TemporaryDirectory() as folder:
        for name, program in drivers_in_c(folder).items():
            command += ["--add", f"{name}={program}"]
        subprocess.run(command, cwd=peers, check=True)


def drivers_in_c(folder):
    """Builds the drivers in C; returns the commands of those that can be built here."""
    source, programs = os.path.join(HERE, "../capi"), {}
    build = {**os.environ, "PKG_CONFIG_PATH": os.path.join(folder, "lib/pkgconfig")}
    try:
        subprocess.run(
            ["make", "-C", source, "install", f"PREFIX={folder}"], check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"the C interface is left out: {error}", file=sys.stderr)
    for name, package in {"driver": "tautline", "libwebsockets": "libwebsockets"}.items():
        try:
            flags = subprocess.run(
                ["pkg-config", "--cflags", "--libs", package], check=True, env=build,
                stdout=subprocess.PIPE, text=True,
            ).stdout.split()
            program = os.path.join(folder, name)
            options = ["-std=gnu11", "-O3", "-DNDEBUG", f"-Wl,-rpath,{folder}/lib", "-pthread"]
            code = os.path.join(source, "bench", f"{name}.c")
            subprocess.run(["cc", *options, code, *flags, "-o", program], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{name} in C is left out: {error}", file=sys.stderr)
            continue
        if name == "libwebsockets":
            programs[name] = program
        else:
            programs.update({ours: f"{settings}{program}" for ours, settings in IN_C.items()})
    return programs


def run_compressed(rounds, programs, out):
    """Runs zlib-rs alone, this client and Beast in turn, on a CPU that the server does not use;
    appends their rows."""
    beast = build_beast(os.path.dirname(programs["compressed"]))
    if not beast:
        return
    count = str(COMPRESSED_COUNT)
    on = lambda cpu, words: ["taskset", "-c", str(cpu), *words]
    server = subprocess.Popen(
        on(0, [programs["compressed"], "serve", count]), stdout=subprocess.PIPE, text=True,
    )
    try:
        url = f"ws://{server.stdout.readline().strip()}/"
        commands = {
            "raw-zlib": [programs["compressed"], "floor", count],
            "tautline": [programs["driver"], "firehose", url],
            "beast": [beast, url],
        }
        with open(out, "a") as file:
            for turn in range(rounds):
                for peer, words in commands.items():
                    row = {"peer": peer, "work": COMPRESSED, "tls": False, "round": turn}
                    file.write(json.dumps({**run_firehose(on(1, words)), **row}) + "\n")
    finally:
        server.kill()
        server.wait()


def run_firehose(words):
    """Runs a client of the compressed feed; returns its row, or one that says what went wrong."""
    try:
        printed = subprocess.run(
            words, env={**os.environ, "COMPRESS": "1"}, check=True, stdout=subprocess.PIPE,
            text=True, timeout=90,
        ).stdout
    except subprocess.SubprocessError as error:
        print(error, file=sys.stderr)
        return {"error": str(error)}
    row = json.loads(printed)
    if (row["msgs"], row["bytes"]) != (COMPRESSED_COUNT, COMPRESSED_COUNT * COMPRESSED_SIZE):
        row["error"] = f"{row['msgs']} messages with {row['bytes']} bytes"
        print(f"{words}: {row['error']}", file=sys.stderr)
    return row


def build_beast(folder):
    """Returns the path of Beast's driver, or `None` if it cannot be built here."""
    source, program = os.path.join(HERE, "beast.cpp"), os.path.join(folder, "beast")
    if os.path.exists(program) and os.path.getmtime(program) > os.path.getmtime(source):
        return program
    options = ["-std=c++17", "-O3", "-DNDEBUG", "-pthread"]
    try:
        subprocess.run(["g++", *options, source, "-o", program], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"{COMPRESSED} is left out: it needs g++ and Boost ({error})", file=sys.stderr)
        return None
    return program


def medians(rows):
    """Returns the median of each peer over its rounds, one dictionary per peer and figure. A row
    that is a median already stays, unless the others have a newer one."""
    keys = ("work", "tls", "figure", "peer")
    result = {tuple(row[key] for key in keys): row["median"] for row in rows if "median" in row}
    found = {}
    for work, figure in dict.fromkeys((work, figure) for work, figure, *_ in TABLE):
        for row in rows:
            if not row.get("tls") and row.get("peer") in TLS_ONLY:
                continue
            if row.get("work") == work and "median" not in row and "error" not in row:
                key = (work, row["tls"], figure, row["peer"])
                found.setdefault(key, []).append(FIGURES[figure](row))
    for key, values in found.items():
        result[key] = float(f"{statistics.median(values):.4g}")
    return [
        {"of": "peers", **dict(zip(keys, key)), "median": median} for key, median in result.items()
    ]


def by_peer(figures, work, tls, figure, divisor):
    return {
        row["peer"]: row["median"] / divisor for row in figures
        if (row["work"], row["tls"], row["figure"]) == (work, tls, figure)
    }


def table(figures):
    """Returns one row per figure: this client, the bare socket (zlib-rs in memory for compressed
    messages), and the best peer that checks UTF-8 (beside what is pulled, the best that crosses a
    thread)."""
    lines = [
        "| | tautline | bare socket | ratio | best peer | ratio |",
        "|---|---:|---:|---:|---:|---:|",
    ]

    def add(title, ours, bare, best, peer, floor=""):
        lines.append(
            f"| {title} | {shown(ours)} | {floor}{shown(bare)} | {ours / bare:.2f} "
            f"| {best} {shown(peer)} | {ours / peer:.2f} |"
        )

    for tls in (False, True):
        for work, figure, divisor, title, better in TABLE:
            title = f"TLS: {title}" if tls else title
            found = by_peer(figures, work, tls, figure, divisor)
            bare, floor = ("raw-zlib", "zlib-rs ") if work == COMPRESSED else ("raw-tcp", "")
            if not {"tautline", bare} <= found.keys():
                continue
            peers = {
                name: value for name, value in found.items()
                if not name.startswith(("raw", "tautline")) and name not in UNCHECKED
            }
            best = (max if better == "more" else min)(peers, key=peers.get)
            add(title, found["tautline"], found[bare], best, peers[best], floor)
            if "tautline-rustls" in found:
                add(f"{title}, rustls", found["tautline-rustls"], found[bare], best, peers[best])
            if (work, figure) != ("fire200", "msgs_per_s") or "tungstenite-mutex" not in found:
                continue
            for name, call in PULLED.items():
                if name in found:
                    peer = found["tungstenite-mutex"]
                    row = (found[name], found["raw-tcp"], "tungstenite-mutex", peer)
                    add(f"{title}, {call}", *row)
    return "\n".join(lines)


def table_in_c(figures):
    """Returns one row per figure of the C interface, beside the same delivery in Rust."""
    lines = ["| | C | Rust | ratio |", "|---|---:|---:|---:|"]
    for tls in (False, True):
        for work, figure, divisor, title, _ in TABLE:
            found = by_peer(figures, work, tls, figure, divisor)
            for name, rust in RUST.items():
                if {name, rust} <= found.keys():
                    way = "batches" if name.endswith("batches") else "callbacks"
                    title_here = f"TLS: {title}, {way}" if tls else f"{title}, {way}"
                    ratio = found[name] / found[rust]
                    lines.append(
                        f"| {title_here} | {shown(found[name])} | {shown(found[rust])} "
                        f"| {ratio:.2f} |"
                    )
    return "\n".join(lines)


WIDTH, LEFT, BAR, SCALE = 470, 190, 17, 210


def kind(peer):
    if peer.startswith("tautline"):
        return "ours"
    if peer.startswith("raw"):
        return "bare"
    return "unchecked" if peer in UNCHECKED else "peer"


def panel(found, title, better, tls, x, y):
    """Draws the bars of one figure, the best on top; returns them and their height."""
    order = sorted(found.items(), key=lambda pair: pair[1], reverse=better == "more")
    # A bar ten times as long as the others would leave nothing of them to be seen.
    longest = min(max(found.values()), 4 * statistics.median(found.values()))
    body = text(x + 14, y + 14, f"{'TLS' if tls else 'plain'}: {title}", "title")
    body += text(x + 14, y + 30, f"{better} is better; bars start at 0", "note")
    for place, (peer, value) in enumerate(order):
        top = y + 38 + place * BAR
        name = BARE[tls].get(peer) or NAMES.get(peer, peer)
        length = SCALE * min(value / longest, 1)
        body += text(x + LEFT - 6, top + 12, name, anchor="end")
        body += (
            f'<rect x="{x + LEFT}" y="{top + 1}" width="{length:.1f}" height="{BAR - 4}" '
            f'class="{kind(peer)}"/>\n'
        )
        if value > longest:
            for cut in (length - 26, length - 18):
                body += (
                    f'<line x1="{x + LEFT + cut}" y1="{top + BAR}" x2="{x + LEFT + cut + 7}" '
                    f'y2="{top - 2}" class="cut"/>\n'
                )
        body += text(x + LEFT + length + 5, top + 12, shown(value), "value")
    return body, 38 + BAR * len(order) + 22


def legend(y):
    """Draws what the colors and the cut mean."""
    body, x = "", 14
    for css, name in [
        ("ours", "tautline"), ("peer", "other clients"),
        ("unchecked", "clients that do not check UTF-8"),
        ("bare", "no WebSocket client: the floor"),
    ]:
        body += f'<rect x="{x}" y="{y}" width="14" height="12" class="{css}"/>\n'
        body += text(x + 20, y + 11, name)
        x += 36 + 6.6 * len(name)
    body += f'<rect x="{x}" y="{y}" width="40" height="12" class="peer"/>\n'
    for cut in (14, 22):
        body += (
            f'<line x1="{x + cut}" y1="{y + 14}" x2="{x + cut + 7}" y2="{y - 2}" class="cut"/>\n'
        )
    return body + text(x + 46, y + 11, "bar cut short")


def draw(figures):
    """Draws six panels: plain on the left, TLS on the right."""
    body, y = legend(12), 42
    for work, figure, divisor, title, better in DRAWN:
        heights = []
        for column, tls in enumerate((False, True)):
            found = by_peer(figures, work, tls, figure, divisor)
            if found:
                drawn, height = panel(found, title, better, tls, column * WIDTH, y)
                body += drawn
                heights.append(height)
        y += max(heights, default=0)
    write("peers.svg", 2 * WIDTH, y, body)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", metavar="WORK", nargs="+", choices=WORKS)
    parser.add_argument("--save", metavar="FILE")
    parser.add_argument("--from", dest="files", nargs="+", metavar="FILE")
    options = parser.parse_args()
    files = options.files or [measure(options.rounds, options.only)]
    figures = medians(load(files, "peers"))
    print(table(figures), table_in_c(figures), sep="\n\n")
    if options.save:
        kept = load([options.save], "peers") if os.path.exists(options.save) else []
        save(options.save, "peers", medians(kept + figures))
    if not options.only:
        draw(figures)
    if not options.files:
        print(f"the rows: {files[0]}")


main()
