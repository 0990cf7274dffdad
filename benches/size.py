#!/usr/bin/env python3
"""Measures what a client adds to a program that does nothing: the size of a stripped release build
(fat LTO) that opens a connection and reads.

  benches/size.py        takes a few minutes: it builds three small programs under target/size
"""
import os, subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
PROGRAMS = {
    "nothing": ("", "fn main() { println!(\"{:?}\", std::env::args()); }"),
    "tautline": (
        f'tautline = {{ path = "{ROOT}" }}',
        """fn main() -> Result<(), tautline::Error> {
            let url = std::env::args().nth(1).unwrap_or_default();
            let client = tautline::Client::builder(url).connect()?;
            for event in client.events() { println!("{event:?}"); }
            Ok(())
        }""",
    ),
    "tungstenite": (
        'tungstenite = { version = "0.30", features = ["native-tls"] }',
        """fn main() -> Result<(), tungstenite::Error> {
            let url = std::env::args().nth(1).unwrap_or_default();
            let (mut socket, _) = tungstenite::connect(url)?;
            loop { println!("{:?}", socket.read()?); }
        }""",
    ),
}


def size(name, dependency, program):
    """Builds the program; returns its size in bytes."""
    folder = os.path.join(ROOT, "target", "size", name)
    os.makedirs(os.path.join(folder, "src"), exist_ok=True)
    with open(os.path.join(folder, "Cargo.toml"), "w") as manifest:
        manifest.write(
            f'[package]\nname = "size-of-{name}"\nedition = "2024"\n'
            f'[dependencies]\n{dependency}\n[workspace]\n'
            '[profile.release]\nlto = "fat"\ncodegen-units = 1\nstrip = true\n'
        )
    with open(os.path.join(folder, "src", "main.rs"), "w") as source:
        source.write(program)
    subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=folder, check=True)
    return os.path.getsize(os.path.join(folder, "target", "release", f"size-of-{name}"))


sizes = {name: size(name, *program) for name, program in PROGRAMS.items()}
for name in list(sizes)[1:]:
    print(f"{name} adds {(sizes[name] - sizes['nothing']) / 1024:.0f} KiB")
