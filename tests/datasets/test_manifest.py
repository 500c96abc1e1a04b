"""The manifest: who is in which split and why, decided by content, so that what was decided stays."""

import hashlib
from collections import Counter

import pandas as pd
import pytest

from tests.support.logs import log_messages
from transfer_learning.config import RunConfig
from transfer_learning.datasets.dataset import DROPPED, DUPLICATE_IN_OTHER_SPLIT, GROUP_IN_OTHER_SPLIT, Dataset, Example
from transfer_learning.datasets.manifest import COLUMNS, check_classes, fingerprint, make_manifest
from transfer_learning.errors import UserError


def manifest_of(rows, val=0.15, test=0.15, skip=False, ids=None, pixels=None, group_by="", dropped=None):
    """The manifest of rows (label, content[, split[, problem[, group]]]), and what was said; a row's number is its id."""
    rows = [(*row, "", "", "")[:5] for row in rows]
    ids = ids or [f"{number:04d}" for number in range(len(rows))]
    examples = [
        Example(id, label, split, None, group) for id, (label, _, split, _, group) in zip(ids, rows, strict=True)
    ]
    hashes = [hashlib.sha256(str(content).encode()).hexdigest() for _, content, *_ in rows]
    facts = pd.DataFrame(
        {
            "sha256": hashes,
            "width": 8,
            "height": 8,
            "pixels": pixels or hashes,
            "problem": [problem for *_, problem, _ in rows],
            "kind": ["truncated file" if problem else "" for *_, problem, _ in rows],
        }
    )
    said = log_messages()
    names = tuple(sorted({label for label, *_ in rows}))
    config = RunConfig(val_fraction=val, test_fraction=test, skip_unreadable=skip, group_by=group_by)
    manifest = make_manifest(Dataset("rows", names, tuple(examples)), facts, config, dropped)
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
    assert said == ["Split by content: about 15% for test and 15% for val."]


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


def test_names_and_order_do_not_matter():
    rows = images("a", 30) + images("b", 30)
    assert split_of_content(manifest_of(rows)[0]) == split_of_content(manifest_of(rows[::-1])[0])


def test_identical_files_share_a_split():
    rows = [(label, f"{label}{number // 3}") for label in "ab" for number in range(90)]
    manifest, _ = manifest_of(rows)
    assert (manifest.groupby("sha256")["split"].nunique() == 1).all()
    assert set(manifest["split"]) == {"train", "val", "test"}


def test_a_split_of_which_a_class_has_nothing_is_named():
    manifest, said = manifest_of(images("a", 60) + images("b", 2))
    assert set(manifest["split"][:60]) == {"train", "val", "test"} and set(manifest["split"][60:]) == {"train", "test"}
    assert said[-1] == (
        "The class b has no val image, so it does not count in validation; add images, or give the splits in a table."
    )
    _, said = manifest_of(images("a", 60) + [row for label in "bcdefghijk" for row in images(label, 1)])
    assert said[-1].startswith(
        "10 classes (b, c, d, e, ...) have no test image, so their accuracy cannot be measured; add"
    )


def test_what_is_said_of_drawn_splits_is_not_said_of_those_of_the_dataset():
    rows = images("a", 9, "train") + images("b", 9, "train", 9) + images("a", 2, "test", 20) + images("a", 2, "val", 30)
    _, said = manifest_of(rows)
    assert said == [
        f"The class b has no {split} image, so {lacks}; add images to the dataset's {split} split."
        for split, lacks in (("val", "it does not count in validation"), ("test", "its accuracy cannot be measured"))
    ]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            images("a", 9, "train") + images("b", 9, "test"),
            r"class b has no training image \(its images: 9 test\); add",
        ),
        (
            images("a", 9, "train") + images("b", 1, "val") + images("c", 1, "test"),
            "class b .*, nor has another class;",
        ),
        (images("a", 9) + [("b", "x", "", "it is cut off")], r"\(its images: 1 skipped\)"),
        (images("a", 9, "train") + images("b, c", 1, "val"), r"leave the class out with --unseen-classes '\"b, c\"'"),
    ],
)
def test_a_class_with_nothing_to_train_on_is_named(rows, words):
    manifest, _ = manifest_of(rows, skip=True)
    with pytest.raises(UserError, match=words):
        check_classes(manifest, tuple(sorted(set(manifest["label"]))))


