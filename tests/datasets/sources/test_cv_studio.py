"""Projects of CV Studio: what becomes an example, and what is left out with which reason."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from transfer_learning import prepare, run
from transfer_learning.cli.parser import run_main
from transfer_learning.config import RunConfig
from transfer_learning.datasets.decoding.pixel_cache import cached_images
from transfer_learning.datasets.manifest import make_manifest
from transfer_learning.datasets.sources import cv_studio
from transfer_learning.datasets.sources.registry import load_dataset
from transfer_learning.errors import UserError
from transfer_learning.experiments.prediction import find_images
from transfer_learning.recipes.known import RECIPES
from transfer_learning.storage.cache import Cache
from transfer_learning.training.schedules import learning_rate

WIDTH, HEIGHT = 40, 20


def picture(seed=0, size=(WIDTH, HEIGHT)):
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)


def lay(folder, annotations, labels=("go", "stop"), images=None, **others):
    """A project with a picture of its own for each annotated name."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(annotations if images is None else images):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed)).save(folder / name)
    project = {"version": "1.0", "type": "classification", "labels": list(labels), "annotations": annotations, **others}
    (folder / "_annotations.json").write_text(json.dumps(project))
    return folder


def label(name, *box):
    return {"label": name} | dict(zip(("x", "y", "x2", "y2"), box, strict=bool(box)))


def load(folder, kind="cv_studio", data_dir="data"):
    dataset = load_dataset(f"{kind}:{folder}", folder.parent / data_dir)
    return {example.id: example.label for example in dataset.examples}, dict(dataset.ignored), dataset


# ----------------------------------------------------------------------------------------------------- whole images


def test_a_whole_image_has_the_label_that_the_project_gives_it(tmp_path):
    folder = lay(tmp_path / "signs", {"b.png": [label("go")], "a.png": [label("stop")], "sub/c.png": [label("stop")]})
    examples, ignored, dataset = load(folder)
    assert examples == {"a.png": "stop", "b.png": "go", "sub/c.png": "stop"} and ignored == {}
    assert dataset.class_names == ("go", "stop") and {example.split for example in dataset.examples} == {""}
    assert [example.source for example in dataset.examples] == [
        folder / name for name in ("a.png", "b.png", "sub/c.png")
    ]


def test_images_lie_beside_the_annotations_or_where_the_client_of_cv_studio_lays_them(tmp_path):
    annotations = {"a.png": [label("go")], "b.png": [label("stop")], "images/c.png": [label("stop")]}
    names = ("images/a.png", "b.png", "images/b.png", "images/c.png")
    examples, ignored, _ = load(lay(tmp_path / "signs", annotations, images=names))
    assert examples == {"images/a.png": "go", "b.png": "stop", "images/c.png": "stop"}
    assert ignored == {"images/b.png": "has no label"}, "the name belongs to the other one"


def test_the_order_of_the_annotations_decides_nothing(tmp_path):
    annotations = {f"{number}.png": [label(("go", "stop")[number % 2])] for number in range(4)}
    ids = [
        [example.id for example in load(lay(tmp_path / name, dict(items)))[2].examples]
        for name, items in (("one", annotations.items()), ("other", reversed(annotations.items())))
    ]
    assert ids[0] == ids[1]


STOP, GO = label("stop"), label("go")
RULES = {  # the annotations of x.png, and what becomes of it as a whole: its label, or the reason why it is ignored
    "one label": ([STOP], "stop", None),
    "one label twice": ([STOP, STOP], "stop", None),
    "one label in several boxes": ([label("stop", 0, 0, 0.5, 1), label("stop", 0.5, 0, 1, 1)], "stop", None),
    "several labels": ([STOP, GO], None, "has the labels go, stop; one was expected"),
    "no label": ([], None, "has no label"),
    "a label that is not listed": ([label("yield")], None, "has the label yield, which the project does not list"),
    "a label that is listed and one that is not": (
        [STOP, label("yield")],
        "stop",
        "has the label yield, which the project does not list",
    ),
}


@pytest.mark.parametrize(("annotations", "expected", "reason"), RULES.values(), ids=RULES)
def test_the_rule_for_the_labels_of_a_whole_image(annotations, expected, reason, tmp_path):
    examples, ignored, _ = load(lay(tmp_path / "signs", {"a.png": [GO], "b.png": [STOP], "x.png": annotations}))
    assert (examples.get("x.png"), ignored.get("x.png")) == (expected, reason)


