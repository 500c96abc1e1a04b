"""Layouts that other tools, archives and competitions have: split folders under any name, or a question."""

import logging

import pytest

from tests.datasets.sources.test_folder import lay
from transfer_learning.datasets.sources import folder
from transfer_learning.errors import UserError

ABC = ("alpha", "beta", "gamma")


def split_folders(*names, labels=ABC):
    return [f"{name}/{label}/{number}.jpg" for number, name in enumerate(names) for label in labels]


def read(root, names):
    """The splits of each class, and the sentences."""
    dataset = folder.read(lay(root, *names))
    found = {}
    for example in dataset.examples:
        found.setdefault(example.label, set()).add(example.split)
    return found, dataset.notes


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("training_set", "test_set"), {"train", "test"}),
        (("train/train", "test/test"), {"train", "test"}),
        (("seg_train/seg_train", "seg_test/seg_test"), {"train", "test"}),
        (("Training Data", "Testing Data"), {"train", "test"}),
        (("train_images", "val_images"), {"train", "val"}),
        (("train", "dev"), {"train", "val"}),
        (("Train", "Valid", "Test"), {"train", "val", "test"}),
        (("TRAIN", "VAL", "TEST"), {"train", "val", "test"}),
        (("dataset_train", "dataset_test"), {"train", "test"}),
        (("imgs-train", "imgs-val"), {"train", "val"}),
        (("Training_Images", "Testing_Images"), {"train", "test"}),
        (("training-set", "testing-set"), {"train", "test"}),
        (("TrainingSet", "TestSet"), {"train", "test"}),
        (("trainset", "testset"), {"train", "test"}),
        (("train2017", "val2017"), {"train", "val"}),
        (("01_train", "02_validation"), {"train", "val"}),
        (("trainval", "test"), {"train", "test"}),
        (("train/images", "test/images"), {"train", "test"}),
        (("images/train", "images/val"), {"train", "val"}),
        (("flowers_train", "flowers_test"), {"train", "test"}),
        (("wrapper/train", "wrapper/test"), {"train", "test"}),
        (("fold_1", "fold_2", "fold_3"), {""}),
        (("Fold1", "Fold2"), {""}),
    ],
)
def test_folders_above_the_classes_are_no_classes(names, splits, tmp_path):
    found, notes = read(tmp_path, split_folders(*names))
    assert found == dict.fromkeys(ABC, splits)
    plain = all({"train", "val", "test"} & set(name.lower().split("/")) for name in names)
    assert plain or [note.level for note in notes] == [logging.INFO], "it is said once"


@pytest.mark.parametrize("inner", ["train test", "Train Test", "training_images test_images"])
def test_split_folders_below_the_classes_are_used(inner, tmp_path):
    train, test = inner.split()
    names = [f"{label}/{split}/{split}.png" for label in ("alpha", "beta") for split in (train, test)]
    found, notes = read(tmp_path, [*names, "beta/ground_truth/1.png"])
    assert found == dict.fromkeys(("alpha", "beta"), {"train", "test"})
    assert "Each class has split folders" in notes[0].text and f"{train} is train" in notes[0].text
    assert notes[1].level == logging.WARNING and "ground_truth" in notes[1].text


def test_defects_below_the_splits_of_a_product_belong_to_the_product(tmp_path):
    names = ["bottle/train/good/1.png", "bottle/test/good/2.png", "bottle/test/broken/1.png"]
    names += ["cable/train/good/1.png", "cable/test/good/2.png", "cable/test/bent/1.png"]
    assert read(tmp_path, names)[0] == dict.fromkeys(("bottle", "cable"), {"train", "test"})


@pytest.mark.parametrize(
    "flat",
    ["test/1.jpg", "test/test/1.jpg", "test/images/1.jpg", "test/unknown/1.jpg", "pred/1.jpg", "unlabelled/1.jpg"],
)
def test_images_to_predict_beside_the_splits_are_left_out_and_explained(flat, tmp_path):
    names = [*split_folders("train", "val"), flat]
    dataset = folder.read(lay(tmp_path, *names))
    assert {example.split for example in dataset.examples} == {"train", "val"} and dataset.class_names == ABC
    assert [file for file, _ in dataset.ignored] == [flat]
    assert dataset.notes[-1].level == logging.WARNING and flat.split("/")[0] in dataset.notes[-1].text


def test_scenes_of_kaggle_with_a_folder_to_predict(tmp_path):
    names = [*split_folders("seg_train/seg_train", "seg_test/seg_test"), "seg_pred/seg_pred/5.jpg"]
    found, notes = read(tmp_path, names)
    assert found == dict.fromkeys(ABC, {"train", "test"}) and len(notes) == 2


