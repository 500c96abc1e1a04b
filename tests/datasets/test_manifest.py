"""The manifest: who is in which split and why, decided by content, so that what was decided stays."""

import hashlib
from collections import Counter

import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from transfer_learning.datasets.dataset import Dataset, Example
from transfer_learning.datasets.manifest import COLUMNS, fingerprint, make_manifest
from transfer_learning.errors import UserError


def manifest_of(rows, val=0.15, test=0.15, skip=False):
    """The manifest of rows (label, content[, split[, problem[, group]]]), and what was said; a row's number is its id."""
    rows = [(*row, "", "", "")[:5] for row in rows]
    examples = [
        Example(f"{number:04d}", label, split, None, group) for number, (label, _, split, _, group) in enumerate(rows)
    ]  # fmt: skip
    facts = pd.DataFrame({
        "sha256": [hashlib.sha256(str(content).encode()).hexdigest() for _, content, *_ in rows],
        "width": 8, "height": 8, "problem": [problem for *_, problem, _ in rows],
    })  # fmt: skip
    said = []
    names = tuple(sorted({label for label, *_ in rows}))
    manifest = make_manifest(Dataset("rows", names, tuple(examples)), facts, val, test, skip, said.append)
    return manifest, said


def images(label, count, split="", start=0):
    return [(label, f"{label}{number}", split) for number in range(start, start + count)]


def split_of_content(manifest):
    return dict(zip(manifest["sha256"], manifest["split"], strict=True))


def test_it_has_a_row_an_example_in_their_order():
    manifest, said = manifest_of(images("a", 20) + images("b", 20))
    assert tuple(manifest.columns) == COLUMNS
    assert list(manifest["id"]) == [f"{number:04d}" for number in range(40)]
    assert list(manifest["label"]) == ["a"] * 20 + ["b"] * 20
    assert set(manifest["split"]) == {"train", "val", "test"}
    assert [sentence.split(":")[0] for sentence in said] == [
        "The dataset names no test split", "The dataset names no val split",
    ]  # fmt: skip


@pytest.mark.parametrize(("val", "test"), [(0.15, 0.15), (0.1, 0.3), (0.0, 0.2), (0.2, 0.0), (0.0, 0.0)])
def test_fractions_are_of_all_images_for_the_test_and_of_the_rest_for_val(val, test):
    manifest, _ = manifest_of(images("a", 3000) + images("b", 3000), val, test)
    counts = Counter(manifest["split"])
    assert counts["test"] / 6000 == pytest.approx(test, abs=0.02)
    assert counts["val"] / 6000 == pytest.approx((1 - test) * val, abs=0.02)
    assert (counts["test"] == 0, counts["val"] == 0) == (test == 0, val == 0)


OFFICIAL = {
    "all three": ["train", "val", "test"],
    "train and test": ["train", "test"],
    "train and val": ["train", "val"],
    "test alone": ["", "test"],
    "val alone": ["", "val"],
}


@pytest.mark.parametrize("splits", OFFICIAL.values(), ids=OFFICIAL)
def test_official_splits_are_kept_and_what_is_missing_is_taken_from_train(splits):
    rows = [row for place, split in enumerate(splits) for row in images("a", 40, split, 40 * place)]
    rows += [("b", content + "b", split) for _, content, split in rows]
    manifest, _ = manifest_of(rows)
    given_split = [split for *_, split in rows]
    for official, drawn in zip(given_split, manifest["split"], strict=True):
        if official in ("val", "test"):
            assert drawn == official
        else:
            assert drawn == "train" or drawn not in given_split
    assert set(manifest["split"]) == {"train", "val", "test"}


def fills_every_split_by_itself(label, count):
    """Whether chance alone gives images of a class to test, val and train, so that none has to be moved."""
    digests = [hashlib.sha256(content.encode()).hexdigest() for _, content, _ in images(label, count)]
    places = [int(digest[:12], 16) / 16**12 for digest in digests]
    val_begins, train_begins = 0.15, 0.15 + 0.85 * 0.15
    return len({(place >= val_begins) + (place >= train_begins) for place in places}) == 3


@settings(deadline=None, max_examples=25)
@given(count=st.integers(40, 120), more=st.integers(1, 200), seed=st.integers(0, 10**6))
def test_adding_images_moves_none_of_the_others(count, more, seed):
    a, b, c = (f"{label}{seed}" for label in "abc")
    assume(fills_every_split_by_itself(a, count) and fills_every_split_by_itself(b, count))
    before, _ = manifest_of(images(a, count) + images(b, count))
    after, _ = manifest_of(images(a, more, start=count) + images(c, 60) + images(a, count) + images(b, count))
    kept = split_of_content(after)
    assert all(kept[digest] == split for digest, split in split_of_content(before).items())


def test_names_and_order_do_not_matter():
    rows = images("a", 30) + images("b", 30)
    assert split_of_content(manifest_of(rows)[0]) == split_of_content(manifest_of(rows[::-1])[0])


def test_identical_files_share_a_split():
    rows = [(label, f"{label}{number // 3}") for label in "ab" for number in range(90)]
    manifest, _ = manifest_of(rows)
    assert (manifest.groupby("sha256")["split"].nunique() == 1).all()
    assert set(manifest["split"]) == {"train", "val", "test"}


