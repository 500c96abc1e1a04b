"""What every command says about a dataset before it decodes or splits it."""

import dataclasses

import pytest

from tests.support.logs import log_messages
from tests.support.photos import draw_photos
from transfer_learning.config import RunConfig
from transfer_learning.datasets.prepared import load_prepared


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("cat", "dog"), None),
        (("Cat", "cat"), "'Cat' (2 images) and 'cat' (2 images)"),
        (("red fox", "red_fox", "Red-Fox", "dog"), "'Red-Fox' (2 images) and 'red fox' (2 images) and 'red_fox'"),
        (("caf\u00e9", "cafe\u0301"), "'cafe\u0301' (2 images) and 'caf\u00e9' (2 images)"),
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
