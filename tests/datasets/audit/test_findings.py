"""The audit: one of everything that folders hold is found for what it is, and every file on the disk is accounted for."""

import json
import os
import shutil
from dataclasses import replace

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.support.odd_photos import CLASSES, drawing, make_odd_photos
from transfer_learning.config import RunConfig
from transfer_learning.datasets.audit.findings import Features, audit
from transfer_learning.datasets.audit.kinds import KINDS, REVIEWED
from transfer_learning.datasets.dataset import (
    DROPPED,
    DUPLICATE_IN_OTHER_SPLIT,
    EMPTY_FILE,
    GROUP_IN_OTHER_SPLIT,
    NOT_AN_IMAGE,
    TOO_MANY_PIXELS,
    TRUNCATED_FILE,
    UNREADABLE_FILE,
    Dataset,
    Example,
    with_class_names,
)
from transfer_learning.datasets.names import folded
from transfer_learning.datasets.prepared import prepare_dataset
from transfer_learning.datasets.sources import archive, folder
from transfer_learning.datasets.sources.registry import load_dataset

SIZE = 48
PROBLEM_KINDS = (
    DROPPED,
    DUPLICATE_IN_OTHER_SPLIT,
    EMPTY_FILE,
    GROUP_IN_OTHER_SPLIT,
    NOT_AN_IMAGE,
    TOO_MANY_PIXELS,
    TRUNCATED_FILE,
    UNREADABLE_FILE,
)


def looked_at(dataset, cache, **values):
    config = RunConfig(dataset=dataset.name, image_size=SIZE, skip_unreadable=True, cache_dir=str(cache), **values)
    return prepare_dataset(dataset, config, allow_empty_classes=True)


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory):
    """The dataset, the kind that is expected of each odd file, and what the audit made of it."""
    place = tmp_path_factory.mktemp("odd_folder")
    expected = make_odd_photos(place / "photos")
    dataset = folder.read((place / "photos").resolve())
    return dataset, expected, audit(dataset, looked_at(dataset, place / "cache"))


def kinds_of(result, id):
    positions = result.files.index[result.files["id"] == id]
    return set(result.findings.loc[result.findings["position"].isin(positions), "kind"])


def test_one_of_everything_is_found_for_what_it_is(odd_folder):
    _, expected, result = odd_folder
    ids = result.files["id"].tolist()
    assert expected.keys() <= set(ids) and len(ids) == len(set(ids))
    wrong = {
        id: (kind, kinds_of(result, id)) for id, kind in expected.items() if kind and kind not in kinds_of(result, id)
    }
    assert not wrong


def test_plain_photos_have_no_finding(odd_folder):
    _, expected, result = odd_folder
    plain = [id for id in result.files["id"] if id.split("/")[-1].startswith("plain") and id not in expected]
    assert len(plain) > 25 and not any(kinds_of(result, id) for id in plain)


def test_every_kind_is_one_of_the_table_and_the_counts_are_those_of_the_files(odd_folder):
    _, _, result = odd_folder
    assert set(result.findings["kind"]) <= set(KINDS) and set(REVIEWED) <= set(KINDS)
    assert list(result.counts) == [kind for kind in KINDS if kind in set(result.findings["kind"])]
    for kind, count in result.counts.items():
        assert len(result.of_kind(kind)["id"].unique()) == count


def entries_on_disk(root):
    """Every entry below a folder that is no folder, linked folders entered; a link that leads back is an entry."""
    number, places = 0, [(root, (os.path.realpath(root),))]
    while places:
        place, above = places.pop()
        for name in os.listdir(place):
            path = os.path.join(place, name)
            real = os.path.realpath(path)
            if os.path.isdir(path) and real not in above:
                places.append((path, (*above, real)))
            else:
                number += 1
    return number


def test_used_and_skipped_and_ignored_are_the_files_on_disk(odd_folder):
    dataset, _, result = odd_folder
    parts = result.files["what"].value_counts()
    assert parts["used"] + parts["skipped"] + parts["ignored"] == len(result.files)
    assert len(result.files) == result.num_on_disk == entries_on_disk(dataset.folder)
    assert parts["skipped"] >= 6 and parts["ignored"] >= 12
    assert (result.files.loc[result.files["what"] != "used", "reason"] != "").all()
    assert (result.files.loc[result.files["what"] == "used", "reason"] == "").all()