@pytest.mark.parametrize("count", [3, 4, 5, 8])
@pytest.mark.parametrize("trial", range(8))
def test_no_class_is_empty_in_a_split_however_small(count, trial):
    manifest, _ = manifest_of([row for label in "abcde" for row in images(f"{label}{trial}", count)])
    counts = pd.crosstab(manifest["label"], manifest["split"])
    assert set(counts.columns) == {"train", "val", "test"} and (counts > 0).all(axis=None), counts


@pytest.mark.parametrize(
    ("rows", "val", "test", "words"),
    [
        (images("a", 9) + images("b", 1), 0.15, 0.15, "class b has 1 different image; at least 3 .* test, val, train"),
        (images("a", 9) + images("b", 2), 0.15, 0.15, "class b has 2 different images; at least 3"),
        (images("a", 9) + images("b", 1), 0.15, 0.0, "class b has 1 different image; at least 2 .* val, train"),
        (images("a", 9) + [("b", "same")] * 9, 0.15, 0.15, "class b has 1 different image;"),
        (images("a", 9, "train") + images("b", 9, "test"), 0.15, 0.15, "class b has no readable training image"),
    ],
)
def test_a_class_that_is_too_small_is_named(rows, val, test, words):
    with pytest.raises(UserError, match=words):
        manifest_of(rows, val, test)


def test_one_image_a_class_is_enough_where_all_are_for_training():
    manifest, _ = manifest_of(images("a", 1) + images("b", 1), val=0, test=0)
    assert list(manifest["split"]) == ["train", "train"]


@pytest.mark.parametrize(("leak_in", "kept_in"), [("train", "test"), ("", "test"), ("val", "test"), ("train", "val")])
def test_a_training_image_that_is_also_judged_is_left_out_and_said(leak_in, kept_in):
    rows = images("a", 20, "train") + images("b", 20, "train")
    rows += [(label, f"{label} judged {number}", kept_in) for label in "ab" for number in range(5)]
    rows += [("a", "a judged 0", leak_in)]
    manifest, said = manifest_of(rows)
    leak = manifest.iloc[-1]
    assert leak["split"] == "" and leak["problem"] == f"the same file is in the split {kept_in}"
    assert said[:1] == [f"Skipped 1 image because the same file is in the dataset's own split {kept_in}."]
    assert manifest.iloc[40]["split"] == kept_in
    judged = set(manifest.loc[manifest["split"].isin(("val", "test")), "sha256"])
    assert not judged & set(manifest.loc[manifest["split"] == "train", "sha256"])


def test_unreadable_images_stop_or_are_skipped_and_named():
    rows = images("a", 20) + images("b", 20) + [("a", f"x{number}", "", "it is cut off") for number in range(5)]
    with pytest.raises(UserError, match="5 images of 45 cannot be read .*0040: it is cut off.*and 2 more.*--skip"):
        manifest_of(rows)
    manifest, said = manifest_of(rows, skip=True)
    assert (manifest["split"][40:] == "").all() and (manifest["split"][:40] != "").all()
    assert sum("Skipped" in sentence for sentence in said) == 1 and said[0].startswith("Skipped 5 images of 45")


def test_an_unreadable_test_image_leaks_nothing():
    rows = images("a", 20) + images("b", 20) + [("a", "a0", "test", "it is cut off")]
    manifest, said = manifest_of(rows, skip=True)
    assert manifest["split"][0] != "" and sum("Skipped" in sentence for sentence in said) == 1


def test_the_fingerprint_changes_with_id_content_label_and_split_and_with_nothing_else():
    manifest, _ = manifest_of(images("a", 9) + images("b", 9))
    values = [fingerprint(manifest)]
    for column in ("id", "sha256", "label", "split"):
        changed = manifest.copy()
        changed.loc[0, column] = "another"
        values.append(fingerprint(changed))
    values.append(fingerprint(manifest.iloc[::-1]))
    assert len(set(values)) == 6
    elsewhere = manifest.assign(file="another/place.png", width=1, height=1)
    assert fingerprint(elsewhere) == values[0]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 60), st.sampled_from(["", *"xyz"])), max_size=60))
def test_what_is_of_one_group_or_of_one_content_shares_a_split_in_any_chain(rows):
    enough = images("a", 4, start=100) + images("b", 4, start=100)  # for every split
    manifest, _ = manifest_of([*enough, *((label, content, "", "", group) for label, content, group in rows)], 0.3, 0.3)
    splits = manifest["split"].iloc[len(enough) :]
    for column in (1, 2):
        together = {}
        for row, split in zip(rows, splits, strict=True):
            if row[column] != "":
                assert together.setdefault(row[column], split) == split


def test_an_example_that_is_alone_lies_where_it_lay_without_groups():
    rows = images("a", 300) + images("b", 300)
    alone, _ = manifest_of(rows)
    grouped, _ = manifest_of([*rows, *(("a", f"c{number}", "", "", "x") for number in range(20))])
    assert list(grouped["split"][:600]) == list(alone["split"])


@settings(deadline=None)
@given(st.permutations(range(40)))
def test_groups_lie_where_they_lie_in_any_order_of_the_rows(order):
    rows = [("ab"[number % 2], f"c{number}", "", "", f"group {number // 3}") for number in range(40)]
    ordered, shuffled = (split_of_content(manifest_of([rows[index] for index in ids])[0]) for ids in (range(40), order))
    assert ordered == shuffled