@pytest.mark.parametrize(("val", "test"), [(0.8, 0.15), (0.15, 0.8)])
def test_every_class_trains_where_splits_are_drawn(val, test):
    manifest, _ = manifest_of(images("a", 30) + images("b", 1) + images("c", 3) + [("d", "same")] * 9, val, test)
    assert set(manifest.loc[manifest["split"] == "train", "label"]) == set("abcd")


def test_one_image_per_class_is_enough_where_all_are_for_training():
    manifest, _ = manifest_of(images("a", 1) + images("b", 1), val=0, test=0)
    assert list(manifest["split"]) == ["train", "train"]
    check_classes(manifest, ("a", "b"))


@pytest.mark.parametrize(("leak_in", "kept_in"), [("train", "test"), ("", "test"), ("val", "test"), ("train", "val")])
def test_a_training_image_that_is_also_evaluated_is_left_out_and_logged(leak_in, kept_in):
    rows = images("a", 20, "train") + images("b", 20, "train")
    rows += [(label, f"{label} shown {number}", kept_in) for label in "ab" for number in range(5)]
    rows += [("a", "a shown 0", leak_in)]
    manifest, said = manifest_of(rows)
    leak = manifest.iloc[-1]
    assert leak["split"] == "" and leak["kind"] == DUPLICATE_IN_OTHER_SPLIT
    assert leak["problem"] == f"the same file is in the split {kept_in}"
    assert f"Skipped 1 image: the same file is in the split {kept_in}." in said
    assert manifest.iloc[40]["split"] == kept_in
    evaluated = set(manifest.loc[manifest["split"].isin(("val", "test")), "sha256"])
    assert not evaluated & set(manifest.loc[manifest["split"] == "train", "sha256"])


def test_the_same_picture_in_another_file_is_not_evaluated_and_trained_on():
    rows = images("a", 40) + images("b", 40)
    pixels = [content for _, content, _ in rows]
    plain, _ = manifest_of(rows, pixels=pixels)
    place = {split: plain.index[plain["split"] == split].tolist() for split in ("train", "val", "test")}
    for lower, higher in (("train", "test"), ("train", "val"), ("val", "test")):
        alike = list(pixels)
        alike[place[lower][0]] = alike[place[higher][0]]
        manifest, said = manifest_of(rows, pixels=alike)
        changed = manifest[manifest["split"] != plain["split"]]
        assert changed.index.tolist() == place[lower][:1]
        assert changed["problem"].item() == f"the same picture, in another file, is in the split {higher}"
        assert f"Skipped 1 image: the same picture, in another file, is in the split {higher}." in said


def groups_of_ids(number):
    return [f"{'ab'[index % 2]}/object{index // 6:02d}_{index % 6}.jpg" for index in range(number)]


@pytest.mark.parametrize(
    ("group_by", "names"),
    [
        (r"object\d+", {f"object{number:02d}" for number in range(20)}),
        (r"object(\d+)_", {f"{number:02d}" for number in range(20)}),
        (r"^(b)?.*object(\d)", {"b"} | {f"a/object{number}" for number in range(2)}),
        (r"object0\d", {"", *(f"object{number:02d}" for number in range(10))}),
    ],
    ids=["the whole match", "the first group", "a group that has no part in the match", "some match nothing"],
)
def test_images_of_one_group_share_a_split(group_by, names):
    ids = groups_of_ids(120)
    rows = [(id[0], id) for id in ids]
    manifest, said = manifest_of(rows, ids=ids, group_by=group_by, skip=True)
    assert set(manifest["group"]) == names
    grouped = manifest[manifest["group"] != ""]
    assert (grouped.groupby("group")["split"].nunique() == 1).all()
    assert said[0].startswith(f"--group-by: {len(grouped)} images in {len(names - {''})} groups of ")
    assert ("no match in" in said[0]) == ("" in names)
    alone = manifest[manifest["group"] == ""]
    assert split_of_content(alone).items() <= split_of_content(manifest_of(rows, ids=ids)[0]).items()


def test_groups_that_the_dataset_names_hold_as_those_of_an_expression_do():
    rows = [("ab"[number % 2], f"c{number}", "", "", f"photo {number // 4}") for number in range(120)]
    manifest, _ = manifest_of(rows)
    assert set(manifest["group"]) == {f"photo {number}" for number in range(30)}
    assert (manifest.groupby("group")["split"].nunique() == 1).all() and set(manifest["split"]) == {
        "train",
        "val",
        "test",
    }
    ids = [f"{number // 3:02d}_{number}" for number in range(120)]  # cuts across the photos
    manifest, said = manifest_of(rows, ids=ids, group_by=r"^\d+")
    used = manifest.assign(photo=[row[-1] for row in rows])
    used = used[used["split"] != ""]
    for column in ("group", "photo"):
        assert (used.groupby(column)["split"].nunique() == 1).all()
    problems = set(manifest.loc[manifest["split"] == "", "problem"])
    assert problems == {"others of its group are in the split test", "others of its group are in the split val"}


