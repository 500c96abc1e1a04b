"""Which files are images, by suffix or content; what is said of folders and files that hold none."""

import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.support.bad_images import encoded, picture
from transfer_learning.config import RunConfig
from transfer_learning.datasets.dataset import MISSING_EXTRA
from transfer_learning.datasets.decoding.decode import decode
from transfer_learning.datasets.decoding.formats import SUFFIXES, count_by_suffix, format_of, suffix_of
from transfer_learning.datasets.prepared import prepare_dataset
from transfer_learning.datasets.sources.registry import load_dataset
from transfer_learning.errors import MissingExtra, UserError
from transfer_learning.experiments.prediction import find_images, predict_images


class AnyPredictor:
    """Predicts the only class."""

    image_size, resize, rejection_threshold, value_ranges, class_names = 16, "squash", 0.0, {}, ("one",)

    def probabilities(self, images):
        return np.ones((len(images), 1), np.float32)


def heic(image, **options):
    import pillow_heif

    pillow_heif.register_heif_opener()
    try:
        return encoded(image, "HEIF", **options)
    finally:
        pillow_heif.unregister_heif_opener() if hasattr(pillow_heif, "unregister_heif_opener") else None


CONTENTS = {
    "JPEG": encoded(picture(1), "JPEG"),
    "PNG": encoded(picture(1), "PNG"),
    "BMP": encoded(picture(1), "BMP"),
    "GIF": encoded(picture(1), "GIF"),
    "WEBP": encoded(picture(1), "WEBP"),
    "TIFF": encoded(picture(1), "TIFF"),
    "PPM": encoded(picture(1), "PPM"),
    "AVIF": encoded(picture(1), "AVIF", quality=95),
    "HEIF": heic(picture(1), quality=95),
}


@pytest.mark.parametrize("name", SUFFIXES)
def test_every_format_is_known_by_its_content_and_decoded(name):
    assert format_of(CONTENTS[name][:64]) == name
    result = decode(CONTENTS[name], 30, "squash")
    expected = decode(CONTENTS["PNG"], 30, "squash").pixels
    assert result.problem == "" and np.abs(result.pixels.astype(int) - expected).mean() < 12


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"BMW and others\n" * 9, b"P1 is a name\n", b"II. Chapter\n", b"\0\0\0\x18ftypqt  " + bytes(50)],
)
def test_other_contents_are_no_image(content):
    assert format_of(content) == ""


def test_a_suffix_has_a_letter():
    names = ("a.JPG", "a.tar.gz", "a", "1.2.840", "photo.2021-05-01", ".hidden")
    assert [suffix_of(name) for name in names] == [".jpg", ".gz", "", "", "", ""]
    assert count_by_suffix(["a.txt", "b.TXT", "c", "d.dcm"]) == "2 .txt, 1 without suffix, 1 .dcm"
    assert count_by_suffix([f"a.x{number}" for number in range(9)]).endswith("4 others")


