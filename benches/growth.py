#!/usr/bin/env python3
"""Measures how cost grows with the size of messages and the number of connections and senders.

  benches/growth.py                 five minutes; draws the medians as benches/growth.svg
  benches/growth.py --save FILE     also saves them as JSON lines (benches/figures.jsonl)
  benches/growth.py --from FILE     measures nothing: draws saved medians

Needs the load server, built as its README says, in the folder that PEERS names (../shared/peers by
default).
"""
import argparse, json, math, os, re, socket, statistics, subprocess, time

from figures import HERE, load, save, shown, text, write

PEERS = os.path.abspath(os.environ.get("PEERS", os.path.join(HERE, "../../shared/peers")))
ROUNDS = 5
SIZES = [20, 64, 200, 1024, 4096, 16384, 65536, 262144, 1048576]
CONNECTIONS = [1, 10, 100, 1000]
PORT = 9971


def bench(name):
    """Builds a bench; returns the path of its executable."""
    built = subprocess.run(
        ["cargo", "bench", "--no-run", "--bench", name, "--message-format=json"],
        cwd=os.path.dirname(HERE), check=True, stdout=subprocess.PIPE, text=True,
    ).stdout
    artifacts = [json.loads(line) for line in built.splitlines() if '"compiler-artifact"' in line]
    return next(
        one["executable"] for one in artifacts
        if one["target"]["name"] == name and one["executable"]
    )