def test_every_file_and_every_annotation_is_used_or_named(tmp_path):
    annotations = {"a.png": [STOP], "b.png": [GO], "gone.png": [GO], "../outside.png": [STOP], "/etc/passwd": [STOP]}
    folder = lay(tmp_path / "signs", annotations, ("go", "stop", "yield"), images=("a.png", "b.png", "new.png"))
    Image.fromarray(picture()).save(tmp_path / "outside.png")
    (folder / "model.pt").write_bytes(b"x")
    (folder / ".DS_Store").write_bytes(b"x")
    examples, ignored, _ = load(folder)
    assert set(examples) == {"a.png", "b.png"}
    assert ignored == {
        "new.png": "has no label",
        "model.pt": "not named like an image (.pt)",
        ".DS_Store": "hidden, or left behind by a zip program or the system",
        "gone.png": "is annotated, but not there",
        "../outside.png": "is annotated, but not there",
        "/etc/passwd": "is annotated, but not there",
        "_annotations.json": "lists the label yield, which no image has",
    }


def test_a_project_that_lists_no_labels_admits_all(tmp_path):
    folder = lay(tmp_path / "signs", {"a.png": [STOP], "b.png": [label("yield")]})
    project = json.loads((folder / "_annotations.json").read_text())
    del project["labels"], project["type"]
    (folder / "_annotations.json").write_text(json.dumps(project))
    assert load(folder)[0] == {"a.png": "stop", "b.png": "yield"}


def test_annotations_without_number_of_images_that_are_not_there_are_counted(tmp_path):
    folder = lay(tmp_path / "signs", {"a.png": [STOP], "b.png": [GO]})
    text = ",".join(f'"{number}.png":[]' for number in range(200_000))
    project = (folder / "_annotations.json").read_text().replace('"annotations": {', f'"annotations": {{{text},')
    (folder / "_annotations.json").write_text(project)
    examples, ignored, _ = load(folder)
    assert len(examples) == 2 and len(ignored) == 200_000


HOSTILE = {
    "empty": b"",
    "no JSON": b"<html>not found</html>",
    "cut off": b'{"labels": ["a"], "annotations": {"a.png": [{"lab',
    "no text": b"\xff\xfe\x00",
    "too deep": b"[" * 100_000,
    "a list": b"[]",
    "a number": b"7",
    "no annotations": b'{"labels": ["a"]}',
    "annotations in a list": b'{"labels": ["a"], "annotations": []}',
    "annotations of an image in a text": b'{"labels": ["a"], "annotations": {"a.png": "stop"}}',
    "annotations of an image nowhere": b'{"labels": ["a"], "annotations": {"a.png": null}}',
    "an annotation that is a text": b'{"labels": ["a"], "annotations": {"a.png": ["stop"]}}',
    "an annotation without a label": b'{"labels": ["a"], "annotations": {"a.png": [{}]}}',
    "a label that is a number": b'{"labels": ["a"], "annotations": {"a.png": [{"label": 1}]}}',
    "a label that is a list": b'{"labels": ["a"], "annotations": {"a.png": [{"label": []}]}}',
    "an empty label": b'{"labels": ["a"], "annotations": {"a.png": [{"label": ""}]}}',
    "labels in a text": b'{"labels": "stop", "annotations": {"a.png": [{"label": "stop"}]}}',
    "labels nowhere": b'{"labels": null, "annotations": {"a.png": [{"label": "stop"}]}}',
    "half of a character in a label": b'{"annotations": {"a.png": [{"label": "\\ud800"}]}}',
    "half of a character in a name": b'{"annotations": {"\\ud800.png": [{"label": "stop"}]}}',
    "a number of 5,000 digits": b'{"annotations": {"a.png": [{"label": "a", "x": ' + b"9" * 5000 + b"}]}}",
}


@pytest.mark.parametrize("kind", ["cv_studio", "cv_studio_boxes"])
@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_annotations_that_are_something_else_are_one_sentence(content, kind, tmp_path):
    folder = lay(tmp_path / "signs", {"a.png": [STOP], "b.png": [GO]})
    (folder / "_annotations.json").write_bytes(content)
    with pytest.raises(
        UserError, match="_annotations.json is not an annotation file of CV Studio .*, so export it again"
    ):
        load(folder, kind)