@pytest.mark.parametrize("orientation", [1, 6])
def test_heic_and_avif_are_turned_once(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = picture(1).transpose(Image.Transpose.ROTATE_270) if orientation == 6 else picture(1)
    for content in (
        heic(picture(1), exif=exif.tobytes(), quality=95),
        encoded(picture(1), "AVIF", exif=exif.tobytes(), quality=95),
    ):
        result = decode(content, 30, "squash")
        assert (result.width, result.height) == upright.size
        expected = np.asarray(upright.resize((30, 30), Image.Resampling.BICUBIC))
        assert np.abs(result.pixels.astype(int) - expected).mean() < 12


def test_heic_without_its_package_is_one_sentence_with_the_pip_command(tmp_path, monkeypatch):
    for label in ("alpha", "beta"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(3):
            path = tmp_path / "photos" / label / f"{number}.HEIC"
            path.write_bytes(heic(picture(number + 10 * len(label))))
        picture(len(label)).save(tmp_path / "photos" / label / "plain.png")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert decode(CONTENTS["HEIF"], 30, "squash").kind == MISSING_EXTRA
    # the decoding processes have the package, so theirs is taken away by a module of the same name
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "pillow_heif.py").write_text("raise ModuleNotFoundError(name='pillow_heif')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    dataset = load_dataset(str(tmp_path / "photos"), tmp_path)
    config = RunConfig(image_size=16, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(MissingExtra, match=r"6 of 8 images are HEIC, .* pip install 'transfer-learning\[heic\]'"):
        prepare_dataset(dataset, config)
    skipped = prepare_dataset(dataset, replace(config, skip_unreadable=True)).manifest["kind"]
    assert Counter(skipped) == {MISSING_EXTRA: 6, "": 2}, "as prepare counts them"
    images = find_images([tmp_path / "photos"], tmp_path).images
    assert Counter(found.kind for found in predict_images(AnyPredictor(), images)) == {MISSING_EXTRA: 6, "": 2}


@pytest.mark.parametrize("kind", ["ppm", "pgm", "no suffix", "dates", "heic"])
def test_folders_of_other_suffixes_are_read(kind, tmp_path):
    for label in ("alpha", "beta"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        (tmp_path / "photos" / label / "README").write_text("no image\n")
        for number in range(4):
            image = picture(number + 10 * len(label))
            name, content = {
                "ppm": ("a.ppm", encoded(image, "PPM")),
                "pgm": ("a.pgm", encoded(image.convert("L"), "PPM")),
                "no suffix": ("a", encoded(image, "JPEG")),
                "dates": ("a.2021-05-01", encoded(image, "JPEG")),
                "heic": ("IMG.HEIC", heic(image)),
            }[kind]
            (tmp_path / "photos" / label / f"{number}{name}").write_bytes(content)
    dataset = load_dataset(str(tmp_path / "photos"), tmp_path)
    data = prepare_dataset(dataset, RunConfig(image_size=16, cache_dir=str(tmp_path / "cache")), True)
    assert len(data.manifest) == 8 and (data.manifest["problem"] == "").all()
    assert [reason for _, reason in dataset.ignored] == ["no suffix, and no image inside"] * 2


def test_a_folder_without_images_says_what_lies_there(tmp_path):
    (tmp_path / "scans" / "a").mkdir(parents=True)
    for name in ("1.dcm", "2.dcm", "notes.txt", "LICENSE"):
        (tmp_path / "scans" / "a" / name).write_text("x")
    with pytest.raises(
        UserError, match=r"has no images, but 2 \.dcm, 1 .*; give a folder with one subfolder"
    ) as caught:
        load_dataset(str(tmp_path / "scans"), tmp_path)
    assert "1 .txt" in str(caught.value) and "1 without suffix" in str(caught.value)


OTHERS = {
    "photos.7z": (b"7z\xbc\xaf\x27\x1c", "is a 7z archive", "unpack it"),
    "photos.rar": (b"Rar!\x1a\x07", "is a RAR archive", "unpack it"),
    "labels.csv.gz": (b"\x1f\x8b\x08", "is a compressed file", "pass what is inside"),
    "labels.jsonl": (b'{"path": "1.png"}', "is a JSON file", "CSV file with the columns path,label"),
    "boxes.xml": (b"<?xml", "is an XML or YAML file", "CSV file with the columns path,label"),
    "labels.xlsx": (b"PK\3\4", "is an Excel table", "CSV"),
    "labels.xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is an Excel table", "CSV"),
    "labels.ods": (b"PK\3\4", "is a table of an office program", "CSV"),
    "cat.jpg": (CONTENTS["JPEG"], "is a single image", "transfer-learning predict RUN_DIR"),
    "cat": (CONTENTS["PNG"], "is a single image", "one subfolder of images per class"),
    "photos.dat": (b"Rar!\x1a\x07", "is a RAR archive", "unpack it"),
    "data.parquet": (b"PAR1", "is a Parquet file", "hf:FOLDER"),
    "film.mp4": (b"\0\0\0\x18ftypisom", "is a video", "frames"),
    "paper.pdf": (b"%PDF-1.4", "is a document", "one folder per class"),
    "data.npz": (b"PK\3\4", "is a NumPy file", "one folder per class"),
    "photos.download": (b"PK\3\4", "is a zip archive", "rename it"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_that_is_no_dataset_is_explained(name, tmp_path):
    content, what, advice = OTHERS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_dataset(str(tmp_path / name), tmp_path)
    assert what in str(caught.value) and advice in str(caught.value) and "\n" not in str(caught.value)
