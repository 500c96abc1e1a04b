"""Values of more than 8 bits: one range for all images of a dataset, in every command; 8 bits stay as they are."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.support.bad_images import picture, png_chunk
from tests.support.deep_images import encoded, png16, pnm, tiff
from tests.support.logs import log_messages
from transfer_learning.config import Phase, RunConfig
from transfer_learning.datasets.audit.findings import audit
from transfer_learning.datasets.decoding import pixel_cache
from transfer_learning.datasets.decoding.decode import content_hash, decode
from transfer_learning.datasets.decoding.pixel_cache import cached_images
from transfer_learning.datasets.decoding.value_range import Values, describe, ranges_of, scaled, values_in
from transfer_learning.datasets.prepared import prepare_dataset
from transfer_learning.datasets.sources import folder
from transfer_learning.datasets.sources.registry import load_dataset
from transfer_learning.storage.cache import Cache

COLOUR = np.asarray(picture(0, 32, 32))
GREY = np.asarray(Image.fromarray(COLOUR).convert("L"))
ALPHA = np.full(GREY.shape, 4095, np.uint16)


def wide(array, factor, dtype=np.uint16):
    return (array.astype(np.float64) * factor).astype(dtype)


DEEP = {  # content, type of number and range, expected pixels
    "float 0..1": (tiff(wide(GREY, 1 / 255, np.float32)), "float", (0, 1)),
    "float 0..1, big-endian": (tiff(wide(GREY, 1 / 255, np.float32), big_endian=True), "float", (0, 1)),
    "float 0..255": (tiff(GREY.astype(np.float32)), "float", (0, 255)),
    "float 0..65535": (tiff(wide(GREY, 257, np.float32)), "float", (0, 65535)),
    "float -1..1": (tiff((GREY / 127.5 - 1).astype(np.float32)), "float", (-1, 1)),
    "float, PFM": (encoded(wide(GREY, 1 / 255, np.float32), "PPM"), "float", (0, 1)),
    "float, LZW": (encoded(wide(GREY, 1 / 255, np.float32), "TIFF", compression="tiff_lzw"), "float", (0, 1)),
    "float, pages": (
        encoded(
            wide(GREY, 1 / 255, np.float32),
            "TIFF",
            save_all=True,
            append_images=[Image.fromarray(wide(GREY, 1, np.float32))],
        ),
        "float",
        (0, 1),
    ),
    "8 of 16 bits": (encoded(GREY.astype(np.uint16), "PNG"), "uint16", (0, 255)),
    "10 of 16 bits": (encoded(wide(GREY, 4), "PNG"), "uint16", (0, 1023)),
    "12 of 16 bits": (encoded(wide(GREY, 16), "PNG"), "uint16", (0, 4095)),
    "14 of 16 bits": (encoded(wide(GREY, 64), "PNG"), "uint16", (0, 16383)),
    "16 bits": (encoded(wide(GREY, 257), "PNG"), "uint16", (0, 65535)),
    "12 of 16 bits, TIFF": (tiff(wide(GREY, 16)), "uint16", (0, 4095)),
    "12 of 16 bits, big-endian": (tiff(wide(GREY, 16), big_endian=True), "uint16", (0, 4095)),
    "12 of 16 bits, LZW": (encoded(wide(GREY, 16), "TIFF", compression="tiff_lzw"), "uint16", (0, 4095)),
    "12 of 16 bits, PGM of 65535": (pnm(wide(GREY, 16), 65535), "uint16", (0, 4095)),
    "12 of 16 bits, colour": (png16(wide(COLOUR, 16)), "uint16", (0, 4095)),
    "16 bits, colour": (png16(wide(COLOUR, 257)), "uint16", (0, 65535)),
    "12 of 16 bits, colour, TIFF": (tiff(wide(COLOUR, 16)), "uint16", (0, 4095)),
    "12 of 16 bits, colour, big-endian": (tiff(wide(COLOUR, 16), big_endian=True), "uint16", (0, 4095)),
    "12 of 16 bits, colour, PPM of 65535": (pnm(wide(COLOUR, 16), 65535), "uint16", (0, 4095)),
    "12 of 16 bits, RGBA": (png16(np.dstack([wide(COLOUR, 16), ALPHA])), "uint16", (0, 4095)),
    "12 of 16 bits, grey and alpha": (png16(np.dstack([wide(GREY, 16), ALPHA])), "uint16", (0, 4095)),
    "int32": (tiff(wide(GREY, 2**22, np.int32)), "int32", (0, 2**30 - 1)),
    "int32, big-endian": (tiff(wide(GREY, 2**22, np.int32), big_endian=True), "int32", (0, 2**30 - 1)),
    "int32 of 8 bits": (tiff(GREY.astype(np.int32)), "int32", (0, 255)),
    "uint32 to the top": (tiff(wide(GREY, 2**24, np.uint32)), "uint32", (0, 2**32 - 1)),
    "int16": (tiff(wide(GREY, 128, np.int16)), "int16", (0, 2**15 - 1)),
    "int16 below 0": (tiff((GREY.astype(int) * 256 - 2**15).astype(np.int16)), "int16", (-(2**15), 2**15 - 1)),
    "int8": (tiff((GREY.astype(int) - 128).astype(np.int8)), "int8", (-128, 127)),
}


@pytest.mark.parametrize(("content", "kind", "limits"), DEEP.values(), ids=DEEP)
def test_deep_images_become_the_picture_that_they_show(content, kind, limits):
    remarks = decode(content, 32, "squash").remarks
    ranges = ranges_of([values_in(remarks)])
    assert ranges == {kind: limits}
    result = decode(content, 32, "squash", ranges)
    is_colour = (result.pixels[..., 0] != result.pixels[..., 2]).any()
    expected = COLOUR if is_colour else np.repeat(GREY[..., None], 3, axis=2)
    np.testing.assert_array_equal(result.pixels, expected)


@pytest.mark.parametrize(("largest", "array"), [(4095, wide(GREY, 16)), (1023, wide(COLOUR, 4)), (15, GREY // 16)])
def test_a_file_that_says_its_range_is_scaled_by_it(largest, array):
    result = decode(pnm(array, largest), 32, "squash")
    assert values_in(result.remarks) is None and result.problem == ""
    expected = COLOUR if array.ndim == 3 else GREY
    if largest == 15:
        expected = (array * 17).astype(np.uint8)
    np.testing.assert_array_equal(result.pixels[..., 0], expected[..., 0] if expected.ndim == 3 else expected)


def test_a_pgm_that_ends_too_early_is_truncated():
    assert decode(pnm(wide(GREY, 16), 4095)[:-1], 32, "squash").kind == "truncated file"


RANGES = {
    "no image": ([], {}),
    "dark 16 bits keep 8": ([Values("uint16", 0, 90)], {"uint16": (0, 255)}),
    "masks": ([Values("uint16", 0, 1)], {"uint16": (0, 1)}),
    "all images decide": ([Values("uint16", 0, 900), Values("uint16", 3, 3000)], {"uint16": (0, 4095)}),
    "each type for itself": (
        [Values("uint16", 0, 4000), Values("float", 0, 0.9)],
        {"float": (0, 1), "uint16": (0, 4095)},
    ),
    "significant bits of the file": ([Values("uint16", 0, 900, 12)], {"uint16": (0, 4095)}),
    "significant bits that were scaled up": ([Values("uint16", 0, 65000, 12)], {"uint16": (0, 65535)}),
    "a depth of the file": ([Values("uint12", 0, 7)], {"uint12": (0, 4095)}),
    "interpolated floats": ([Values("float", 0, 1.04)], {"float": (0, 1)}),
    "interpolated floats of 8 bits": ([Values("float", -3.5, 260.0)], {"float": (-4, 255)}),
    "faint floats": ([Values("float", 0, 0.003)], {"float": (0, 2**-8)}),
    "Hounsfield": ([Values("int16", -1000, 3071)], {"int16": (-1024, 4095)}),
    "temperatures": ([Values("float", 281.3, 290.0), Values("float", 283.0, 303.9)], {"float": (280, 304)}),
    "an offset": ([Values("uint16", 30000, 31000)], {"uint16": (29952, 31104)}),
    "one value": ([Values("uint16", 1000, 1000)], {"uint16": (0, 1023)}),
    "far below 0": ([Values("int32", -5010, -5000)], {"int32": (-5010, -5000)}),
    "nothing but NaN": ([Values("float", np.inf, -np.inf)], {"float": (0, 1)}),
    "nothing but 0": ([Values("float", 0, 0)], {"float": (0, 1)}),
    "nothing above 0": ([Values("float", -0.4, -0.1)], {"float": (-0.5, 0)}),
}


@pytest.mark.parametrize(("values", "expected"), RANGES.values(), ids=RANGES)
def test_the_range_of_a_dataset(values, expected):
    assert ranges_of(values) == expected


def test_nan_is_black_and_what_is_outside_is_clipped():
    array = np.array([[np.nan, np.inf, -np.inf, 0.5, 2, -1]], np.float32)
    assert scaled(array, (0, 1)).tolist() == [[0, 255, 0, 128, 255, 0]]


def test_missing_pixels_do_not_count():
    array = wide(GREY, 1 / 255, np.float32)
    array[:4], array[4:6], array[6:8] = np.nan, -3.4e38, -9999
    found = values_in(decode(tiff(array), 32, "squash").remarks)
    assert 0 <= found.low <= found.high <= 1
    assert decode(tiff(np.full((8, 8), np.nan, np.float32)), 8, "squash", {"float": (0, 1)}).pixels.max() == 0


def test_a_png_says_its_significant_bits():
    content = png16(wide(GREY, 4), before=png_chunk(b"sBIT", b"\x0c"))
    assert values_in(decode(content, 32, "squash").remarks).bits == 12


def test_the_log_names_type_images_and_range():
    assert describe("uint16", (0, 4095), 42) == "16-bit unsigned values of 42 images: 0 to 4,095 is scaled to 0 to 255"
    assert describe("float", (-0.5, 1), 1) == "Float values of 1 image: -0.5 to 1 is scaled to 0 to 255"


@pytest.mark.parametrize(
    ("spans", "warns"), [([4095] * 9 + [65535], False), ([3000] * 9 + [65535], True), ([0] * 9 + [65535], False)]
)
def test_a_range_that_a_few_images_make_too_wide_is_warned_of(spans, warns):
    values = [Values("uint16", 0, span) for span in spans]
    said = log_messages()
    pixel_cache._log_ranges(ranges_of(values), values)
    assert len(said) == 1 + warns and said[0].startswith("16-bit unsigned values of 10 images: 0 to 65,535")
    assert not warns or said[1].startswith("Half of these images use less than 5% of that range")


# Datasets


def draw(root, write, suffix, num_images=12):
    """Three classes of pictures, each written by `write(grey)`, some of them darker."""
    for number, label in enumerate(("alpha", "beta", "gamma")):
        (root / label).mkdir(parents=True)
        for index in range(num_images):
            grey = np.asarray(picture(100 * number + index, 16, 16, "L")) // (1 + index % 3)
            (root / label / f"{index}{suffix}").write_bytes(write(grey))
    return root


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The same pictures in 8 bits and in others."""
    root = tmp_path_factory.mktemp("sets")
    return {
        "8 bits": draw(root / "8 bits", lambda grey: encoded(grey, "PNG"), ".png"),
        "float": draw(root / "float", lambda grey: tiff(wide(grey, 1 / 255, np.float32)), ".tif"),
        "12 bits": draw(root / "12 bits", lambda grey: encoded(wide(grey, 16), "PNG"), ".png"),
        "int32": draw(root / "int32", lambda grey: tiff(wide(grey, 2**22, np.int32)), ".tif"),
    }