@pytest.mark.parametrize("kind", [*PROBLEM_KINDS])
def test_each_kind_of_problem_is_a_finding_whatever_its_text(kind, tmp_path):
    dataset = folder.read(make_photos(tmp_path / "photos", 2))
    data = looked_at(dataset, tmp_path / "cache")
    manifest = data.manifest.copy()
    manifest.loc[0, ["split", "problem", "kind"]] = "", "dropped, truncated, the same file is empty", kind
    result = audit(dataset, replace(data, manifest=manifest))
    assert result.counts == {kind: 1}
    assert result.of_kind(kind)["detail"].item() == "dropped, truncated, the same file is empty"


def make_photos(root, count):
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(count):
            drawing(label, number).save(root / name / f"{number}.png")
    return root


def test_nothing_is_changed_and_nothing_is_written(tmp_path):
    photos = make_photos(tmp_path / "photos", 4)
    (photos / "circle" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [photos, *photos.rglob("*")]}
    dataset = folder.read(photos)
    audit(dataset, looked_at(dataset, tmp_path / "cache"))
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [photos, *photos.rglob("*")]} == before


def test_a_file_that_comes_meanwhile_is_no_secret(tmp_path):
    dataset = folder.read(make_photos(tmp_path / "photos", 4))
    data = looked_at(dataset, tmp_path / "cache")
    (tmp_path / "photos" / "circle" / "late.png").touch()
    result = audit(dataset, data)
    assert (len(result.files), result.num_on_disk) == (12, 13)


@pytest.mark.parametrize(
    ("one", "other", "is_alike"),
    [
        ("cats/1.jpg", "Cats/1.JPG", True),
        ("café", "cafe\u0301", True),
        ("café", "CAFE", True),
        ("straße", "STRASSE", True),
        ("ﬁg.png", "fig.png", True),
        ("Ａ.png", "a.png", True),
        ("İ.png", "i.png", True),
        ("1.jpg", "2.jpg", False),
        ("a b", "ab", False),
        ("ø", "o", False),
    ],
)
def test_names_are_alike_but_for_case_accents_and_width(one, other, is_alike):
    assert (folded(one) == folded(other)) == is_alike


def test_too_large_is_what_has_many_pixels_or_many_bytes(tmp_path):
    photos = make_photos(tmp_path / "photos", 3)
    Image.linear_gradient("L").convert("1").resize((7200, 7000)).save(photos / "circle" / "pixels.png")
    os.truncate(photos / "circle" / "1.png", 50_100_000)  # nothing but zeros, which no reader minds
    dataset = folder.read(photos)
    result = audit(dataset, looked_at(dataset, tmp_path / "cache"))
    details = dict(zip(*(result.of_kind("too large")[column] for column in ("id", "detail")), strict=True))
    assert details == {"circle/pixels.png": "7200 x 7000, 0 MB", "circle/1.png": "96 x 72, 50 MB"}


def test_two_classes_of_one_name_come_first(tmp_path):
    for number, name in enumerate(("Katze", "katze", "Hund")):
        for index in range(3):
            path = tmp_path / "photos" / name / f"{number}{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            drawing(number, index).save(path)
    dataset = folder.read(tmp_path / "photos")
    result = audit(dataset, looked_at(dataset, tmp_path / "cache"))
    assert result.counts == {"similar class names": 6}
    assert set(result.of_kind("similar class names")["detail"]) == {"Katze and katze"}


def test_duplicates_say_where_the_others_are_and_those_in_a_higher_split_stay(tmp_path):
    photos = tmp_path / "photos"
    for split in ("train", "test"):
        make_photos(photos / split, 3 if split == "train" else 0)
        for label, name in enumerate(CLASSES):
            drawing(label, 50).save(photos / split / name / "evaluated.png")
    shutil.copy(photos / "train" / "circle" / "0.png", photos / "train" / "circle" / "copy.png")
    shutil.copy(photos / "train" / "cross" / "1.png", photos / "train" / "stripes" / "copy.png")
    drawing(1, 2).save(photos / "test" / "cross" / "other file.bmp")  # the pixels of train/cross/2.png
    dataset = folder.read(photos)
    result = audit(dataset, looked_at(dataset, tmp_path / "cache", val_fraction=0.0))
    table = result.files.set_index("id")
    assert kinds_of(result, "train/circle/0.png") == kinds_of(result, "train/circle/copy.png") == {"duplicate"}
    assert kinds_of(result, "train/cross/1.png") == {"duplicate with another label"}
    assert result.of_kind("duplicate with another label").set_index("id").at["train/stripes/copy.png", "detail"] == (
        "train/cross/1.png (cross, train)"
    )
    skipped = {"train/cross/2.png", *(f"train/{name}/evaluated.png" for name in CLASSES)}
    assert set(table.index[table["what"] == "skipped"]) == skipped
    assert all(kinds_of(result, id) == {"duplicate in another split"} for id in skipped)
    assert table.at["train/cross/2.png", "reason"] == "the same picture, in another file, is in the split test"
    groups = [
        table.at[id, "duplicates"] for id in ("train/cross/2.png", "test/cross/other file.bmp", "train/circle/1.png")
    ]
    assert groups[0] == groups[1] >= 0 > groups[2]


