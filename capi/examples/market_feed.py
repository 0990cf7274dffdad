#!/usr/bin/env python3
"""A market feed in Python: ctypes, and asyncio's add_reader in the place of a thread.

  TAUTLINE_LIBRARY=libtautline.so.0 python3 market_feed.py ws://127.0.0.1:9000/feed
"""
import asyncio
import ctypes
import os
import sys
from ctypes import (
    POINTER, Structure, Union, byref, c_bool, c_char_p, c_int, c_int32, c_int64, c_size_t,
    c_uint16, c_uint32, c_uint64, c_void_p, sizeof,
)

ABI_VERSION = 1
FAILED, OK, NOT_SENT, UNKNOWN, EMPTY, ENDED, LATE = -1, 0, 1, 2, 3, 4, 5
OPENED, MESSAGE, DISCONNECTED, DIAL_FAILED, LAGGED, STOPPED = 1, 2, 3, 4, 5, 6
SECOND = 1_000_000_000
RETRY_DELAY = SECOND // 10


# The structs of tautline.h, as far as this program reads them. Those that the library makes may be
# longer; of `Event`, which stands in an array, every field counts.
class Error(Structure):
    _fields_ = [
        ("size", c_size_t), ("kind", c_int32), ("status", c_uint16), ("close_code", c_uint16),
        ("is_retryable", c_bool), ("is_verification_failure", c_bool), ("text", c_char_p),
        ("kind_name", c_char_p), ("timeout", c_char_p), ("close_reason", c_char_p),
        ("endpoint_text", c_char_p), ("retry_after_ns", c_int64), ("retry_in_ns", c_int64),
    ]


class Opened(Structure):
    _fields_ = [
        ("size", c_size_t), ("epoch", c_uint64), ("took_ns", c_int64), ("peer", c_char_p),
        ("subprotocol", c_char_p), ("internal", c_void_p), ("is_compressed", c_bool),
    ]


class Disconnect(Structure):
    _fields_ = [
        ("size", c_size_t), ("epoch", c_uint64), ("error", POINTER(Error)), ("text", c_char_p),
    ]


class Told(Structure):
    """A failed dial or the end of the client: they begin alike."""
    _fields_ = [("size", c_size_t), ("error", POINTER(Error)), ("text", c_char_p)]


class Detail(Union):
    _fields_ = [
        ("any", c_void_p), ("opened", POINTER(Opened)), ("disconnect", POINTER(Disconnect)),
        ("told", POINTER(Told)),
    ]


class Message(Structure):
    _fields_ = [
        ("size", c_size_t), ("data", c_void_p), ("length", c_size_t), ("epoch", c_uint64),
        ("received_ns", c_int64), ("kernel_received_ns", c_int64), ("is_text", c_bool),
    ]

    def payload(self):
        """Copies the payload, which is gone with the next batch."""
        return ctypes.string_at(self.data, self.length)


class Event(Structure):
    _fields_ = [
        ("size", c_size_t), ("kind", c_int32), ("detail", Detail), ("message", Message),
    ]


class Report(Structure):
    _fields_ = [
        ("size", c_size_t), ("text", c_char_p), ("took_ns", c_int64), ("threads", c_void_p),
        ("thread_count", c_size_t), ("is_clean", c_bool),
    ]


class Receipt(Structure):
    _fields_ = [("epoch", c_uint64), ("sequence", c_uint64)]


OUT = POINTER(POINTER(Error))
FUNCTIONS = {
    "tl_error_free": (None, [POINTER(Error)]),
    "tl_options_new": (c_void_p, [c_uint32, OUT]),
    "tl_options_free": (None, [c_void_p]),
    "tl_options_set": (c_int32, [c_void_p, c_char_p, c_char_p, OUT]),
    "tl_client_start": (c_void_p, [c_void_p, OUT]),
    "tl_client_events": (c_void_p, [c_void_p, OUT]),
    "tl_client_send_text": (
        c_int32, [c_void_p, c_char_p, c_size_t, c_uint64, POINTER(Receipt), OUT],
    ),
    "tl_client_request_stop": (c_int32, [c_void_p, OUT]),
    "tl_client_stop": (c_int32, [c_void_p, c_int64, POINTER(POINTER(Report)), OUT]),
    "tl_client_free": (None, [c_void_p]),
    "tl_events_fd": (c_int, [c_void_p, OUT]),
    "tl_events_next_batch": (
        c_int32,
        [c_void_p, c_int64, POINTER(Event), c_size_t, c_size_t, POINTER(c_size_t), OUT],
    ),
    "tl_events_free": (None, [c_void_p]),
    "tl_stop_report_free": (None, [POINTER(Report)]),
}