def config_of(root, tmp_path, **options):
    return RunConfig(dataset=str(root), image_size=16, cache_dir=str(tmp_path / "cache"), **options)


@pytest.mark.parametrize("name", ["float", "12 bits", "int32"])
def test_a_set_of_deep_images_has_the_pixels_of_the_set_of_8_bits(name, sets, tmp_path):
    said = log_messages()
    data = [
        prepare_dataset(load_dataset(str(root), tmp_path), config_of(root, tmp_path))
        for root in (sets["8 bits"], sets[name], sets[name])
    ]
    plain, deep, again = (one.images.pixels[one.images.rows] for one in data)
    np.testing.assert_array_equal(plain, deep)
    np.testing.assert_array_equal(deep, again)
    assert not (data[1].manifest["kind"] != "").any(), "no image counts as a duplicate"
    assert sum("is scaled to 0 to 255 (found: " in sentence for sentence in said) == 2
    assert data[0].images.ranges == {} and data[1].fingerprint == data[2].fingerprint
    assert data[0].images.pixel_key != data[1].images.pixel_key == data[2].images.pixel_key


def test_the_range_is_in_the_fingerprint_unless_it_changes_no_pixel(sets, tmp_path):
    config = config_of(sets["12 bits"], tmp_path)
    dataset = load_dataset(config.dataset, tmp_path)
    by_type = prepare_dataset(dataset, config, ranges={})
    of_16_bits = prepare_dataset(dataset, config, ranges={"uint16": (0, 65535)})
    scaled_by_its_own = prepare_dataset(dataset, config)
    assert by_type.fingerprint == of_16_bits.fingerprint != scaled_by_its_own.fingerprint
    assert by_type.images.pixel_key == of_16_bits.images.pixel_key != scaled_by_its_own.images.pixel_key
    assert by_type.images.pixels[by_type.images.rows].max() < 16, "as earlier versions decoded it"