def run(command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def median(figure, by, at, values):
    value = float(f"{statistics.median(values):.4g}")
    return {"figure": figure, "by": by, "at": at, "median": value}


def sizes():
    """Measures the client's CPU per message by the size of messages, in ns."""
    driver = bench("driver")
    # On the CPUs that the runner of peers.py gives them, so that the figures can be compared.
    server = subprocess.Popen([
        "taskset", "-c", "0", PEERS + "/server/target/release/server",
        "--port", str(PORT), "--tls-port", str(PORT + 1),
        "--cert", PEERS + "/certs/server.pem", "--key", PEERS + "/certs/server.key",
    ])
    try:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", PORT)) == 0:
                    break
            if server.poll() is not None:
                raise SystemExit("the load server does not start")
            time.sleep(0.05)
        points = []
        for size in SIZES:
            count = max(200, min(1_000_000, 400_000_000 // (size + 400)))
            url = f"ws://127.0.0.1:{PORT}/firehose?n={count}&size={size}"
            command = ["taskset", "-c", "1", driver, "firehose", url]
            rows = [json.loads(run(command)) for _ in range(ROUNDS)]
            costs = [row["cpu_s"] / row["msgs"] * 1e9 for row in rows]
            points.append(median("cpu_ns", "bytes", size, costs))
        return points
    finally:
        server.kill()
        server.wait()


def connections():
    """Measures the time to open all, in ms per connection, and each one's live heap, in KiB."""
    program = bench("connections")
    unit = {"µs": 1e-3, "ms": 1, "s": 1e3}
    points = []
    for count in CONNECTIONS:
        times, heap = [], []
        for _ in range(ROUNDS):
            output = run([program, str(count)])
            told = next(line for line in output.splitlines() if "connections, plain:" in line)
            amount, suffix = re.search(r"open after ([\d.]+)(µs|ms|s)", told).groups()
            times.append(float(amount) * unit[suffix] / count)
            heap.append(float(re.search(r"([\d.]+) KiB of live heap", told).group(1)))
        points.append(median("open_ms", "connections", count, times))
        points.append(median("heap_kib", "connections", count, heap))
    return points


def senders():
    """Measures the sends per second of all threads together, by the number of threads."""
    program = bench("senders")
    by_threads = {}
    for _ in range(3):
        for threads, millions in re.findall(r"(\d+) threads: ([\d.]+) million", run([program])):
            by_threads.setdefault(int(threads), []).append(float(millions) * 1e6)
    return [median("sends_per_s", "threads", at, found) for at, found in by_threads.items()]


# Figure, divisor, title, name and unit of the horizontal and of the vertical axis, and the marks of
# a logarithmic vertical axis. Every horizontal axis is logarithmic.
PANELS = [
    ("cpu_ns", 1, "Size of messages", "payload, bytes", "CPU per message, ns",
     [10, 100, 1000, 10_000, 100_000, 1_000_000]),
    ("sends_per_s", 1e6, "Threads that send at once", "threads",
     "sends per second of all together, millions", None),
    ("open_ms", 1, "Connections: time to open", "connections dialed at once", "ms per connection",
     None),
    ("heap_kib", 1, "Connections: memory", "open connections", "live heap per connection, KiB",
     None),
]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 470, 290, 76, 24, 62, 52


def size(value):
    """Returns a tick of the horizontal axis."""
    for unit, name in [(1 << 20, "Mi"), (1 << 10, "Ki")]:
        if value >= unit and value % unit == 0:
            return f"{value // unit}{name}"
    return f"{value:,}"


def panel(points, title, across, up, marks, x0, y0):
    """Draws one curve with both axes."""
    xs = [math.log10(x) for x, _ in points]
    if marks:
        low, high = math.log10(marks[0]), math.log10(marks[-1])
    else:
        # Four steps of a round length, from zero.
        step = max(y for _, y in points) * 1.12 / 4
        unit = 10 ** math.floor(math.log10(step))
        step = next(unit * one for one in (1, 2, 2.5, 5, 10) if unit * one >= step)
        marks, low, high = [step * place for place in range(5)], 0, 4 * step
    log = low != 0
    scale = math.log10 if log else float
    left, right = x0 + LEFT, x0 + WIDTH - RIGHT
    top, bottom = y0 + TOP, y0 + HEIGHT - BOTTOM
    across_to = lambda x: left + 24 + (x - xs[0]) / (xs[-1] - xs[0]) * (right - left - 46)
    up_to = lambda y: bottom - (scale(y) - low) / (high - low) * (bottom - top)
    body = text(x0 + 14, y0 + 16, title, "title")
    body += text(x0 + 14, y0 + 36, f"↑ {up}{' (log scale)' if log else ''}", "note")
    for mark in marks:
        y = up_to(mark)
        body += f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" class="grid"/>\n'
        name = f"{mark:,.0f}" if mark >= 10 else f"{mark:.3g}"
        body += text(left - 6, y + 4, name, "value", "end")
    body += f'<line x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}" class="axis"/>\n'
    body += f'<line x1="{left}" y1="{top}" x2="{left}" y2="{bottom}" class="axis"/>\n'
    spots = [(across_to(x), up_to(y)) for x, (_, y) in zip(xs, points)]
    body += '<polyline class="curve" points="'
    body += " ".join(f"{x:.1f},{y:.1f}" for x, y in spots) + '"/>\n'
    for (x, y), (at, value) in zip(spots, points):
        body += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="ours"/>\n'
        # Beside the curve, not on it.
        aside = 8 if points[0][1] > points[-1][1] * 1.1 else -8 if log else 0
        body += text(x + aside, y - 8, shown(value), "value", "middle")
        body += text(x, bottom + 16, size(at), "value", "middle")
    return body + text(right, bottom + 36, f"{across} (log scale) →", "note", "end")


def draw(figures):
    body = ""
    for place, (figure, divisor, title, across, up, marks) in enumerate(PANELS):
        points = sorted(
            (row["at"], row["median"] / divisor) for row in figures if row["figure"] == figure
        )
        x0, y0 = place % 2 * WIDTH, place // 2 * HEIGHT + 6
        body += panel(points, title, across, up, marks, x0, y0)
    write("growth.svg", 2 * WIDTH, 2 * HEIGHT + 6, body)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--save", metavar="FILE")
    parser.add_argument("--from", dest="file", metavar="FILE")
    options = parser.parse_args()
    if options.file:
        figures = load([options.file], "growth")
    else:
        figures = connections() + sizes() + senders()
    if options.save:
        save(options.save, "growth", figures)
    draw(figures)


main()
