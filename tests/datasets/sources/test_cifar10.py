"""CIFAR-10 in each of its published forms, tiny: the layout is the real one, byte for byte, and the images are few."""

import io
import json
import pickle
import re
import struct
import subprocess
import tarfile

import keras
import numpy as np
import pytest
from PIL import Image

from transfer_learning import prepare, run
from transfer_learning.cli.parser import run_main
from transfer_learning.datasets.decoding.decode import content_hash
from transfer_learning.datasets.sources import cifar10
from transfer_learning.datasets.sources.registry import load_dataset
from transfer_learning.errors import UserError
from transfer_learning.recipes.known import RECIPES

COUNTS = {name: 20 for names in cifar10.BATCHES.values() for name in names}  # images; 10,000 in the real ones


def batches(seed=0):
    """uint8 (n, 32, 32, 3) and labels of each batch."""
    rng = np.random.default_rng(seed)
    return {
        name: (
            rng.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8),
            rng.permutation(np.arange(count) % 10).tolist(),
        )
        for name, count in COUNTS.items()
    }


def rows(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), 3072)


def binary_batch(images, labels):
    return np.concatenate([np.array(labels, np.uint8)[:, None], rows(images)], axis=1).tobytes()


def text(content):
    """A str of Python 2 as its cPickle wrote it."""
    return (b"U" + bytes([len(content)]) if len(content) < 256 else b"T" + struct.pack("<I", len(content))) + content


def number(value):
    return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)


def python_batch(images, labels):
    """The bytes that Python 2 pickled: protocol 2, texts without an encoding, the array in the way of NumPy 1."""
    named = b"".join(text(b"leptodactylus_s_%06d.png" % index) for index in range(len(labels)))
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87Rq\x04"
        b"(K\x01" + number(len(images)) + b"M\x00\x0c\x86cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87Rq\x06"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + text(rows(images).tobytes()) + b"tb"
    )
    return (
        b"\x80\x02}q\x01("
        + text(b"batch_label")
        + text(b"training batch 1 of 5")
        + text(b"labels")
        + b"]("
        + b"".join(map(number, labels))
        + b"e"
        + text(b"data")
        + array
        + text(b"filenames")
        + b"]("
        + named
        + b"eu."
    )


FORMS = {"cifar-10-batches-bin": (".bin", binary_batch), "cifar-10-batches-py": ("", python_batch)}


def files_of(form, seed=0):
    suffix, write = FORMS[form]
    return {f"{name}{suffix}": write(*batch) for name, batch in batches(seed).items()}


