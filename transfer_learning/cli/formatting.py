"""Times, sizes and names as people read them, and the line on the terminal for them."""

from collections.abc import Sequence


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3:07 min``, ``2:05 h``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h"


def size(num_bytes: float) -> str:
    """``0.4 MB``, ``75 MB``, ``1.9 GB``; 10^6 and 10^9 bytes."""
    megabytes = num_bytes / 1e6
    if megabytes >= 999.5:
        return f"{megabytes / 1000:,.1f} GB"
    return f"{megabytes:.1f} MB" if megabytes < 9.95 else f"{megabytes:.0f} MB"


def megabytes(num_bytes: float) -> str:
    """``1 MB``, ``12,346 MB``: the space that something needs, rounded up."""
    return f"{-(-int(num_bytes) // 10**6):,} MB"


def counted(number: int, noun: str) -> str:
    """``1 image``, ``2,345 images``, ``3 classes``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}{'es' if noun.endswith('s') else 's'}"


def listed(names: Sequence[str], most: int = 4) -> str:
    """``a, b, c, ...``: the first `most` of some names."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def printable(text: str) -> str:
    """``text`` for the terminal: names of files and classes may hold what a terminal obeys, which becomes ``\\x1b``."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
