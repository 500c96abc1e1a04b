"""What `predict` finds at the places that it is given: every file is an image, or is counted with a reason."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.support.logs import log_messages
from transfer_learning.errors import UserError
from transfer_learning.experiments import prediction
from transfer_learning.experiments.prediction import find_images, predict_images


@pytest.fixture
def mixed(here):
    """Two images, and files that are none, in a folder."""
    for name in ("mixed/a.png", "mixed/below/b.jpg"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(here / name)
    for name in ("IMG_1.JP2", "IMG_2.jp2", "notes.txt", ".DS_Store"):
        (here / "mixed" / name).write_bytes(b"no image")
    return here / "mixed"


def names(found):
    return [image.name for image in found.images]


def test_a_folder_counts_the_files_that_are_no_images_by_reason(mixed):
    found = find_images(["mixed"], "data")
    assert names(found) == ["mixed/a.png", "mixed/below/b.jpg"]
    text = found.describe_ignored()
    assert text.startswith("4 other files ignored: 2 unsupported image format (.jp2)")
    assert "1 not named like an image (.txt)" in text and "1 hidden" in text


def test_an_archive_a_table_and_a_known_dataset_are_taken_as_by_run(mixed, here):
    shutil.make_archive("photos", "zip", here, "mixed")
    (here / "table.csv").write_text("path,label\nmixed/a.png,one\nmixed/below/b.jpg,two\n")
    assert names(find_images(["photos.zip"], "data")) == ["photos.zip/mixed/a.png", "photos.zip/mixed/below/b.jpg"]
    assert names(find_images(["table.csv"], "data")) == ["mixed/a.png", "mixed/below/b.jpg"]
    (here / "files.csv").write_text("file\nmixed\\below\\b.jpg\n")
    messages = log_messages()
    assert names(find_images(["files.csv"], "data")) == ["mixed/below/b.jpg"]
    assert messages[0].startswith("None of the paths in files.csv exists as it is written")
    assert len(find_images(["digits", mixed / "a.png"], "data").images) == 1798


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("missing", "There is no image and no folder missing"),
        ("only", "only holds no images (2 other files ignored: 2 unsupported image format (.jp2)"),
        ("empty", "empty holds no images; give"),
    ],
)
def test_a_place_without_images_says_what_is_there(place, words, mixed, here):
    (here / "empty").mkdir()
    (here / "only").mkdir()
    for name in ("IMG_1.JP2", "IMG_2.jp2"):
        (mixed / name).rename(here / "only" / name)
    with pytest.raises(UserError) as caught:
        find_images([mixed, place], "data")
    assert words in str(caught.value)


def test_at_most_one_batch_is_read_ahead_and_progress_is_reported_after_each(monkeypatch):
    read, progress = [], []

    class Workers(prediction.DecodeWorkers):
        def map(self, sources):
            return super().map(read.append(source) or source for source in sources)

    monkeypatch.setattr(prediction, "DecodeWorkers", Workers)
    monkeypatch.setattr(prediction, "IMAGES_AT_A_TIME", 2)
    images = [prediction.Image(str(number), np.full((8, 8, 3), number, np.uint8)) for number in range(5)]
    mean = SimpleNamespace(image_size=8, resize="squash", value_ranges={}, probabilities=lambda x: x.mean((1, 2)))
    found = predict_images(mean, images, progress=lambda *counts: progress.append(counts))
    for number, one in enumerate(found):
        assert (one.name, one.probabilities[0]) == (str(number), number) and len(read) <= number // 2 * 2 + 2
    assert len(read) == 5 and progress == [(2, 5), (4, 5), (5, 5)]
