"""The drawn stand-in for the pharma set: the same bits everywhere, whole on disk or not there."""

import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from transfer_learning.datasets.sources import drawn_pills
from transfer_learning.datasets.sources.drawn_pills import CLASS_NAMES, draw, is_complete, write
from transfer_learning.errors import UserError

pytestmark = pytest.mark.filterwarnings("error")  # a deprecation in Pillow or NumPy is to be seen


def digest(class_name, number, size):
    return hashlib.sha256(draw(class_name, number, size).tobytes()).hexdigest()


def test_the_classes_are_those_of_the_pharma_set_in_its_order():
    assert CLASS_NAMES == (
        "Alaxan",
        "Bactidol",
        "Bioflu",
        "Biogesic",
        "DayZinc",
        "Decolgen",
        "Fish Oil",
        "Kremil S",
        "Medicol",
        "Neozep",
    )


@pytest.mark.parametrize("class_name", CLASS_NAMES)
def test_draws_distinct_photographs_that_depend_on_the_arguments_alone(class_name):
    first = [digest(class_name, number, 128) for number in range(1, 7)]
    assert len(set(first)) == 6
    drawn_pills._sprite.cache_clear()  # nothing may hang on what was drawn before
    assert [digest(class_name, number, 128) for number in range(6, 0, -1)] == first[::-1]


@pytest.mark.parametrize("size", [32, 224, 256, 301])
def test_draws_rgb_of_the_asked_size(size):
    image = draw("Fish Oil", 3, size)
    assert (image.mode, image.size) == ("RGB", (size, size))
    low, high = image.convert("L").getextrema()
    assert high - low > 40  # something is on it


def test_another_process_draws_the_same_bits():
    code = (
        "import hashlib; from transfer_learning.datasets.sources.drawn_pills import CLASS_NAMES, draw\n"
        "for name in CLASS_NAMES: print(hashlib.sha256(draw(name, 11, 128).tobytes()).hexdigest())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [digest(name, 11, 128) for name in CLASS_NAMES]


def test_an_unknown_class_is_named():
    with pytest.raises(ValueError, match="'Aspirin'.*Alaxan"):
        draw("Aspirin", 1)


def test_write_makes_one_folder_per_class_and_reports_progress(tmp_path, monkeypatch):
    folder, seen = tmp_path / "deep" / "pills", []
    assert not is_complete(folder)
    monkeypatch.setattr(drawn_pills, "count_progress", lambda title: lambda done, total: seen.append((done, total)))
    write(folder, 2)
    assert seen == [(done, 20) for done in range(1, 21)]
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))
    assert files == sorted(f"{name}/{name}_{number:04d}.jpg" for name in CLASS_NAMES for number in (1, 2))
    with Image.open(folder / "Kremil S" / "Kremil S_0002.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (256, 256))
    assert [path.name for path in folder.parent.iterdir()] == ["pills"]
    assert is_complete(folder) and is_complete(folder, 2) and not is_complete(folder, 3)

    before = {path: path.read_bytes() for path in folder.rglob("*.jpg")}
    write(folder, 2)
    assert {path: path.read_bytes() for path in folder.rglob("*.jpg")} == before

    (folder / "Alaxan" / "Alaxan_0001.jpg").unlink()
    assert not is_complete(folder)


def test_another_version_is_drawn_again(tmp_path, monkeypatch):
    write(tmp_path / "pills", 1)
    monkeypatch.setattr(drawn_pills, "VERSION", drawn_pills.VERSION + 1)
    assert not is_complete(tmp_path / "pills")
    write(tmp_path / "pills", 1)
    assert is_complete(tmp_path / "pills")
    assert [path.name for path in tmp_path.iterdir()] == ["pills"]


def test_an_interrupted_drawing_leaves_what_was_there(tmp_path, monkeypatch):
    def interrupt(done, total):
        if done == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(drawn_pills, "count_progress", lambda title: interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "pills", 5)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_drawing_leaves_nothing_that_counts_as_complete(tmp_path):
    code = (
        "import sys; from pathlib import Path; from transfer_learning.datasets.sources import drawn_pills\n"
        "drawn_pills.count_progress = lambda title: lambda done, total: print(done, flush=True)\n"
        "drawn_pills.write(Path(sys.argv[1]), 50)"
    )
    folder = tmp_path / "pills"
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        while process.stdout.readline() != "12\n":
            pass
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not is_complete(folder)
    (left_over,) = tmp_path.iterdir()
    assert not is_complete(left_over)

    write(folder, 1)
    assert is_complete(folder)
    assert left_over.exists()  # it is young: it may belong to a drawing at work
    os.utime(left_over, (time.time() - 7200,) * 2)
    write(folder, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["pills"]


def test_a_users_file_is_never_replaced(tmp_path):
    (tmp_path / "Alaxan").mkdir()
    (tmp_path / "Alaxan" / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="mine.jpg"):
        write(tmp_path, 1)
    assert (tmp_path / "Alaxan" / "mine.jpg").read_bytes() == b"mine"
