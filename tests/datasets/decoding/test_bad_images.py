"""Every kind of bad and odd image file, laid among good ones: each has its fate, none stops or hides another."""

import os
import re
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.support import bad_images
from tests.support.logs import log_messages
from transfer_learning import prepare
from transfer_learning.cli.parser import run_main
from transfer_learning.config import RunConfig
from transfer_learning.datasets.decoding.pixel_cache import cached_images
from transfer_learning.datasets.decoding.sample import sample_dataset
from transfer_learning.datasets.decoding.workers import DecodeWorkers
from transfer_learning.datasets.prepared import prepare_dataset
from transfer_learning.datasets.sources.registry import load_dataset
from transfer_learning.datasets.survey import survey
from transfer_learning.storage.cache import Cache

NO_SPLITS = ("--val-fraction", "0", "--test-fraction", "0")


@pytest.fixture(scope="module")
def laid(tmp_path_factory):
    """The folder, and the fate of each file in it."""
    root = tmp_path_factory.mktemp("bad_images") / "down" / "photos"
    return root, bad_images.lay(root)


def files_on_disk(root):
    return sorted(os.path.relpath(os.path.join(at, name), root) for at, _, names in os.walk(root) for name in names)


def fates_of(data):
    """What became of each file, as `lay` says it."""
    fates = {
        row.id: "used" if row.split else f"skipped: {row.problem}"
        for row in data.manifest[["id", "split", "problem"]].itertuples()
    }
    return fates | {name: f"ignored: {reason}" for name, reason in data.ignored}


def is_so(fate, expected):
    kind, _, words = expected.partition(": ")
    return fate.startswith(kind) and words in fate


def test_there_are_many_kinds_and_the_same_in_every_session():
    kinds = bad_images.kinds()
    assert len(kinds) >= 200 and len({kind.name for kind in kinds.values()}) == len(kinds)
    again = bad_images.kinds()
    assert all(again[name].make == kind.make for name, kind in kinds.items() if isinstance(kind.make, bytes))
    assert Counter(kind.fate.partition(":")[0] for kind in kinds.values()).keys() == {"used", "skipped", "ignored"}


def test_each_kind_has_its_fate_and_no_file_is_unreported(laid, tmp_path, capfd):
    root, expected = laid
    assert sorted(expected) == files_on_disk(root)
    # All are for training: some are equal once they are small, and would be skipped in one of two splits.
    config = RunConfig(
        image_size=16, skip_unreadable=True, val_fraction=0.0, test_fraction=0.0, cache_dir=str(tmp_path / "cache")
    )
    counts = []
    for turn in ("cold", "warm"):
        said = log_messages()
        data = prepare_dataset(load_dataset(str(root), tmp_path), config)
        fates = fates_of(data)
        assert sorted(fates) == sorted(expected), f"{turn}: a file is reported twice, or not at all"
        wrong = {name: (fate, expected[name]) for name, fate in fates.items() if not is_so(fate, expected[name])}
        assert not wrong, turn
        counts.append((data.describe(), Counter(re.sub(r"\d+", "N", fate) for fate in fates.values())))
        assert any(sentence.endswith("and are skipped.") for sentence in said)
    assert counts[0] == counts[1]
    assert capfd.readouterr() == ("", ""), "what a library remarks names no file"


def test_looking_at_headers_and_at_a_sample_waits_for_nothing_and_reads_nothing_endless(laid, tmp_path):
    root, _ = laid
    table = tmp_path / "all.csv"
    special = [path for path in sorted(root.rglob("*")) if not path.is_file()] + [
        "/dev/zero",
        "missing.png",
        "a\0b.png",
    ]
    rows = [f'"{path}",{label}' for path in (*special, *root.glob("?/good*")) for label in "a" if "\n" not in str(path)]
    rows += [f'"{path}",b' for path in root.glob("?/*TB*")]
    table.write_text("path,label\n" + "\n".join(dict.fromkeys(rows)) + "\n")
    dataset = load_dataset(str(table), tmp_path)
    assert survey(dataset).short_side == 30
    sample = sample_dataset(dataset, 16, "squash", Cache(tmp_path / "cache"), 16)
    assert len(sample.hashes) == 36, "the good ones alone"
    facts = cached_images(dataset, 16, "squash", Cache(tmp_path / "cache")).facts
    assert (facts["problem"] == "").sum() == 36 and (facts["problem"] != "").sum() == len(dataset.examples) - 36


def test_prepare_reports_all_of_it_and_ends_well(laid, here, capsys):
    root, expected = laid
    code = run_main(prepare.main, [str(root), "--cache-dir", "cache", "--skip-unreadable", *NO_SPLITS])
    output, errors = capsys.readouterr()
    number = Counter(fate.partition(":")[0] for fate in expected.values())
    assert (code, errors) == (0, "")
    assert f"{number['used'] + number['skipped']} images of 3 classes" in output
    assert f"{number['skipped']} skipped; {number['ignored']} other file" in output
    assert f"Ignored {number['ignored']} other files:" in output
    parts = " + ".join(f"{number[what]} {what}" for what in ("used", "skipped", "ignored"))
    assert f"{len(files_on_disk(root))} files on disk = {parts}\n" in output


def test_what_promises_too_much_is_refused_by_its_header_and_takes_no_memory(laid):
    root, expected = laid
    bombs = [name for name, fate in expected.items() if re.search("promises|unpack|canvas|tile|samples", name)]
    bombs = [root / name for name in bombs if expected[name].startswith("skipped")]
    assert {path.suffix for path in bombs} == {".jpg", ".png", ".bmp", ".gif", ".webp", ".tif"}
    with DecodeWorkers(16, "squash") as workers:
        assert not workers.decode(root / "a" / "good 0.png")[1].problem
        (worker,) = psutil.Process().children()
        before, seconds = peak_memory(worker), sum(worker.cpu_times()[:2])
        for path in bombs:
            assert workers.decode(path)[1].problem
        assert psutil.Process().children() == [worker], "one of them killed it"
        assert peak_memory(worker) - before < 100e6, "decoded, the smallest takes 240 MB"
        assert sum(worker.cpu_times()[:2]) - seconds < 10


def peak_memory(process):
    """The most that a process has had in memory, in bytes."""
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1])
