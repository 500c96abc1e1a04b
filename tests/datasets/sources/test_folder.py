"""A folder of class folders: every file below it is an example or is ignored for a reason."""

import os
from pathlib import Path

import pytest

from transfer_learning.datasets.sources import folder
from transfer_learning.datasets.sources.registry import load_dataset
from transfer_learning.errors import UserError
from transfer_learning.experiments.prediction import find_images


def image_files(path):
    """The files that `predict` takes at a path."""
    return [image.source for image in find_images([path], "data").images]


def lay(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def found(dataset):
    return {example.id: (example.label, example.split) for example in dataset.examples}


def splits(text):
    """``a/1.jpg`` for an image of the class a, ``train/a/1.jpg=train`` for one of a split."""
    named = (word.partition("=")[::2] for word in text.split())
    return {name: (name.split("/")[-2], split) for name, split in named}


LAYOUTS = {
    "class folders": splits("cats/1.jpg dogs/1.jpg"),
    "splits above": splits("train/cats/1.jpg=train train/dogs/1.jpg=train val/cats/2.jpg=val test/dogs/2.jpg=test"),
    "other names of splits": splits(
        "Train/a/1.jpg=train Train/b/1.jpg=train Validation/a/2.jpg=val Validation/b/2.jpg=val TEST/a/3.jpg=test"
    ),
    "wrapped twice": {f"Archive 1/Data Combined/{name}/1.jpg": (name, "") for name in ("cats", "dogs")},
    "wrapped splits": splits(
        "set/train/a/1.jpg=train set/train/b/1.jpg=train set/test/a/2.jpg=test set/test/b/2.jpg=test"
    ),
    "folders inside a class": {
        "cats/2.jpg": ("cats", ""),
        "cats/2019/may/1.jpg": ("cats", ""),
        "dogs/x/1.jpg": ("dogs", ""),
    },
    "suffixes in any case": splits("a/1.JPG a/2.Jpeg b/3.PNG b/4.TIF b/5.webp b/6.gif b/7.bmp b/8.jfif"),
    "odd names": {f"{name}/1.jpg": (name, "") for name in ("Kremil S", "Äpfel, reif", "nan", "01", "a\nb", "100 %")},
    "a class that is called like a split": splits("train/1.jpg bus/1.jpg car/1.jpg"),
}


@pytest.mark.parametrize("expected", LAYOUTS.values(), ids=LAYOUTS)
def test_reads_the_usual_layouts(expected, tmp_path):
    first = next(iter(expected)).partition("/")[0]
    dataset = folder.read(lay(tmp_path / "root", *expected, f"{first}/read me.txt"))
    assert found(dataset) == expected
    assert dataset.class_names == tuple(sorted({label for label, _ in expected.values()}))
    assert all(example.source == tmp_path / "root" / example.id for example in dataset.examples)


def test_every_file_is_used_or_ignored_for_a_reason(tmp_path):
    used = ["a/1.jpg", "b/1.jpg", "b/sub/2.png"]
    ignored = {
        "a/._1.jpg": "hidden",
        ".DS_Store": "hidden",
        "b/Thumbs.db": "left behind",
        "__MACOSX/a/1.jpg": "left behind",
        "a/labels.txt": "not named like an image (.txt)",
        "README": "no suffix",
        "b/1.jp2": ".jp2",
        ".drawn_pills_version": "hidden",
        ".ipynb_checkpoints/1.jpg": "hidden",
        **{
            f"{place}/SYNOFILE_THUMB_M.jpg": "the system"
            for place in (
                "a/@eaDir/1.jpg",
                "#recycle",
                "@Recycle",
                "#snapshot",
                "$RECYCLE.BIN",
                "RECYCLER",
                "System Volume Information",
                "lost+found",
                "a/__pycache__",
                "Temporary Items",
            )
        },
    }
    dataset = folder.read(lay(tmp_path, *used, *ignored))
    assert [example.id for example in dataset.examples] == used, "in the order of their names"
    reasons = dict(dataset.ignored)
    assert reasons.keys() == ignored.keys()
    assert all(words in reasons[name] for name, words in ignored.items())


def test_the_order_of_the_disk_does_not_matter(tmp_path):
    names = [f"{label}/{number}.jpg" for label in "cab" for number in (3, 1, 2)]
    first, second = (lay(tmp_path / str(turn), *names[::turn]) for turn in (1, -1))
    assert found(folder.read(first)) == found(folder.read(second))
    assert list(found(folder.read(first))) == sorted(names)


def test_links_to_folders_and_files_are_followed(tmp_path):
    elsewhere = lay(tmp_path / "big disk", "1.jpg", "more/2.jpg")
    root = lay(tmp_path / "root", "dogs/1.jpg")
    (root / "cats").symlink_to(elsewhere, target_is_directory=True)
    (root / "dogs" / "2.jpg").symlink_to(elsewhere / "1.jpg")
    assert list(found(folder.read(root))) == ["cats/1.jpg", "cats/more/2.jpg", "dogs/1.jpg", "dogs/2.jpg"]
    assert [str(file.relative_to(root)) for file in image_files(root)] == list(found(folder.read(root)))


def test_a_link_back_is_not_followed_for_ever(tmp_path):
    root = lay(tmp_path / "root", "cats/1.jpg", "dogs/1.jpg")
    (root / "cats" / "all").symlink_to(root, target_is_directory=True)
    (root / "dogs" / "other").symlink_to(root / "cats", target_is_directory=True)
    ids = list(found(folder.read(root)))
    assert {"cats/1.jpg", "dogs/1.jpg", "dogs/other/1.jpg"} == set(ids)
    assert dict(folder.read(root).ignored) == dict.fromkeys(
        ("cats/all", "dogs/other/all"), "a link to one of its parent folders"
    )


def test_folders_may_be_nested_as_deep_as_the_system_allows(tmp_path):
    root = lay(tmp_path / "root", "cats/1.jpg", "dogs/1.jpg", "dogs/z.jpg")
    levels = [root / ("dogs" + "/f" * depth) for depth in range(1, 1100)]
    for level in levels:
        level.mkdir()
    file = levels[-1] / "2.jpg"
    file.write_bytes(b"x")
    try:
        assert [example.source for example in folder.read(root).examples][2] == file
    finally:  # nobody else would get rid of them
        file.unlink()
        for level in reversed(levels):
            level.rmdir()


def test_a_link_to_nothing_or_to_itself_is_an_example_that_the_manifest_will_name(tmp_path):
    root = lay(tmp_path, "a/1.jpg", "b/1.jpg")
    (root / "b" / "2.jpg").symlink_to(root / "gone.jpg")
    (root / "b" / "3.jpg").symlink_to(root / "b" / "3.jpg")
    assert {"b/2.jpg", "b/3.jpg"} <= found(folder.read(root)).keys()


def test_a_pipe_is_ignored_not_waited_for(tmp_path):
    root = lay(tmp_path, "a/1.jpg", "b/1.jpg")
    os.mkfifo(root / "b" / "2.jpg")
    assert dict(folder.read(root).ignored) == {"b/2.jpg": "neither a file nor a folder"}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a/1.jpg", "b/1.jpg", "stray.jpg"], "stray.jpg lies beside"),
        (["train/a/1.jpg", "test/a/1.jpg", "more/1.jpg"], r"split folders \(test, train\) and other folders \(more\)"),
    ],
)
def test_a_layout_that_could_be_misread_is_refused(names, words, tmp_path):
    with pytest.raises(UserError, match=words):
        folder.read(lay(tmp_path, *names))


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (["img/1.jpg", "img/2.jpg", "labels.csv"], "labels.csv"),
        (["1.jpg", "2.jpg", "x/boxes.csv", "train.tsv"], "train.tsv"),
        (["train/1.jpg", "test/2.jpg", "train.csv"], "train.csv"),
        (["train/1.jpg", "test/2.jpg", "notes.txt"], None),
    ],
)
def test_a_table_beside_images_without_class_folders_is_named(names, table, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError) as caught:
        load_dataset(str(tmp_path), tmp_path)
    sentence = f" If {table} has their labels, pass --dataset {tmp_path / (table or '')}."
    assert str(caught.value).endswith(sentence) if table else "has their labels" not in str(caught.value)


def test_a_folder_of_its_own_may_be_called_like_a_known_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(lay(tmp_path, "digits/one/1.jpg", "digits/two/1.jpg"))
    assert load_dataset("./digits", "data").class_names == ("one", "two")
    assert len(load_dataset("digits", "data").class_names) == 10


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: lay(path, "list.txt")])
def test_predict_names_what_holds_no_image(make, tmp_path):
    make(tmp_path / "photos")
    with pytest.raises(UserError, match="photos"):
        image_files(tmp_path / "photos")


def test_predict_takes_a_file_whatever_it_is_called(tmp_path):
    lay(tmp_path, "upload", "a/1.jpg", "a/note.txt")
    assert image_files(tmp_path / "upload") == [tmp_path / "upload"]
    assert image_files(Path(tmp_path)) == [tmp_path / "a" / "1.jpg"]
