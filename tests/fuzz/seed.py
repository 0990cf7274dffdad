#!/usr/bin/env python3
"""Writes the seed corpus of the fuzz targets: small inputs that reach far, the same in each run."""

import gzip
import os
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))


def frame(first, payload):
    if len(payload) < 126:
        return bytes([first, len(payload)]) + payload
    if len(payload) < 65536:
        return bytes([first, 126]) + len(payload).to_bytes(2, "big") + payload
    return bytes([first, 127]) + len(payload).to_bytes(8, "big") + payload


def deflate(payload):
    engine = zlib.compressobj(6, zlib.DEFLATED, -15)
    return (engine.compress(payload) + engine.flush(zlib.Z_SYNC_FLUSH))[:-4]


LINES = {
    "text": frame(0x81, b"hello"),
    "utf8": frame(0x81, "grüße €".encode()),
    "binary-126": frame(0x82, bytes(200)),
    "binary-127": frame(0x82, bytes(66000))[:2000],
    "fragments": frame(0x01, b"a\xe2") + frame(0x89, b"ping") + frame(0x00, b"\x82") + frame(0x80, b"\xac"),
    "control": frame(0x89, b"") + frame(0x8A, b"x" * 125) + frame(0x88, b"\x03\xe8bye"),
    "close-empty": frame(0x88, b""),
    "close-half": frame(0x88, b"\x03"),
    "compressed": frame(0xC1, deflate(b"hello hello hello")),
    "compressed-fragments": frame(0x41, deflate(b"hello" * 100)[:5]) + frame(0x80, deflate(b"hello" * 100)[5:]),
    "bomb": frame(0xC2, deflate(bytes(1 << 20))),
    "reserved": b"\x91\x00",
    "bad-utf8": frame(0x81, b"\xff"),
    "long": b"\x82\x7f\x00\x00\x00\xff\x00\x00\x00\x00",
}

HEADS = {
    "good": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: one\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=\"12\"; server_no_context_takeover\r\n\r\n\x81\x00",
    "refused": b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 120\r\nContent-Length: 4\r\n\r\nbusy",
    "date": b"HTTP/1.1 503 Busy\r\nRetry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n",
    "http10": b"HTTP/1.0 101 OK\r\n\r\n",
    "partial": b"HTTP/1.1 101 Switching",
}

# Each dial: a byte with the number of addresses, the outcome and the host, and the addresses.
ADDRESSES = {
    "failures": b"\x1c\x01\x02\x03" * 4,
    "families": b"\x24\x21\x01\x22\x02" * 3 + b"\x20\x21\x01\x22\x02",
    "hosts": b"".join(bytes([0x14 | host, 1, 2]) for host in (0, 1, 2, 0, 1)),
    "many": bytes([0xFC]) + bytes(range(31)) + bytes([0xFC]) + bytes(range(33, 64)),
}


def write(target, name, content):
    folder = os.path.join(HERE, "corpus", target)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as file:
        file.write(content)


for name, content in LINES.items():
    write("frames", name, content)
    for shape in (b"\x00", b"\x01", b"\x03", b"\xf8", b"\xff"):
        write("assembler", name + "-" + shape.hex(), shape + content)
    for shape in (b"\x00", b"\x01", b"\x07"):
        write("connection", name + "-" + shape.hex(), shape + content)
for name, content in HEADS.items():
    write("head", name, content)
for name, content in ADDRESSES.items():
    write("addresses", name, content)
for name, content in {"empty": b"", "json": b'{"code":-2015}', "long": b"x" * 5000}.items():
    for shape in (b"\x00\x00", b"\x07\x03", b"\xff\xff"):
        write("refusals", name + "-" + shape.hex(), shape + content)
        write("inflate", name + "-" + shape.hex(), shape + content)
# The formats of `decode`: a member with each optional field, two members, a bomb, one that is cut.
def raw(payload):
    engine = zlib.compressobj(6, zlib.DEFLATED, -15)
    return engine.compress(payload) + engine.flush()


JSON = b'{"ping":1492420473027}'
MEMBER = gzip.compress(JSON, mtime=0)
HEAD = b"\x1f\x8b\x08\x1e" + MEMBER[4:10] + b"\x02\x00xx" + b"name\x00" + b"comment\x00"
DECODED = {
    0: {
        "member": MEMBER,
        "members": MEMBER + gzip.compress(b"", mtime=0) + MEMBER,
        "fields": HEAD + (zlib.crc32(HEAD) & 0xFFFF).to_bytes(2, "little") + MEMBER[10:],
        "bomb": gzip.compress(bytes(1 << 20), mtime=0),
        "cut": MEMBER[:-5],
        "trailing": MEMBER + b"x",
    },
    1: {"whole": zlib.compress(JSON), "cut": zlib.compress(JSON)[:-3], "bomb": zlib.compress(bytes(1 << 20))},
    2: {"whole": raw(JSON), "cut": raw(JSON)[:-3], "bomb": raw(bytes(1 << 20)), "trailing": raw(JSON) + b"x"},
}
for shape, contents in DECODED.items():
    for name, content in contents.items():
        write("decode", f"{name}-{shape}", bytes([shape]) + content)
# The upper bit asks for text; what is left of 0x80 by 3 is 2.
write("decode", "text", bytes([0x80]) + raw("grüße €".encode()))
# Messages that end in a final block, and one that is cut.
for name, content in {"final": "0b4fcd49cecf4d0500", "cut": "f248cdc9", "whole": "f248cdc9c90700"}.items():
    write("inflate", name, b"\x01\x00" + bytes.fromhex(content))
