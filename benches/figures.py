"""What the scripts beside this file share: the saved figures, and the look of the pictures."""
import json, os

HERE = os.path.dirname(os.path.abspath(__file__))
SAVED = os.path.join(HERE, "figures.jsonl")

# Light first; the reader's preference for dark switches every color, the background included.
STYLE = """
text{font:12px 'DejaVu Sans',Verdana,sans-serif;fill:#3a3f45}
.title{font-weight:bold;fill:#16191d}.note{fill:#5d646c}.value{font-size:11px}
.ours{fill:#c7522a}.peer{fill:#6f97c8}.unchecked{fill:#b9cde6}.bare{fill:#a9adb2}
.back{fill:#ffffff}.cut{stroke:#ffffff;stroke-width:3}.grid{stroke:#e3e6e9}.axis{stroke:#7d848c}
.curve{fill:none;stroke:#c7522a;stroke-width:2}
@media (prefers-color-scheme: dark){
text{fill:#c3c9d0}.title{fill:#f0f3f6}.note{fill:#98a1ab}
.ours{fill:#e8794f}.peer{fill:#5b86ba}.unchecked{fill:#3c5675}.bare{fill:#6c737b}
.back{fill:#0d1117}.cut{stroke:#0d1117}.grid{stroke:#272d35}.axis{stroke:#7d848c}
.curve{stroke:#e8794f}
}
"""


def load(paths, of):
    """Reads JSON lines: saved medians of this kind, and every row that a runner wrote."""
    rows = [json.loads(line) for path in paths for line in open(path) if line.strip()]
    return [row for row in rows if row.get("of", of) == of]


def save(path, of, medians):
    """Writes medians as JSON lines, and keeps the lines of other kinds that the file holds."""
    others = []
    if os.path.exists(path):
        others = [line for line in open(path) if json.loads(line)["of"] != of]
    lines = [json.dumps({**median, "of": of}) + "\n" for median in medians]
    with open(path, "w") as file:
        file.writelines(others + lines)


def shown(figure):
    """Returns three significant digits, with thousands separated."""
    return f"{figure:,.0f}" if figure >= 1000 else f"{figure:.3g}"


def text(x, y, content, css="", anchor=""):
    css = f' class="{css}"' if css else ""
    anchor = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{css}{anchor}>{content}</text>\n'


def write(name, width, height, body):
    """Writes a picture beside this file."""
    with open(os.path.join(HERE, name), "w") as svg:
        svg.write(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}">\n<style>{STYLE}</style>\n'
            f'<rect class="back" width="{width}" height="{height}"/>\n{body}</svg>\n'
        )
    print(f"benches/{name}")
