"""Times and sizes in words, at the edges where the unit changes; names that a terminal cannot obey."""

import pytest

from transfer_learning.cli.formatting import counted, duration, printable, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1:00 min"),
        (60, "1:00 min"),
        (187, "3:07 min"),
        (3599.4, "59:59 min"),
        (3599.6, "1:00 h"),
        (7500, "2:05 h"),
        (90061, "25:01 h"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0.0 MB"), (400_000, "0.4 MB"), (75_400_000, "75 MB"), (999_000_000, "999 MB"), (1_900_000_000, "1.9 GB")],
)
def test_size(num_bytes, text):
    assert size(num_bytes) == text


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "image", "0 images"),
        (1, "class", "1 class"),
        (3, "class", "3 classes"),
        (1234, "train step", "1,234 train steps"),
    ],
)
def test_counted(number, noun, text):
    assert counted(number, noun) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Fish Oil, 薬 ✓", "Fish Oil, 薬 ✓"),
        ("", ""),
        ("a\x1b[2J", "a\\x1b[2J"),
        ("a\rb\nc", "a\\rb\\nc"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\udcff", "\\udcff"),
    ],
)
def test_printable(name, text):
    assert printable(name) == text
