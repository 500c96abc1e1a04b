"""Unseen classes: no output of the model, in no evaluated split, and no other image moves."""

import dataclasses

import numpy as np
import pytest

from tests.support.logs import log_messages
from transfer_learning.datasets.dataset import UNSEEN, Example, as_names, split_off_unseen, with_class_names
from transfer_learning.datasets.prepared import load_prepared
from transfer_learning.errors import UserError

SPLIT_OF = {"a": "train", "b": "", "c": "test", "d": "val"}
DATASET = with_class_names("letters", [Example(f"{label}/1", label, split, None) for label, split in SPLIT_OF.items()])


@pytest.mark.parametrize(
    ("names", "unseen_classes"),
    [("", set()), (" , ", set()), ("c", {"c"}), ("a,c", {"a", "c"}), (" a , d ", {"a", "d"})],
)
def test_the_classes_that_are_named_go_and_the_others_stay_as_they_are(names, unseen_classes):
    result = split_off_unseen(DATASET, names)
    assert set(result.class_names) == set("abcd") - unseen_classes
    assert [example.id for example in result.examples] == [example.id for example in DATASET.examples]
    for example in result.examples:
        assert example.split == (UNSEEN if example.label in unseen_classes else SPLIT_OF[example.label])


@pytest.mark.parametrize(
    ("names", "unseen"),
    [
        ("owl, brown", {"owl, brown"}),
        ('"owl, brown",fox', {"owl, brown", "fox"}),
        (' fox , "owl, brown"', {"owl, brown", "fox"}),
        ('"fox"', {"fox"}),
        ('"say ""hi"""', {'say "hi"'}),
    ],
)
def test_names_with_commas_are_quoted(names, unseen):
    labels = ("owl, brown", "fox", 'say "hi"', "cat", "dog")
    dataset = with_class_names("animals", [Example(label, label, "", None) for label in labels])
    assert set(split_off_unseen(dataset, names).class_names) == set(labels) - unseen
    assert set(split_off_unseen(dataset, as_names(sorted(unseen))).class_names) == set(labels) - unseen


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ('"a', "close each double quote"),
        ("e", "no class e"),
        ("a,bb", "no class bb"),
        ("a,b,c", "leaves 1"),
        ("a,b,c,d", "leaves 0"),
    ],
)
def test_a_class_that_is_not_there_and_too_few_that_are_left(names, words):
    with pytest.raises(UserError, match=words):
        split_off_unseen(DATASET, names)


def test_the_images_of_other_classes_keep_their_split_and_unseen_ones_have_no_label(small_config):
    said = log_messages()
    every, left = (load_prepared(dataclasses.replace(small_config, unseen_classes=names)) for names in ("", "cross"))
    assert left.class_names == ("circle", "stripes") and "14 of unseen classes" in left.describe()
    unseen_classes = left.split(UNSEEN)
    assert len(unseen_classes) == 14 and set(unseen_classes.labels) == {-1} and not len(every.split(UNSEEN))
    assert unseen_classes.inputs[unseen_classes.rows].shape == (14, 16, 16, 3)
    for split in ("train", "val", "test"):
        before, after = every.split(split), left.split(split)
        stays = np.array([not id.startswith("cross/") for id in before.ids])
        assert list(after.ids) == list(before.ids[stays])
    assert not [sentence for sentence in said if "Skipped" in sentence]


def test_the_same_picture_in_an_unseen_class_skips_nothing(small_config, tmp_path):
    from tests.support.photos import draw_photos

    folder = draw_photos(tmp_path / "photos")
    for path in (folder / "circle").iterdir():
        (folder / "cross" / f"again_{path.name}").write_bytes(path.read_bytes())
    data = load_prepared(dataclasses.replace(small_config, dataset=str(folder), unseen_classes="cross"))
    assert (data.manifest["problem"] == "").all() and len(data.split(UNSEEN)) == 28
