"""Standard output and error as they are handed over: closed, with another encoding than UTF-8, or a pipe without reader."""

import codecs
import os
import sys
from contextlib import suppress
from typing import IO

STREAMS = ("stdin", "stdout", "stderr")
ESCAPED = "transfer_learning.escaped"  # error handler of encodings
closed_at_start: set[str] = set()  # names in STREAMS


def prepare_streams() -> None:
    """Makes every text printable: a closed stream becomes the null device, and others escape what they cannot encode.

    A closed stream would have another file opened in its place, which prints of libraries would then damage.
    """
    codecs.register_error(ESCAPED, _escaped)
    for descriptor, name in enumerate(STREAMS):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free descriptor is this one
        if getattr(sys, name) is None:
            closed_at_start.add(name)
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))
        elif name != "stdin" and hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors=ESCAPED)


def lose_stream(stream: IO[str]) -> None:
    """Sends what is still written to a stream, whose reader has left or whose disk is full, to the null device."""
    with suppress(OSError, ValueError):  # tests and notebooks have streams without a descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_error(text: str) -> None:
    """Prints to standard error, if it can be written to."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        lose_stream(sys.stderr)


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """``é`` becomes ``\\xe9`` in ASCII; bytes of a file name that are not UTF-8 stay as they are in UTF-8."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    if error.encoding == "utf-8":
        with suppress(UnicodeEncodeError):
            return text.encode("utf-8", "surrogateescape"), error.end
    return "".join(ascii(letter)[1:-1] for letter in text), error.end
