"""Thousands of damaged image files: a sample here, 10,000 in `make test-long`, any number by
`python -m tests.support.mutated_images`."""

import re
import sys

import pytest

from tests.support import mutated_images
from transfer_learning.datasets.decoding import workers


@pytest.mark.parametrize("number", [150, pytest.param(10_000, marks=pytest.mark.long)])
def test_every_mutated_image_is_used_or_reported_the_same_way_twice_and_no_worker_crashes(number, tmp_path, capsys):
    code = mutated_images.main([str(tmp_path / "mutated"), "--number", str(number)])
    output = capsys.readouterr().out
    assert code == 0, output
    counts = re.search(
        r"([\d,]+) of ([\d,]+) reported: ([\d,]+) used, ([\d,]+) skipped; 0 workers died", output
    ).groups()
    reported, of, used, skipped = (int(count.replace(",", "")) for count in counts)
    assert reported == of == used + skipped == number
    assert used > number / 10 and skipped > number / 10, "they say little if all are alike"


def test_mutated_images_are_the_same_in_every_session(tmp_path):
    for turn in "ab":
        mutated_images.write_mutated_images(tmp_path / turn, 60, seed=3)
    first, second = (
        {path.relative_to(tmp_path / turn): path.read_bytes() for path in (tmp_path / turn).rglob("*.*")}
        for turn in "ab"
    )
    assert first == second and len(first) == 60


FAULTY_WORKER = """
import os
from transfer_learning.datasets.decoding import workers as decode_worker

decode = decode_worker.decode
decode_worker.decode = lambda content, *options: os.abort() if len(content) % 5 == 0 else decode(content, *options)
decode_worker.main()
"""


def test_a_worker_that_dies_is_a_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(workers, "COMMAND", (sys.executable, "-c", FAULTY_WORKER))
    assert mutated_images.main([str(tmp_path / "mutated"), "--number", "20"]) == 1
    assert "FAILED: a worker died or took too long." in capsys.readouterr().out
