"""Where an image belongs, over hundreds of random datasets: no other image moves it, and what is alike is never parted.

Pure functions on made-up hashes: nothing is decoded. Small classes are drawn like large ones here; test_split.py has the
rule for them. Classes are tiny and full alike, groups and duplicates cross them, and
some datasets name splits of their own.
"""

import hashlib
from dataclasses import replace
from typing import NamedTuple

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_learning.config import RunConfig
from transfer_learning.datasets.dataset import Dataset, Example
from transfer_learning.datasets.manifest import RANKS, make_manifest

MANY = settings(derandomize=True, deadline=None, max_examples=50)
GROUP_BY = r"^g(\d+)"
SPLITS = {
    "none": ("",),
    "train and test": ("train", "test"),
    "all three": ("train", "val", "test"),
    "some": ("", "test"),
}


class Image(NamedTuple):
    """One image of a made-up dataset."""

    id: str
    label: str
    content: int  # equal numbers: equal files
    pixels: int  # equal numbers: equal pictures, perhaps in different files
    split: str
    problem: str


def manifest_of(images, group_by, names=("",)):
    """The manifest by id; `names`: splits that the dataset names, whatever these images do."""
    # A dataset names the same splits before and after: images that cannot be read stand for those that name them.
    images = [*images, *(Image(f"names {split}", "a", -1, -1, split, "it is cut off") for split in names)]
    examples = tuple(Example(image.id, image.label, image.split, None) for image in images)
    facts = pd.DataFrame(
        {
            "sha256": [hashlib.sha256(str(image.content).encode()).hexdigest() for image in images],
            "pixels": [f"{image.pixels}" if not image.problem else "" for image in images],
            "width": 8,
            "height": 8,
            "problem": [image.problem for image in images],
            "kind": ["truncated file" if image.problem else "" for image in images],
        }
    )
    labels = tuple(sorted({image.label for image in images}))
    dataset = Dataset("made up", labels, examples)
    splits = RunConfig(val_fraction=0.2, test_fraction=0.25, group_by=group_by, small_classes="drawn")
    return make_manifest(dataset, facts, replace(splits, skip_unreadable=True)).set_index("id")


@st.composite
def datasets(draw, most=30):
    """Images, what the dataset names, and whether there are groups."""
    names = SPLITS[draw(st.sampled_from(sorted(SPLITS)))]
    group_by = draw(st.sampled_from(["", GROUP_BY]))
    images = []
    for number in range(draw(st.integers(1, most))):
        content = draw(st.integers(0, 60))
        pixels = content if draw(st.booleans()) else content // 2  # another file of the same picture
        # The first one has a group, since a regex that matches nothing is refused.
        group = draw(st.integers(0, 8)) if number == 0 or draw(st.booleans()) else None
        images.append(
            Image(
                f"{'x' if group is None else f'g{group}'} {number}",
                draw(st.sampled_from("abc")),
                content,
                pixels,
                draw(st.sampled_from(names)),
                draw(st.sampled_from(["", "", "", "", "it is cut off"])),
            )
        )
    return images, names, group_by


def moved(before, after, ids):
    """The images that lie in one split and then in another; to be skipped is no split."""
    pairs = [(id, before.at[id, "split"], after.at[id, "split"]) for id in ids]
    return [pair for pair in pairs if pair[1] and pair[2] and pair[1] != pair[2]]


@MANY
@given(datasets(), st.data())
def test_adding_and_removing_images_moves_no_other_one(made, data):
    images, names, group_by = made
    with_group = [image for image in images if image.id.startswith("g")][:1]
    chosen = data.draw(st.lists(st.sampled_from(images), unique=True))
    fewer = list(dict.fromkeys([*with_group, *chosen]))
    before, after = manifest_of(fewer, group_by, names), manifest_of(images, group_by, names)
    assert not moved(before, after, [image.id for image in fewer])


@MANY
@given(datasets(), st.data())
def test_an_image_is_used_before_and_after_unless_one_like_it_came(made, data):
    images, names, group_by = made
    fewer = images[: data.draw(st.integers(1, len(images)))]
    before, after = manifest_of(fewer, group_by, names), manifest_of(images, group_by, names)
    for image in fewer:
        if before.at[image.id, "split"] and not after.at[image.id, "split"]:
            alike = [
                other
                for other in images[len(fewer) :]
                if other.pixels == image.pixels
                or other.content == image.content
                or (group_by and image.id[0] == "g" and other.id.split()[0] == image.id.split()[0])
            ]
            assert alike, f"{image} lost its place to nobody"


@MANY
@given(datasets(), st.data())
def test_renaming_images_within_their_groups_moves_none(made, data):
    images, names, group_by = made
    order = data.draw(st.permutations(images))
    renamed = [image._replace(id=f"{image.id.split()[0]} renamed {number}") for number, image in enumerate(order)]
    before, after = manifest_of(images, group_by, names), manifest_of(renamed, group_by, names)
    for old, new in zip(order, renamed, strict=True):
        assert before.at[old.id, "split"] == after.at[new.id, "split"]


@MANY
@given(datasets(), st.data())
def test_another_label_moves_no_image(made, data):
    images, names, group_by = made
    labels = data.draw(st.lists(st.sampled_from("abc"), min_size=len(images), max_size=len(images)))
    relabelled = [image._replace(label=label) for image, label in zip(images, labels, strict=True)]
    before, after = manifest_of(images, group_by, names), manifest_of(relabelled, group_by, names)
    assert before["split"].equals(after["split"])


@MANY
@given(datasets())
def test_equal_files_equal_pictures_and_groups_are_never_parted(made):
    images, names, group_by = made
    manifest = manifest_of(images, group_by, names)
    used = [(image, manifest.at[image.id, "split"]) for image in images if manifest.at[image.id, "split"]]
    keys = [lambda image: image.content, lambda image: f"pixels {image.pixels}"]
    if group_by:
        keys.append(lambda image: image.id.split()[0] if image.id.startswith("g") else image.id)
    for key in keys:
        places = {}
        for image, split in used:
            places.setdefault(key(image), set()).add(split)
        assert all(len(splits) == 1 for splits in places.values()), places


@MANY
@given(datasets())
def test_what_is_skipped_has_a_reason_and_something_like_it_in_a_higher_split(made):
    images, names, group_by = made
    manifest = manifest_of(images, group_by, names)
    for image in images:
        split, problem = manifest.at[image.id, "split"], manifest.at[image.id, "problem"]
        assert (split == "") == (problem != "")
        assert not image.problem or problem == image.problem
        if image.split in ("val", "test"):
            assert split in (image.split, "")
        if problem and not image.problem:
            assert problem.split()[-1] in ("val", "test") and RANKS[problem.split()[-1]] > 0


@MANY
@given(datasets(most=60))
def test_a_split_that_the_dataset_names_is_not_drawn(made):
    images, names, group_by = made
    manifest = manifest_of(images, group_by, names)
    for image in images:
        split = manifest.at[image.id, "split"]
        if split in ("val", "test") and split in names:
            assert image.split == split


@pytest.mark.parametrize("group_by", ["", GROUP_BY])
def test_fractions_are_met_in_the_mean(group_by):
    images = [Image(f"g{number} {number}", "ab"[number % 2], number, number, "", "") for number in range(4000)]
    shares = manifest_of(images, group_by, ())["split"].value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.25, abs=0.02) and shares["val"] == pytest.approx(0.75 * 0.2, abs=0.02)
