"""The datasets with a name: real ones that are installed, and those that lie in a folder or come from far away."""

import gzip
import hashlib
import importlib
import json
import struct
import sys
import types

import numpy as np
import pytest

from tests.support.logs import log_messages
from tests.support.photos import draw_photos
from tests.support.shortened import with_files
from transfer_learning import prepare, run
from transfer_learning.cli.parser import run_main
from transfer_learning.datasets.dataset import Dataset, Example
from transfer_learning.datasets.sources import digits, fashion_mnist, pharma
from transfer_learning.datasets.sources.registry import DATASETS, SCHEMES, Source, load_dataset
from transfer_learning.errors import UserError
from transfer_learning.recipes.known import RECIPES
from transfer_learning.recipes.resolve import recipe_for, resolve_config


def test_every_row_names_a_function_and_every_recipe_a_row():
    for source in (*DATASETS.values(), *SCHEMES.values()):
        module, _, function = source.function.partition(":")
        assert callable(getattr(importlib.import_module(f"transfer_learning.datasets.sources.{module}"), function))
        assert source.content and source.origin
    assert set(RECIPES) <= {*DATASETS, *SCHEMES}


def test_a_file_and_a_row_are_a_dataset_with_the_automatic_recipe(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    examples = tuple(Example(str(number), "ab"[number % 2], "", image) for number, image in enumerate(images))
    module = types.ModuleType("transfer_learning.datasets.sources.noise")
    module.load = lambda data_dir: Dataset("noise", ("a", "b"), examples)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(DATASETS, "noise", Source("noise:load", "noise", "made by a test"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise").mkdir()  # a folder of the same name does not hide it
    config, reasons = resolve_config(run.parse(["--dataset", "noise", "--image-size", "32"]))
    assert (config.dataset, config.image_size, config.batch_size) == ("noise", 32, 16) and reasons
    assert len(load_dataset("noise", tmp_path).examples) == 40


def test_an_unknown_name_is_answered_with_what_is_known(tmp_path):
    with pytest.raises(UserError, match="Known: .*cifar10, .*digits, .*hf:PLACE"):
        load_dataset("zzz", tmp_path)


def test_an_empty_name_is_not_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(draw_photos(tmp_path / "photos"))
    for load in (lambda: load_dataset("", tmp_path), lambda: recipe_for({"dataset": ""})):
        with pytest.raises(UserError, match="--dataset is (empty|missing)"):
            load()


def test_an_address_is_to_be_downloaded(tmp_path):
    with pytest.raises(UserError, match="--dataset https://example.org/a.zip is an address; download it"):
        load_dataset("https://example.org/a.zip", tmp_path)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_without_a_place_is_suggested(scheme, tmp_path):
    for name in (scheme, f"{scheme}:"):
        with pytest.raises(UserError, match=f" {scheme}:PLACE"):
            load_dataset(name, tmp_path)


def test_digits_are_real_images_of_ten_classes(tmp_path):
    dataset = load_dataset("digits", tmp_path)
    assert dataset.class_names == tuple("0123456789") and len(dataset.examples) == 1797
    assert len({example.id for example in dataset.examples}) == 1797
    pixels = np.stack([example.source for example in dataset.examples])
    assert pixels.shape == (1797, 8, 8) and pixels.dtype == np.uint8
    assert (pixels.min(), pixels.max()) == (0, 255), "16 levels spread over all of 0..255"
    assert {example.split for example in dataset.examples} == {""}
    assert digits.load(tmp_path).examples[0].label == "0"


# --------------------------------------------------------------------------------------------------- Fashion-MNIST


def idx(array):
    array = np.asarray(array, np.uint8)
    return gzip.compress(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


def lay_fashion(folder, replaced=None):
    """The four files with 30 and 10 images; `replaced` names some and gives their bytes."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for (images, labels), count in zip(fashion_mnist.FILES.values(), (30, 10), strict=True):
        (folder / images).write_bytes(idx(rng.integers(0, 256, (count, 28, 28))))
        (folder / labels).write_bytes(idx(np.arange(count) % 10))
    for name, content in (replaced or {}).items():
        (folder / name).write_bytes(content)


TRAIN_IMAGES, TRAIN_LABELS = fashion_mnist.FILES["train"]


def test_fashion_mnist_reads_its_four_files_and_keeps_the_official_test(tmp_path):
    lay_fashion(tmp_path / "fashion_mnist")
    dataset = load_dataset("fashion_mnist", tmp_path)
    assert dataset.class_names == fashion_mnist.CLASS_NAMES
    assert [example.split for example in dataset.examples] == [""] * 30 + ["test"] * 10
    assert (dataset.examples[0].id, dataset.examples[-1].id) == ("train/00000", "test/00009")
    assert [example.label for example in dataset.examples[:2]] == ["T-shirt/top", "Trouser"]
    first = np.random.default_rng(0).integers(0, 256, (30, 28, 28)).astype(np.uint8)
    np.testing.assert_array_equal(np.stack([example.source for example in dataset.examples[:30]]), first)


def test_fashion_mnist_is_found_where_debian_lays_it(tmp_path, monkeypatch):
    lay_fashion(tmp_path / "debian")
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    assert len(load_dataset("fashion_mnist", tmp_path / "data").examples) == 40


def test_files_of_fashion_mnist_that_are_missing_are_downloaded(tmp_path, monkeypatch):
    lay_fashion(tmp_path / "published")
    lay_fashion(tmp_path / "fashion_mnist")
    (tmp_path / "fashion_mnist" / TRAIN_IMAGES).unlink()
    for name in ("DEBIAN_FOLDER", "KERAS_FOLDER"):
        monkeypatch.setattr(fashion_mnist, name, tmp_path / "no such")
    monkeypatch.setattr(fashion_mnist, "URL", (tmp_path / "published").as_uri())
    with pytest.raises(UserError, match="digest .* is not"):
        load_dataset("fashion_mnist", tmp_path)
    content = (tmp_path / "published" / TRAIN_IMAGES).read_bytes()
    monkeypatch.setitem(fashion_mnist.MD5, TRAIN_IMAGES, hashlib.md5(content).hexdigest())
    assert len(load_dataset("fashion_mnist", tmp_path).examples) == 40


WHOLE = idx(np.zeros((30, 28, 28)))
DAMAGED = {
    "empty": (TRAIN_IMAGES, b""),
    "not gzipped": (TRAIN_IMAGES, b"<html>not found</html>"),
    "cut off": (TRAIN_IMAGES, idx(np.random.default_rng(0).integers(0, 256, (30, 28, 28)))[:5000]),
    "a wrong byte in the middle": (TRAIN_IMAGES, WHOLE[:12] + bytes(byte ^ 0xFF for byte in WHOLE[12:30]) + WHOLE[30:]),
    "another format": (TRAIN_IMAGES, gzip.compress(b"\x89PNG\r\n\x1a\n" + bytes(100))),
    "short of bytes": (TRAIN_IMAGES, gzip.compress(gzip.decompress(WHOLE)[:-1])),
    "a header without its end": (TRAIN_IMAGES, gzip.compress(b"\0\0\x08\x03\0\0")),
    "labels in place of images": (TRAIN_IMAGES, idx(np.zeros(30))),
    "images in place of labels": (TRAIN_LABELS, WHOLE),
    "too few labels": (TRAIN_LABELS, idx(np.zeros(29))),
    "a label that no class has": (TRAIN_LABELS, idx(np.full(30, 10))),
}


@pytest.mark.parametrize(("name", "content"), DAMAGED.values(), ids=DAMAGED)
def test_fashion_mnist_that_is_damaged_is_refused(name, content, tmp_path):
    lay_fashion(tmp_path / "fashion_mnist", {name: content})
    with pytest.raises(UserError, match="replace (it|its files)") as caught:
        load_dataset("fashion_mnist", tmp_path)
    assert name in str(caught.value) or "train images" in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- pharma


def lay_pharma(root, missing=""):
    for name in pharma.CLASS_NAMES:
        if name != missing:
            folder = root / "Drug Vision" / "Data Combined" / name  # as the archive of Kaggle has it
            folder.mkdir(parents=True)
            for number in (1, 2):
                (folder / f"{number}.jpg").write_bytes(f"{name} {number}".encode())
    return root


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_pharma_reads_the_layout_of_the_archive_from_any_of_its_folders(depth, tmp_path):
    archive = lay_pharma(tmp_path / "archive")
    top = [archive, archive / "Drug Vision", archive / "Drug Vision" / "Data Combined"][depth]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pharma").symlink_to(top, target_is_directory=True)
    dataset = load_dataset("pharma", tmp_path / "data")
    assert dataset.class_names == pharma.CLASS_NAMES and len(dataset.examples) == 20
    assert {example.label for example in dataset.examples} == set(pharma.CLASS_NAMES)
    assert all(example.split == "" for example in dataset.examples)


def test_pharma_is_downloaded_where_its_folder_is_missing(tmp_path, monkeypatch):
    import kagglehub

    asked, said = [], log_messages()

    def download(name):
        asked.append(name)
        return str(lay_pharma(tmp_path / "kaggle"))

    monkeypatch.setattr(kagglehub, "dataset_download", download)
    said = log_messages()
    dataset = load_dataset("pharma", tmp_path / "data")
    assert len(dataset.examples) == 20 and dataset.name == "pharma"
    assert asked == ["vencerlanz09/pharmaceutical-drugs-and-vitamins-synthetic-images"]
    assert said == [f"Downloading {pharma.KAGGLE_NAME} from Kaggle, since {tmp_path / 'data' / 'pharma'} is missing."]


@pytest.mark.parametrize("missing", ["Alaxan", "Fish Oil"])
def test_pharma_with_a_class_missing_is_refused(missing, tmp_path):
    lay_pharma(tmp_path / "pharma", missing)
    with pytest.raises(UserError, match="those of the Kaggle dataset were expected"):
        load_dataset("pharma", tmp_path)


def test_pharma_never_takes_an_empty_folder_for_the_set(tmp_path):
    (tmp_path / "pharma").mkdir()
    with pytest.raises(UserError, match="has the classes none"):
        load_dataset("pharma", tmp_path)


def test_the_recipe_of_pharma_has_the_facts_of_the_system_that_it_follows():
    config = RECIPES["pharma"]()
    assert (config.backbone, config.weights, config.stored_size, config.image_size) == (
        "resnet50",
        "imagenet",
        224,
        224,
    )
    assert (config.head, config.dropout, config.batch_size, config.test_fraction) == ((512, 256), 0.3, 64, 0.2)
    assert config.val_fraction > 0 and config.precision == "auto", "which is mixed_float16 on GPUs with tensor cores"
    assert config.frozen.epochs > 0 and config.frozen.unfreeze == "none"
    assert config.fine_tune.epochs > 0 and config.fine_tune.unfreeze == "conv5"
    assert config.fine_tune.learning_rate < config.frozen.learning_rate


def test_the_recipe_of_pharma_runs_from_the_archive_to_the_report(tmp_path, weights_file, capsys):
    place = tmp_path / "data" / "pharma" / "Drug Vision" / "Data Combined"
    draw_photos(place, pharma.CLASS_NAMES, num_per_class=12, shape=(40, 40))
    flags = ["--dataset", "pharma", "--backbone", "small_cnn", "--weights", weights_file, "--image-size", 16]
    flags += ["--frozen.epochs", 2, "--fine-tune.epochs", 2]
    flags += ["--data-dir", tmp_path / "data", "--cache-dir", tmp_path / "cache"]
    for main, more in ((prepare.main, ["--out", tmp_path / "audit"]), (run.main, ["--run-dir", tmp_path / "run"])):
        with with_files():
            assert run_main(main, [str(flag) for flag in (*flags, *more)]) == 0
    output = capsys.readouterr().out
    assert "120 files on disk = 120 used + 0 skipped + 0 ignored" in output and "Phase fine_tune: 2 epochs of" in output
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["split"] == "test" and evaluation["class_names"] == list(pharma.CLASS_NAMES)
    written = {path.name for path in (tmp_path / "run").rglob("*")}
    assert written >= {"classification_report.txt", "confusion_matrix.png", "samples.png", "curves.png", "report.html"}