def test_near_duplicates_across_splits_and_classes_are_for_a_person(tmp_path):
    photos = tmp_path / "photos"
    for split in ("train", "test"):
        make_photos(photos / split, 3)
        if split == "test":
            for label, name in enumerate(CLASSES):
                for number in range(3):
                    drawing(label, 20 + number).save(photos / split / name / f"{number}.png")
    drawing(0, 0).resize((70, 50)).save(photos / "test" / "circle" / "smaller.jpg", quality=80)
    drawing(1, 1).resize((70, 50)).save(photos / "train" / "stripes" / "wrong.jpg", quality=80)
    drawing(2, 2).resize((70, 50)).save(photos / "train" / "stripes" / "again.jpg", quality=80)
    dataset = folder.read(photos)
    result = audit(dataset, looked_at(dataset, tmp_path / "cache", val_fraction=0.0))
    assert kinds_of(result, "train/circle/0.png") == {"near-duplicate in another split"}
    assert kinds_of(result, "train/stripes/wrong.jpg") == {"near-duplicate with another label"}
    assert kinds_of(result, "train/stripes/again.jpg") == kinds_of(result, "train/stripes/2.png") == {"near-duplicate"}
    issues = result.to_review().set_index("id")
    assert set(issues.index) == {
        "train/circle/0.png",
        "test/circle/smaller.jpg",
        "train/cross/1.png",
        "train/stripes/wrong.jpg",
    }
    why = "near-duplicate in another split: test/circle/smaller.jpg (circle, test)"
    assert issues.at["train/circle/0.png", "why"] == why and (result.files["near_duplicates"].max() == 2)


