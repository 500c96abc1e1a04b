"""Images that the cache cannot hold are decoded whenever they are read: the same pixels, within the limit of the cache."""

import numpy as np
import pytest

from tests.support.deep_images import encoded
from tests.support.logs import log_messages
from tests.support.photos import draw_photos
from transfer_learning.datasets.decoding import pixel_cache
from transfer_learning.datasets.decoding.decoders import ON_READ
from transfer_learning.datasets.decoding.pixel_cache import cached_images
from transfer_learning.datasets.pipeline import Examples, batches_in_order, training_batches
from transfer_learning.datasets.sources import folder
from transfer_learning.errors import UserError
from transfer_learning.storage.cache import Cache

SIZE, SMALL = 96, 150e-6  # GB: of 20 images of 28 kB, half of it may be pixels


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """19 images and one of 16 bits, on a machine without memory to hold them."""
    monkeypatch.setattr(pixel_cache, "available_bytes", lambda: 1)
    monkeypatch.setattr(pixel_cache, "CHUNK", 4)
    photos = draw_photos(tmp_path / "photos", num_per_class=7, shape=(SIZE, SIZE))
    (photos / "cross/000.png").unlink()
    grey = np.random.default_rng(1).integers(0, 4096, (SIZE, SIZE), np.uint16)
    (photos / "cross/001.png").write_bytes(encoded(grey, "PNG"))
    return folder.read(photos)


@pytest.mark.parametrize("decoded_gb", [16.0, 0.0], ids=["pixels", "JPEG"])
def test_the_pixels_are_those_of_a_large_cache(decoded_gb, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_cache, "JPEG_BYTES_PER_PIXEL", 2)  # noise takes more than photos
    whole = cached_images(dataset, SIZE, "squash", Cache(tmp_path / "large"), decoded_gb)
    for session in range(2):
        said = log_messages()
        small = Cache(tmp_path / "small", SMALL)
        images = cached_images(dataset, SIZE, "squash", small, decoded_gb)
        np.testing.assert_array_equal(images.pixels[images.rows], whole.pixels[whole.rows])
        np.testing.assert_array_equal(images.pixels[images.rows[-1:]][0], whole.pixels[whole.rows[-1:]][0])
        assert images.facts.equals(whole.facts) and images.pixel_key == whole.pixel_key
        behind = int((images.rows >= ON_READ).sum())
        assert 10 < behind < 20 and small.num_bytes() <= 1e9 * SMALL / 2
        assert any(
            f"{behind} of 20 images do not fit into the cache and are decoded whenever they are read" in line
            for line in said
        )
        assert any(line.startswith("Decoded") for line in said) == (session == 0)  # then the facts are known


def test_a_file_that_changes_in_a_run_is_one_sentence_wherever_it_is_read(dataset, tmp_path):
    images = cached_images(dataset, SIZE, "squash", Cache(tmp_path / "small", SMALL))
    count = len(images.rows)
    examples = Examples(
        images.pixels, images.rows, np.zeros(count, np.int32), np.arange(count).astype(str).astype(object)
    )
    dataset.examples[-1].source.write_bytes(dataset.examples[0].source.read_bytes())
    for batches in (training_batches(examples, 4, 0, 0, augmentation="light"), batches_in_order(examples, 4)):
        with pytest.raises(UserError, match=r"stripes/006.png cannot be read any more \(the file changed .*restore it"):
            list(batches)
    images.pixels._decoders.close()  # which pytest's tracebacks refer to, and other tests count processes