def pack(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def lay(root, form, replaced=None, seed=0):
    """The files of a form, packed as the real archive is: with the folder, a page and the names of the classes."""
    root.mkdir(parents=True, exist_ok=True)
    contents = files_of(form, seed) | (replaced or {})
    members = [(f"{form}/{name}", content) for name, content in contents.items() if content is not None]
    archive = root / ("cifar-10-binary.tar.gz" if form.endswith("bin") else "cifar-10-python.tar.gz")
    pack(archive, [(f"{form}/batches.meta", b"x"), (f"{form}/readme.html", b"<html>"), *members])
    return archive


def lay_images(root):
    count = {}
    for name, (images, labels) in batches().items():
        for image, label in zip(images, labels, strict=True):
            folder = root / ("test" if name == "test_batch" else "train") / cifar10.CLASS_NAMES[label]
            folder.mkdir(parents=True, exist_ok=True)
            count[folder] = count.get(folder, 0) + 1
            Image.fromarray(image).save(folder / f"{count[folder]:04d}.png")


@pytest.mark.parametrize("is_unpacked", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_each_version_gives_the_same_images_labels_and_official_test(form, is_unpacked, tmp_path):
    root = tmp_path / "cifar10"
    archive = lay(root, form)
    if is_unpacked:
        subprocess.run(["tar", "-xf", archive, "-C", root], check=True)
        archive.unlink()
    dataset = load_dataset("cifar10", tmp_path)
    assert dataset.class_names == cifar10.CLASS_NAMES and not dataset.ignored
    expected = batches()
    images = np.concatenate([images for images, _ in expected.values()])
    labels = [cifar10.CLASS_NAMES[label] for _, labels in expected.values() for label in labels]
    np.testing.assert_array_equal(np.stack([example.source for example in dataset.examples]), images, strict=True)
    assert [example.label for example in dataset.examples] == labels
    assert [example.split for example in dataset.examples] == [""] * 100 + ["test"] * 20
    assert [example.id for example in dataset.examples[:2]] == ["train/00000", "train/00001"]
    assert dataset.examples[-1].id == "test/00019" and len({example.id for example in dataset.examples}) == 120
    assert content_hash(dataset.examples[0].source) == content_hash(images[0])
    assert {path.name for path in root.iterdir()} == {form if is_unpacked else archive.name}, "nothing is unpacked"


def test_a_batch_of_the_python_version_is_read_as_keras_reads_it(tmp_path):
    """So that what these tests write is what Python 2 wrote, and not only what our own reader takes."""
    from keras.src.datasets.cifar import load_batch

    images, labels = batches()["test_batch"]
    (tmp_path / "test_batch").write_bytes(python_batch(images, labels))
    pixels, found = load_batch(str(tmp_path / "test_batch"))
    np.testing.assert_array_equal(pixels.transpose(0, 2, 3, 1), images)
    assert found == labels
    ours, our_labels = cifar10.read_python((tmp_path / "test_batch").read_bytes())
    np.testing.assert_array_equal(ours.reshape(pixels.shape), pixels)
    assert our_labels.tolist() == labels


def test_folders_of_png_files_are_the_set_too(tmp_path):
    lay_images(tmp_path / "cifar10")
    dataset = load_dataset("cifar10", tmp_path)
    assert dataset.class_names == cifar10.CLASS_NAMES and len(dataset.examples) == 120
    assert sum(example.split == "test" for example in dataset.examples) == 20
    assert dataset.examples[0].id == "test/airplane/0001.png"
    assert dataset.folder == tmp_path / "cifar10", "whose files `prepare` counts"


def test_folders_with_other_classes_are_not_the_set(tmp_path):
    lay_images(tmp_path / "cifar10")
    (tmp_path / "cifar10" / "train" / "cat").rename(tmp_path / "cifar10" / "train" / "kitten")
    with pytest.raises(UserError, match="kitten.*; those of CIFAR-10 were expected"):
        load_dataset("cifar10", tmp_path)


def link():
    member = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return member


BIN, PY = FORMS


def binary(name, change):
    return BIN, {name: change(files_of(BIN)[name])}


def python(old, new):
    """The test batch with the first of some bytes replaced."""
    batch = files_of(PY)["test_batch"]
    assert old in batch
    return PY, {"test_batch": batch.replace(old, new, 1)}


DAMAGED = {  # the form, the batches that are others, and words of the sentence
    "a batch is missing": (BIN, {"data_batch_3.bin": None}, "data_batch_3.bin is missing"),
    "cut off": (*binary("test_batch.bin", lambda content: content[:-1]), "test_batch: "),
    "empty": (BIN, {"data_batch_2.bin": b""}, "data_batch_2: "),
    "a label that no class has": (*binary("data_batch_1.bin", lambda content: b"\x0a" + content[1:]), "below 10"),
    "no pickle": (PY, {"data_batch_1": b"<html>not found</html>"}, "data_batch_1: "),
    "a pickle that is cut off": (PY, {"data_batch_1": files_of(PY)["data_batch_1"][:-200]}, "data_batch_1: "),
    "a label too large for a byte": (*python(b"](K", b"](M\x2c\x01K"), "test_batch: "),
    "one label too many": (*python(b"](K", b"](K\x01K"), "one label below 10 per image"),
    "numbers in place of bytes": (*python(b"U\x02u1", b"U\x02f4"), "no images of 32 x 32"),
    "images of another size": (*python(b"M\x00\x0c\x86", b"M\x00\x03\x86"), "no images of 32 x 32"),
    "more images than there are": (*python(b"K\x14M\x00\x0c\x86", b"K\xffM\x00\x0c\x86"), "test_batch: "),
    "another thing than a batch": (PY, {"test_batch": pickle.dumps([1, 2], protocol=2)}, "test_batch: "),
    "a function in the array's place": (PY, {"test_batch": b"\x80\x02}U\x04datac__builtin__\nlen\ns."}, "it asks for"),
    "a memo of gigabytes": (PY, {"test_batch": b"\x80\x02}r\xff\xff\xff\x7f."}, "numbers more objects"),
}


@pytest.mark.parametrize(("form", "replaced", "words"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_batch_is_one_sentence_with_the_way_out(form, replaced, words, tmp_path):
    archive = lay(tmp_path / "cifar10", form, replaced)
    with pytest.raises(UserError, match="is damaged .*; replace it") as caught:
        load_dataset("cifar10", tmp_path)
    assert str(archive) in str(caught.value) and words in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"no archive", b"\x1f\x8b\x08\x00 cut off"], ids=["empty", "another format", "cut off"]
)
def test_a_damaged_archive_is_one_sentence(content, tmp_path):
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "cifar-10-python.tar.gz").write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        load_dataset("cifar10", tmp_path)


def test_an_archive_that_is_cut_off_is_one_sentence(tmp_path):
    archive = lay(tmp_path / "cifar10", BIN)
    archive.write_bytes(archive.read_bytes()[:100_000])
    with pytest.raises(UserError, match="is damaged"):
        load_dataset("cifar10", tmp_path)


def test_a_pickle_runs_nothing(tmp_path):
    """What an attacker would send: a call of a function of the system in the place of the batch."""

    class Attack:
        def __reduce__(self):
            import os

            return os.mkdir, (str(tmp_path / "attacked"),)

    lay(tmp_path / "cifar10", PY, {"test_batch": pickle.dumps(Attack(), protocol=2)})
    with pytest.raises(UserError, match="it asks for posix.mkdir, which no batch needs"):
        load_dataset("cifar10", tmp_path)
    assert not (tmp_path / "attacked").exists()


def test_an_archive_writes_nothing_and_a_link_in_it_is_not_followed(tmp_path):
    root = tmp_path / "data" / "cifar10"
    root.mkdir(parents=True)
    batches = [(f"{BIN}/{name}", content) for name, content in files_of(BIN).items()]
    pack(root / "cifar-10-binary.tar.gz", [("../../escaped", b"x"), (link(), b""), *batches])
    with pytest.raises(UserError, match="data_batch_1.bin is no batch"):
        load_dataset("cifar10", tmp_path / "data")
    assert {path.name for path in tmp_path.rglob("*")} == {"data", "cifar10", "cifar-10-binary.tar.gz"}


# --------------------------------------------------------------------------------------------------------- download


def test_where_nothing_is_there_the_archive_is_downloaded_once(tmp_path, monkeypatch):
    asked = []
    lay(tmp_path / "elsewhere", PY)

    def download(url, path, digest, otherwise):
        asked.append((url, digest))
        path.parent.mkdir(parents=True)
        path.write_bytes((tmp_path / "elsewhere" / path.name).read_bytes())
        return path

    monkeypatch.setattr(cifar10, "download", download)
    for _ in range(2):
        assert len(load_dataset("cifar10", tmp_path / "data").examples) == 120
    assert asked == [("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", cifar10.SHA256)]
    assert {path.name for path in (tmp_path / "data" / "cifar10").iterdir()} == {"cifar-10-python.tar.gz"}


def test_address_and_hash_are_those_of_keras(monkeypatch):
    """Keras' own loader asks for the same file."""
    from keras.src.datasets import cifar10 as keras_cifar10

    asked = {}

    def get_file(**arguments):
        asked.update(arguments)
        raise InterruptedError

    monkeypatch.setattr(keras_cifar10, "get_file", get_file)
    with pytest.raises(InterruptedError):
        keras.datasets.cifar10.load_data()
    assert (asked["origin"], asked["file_hash"]) == (cifar10.URL, cifar10.SHA256)


def test_a_download_that_fails_says_what_to_put_where_and_what_works_now(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "URL", (tmp_path / "no such").as_uri())
    with pytest.raises(UserError) as caught:
        load_dataset("cifar10", tmp_path)
    for words in (
        str(tmp_path / "cifar10"),
        "cifar-10-python.tar.gz",
        "train/CLASS/*.png",
        "No such file",
        "--dataset digits needs no download",
    ):
        assert words in str(caught.value)


# --------------------------------------------------------------------------------------------------------- the recipe


def test_the_recipe_has_the_facts_of_the_system_that_it_follows():
    config = RECIPES["cifar10"]()
    assert (config.backbone, config.weights, config.head, config.dropout) == ("resnet18", "imagenet", (), 0.0)
    assert (config.stored_size, config.image_size) == (32, 224)
    assert (config.frozen.epochs, config.fine_tune.epochs, config.frozen.augmentation) == (3, 0, "none")


@pytest.mark.parametrize("command", [prepare, run])
def test_the_recipe_runs_from_the_archive_to_the_report(command, tmp_path, weights_file, capsys):
    lay(tmp_path / "data" / "cifar10", PY)
    arguments = [
        *("--dataset", "cifar10", "--data-dir", tmp_path / "data", "--cache-dir", tmp_path / "cache"),
        *("--backbone", "small_cnn", "--weights", weights_file, "--image-size", 48),
    ]
    arguments += ["--run-dir" if command is run else "--out", tmp_path / "run"]
    assert run_main(command.main, [str(argument) for argument in arguments]) == 0
    output = capsys.readouterr().out
    if command is prepare:
        assert re.search(r"120 images of 10 classes: \d+ train, \d+ val, 20 test, 0 skipped; 0 other files", output)
        assert "pixels (size 32, " in output
        return
    assert re.search(r"\nPhase frozen: 3 epochs of \d+\.\d s on average, after \d+.\d+ .* of preparation", output)
    assert re.search(r"\ntest accuracy .* n = 20", output)
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (evaluation["split"], evaluation["num_examples"], evaluation["fine_tune"]) == ("test", 20, None)
    assert evaluation["frozen"]["epochs"] == 3 and evaluation["frozen"]["epoch_seconds"] > 0
    model = keras.models.load_model(tmp_path / "run" / "model.keras")
    assert model.input_shape == (None, 32, 32, 3), "enlarged inside the model"