def features_of(labels, spread=0.55):
    """Features in which each class has a place of its own, and a last one without information; `labels`: the true ones."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(len(CLASSES), 24))
    centres[:, -1] = 0
    values = centres[labels] + spread * rng.normal(size=(len(labels), 24))
    return Features(values.astype(np.float32), np.arange(len(labels)), "features of a test, of all images")


def arrays(count=40):
    """A dataset of arrays, all different, and the numbers of their classes."""
    labels = np.repeat(np.arange(3), count)
    images = [np.asarray(drawing(label, number, 24, 24)) for number, label in enumerate(labels.tolist())]
    examples = [
        Example(f"{number:03d}", CLASSES[label], "", image)
        for number, (label, image) in enumerate(zip(labels.tolist(), images, strict=True))
    ]
    return with_class_names("arrays", examples), labels


def test_features_find_wrong_labels_outliers_and_near_duplicates(tmp_path):
    dataset, right = arrays()
    examples = list(dataset.examples)
    examples[5] = examples[5]._replace(label="cross")
    dataset = Dataset("arrays", dataset.class_names, tuple(examples))
    features = features_of(right)
    features.values[50, -1] = 20
    features.values[90] = features.values[91] + 0.001
    copies = examples[5]._replace(id="copy"), examples[50]._replace(id="copy of an outlier")
    dataset = Dataset("arrays", dataset.class_names, (*dataset.examples, *copies))
    result = audit(dataset, looked_at(dataset, tmp_path / "cache"), features)
    likely = result.of_kind("label issue").set_index("id")
    assert list(likely.index) == ["005", "copy"] and set(likely["suggestion"]) == {"circle"}
    assert likely.at["005", "probability"] > 0.8 and likely.at["005", "detail"].startswith("circle ")
    assert "outlier" in kinds_of(result, "050") & kinds_of(result, "copy of an outlier")
    assert kinds_of(result, "090") & {"near-duplicate", "near-duplicate in another split"}
    assert result.to_review()["id"].iloc[0] == "005", "the least probable label first"
    assert result.num_on_disk is None and any("features of a test" in note for note in result.notes)


def test_features_of_some_images_rate_these_alone(tmp_path):
    dataset, right = arrays()
    some = np.flatnonzero(np.arange(len(right)) % 2)
    all_of_them = features_of(right)
    features = all_of_them._replace(values=all_of_them.values[some], examples=some)
    result = audit(dataset, looked_at(dataset, tmp_path), features)
    assert (
        result.files["quality"].iloc[some].lt(1).all()
        and (np.delete(result.files["quality"].to_numpy(), some) == 1).all()
    )


def test_images_of_unseen_classes_have_no_label_issues(tmp_path):
    dataset, right = arrays()
    features = features_of(right)
    result = audit(dataset, looked_at(dataset, tmp_path, unseen_classes="stripes"), features)
    assert set(result.files.loc[result.files["quality"] < 1, "label"]) == {"circle", "cross"}
    assert not set(result.files["suggestion"]) & {"stripes"}
    assert set(result.files.loc[result.files["label"] == "stripes", "split"]) == {"unseen"}


def test_without_features_it_says_what_is_left_out(odd_folder):
    _, _, result = odd_folder
    assert any("--features" in note for note in result.notes)
    assert not {"label issue", "outlier"} & set(result.counts)


@pytest.mark.parametrize("scheme", ["cv_studio", "cv_studio_boxes", "hf"])
def test_what_has_no_file_name_of_its_own_is_not_named_for_another_format(scheme, tmp_path):
    place = make_photos(tmp_path / "photos", 6)
    paths = sorted(place.rglob("*.png"))
    if scheme == "hf":
        columns = {"image": [path.read_bytes() for path in paths], "label": [path.parent.name for path in paths]}
        rows = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        rows.save_to_disk(place := tmp_path / "saved")
    else:
        box = {"x": 0, "y": 0, "x2": 1, "y2": 0.9}
        annotations = {path.relative_to(place).as_posix(): [{"label": path.parent.name, **box}] for path in paths}
        annotations["circle/0.png"].append(
            {"label": "unlisted"}
        )  # so that the image is used, and named among what is not
        (place / "_annotations.json").write_text(json.dumps({"labels": CLASSES, "annotations": annotations}))
    dataset = load_dataset(f"{scheme}:{place}", tmp_path)
    result = audit(dataset, looked_at(dataset, tmp_path / "cache"))
    assert len(dataset.examples) == 18 and result.counts == {}


def test_a_table_and_an_archive_are_audited_too(tmp_path):
    photos = make_photos(tmp_path / "photos", 3)
    (tmp_path / "table.csv").write_text(
        "path,label\n"
        + "".join(f"photos/{name}/{number}.png,{name}\n" for name in CLASSES for number in range(3))
        + "photos/gone.png,cross\n"
    )
    dataset = load_dataset(str(tmp_path / "table.csv"), tmp_path)
    result = audit(dataset, looked_at(dataset, tmp_path / "cache"))
    assert result.num_on_disk is None and result.files["what"].value_counts().to_dict() == {"used": 9, "skipped": 1}
    shutil.make_archive(str(tmp_path / "packed"), "zip", photos)
    dataset = archive.read(tmp_path / "packed.zip", tmp_path / "data")
    result = audit(dataset, looked_at(dataset, tmp_path / "cache"))
    assert result.num_on_disk == len(result.files) == 9 and result.counts == {}


def test_images_that_were_dropped_are_skipped_and_are_nobodys_duplicate(tmp_path):
    photos = make_photos(tmp_path / "photos", 4)
    shutil.copy(photos / "circle" / "1.png", photos / "cross" / "wrong.png")
    (tmp_path / "c.csv").write_text("id,action\ncross/wrong.png,drop\n")
    dataset = folder.read(photos)
    result = audit(dataset, looked_at(dataset, tmp_path / "cache", corrections=str(tmp_path / "c.csv")))
    assert result.counts == {"dropped by corrections": 1} and (result.files["duplicates"] == -1).all()


def test_of_one_colour_means_that_nothing_can_be_seen(tmp_path):
    photos = make_photos(tmp_path / "photos", 4)
    Image.new("RGB", (60, 60), "navy").save(photos / "cross" / "navy.png")
    noise = np.random.default_rng(0).integers(100, 103, (60, 60, 3), np.uint8)
    Image.fromarray(noise).save(photos / "cross" / "noise.png")
    dataset = folder.read(photos)
    result = audit(dataset, looked_at(dataset, tmp_path / "cache"))
    assert set(result.of_kind("single colour")["id"]) == {"cross/navy.png", "cross/noise.png"}