def test_what_an_earlier_version_cached_without_values_is_decoded_again(sets, tmp_path, monkeypatch):
    dataset, cache = folder.read(sets["12 bits"]), Cache(tmp_path / "cache")
    with monkeypatch.context() as patched:
        patched.setattr(pixel_cache, "values_in", lambda remarks: None)
        patched.setattr(pixel_cache._Known, "note", property(lambda one: f"16 16 {one.pixels} PNG I;16 16-bit"))
        patched.setattr(pixel_cache, "_lacks_values", lambda remarks: False)
        cached_images(dataset, 16, "squash", cache)
    assert cached_images(dataset, 16, "squash", cache).ranges == {"uint16": (0, 4095)}


def test_images_of_one_colour_are_no_duplicates_of_each_other(tmp_path):
    for split in ("train", "test"):
        for label in ("alpha", "beta"):
            place = tmp_path / "photos" / split / label
            place.mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (16, 16), (number, 0, 0)).save(place / f"{number}.png")
                Image.new("RGB", (20, 16), (number, 0, 0)).save(place / f"{number} wide.png")
            picture(1).save(place / "picture.png")
    said = log_messages()
    config = config_of(tmp_path / "photos", tmp_path, val_fraction=0.0)
    dataset = load_dataset(config.dataset, tmp_path)
    data = prepare_dataset(dataset, config)
    manifest = data.manifest
    assert manifest.loc[manifest["split"] == "", "id"].tolist() == ["train/alpha/picture.png", "train/beta/picture.png"]
    assert any("2 images have the same pixels and different labels" in sentence for sentence in said)
    found = audit(dataset, data)
    assert found.counts["single colour"] == 24 and not found.counts.keys() & {"duplicate", "near-duplicate"}
    assert found.counts["duplicate with another label"] == 2