def test_an_example_that_is_alone_lies_where_it_lay_without_groups():
    rows = images("a", 300) + images("b", 300)
    alone, _ = manifest_of(rows)
    grouped, _ = manifest_of([*rows, *(("a", f"c{number}", "", "", "x") for number in range(20))])
    assert list(grouped["split"][:600]) == list(alone["split"])


def test_a_group_that_the_dataset_itself_parts_stays_where_it_is_evaluated():
    ids = groups_of_ids(120)
    rows = [(id[0], id, "test" if number % 40 == 0 else "train") for number, id in enumerate(ids)]
    manifest, said = manifest_of(rows, ids=ids, group_by=r"object\d+", val=0)
    assert manifest["split"].value_counts().to_dict() == {"train": 102, "": 15, "test": 3}
    assert set(manifest.loc[manifest["split"] == "", "problem"]) == {"others of its group are in the split test"}
    assert set(manifest.loc[manifest["split"] == "", "kind"]) == {GROUP_IN_OTHER_SPLIT}
    assert "Skipped 15 images: others of its group are in the split test." in said


def test_a_group_expression_that_matches_nothing_is_a_mistake():
    with pytest.raises(UserError, match="--group-by patient matches none of the 12 ids, such as a/object00_0.jpg"):
        manifest_of([("a", id) for id in groups_of_ids(12)], ids=groups_of_ids(12), group_by="patient")


def test_dropped_images_are_skipped_and_count_for_nothing_else():
    rows = images("a", 20) + images("b", 20) + [("a", "a0", "", "it is cut off")]
    plain, _ = manifest_of(rows[:-1])
    chosen = {f"{number:04d}": "dropped by some.csv" for number in (3, 30, 40)}
    manifest, said = manifest_of(rows, dropped=chosen)  # the unreadable one is dropped, and stops nothing
    assert manifest.loc[manifest["split"] == "", "id"].tolist() == list(chosen)
    assert set(manifest.loc[manifest["split"] == "", "problem"]) == {"dropped by some.csv"}
    assert set(manifest.loc[manifest["split"] == "", "kind"]) == {DROPPED}
    others = ~manifest["id"].isin(chosen)
    assert manifest.loc[others, "split"].tolist() == plain.loc[others[:40], "split"].tolist()


def test_unreadable_images_stop_or_are_skipped_and_named():
    rows = images("a", 20) + images("b", 20) + [("a", f"x{number}", "", "it is cut off") for number in range(5)]
    with pytest.raises(UserError, match="5 of 45 images cannot be read .*0040: it is cut off.*and 2 more.*--skip"):
        manifest_of(rows)
    manifest, said = manifest_of(rows, skip=True)
    assert (manifest["split"][40:] == "").all() and (manifest["split"][:40] != "").all()
    assert said[0].startswith("5 of 45 images cannot be read") and said[0].endswith("and are skipped.")
    assert not any("Skipped" in sentence for sentence in said)


def test_an_unreadable_test_image_leaks_nothing():
    rows = images("a", 20) + images("b", 20) + [("a", "a0", "test", "it is cut off")]
    manifest, said = manifest_of(rows, skip=True)
    assert manifest["split"][0] != "" and not any("Skipped" in sentence for sentence in said)


def test_the_fingerprint_changes_with_id_content_label_split_and_order_of_classes_and_with_nothing_else():
    manifest, _ = manifest_of(images("a", 9) + images("b", 9))
    classes = ("a", "b")
    values = [fingerprint(manifest, classes), fingerprint(manifest, ("b", "a"))]
    for column in ("id", "sha256", "label", "split"):
        changed = manifest.copy()
        changed.loc[0, column] = "another"
        values.append(fingerprint(changed, classes))
    values.append(fingerprint(manifest.iloc[::-1], classes))
    assert len(set(values)) == 7
    elsewhere = manifest.assign(file="another/place.png", width=1, height=1)
    assert fingerprint(elsewhere, classes) == values[0]