@pytest.mark.parametrize("kind", ["cv_studio", "cv_studio_boxes"])
def test_a_project_of_one_label_says_what_was_left_out(kind, tmp_path):
    annotations = {"a.png": [label("go", 0, 0, 1, 1)], "b.png": [label("yield", 0, 0, 1, 1)], "c.png": [], "d.png": []}
    with pytest.raises(UserError) as caught:
        load(lay(tmp_path / "signs", annotations), kind)
    for words in ("only one class, go", "2: has no label", "1: has the label yield, which"):
        assert words in str(caught.value)


def test_images_of_one_label_can_be_predicted(tmp_path):
    folder = lay(tmp_path / "signs", {"a.png": [label("go")], "b.png": [label("go")]})
    assert [image.source for image in find_images([f"cv_studio:{folder}"], tmp_path).images] == [
        folder / "a.png",
        folder / "b.png",
    ]


def test_a_project_without_labels_says_so(tmp_path):
    folder = lay(tmp_path / "signs", {"a.png": [], "b.png": []})
    with pytest.raises(UserError, match="has no image with one label.*Left out are 2: has no label"):
        load(folder)


NO_PROJECTS = {
    "no folder": lambda folder: None,
    "an empty folder": lambda folder: folder.mkdir(),
    "a file": lambda folder: folder.write_bytes(b""),
    "a folder in the place of the file": lambda folder: (folder / "_annotations.json").mkdir(parents=True),
}


@pytest.mark.parametrize("make", NO_PROJECTS.values(), ids=NO_PROJECTS)
def test_a_folder_that_is_no_project_is_one_sentence(make, tmp_path):
    make(tmp_path / "signs")
    with pytest.raises(UserError, match="signs/_annotations.json does not exist"):
        load(tmp_path / "signs")


# ------------------------------------------------------------------------------------------------------------ boxes

BOXES = {  # a box, and the pixels that it takes of 40 x 20: left, top, right, bottom; or why it takes none
    "all of it": ((0, 0, 1, 1), (0, 0, 40, 20)),
    "fractions": ((0.25, 0.1, 0.75, 0.9), (10, 2, 30, 18)),
    "drawn from below": ((0.75, 0.9, 0.25, 0.1), (10, 2, 30, 18)),
    "beyond the edge": ((-0.1, 0.5, 0.5, 1.3), (0, 10, 20, 20)),
    "pixels": ((10, 2, 30, 18), (10, 2, 30, 18)),
    "pixels beyond the edge": ((30, -5, 90, 5), (30, 0, 40, 5)),
    "one pixel": ((0.5, 0.5, 0.525, 0.55), (20, 10, 21, 11)),
    "outside": ((1.2, 0.1, 1.5, 0.9), "has a box that covers no pixel of the image"),
    "pixels outside": ((50, 2, 60, 18), "has a box that covers no pixel of the image"),
    "empty": ((0.5, 0.1, 0.5, 0.9), "has a box that covers no pixel of the image"),
    "smaller than a pixel": ((0.5, 0.1, 0.501, 0.9), "has a box that covers no pixel of the image"),
    "texts": (("0", "0", "1", "1"), "has a box whose x, y, x2, y2 are not numbers"),
    "no numbers": ((0, 0, float("nan"), 1), "has a box whose x, y, x2, y2 are not numbers"),
    "an endless one": ((0, 0, 1e999, 1), "has a box whose x, y, x2, y2 are not numbers"),
    "beyond all floats": ((0, 0, 10**400, 1), "has a box whose x, y, x2, y2 are not numbers"),
    "a side is missing": ((0, 0, 1, None), "has a box whose x, y, x2, y2 are not numbers"),
    "none": ((), "has no box"),
}


@pytest.mark.parametrize(("box", "expected"), BOXES.values(), ids=BOXES)
def test_a_box_is_cut_out_without_a_loss(box, expected, tmp_path):
    annotations = {"a.png": [label("stop", *box)], "b.png": [label("go", 0, 0, 1, 1), label("stop", 0, 0, 1, 1)]}
    folder = lay(tmp_path / "signs", annotations, type="localization")
    examples, ignored, dataset = load(folder, "cv_studio_boxes")
    assert examples.get("b.png#1") == "go"
    if isinstance(expected, str):
        assert ignored == {"a.png#1": expected} and len(examples) == 2
        return
    left, top, right, bottom = expected
    crop = np.asarray(Image.open(dataset.examples[0].source))
    np.testing.assert_array_equal(crop, picture(0)[top:bottom, left:right], strict=True)


