#!/usr/bin/env python3
"""How cost grows: with the size of messages, the number of connections, the number of threads that send. Draws benches/growth.svg.

  benches/growth.py        five minutes; the middle of ROUNDS runs is drawn

Needs the load server, built as its README says, in the folder that PEERS names (../shared/peers by default).
"""
import json, math, os, re, socket, statistics, subprocess, time

HERE = os.path.dirname(os.path.abspath(__file__))
PEERS = os.path.abspath(os.environ.get("PEERS", os.path.join(HERE, "../../shared/peers")))
ROUNDS = 5
SIZES = [20, 64, 200, 1024, 4096, 16384, 65536, 262144, 1048576]
LINES = [1, 10, 100, 1000]
PORT = 9971


def bench(name):
    """The executable of a bench, built."""
    built = subprocess.run(
        ["cargo", "bench", "--no-run", "--bench", name, "--message-format=json"],
        cwd=os.path.dirname(HERE), check=True, stdout=subprocess.PIPE, text=True,
    ).stdout
    built = [json.loads(line) for line in built.splitlines() if '"compiler-artifact"' in line]
    return next(one["executable"] for one in built if one["target"]["name"] == name and one["executable"])


def run(command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def sizes():
    """CPU of the client for each message, by its size: (size, ns)."""
    driver = bench("driver")
    server = subprocess.Popen([
        PEERS + "/server/target/release/server", "--port", str(PORT), "--tls-port", str(PORT + 1),
        "--cert", PEERS + "/certs/server.pem", "--key", PEERS + "/certs/server.key",
    ])
    try:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", PORT)) == 0:
                    break
            time.sleep(0.05)
        points = []
        for size in SIZES:
            count = max(200, min(1_000_000, 400_000_000 // (size + 400)))
            url = f"ws://127.0.0.1:{PORT}/firehose?n={count}&size={size}"
            rows = [json.loads(run([driver, "firehose", url])) for _ in range(ROUNDS)]
            points.append((size, statistics.median(row["cpu_s"] / row["msgs"] * 1e9 for row in rows)))
        return points
    finally:
        server.kill()
        server.wait()


def connections():
    """Time to open all, and live heap a connection, by their number: two lists of (connections, figure)."""
    program = bench("connections")
    unit = {"µs": 1e-3, "ms": 1, "s": 1e3}
    opened, heap = [], []
    for count in LINES:
        times, kib = [], []
        for _ in range(ROUNDS):
            text = next(line for line in run([program, str(count)]).splitlines() if "lines, plain:" in line)
            amount, suffix = re.search(r"open after ([\d.]+)(µs|ms|s)", text).groups()
            times.append(float(amount) * unit[suffix])
            kib.append(float(re.search(r"([\d.]+) KiB of live heap", text).group(1)))
        opened.append((count, statistics.median(times) / count))
        heap.append((count, statistics.median(kib)))
    return opened, heap


def senders():
    """Messages a second of all threads together, by their number: (threads, millions)."""
    program = bench("senders")
    found = [re.findall(r"(\d+) threads: ([\d.]+) million", run([program])) for _ in range(3)]
    threads = [int(number) for number, _ in found[0]]
    return [(number, statistics.median(float(one[at][1]) for one in found)) for at, number in enumerate(threads)]


def shown(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def panel(title, points, x0, log_y):
    """One curve: the horizontal axis is logarithmic."""
    width, height, left, top = 330, 190, 46, 30
    scale_y = (lambda value: math.log10(value)) if log_y else (lambda value: value)
    xs = [math.log10(x) for x, _ in points]
    ys = [scale_y(y) for _, y in points]
    low, high = (min(ys), max(ys)) if log_y else (0, max(ys) * 1.1)
    place = lambda x, y: (
        x0 + left + (x - xs[0]) / (xs[-1] - xs[0]) * (width - left - 20),
        top + (1 - (y - low) / ((high - low) or 1)) * (height - top - 30),
    )
    spots = [place(x, y) for x, y in zip(xs, ys)]
    out = [f'<text x="{x0 + 8}" y="18" class="title">{title}</text>']
    out.append('<polyline points="' + " ".join(f"{x:.1f},{y:.1f}" for x, y in spots) + '"/>')
    for (x, y), (value_x, value_y) in zip(spots, points):
        name = f"{value_x >> 20} MiB" if value_x >= 1 << 20 else f"{value_x >> 10} KiB" if value_x > 4000 else value_x
        out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
        out.append(f'<text x="{x:.1f}" y="{y - 7:.1f}" text-anchor="middle" class="value">{shown(value_y)}</text>')
        out.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle" class="value">{name}</text>')
    return "".join(out)


def main():
    opened, heap = connections()
    panels = [
        panel("CPU for a message by its size, ns", sizes(), 0, True),
        panel("time to open, ms a connection, by connections", opened, 340, False),
        panel("live heap, KiB a connection, by connections", heap, 680, False),
        panel("millions of sends a second by threads", senders(), 1020, False),
    ]
    style = (
        "text{font:12px sans-serif;fill:#444}.title{font-weight:bold;fill:#222}.value{font-size:9px}"
        "polyline{fill:none;stroke:#c7522a;stroke-width:2}circle{fill:#c7522a}.back{fill:#fff}"
    )
    with open(os.path.join(HERE, "growth.svg"), "w") as svg:
        svg.write(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1360 200" width="1360" height="200"><style>{style}</style>'
            '<rect class="back" width="1360" height="200"/>' + "".join(panels) + "</svg>\n"
        )
    print("benches/growth.svg")


main()