@pytest.mark.parametrize(
    "names",
    [
        split_folders("color", "grayscale"),
        split_folders("rgb", "gray", "edges"),
        split_folders("256x256", "512x512"),
        split_folders("amazon/images", "dslr/images"),
        split_folders("entrenamiento", "prueba"),
        split_folders("color/train", "color/test", "gray/train", "gray/test"),
        [*split_folders("color", "gray"), "color/delta/1.jpg"],
    ],
)
def test_several_folders_with_the_same_folders_are_a_question(names, tmp_path):
    first = min(names).split("/")[0]
    with pytest.raises(UserError, match=f"the same folders .* in .*pass one of them, such as --dataset '.*/{first}'"):
        folder.read(lay(tmp_path, *names))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["train/1.jpg", "test/1.jpg"], "the split folders .*, and test has no class folders"),
        (["images/train/1.jpg", "images/val/1.jpg", "labels/train/1.txt"], "train has no class folders"),
        (["train/1.jpg", "train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg"], "lies beside the class folders"),
        ([*split_folders("train"), "extra/1.jpg"], "split folders .train. and other folders .extra."),
        ([*split_folders("train", "test"), "photos/1.jpg"], "split folders .test, train. and other folders .photos."),
        (["a/train/1.jpg", "a/test/1.jpg", "b/1.jpg"], "a has split folders .*b has images that are in none"),
        (["a/train/1.jpg", "a/test/1.jpg", "b/train/1.jpg", "b/x/1.jpg"], "b has other folders .x."),
        (["cat.1.jpg", "dog.1.jpg"], "holds 2 images and no class folders"),
    ],
)
def test_a_layout_that_is_not_clear_is_refused_with_the_way_out(names, words, tmp_path):
    with pytest.raises(UserError, match=words) as error:
        folder.read(lay(tmp_path, *names))
    assert any(words in str(error.value) for words in ("move", "give", "rename"))


@pytest.mark.parametrize(
    "names",
    [
        ["test/1.jpg", "sample/1.jpg", "sample/x/2.jpg"],
        ["train/1.jpg", "bus/1.jpg", "car/1.jpg"],
        ["train/steam/1.jpg", "train/diesel/1.jpg", "bus/double/1.jpg"],
        ["valid/1.jpg", "invalid/1.jpg"],
    ],
)
def test_a_class_that_is_called_like_a_split_stays_a_class_and_is_explained(names, tmp_path):
    found, notes = read(tmp_path, names)
    assert found == {name.split("/")[0]: {""} for name in names}
    [note] = notes
    assert "counts as a class, not as a split, since it lies beside" in note.text


@pytest.mark.parametrize("names", [["train station/1.jpg", "test tube/1.jpg"], ["trains/1.jpg", "developer/1.jpg"]])
def test_words_that_only_begin_like_splits_are_classes(names, tmp_path):
    found, notes = read(tmp_path, names)
    assert found == {name.split("/")[0]: {""} for name in names} and not notes


@pytest.mark.parametrize(
    "names", [["cats/in/1.jpg", "dogs/in/1.jpg"], ["cats/in/1.jpg", "cats/out/1.jpg", "dogs/in/1.jpg"]]
)
def test_folders_inside_classes_that_are_not_all_alike_belong_to_the_class(names, tmp_path):
    assert set(read(tmp_path, names)[0]) == {"cats", "dogs"}


@pytest.mark.parametrize(
    ("extra", "holds"),
    [
        ([], "nothing"),
        (["birds/1.jp2", "birds/2.jp2", "birds/x/notes.txt"], "2 .jp2, 1 .txt"),
        (["birds/.hidden.jpg"], "1 .jpg"),
    ],
)
def test_a_class_folder_without_an_image_is_left_out_and_logged(extra, holds, tmp_path):
    (tmp_path / "birds").mkdir()
    found, [note] = read(tmp_path, ["cats/1.jpg", "dogs/1.jpg", *extra])
    assert set(found) == {"cats", "dogs"} and note.level == logging.WARNING
    assert note.text.startswith(f"The folder birds in {tmp_path} has no image (it holds {holds}) and is left out")


def test_a_class_that_a_split_lacks_is_no_empty_class(tmp_path):
    (tmp_path / "test" / "gamma").mkdir(parents=True)
    _, notes = read(tmp_path, [*split_folders("train"), "test/alpha/1.jpg"])
    assert not notes


def test_a_folder_of_texts_beside_the_only_folder_of_images_is_no_class(tmp_path):
    found, _ = read(tmp_path, ["photos/cats/1.jpg", "photos/dogs/1.jpg", "annotations/1.xml"])
    assert set(found) == {"cats", "dogs"}
