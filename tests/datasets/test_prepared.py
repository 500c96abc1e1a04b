"""What every command says about a dataset before it decodes or splits it."""

import dataclasses

import pytest

from tests.support.logs import log_messages
from tests.support.photos import draw_photos
from transfer_learning.config import RunConfig
from transfer_learning.datasets.prepared import (
    decode_part,
    images_once,
    load_dataset_of,
    load_prepared,
    prepare_dataset,
    take_dataset_of,
)
from transfer_learning.machine.strategy import Workers
from transfer_learning.recipes.resolve import config_from_values


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("cat", "dog"), None),
        (("Cat", "cat"), "'Cat' (2 images) and 'cat' (2 images)"),
        (("red fox", "red_fox", "Red-Fox", "dog"), "'Red-Fox' (2 images) and 'red fox' (2 images) and 'red_fox'"),
        (("caf\u00e9", "cafe\u0301"), r"'cafe\u0301' (2 images) and 'caf\xe9' (2 images)"),
        (("1", "01"), "'01' (2 images) and '1' (2 images)"),
        ((*"abcde", *"ABCDE"), "'D' (2 images) and 'd' (2 images); and 1 more"),
    ],
)
def test_class_names_that_are_alike_are_warned_of(classes, words, tmp_path):
    draw_photos(tmp_path / "photos", classes=classes, num_per_class=2)
    config = RunConfig(dataset=str(tmp_path / "photos"), image_size=8, cache_dir=str(tmp_path / "cache"))
    messages = log_messages()
    data = load_prepared(dataclasses.replace(config, val_fraction=0.0))
    found = [message for message in messages if "nearly the same" in message]
    assert len(found) == (words is not None) and all(words in message for message in found), found
    assert len(data.class_names) == len(classes)


def test_a_run_looks_up_the_images_once_that_it_chooses_its_settings_on(tmp_path):
    draw_photos(tmp_path / "photos", classes=("cat", "dog"), num_per_class=2)
    config = RunConfig(
        dataset=str(tmp_path / "photos"), image_size=8, cache_dir=str(tmp_path / "cache"), val_fraction=0.0
    )
    with images_once():
        first, second, third = (load_prepared(config).images for _ in range(3))
    assert second is first and third is not first, "a later call may come after the files have changed"
    with images_once():
        first, other = (load_prepared(dataclasses.replace(config, image_size=size)).images for size in (8, 9))
    assert other is not first and other.pixels.shape[1:] == (9, 9, 3)
    assert load_prepared(config).images is not load_prepared(config).images, "outside of a run nothing is kept"


def test_a_run_reads_the_folder_once_that_it_chooses_its_settings_on(tmp_path):
    photos = draw_photos(tmp_path / "photos", classes=("cat", "dog"), num_per_class=2)
    with images_once():
        config, _ = config_from_values({"dataset": str(photos)})
        (photos / "cat" / "new.jpg").write_bytes(b"")
        known = load_dataset_of(dataclasses.replace(config, image_size=9))
        for other in ({"dataset": str(photos / "..")}, {"path_column": "file"}):
            assert load_dataset_of(dataclasses.replace(config, **other)) is not known
        taken, later = take_dataset_of(config), load_dataset_of(config)
        assert load_dataset_of(config) is not later, "none is kept in memory during training"
    assert taken is known
    assert (len(taken.examples), len(later.examples)) == (4, 5), "a later call may come after the files have changed"
    assert load_dataset_of(config) is not load_dataset_of(config), "outside of a run nothing is kept"


def test_workers_with_one_cache_decode_each_image_once(tmp_path):
    photos = draw_photos(tmp_path / "photos", num_per_class=5)
    config = RunConfig(dataset=str(photos), image_size=16, cache_dir=str(tmp_path / "cache"))
    dataset, messages = load_dataset_of(config), log_messages()
    for index in range(3):
        decode_part(dataset, config, Workers(index, 3).part(len(dataset.examples)))
    prepare_dataset(dataset, config)
    assert [message for message in messages if message.startswith("Decoded")] == ["Decoded 5 images (0 in cache)."] * 3