def test_each_box_of_an_image_is_an_example_of_its_own(tmp_path):
    boxes = [label("stop", 0, 0, 0.5, 1), label("yield", 0, 0, 1, 1), label("go", 0.5, 0, 1, 1), label("stop")]
    examples, ignored, dataset = load(lay(tmp_path / "signs", {"a.png": boxes, "b.png": []}), "cv_studio_boxes")
    assert examples == {"a.png#1": "stop", "a.png#3": "go"}
    assert ignored == {
        "a.png": "has the label yield, which the project does not list",
        "a.png#4": "has no box",
        "b.png": "has no label",
    }
    assert {example.group for example in dataset.examples} == {"a.png"}


def test_a_box_is_meant_upright_as_the_image_is_seen(tmp_path):
    folder = lay(tmp_path / "signs", {"a.jpg": [label("stop", 0, 0, 1, 0.5)], "b.jpg": [label("go", 0, 0, 1, 1)]})
    stored = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    stored[:, : WIDTH // 2] = 255  # the left half, which is the upper one once the image is turned
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(folder / "a.jpg", exif=exif, quality=95)
    crop = Image.open(load(folder, "cv_studio_boxes")[2].examples[0].source)
    assert crop.size == (HEIGHT, WIDTH // 2) and np.asarray(crop)[:-1].min() > 200


def test_crops_are_made_once_and_again_where_image_or_box_changed(tmp_path):
    def cut():
        dataset = load(folder, "cv_studio_boxes")[2]
        return {example.id: (example.source, example.source.stat().st_mtime_ns) for example in dataset.examples}

    annotations = {"a.png": [label("stop", 0, 0, 0.5, 1)], "b.png": [label("go", 0, 0, 1, 1)]}
    folder = lay(tmp_path / "signs", annotations)
    first = cut()
    assert cut() == first
    assert {path.parent.parent for path, _ in first.values()} == {tmp_path / "data" / "cv_studio_boxes"}
    assert first["a.png#1"][0].name == "0-0-20-20.png" and first["a.png#1"][0].parent.name.startswith("a-")
    annotations["a.png"][0]["x2"] = 0.25
    lay(folder, annotations)
    second = cut()
    assert second["b.png#1"] == first["b.png#1"] and second["a.png#1"][0].name == "0-0-10-20.png"
    Image.fromarray(picture(99)).save(folder / "a.png")
    third = cut()["a.png#1"][0]
    assert third != second["a.png#1"][0]
    np.testing.assert_array_equal(np.asarray(Image.open(third)), picture(99)[:, :10])


def test_equal_images_under_one_name_in_two_folders_do_not_meet(tmp_path):
    annotations = {f"{folder}/a.png": [label(name, 0, 0, 1, 1)] for folder, name in (("x", "go"), ("y", "stop"))}
    folder = lay(tmp_path / "signs", annotations)
    (folder / "y" / "a.png").write_bytes((folder / "x" / "a.png").read_bytes())
    contents = [example.source for example in load(folder, "cv_studio_boxes")[2].examples]
    assert len(set(contents)) == 2


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n cut off"])
def test_an_image_that_cannot_be_read_is_named_with_all_of_its_boxes_as_any_other_is(content, tmp_path):
    annotations = {f"{number}.png": [label(("go", "stop")[number % 2], 0, 0, 1, 1)] for number in range(6)}
    folder = lay(tmp_path / "signs", annotations | {"bad.png": [label("go", 0, 0, 0.5, 1), label("stop", 0, 0, 1, 1)]})
    (folder / "bad.png").write_bytes(content)
    dataset = load(folder, "cv_studio_boxes")[2]
    assert [example.id for example in dataset.examples if example.source == folder / "bad.png"] == [
        "bad.png#1",
        "bad.png#2",
    ]
    store = cached_images(dataset, 8, "squash", Cache(tmp_path / "cache"))
    with pytest.raises(UserError, match="2 of 8 images cannot be read .*bad.png"):
        make_manifest(dataset, store.facts, RunConfig(val_fraction=0.1, test_fraction=0.0))


def test_the_boxes_of_an_image_share_a_split(tmp_path):
    """Beside each other they show the same scene, so a validation that has one of them would be no validation."""
    rng = np.random.default_rng(0)
    annotations = {
        f"{number}.png": [
            label(name, *np.sort(rng.uniform(0, 1, (2, 2)), axis=0).ravel()) for name in ("go", "stop") * 2
        ]
        for number in range(30)
    }
    dataset = load(lay(tmp_path / "signs", annotations), "cv_studio_boxes")[2]
    store = cached_images(dataset, 8, "squash", Cache(tmp_path / "cache"))
    manifest = make_manifest(dataset, store.facts, RunConfig(val_fraction=0.3, test_fraction=0.0))
    photo = manifest["id"].str.partition("#")[0]
    assert (manifest.groupby(photo)["split"].nunique() == 1).all() and photo.nunique() == 30
    assert set(manifest["split"]) == {"train", "val"}


# ------------------------------------------------------------------------------------------------------- stop signs


def test_stop_signs_are_the_project_in_their_folder(tmp_path):
    lay(tmp_path / "data" / "stop_signs", {"a.png": [STOP], "b.png": [label("not_stop")]}, ("stop", "not_stop"))
    dataset = load_dataset("stop_signs", tmp_path / "data")
    assert (dataset.name, dataset.class_names, len(dataset.examples)) == ("stop_signs", ("not_stop", "stop"), 2)


def test_stop_signs_that_are_not_there_say_what_to_put_where_and_what_works_now(tmp_path):
    with pytest.raises(UserError) as caught:
        load_dataset("stop_signs", tmp_path)
    for words in (
        str(tmp_path / "stop_signs"),
        cv_studio.ANNOTATIONS,
        "cv_studio:s3://BUCKET/PREFIX",
        "--dataset drawn_pills",
    ):
        assert words in str(caught.value)


def test_the_recipe_has_the_facts_of_the_system_that_it_follows():
    config = RECIPES["stop_signs"]()
    assert (config.backbone, config.weights, config.head, config.image_size) == ("resnet18", "imagenet", (), 224)
    assert (config.val_fraction, config.test_fraction, config.batch_size) == (0.1, 0.0, 32)
    phase = config.frozen
    assert (phase.epochs, config.fine_tune.epochs, config.starts_from_closed_form) == (10, 0, False)
    assert (phase.optimizer, phase.momentum, phase.schedule) == ("sgd", 0.9, "triangular2")
    assert (phase.min_learning_rate, phase.learning_rate, phase.augmentation, config.flip) == (
        1e-6,
        1e-2,
        "rotation",
        True,
    )
    rates = [learning_rate(phase, update, 4) for update in range(40)]
    assert (rates[0], max(rates)) == (1e-6, 1e-2) and rates.index(1e-2) == 20, "up for five epochs, down for five"


@pytest.mark.parametrize("dataset", ["stop_signs", "cv_studio:{}", "cv_studio_boxes:{}"])
def test_the_recipe_runs_from_the_project_to_the_report(dataset, tmp_path, weights_file, capsys):
    project = tmp_path / "data" / "stop_signs"
    boxes = (label("stop", 0, 0, 0.5, 1), label("not_stop", 0, 0, 1, 1))
    lay(
        project, {f"{number}.png": [boxes[number % 2]] for number in range(24)} | {"none.png": []}, ("stop", "not_stop")
    )
    flags = [
        *("--dataset", dataset.format(project), "--data-dir", tmp_path / "data", "--cache-dir", tmp_path / "cache"),
        *("--backbone", "small_cnn", "--weights", weights_file, "--image-size", 16),
    ]
    for main, more in ((prepare.main, ["--out", tmp_path / "audit"]), (run.main, ["--run-dir", tmp_path / "run"])):
        assert run_main(main, [str(flag) for flag in (*flags, *more)]) == 0
    output = capsys.readouterr().out
    assert "Ignored 1 other file:\n  1 has no label" in output
    assert "The features of 240" not in output and "Phase frozen: 10 epochs of" in output and "\nval accuracy" in output
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert len(history) == 10 and history["learning_rate"].max() == pytest.approx(0.01, rel=0.2)
    assert (tmp_path / "run" / "report.html").exists()