class TautlineError(Exception):
    pass


class Library:
    """The library, whose calls raise what their error says."""

    def __init__(self):
        library = ctypes.CDLL(os.environ.get("TAUTLINE_LIBRARY", "libtautline.so.0"))
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("tl_"), function)

    def call(self, function, *arguments):
        error = POINTER(Error)()
        result = function(*arguments, byref(error))
        if error:
            text = f"{error.contents.kind_name.decode()}: {error.contents.text.decode()}"
            self.error_free(error)
            raise TautlineError(text)
        return result


class Feed:
    """Subscribes after every opening, and counts quotes until the server says `end`."""

    CAPACITY = 64

    def __init__(self, library, url):
        self.library, self.call = library, library.call
        self.quotes = self.openings = self.ends = 0
        # The epoch of the open connection, or 0.
        self.epoch = 0
        self.latest = b""
        options = self.call(library.options_new, ABI_VERSION)
        try:
            for key, value in {
                "url": url, "name": "feed", "ping_interval": "15s", "retry_delay_min": "10ms",
            }.items():
                self.call(library.options_set, options, key.encode(), value.encode())
            self.client = self.call(library.client_start, options)
        finally:
            library.options_free(options)
        self.events = self.call(library.client_events, self.client)
        self.batch, self.count = (Event * self.CAPACITY)(), c_size_t()

    async def run(self):
        """Runs on the loop's thread alone, until the client has ended."""
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        fd = self.call(self.library.events_fd, self.events)
        loop.add_reader(fd, self.pull, ended)
        try:
            await ended
        finally:
            loop.remove_reader(fd)

    def pull(self, ended):
        while not ended.done():
            status = self.call(
                self.library.events_next_batch, self.events, 0, self.batch, sizeof(Event),
                self.CAPACITY, byref(self.count),
            )
            if status == ENDED:
                ended.set_result(None)
            for event in self.batch[:self.count.value]:
                self.take(event)
            # A batch that does not fill the array need not be the last.
            if status != OK:
                return

    def subscribe(self, epoch):
        """Sends the subscription on this connection and no other. What became of it is no exception:
        the events behind this one are to be taken in any case."""
        if epoch != self.epoch:
            return
        text, receipt, error = b"subscribe BTCUSDT", Receipt(), POINTER(Error)()
        status = self.library.client_send_text(
            self.client, text, len(text), epoch, byref(receipt), byref(error)
        )
        if status == OK:
            return
        told, retry_in_ns = error.contents.text.decode(), error.contents.retry_in_ns
        self.library.error_free(error)
        if status == NOT_SENT:
            print(f"not subscribed ({told}): sending it again is safe", file=sys.stderr)
            delay_ns = retry_in_ns if retry_in_ns >= 0 else RETRY_DELAY
            asyncio.get_running_loop().call_later(delay_ns / SECOND, self.subscribe, epoch)
        else:
            # The connection was aborted. The next opening subscribes.
            print(f"nobody knows whether this subscribed ({told})", file=sys.stderr)

    def take(self, event):
        if event.kind == OPENED:
            opened = event.detail.opened.contents
            self.openings += 1
            self.epoch = opened.epoch
            print(f"open: epoch {opened.epoch} at {opened.peer.decode()}")
            self.subscribe(opened.epoch)
        elif event.kind == MESSAGE:
            payload = event.message.payload()
            if payload == b"end":
                self.call(self.library.client_request_stop, self.client)
            else:
                self.quotes, self.latest = self.quotes + 1, payload
        elif event.kind == DISCONNECTED:
            self.ends += 1
            self.epoch = 0
            print(event.detail.disconnect.contents.text.decode())
        elif event.kind in (DIAL_FAILED, STOPPED):
            print(event.detail.told.contents.text.decode())

    def close(self):
        """Stops the client; returns whether all of its threads have ended."""
        report = POINTER(Report)()
        self.call(self.library.client_stop, self.client, 5 * SECOND, byref(report))
        print(f"stopped {report.contents.text.decode()}")
        is_clean = report.contents.is_clean
        self.library.stop_report_free(report)
        self.library.events_free(self.events)
        self.library.client_free(self.client)
        return is_clean


def main():
    feed = Feed(Library(), sys.argv[1])
    try:
        asyncio.run(asyncio.wait_for(feed.run(), 60))
    finally:
        is_clean = feed.close()
    print(
        f"{feed.quotes} quotes, {feed.openings} openings, {feed.ends} ends; the last: "
        f"{feed.latest.decode()}"
    )
    sys.exit(not (is_clean and feed.quotes > 0 and feed.openings == feed.ends))


main()