@pytest.fixture(scope="module")
def run(sets, small_config, tmp_path_factory):
    """A run on images of 12 of 16 bits, and what it logged."""
    from transfer_learning.experiments.train import run_experiment
    from transfer_learning.storage.run_directory import RunDir

    config = replace(small_config, dataset=str(sets["12 bits"]), frozen=Phase(epochs=1), fine_tune=Phase(epochs=0))
    run_dir = RunDir(tmp_path_factory.mktemp("runs") / "run")
    run_experiment(config, run_dir)
    return run_dir


def test_a_run_logs_the_range_and_records_it(run):
    assert "16-bit unsigned values of 36 images: 0 to 4,095 is scaled to 0 to 255" in run.log.read_text()
    assert json.loads(run.environment.read_text())["dataset"]["value_ranges"] == {"uint16": [0, 4095]}


def test_predict_and_evaluate_use_the_range_of_the_run(run, sets, monkeypatch, tmp_path):
    from transfer_learning.experiments.finished_run import FinishedRun

    finished = FinishedRun(run)
    dark = {path.stem: path for path in sorted((sets["12 bits"] / "alpha").glob("*.png"))}["2"]
    recorded = pd.concat(pd.read_csv(run.predictions(split)) for split in ("val", "test")).set_index("id")
    table = finished.predict(str(sets["12 bits"]))
    for row in table.itertuples():
        id = str(row.file).removeprefix(f"{sets['12 bits']}/")
        if id in recorded.index:
            assert row.confidence == pytest.approx(recorded.loc[id, "confidence"], abs=1e-5)
    alone = finished.predict(dark)
    together = table[table["file"] == str(dark)]
    assert alone["confidence"].item() == pytest.approx(together["confidence"].item(), abs=1e-5), "never per image"
    assert finished.data("test").images.ranges == {"uint16": (0, 4095)}
    said = log_messages()
    finished.predict(sets["float"] / "alpha" / "0.tif")
    assert any("float values, for which the run has no value range" in sentence for sentence in said)


def test_a_run_of_an_earlier_version_goes_by_the_type(run, sets, tmp_path):
    import shutil

    from transfer_learning.experiments.finished_run import FinishedRun
    from transfer_learning.storage.run_directory import RunDir

    shutil.copytree(run.path, tmp_path / "run")
    old = RunDir(tmp_path / "run")
    environment = json.loads(old.environment.read_text())
    del environment["dataset"]["value_ranges"]
    old.environment.write_text(json.dumps(environment))
    assert FinishedRun(old).value_ranges == {}


def test_the_key_of_an_image_of_8_bits_is_its_content(sets, tmp_path):
    cache = Cache(tmp_path / "cache")
    images = cached_images(folder.read(sets["8 bits"]), 16, "squash", cache)
    first = folder.read(sets["8 bits"]).examples[0]
    assert images.pixel_key == images.cached_in.name
    assert cache.cached_fraction(images.cached_in, [content_hash(first.source)]) == 1
