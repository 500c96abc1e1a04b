"""The report shows the content of a run directory, names what is missing, and lets no name act as HTML."""

import base64
import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.support.html import Page
from transfer_learning import report as command
from transfer_learning.errors import UserError
from transfer_learning.evaluation import calibration, metrics, predictions, rejection
from transfer_learning.evaluation.figures.table import FIGURES, FigureRow
from transfer_learning.reports import run
from transfer_learning.reports.page import embedded
from transfer_learning.storage.files import read_json, write_json
from transfer_learning.storage.run_directory import RunDir

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(2)'>",
    "a & b",
    "{{ 7 * 7 }}",
    "nan",
    "錠剤",
    "\udcff",
]
PHASE = {
    "epochs": 3,
    "best_epoch": 2,
    "loss": 0.4491,
    "accuracy": 0.8442,
    "val_loss": 0.3968,
    "val_accuracy": 0.8662,
    "seconds": 75.4,
    "epoch_seconds": 25.1,
    "checkpoint_seconds": 0.21,
    "images_per_second": 412.25,
}


def make_run(path, class_names=("cat", "dog", "owl"), num_mistakes=2, split="test", fine_tune=None):
    """A run directory of 12 examples, as `run` leaves it before the report."""
    run_dir = RunDir(path)
    run_dir.figures.mkdir(parents=True)
    labels = np.arange(12) % len(class_names)
    predicted = np.where(np.arange(12) < num_mistakes, (labels + 1) % len(class_names), labels)
    probabilities = np.full((12, len(class_names)), 0.1 / (len(class_names) - 1))
    probabilities[np.arange(12), predicted] = 0.9
    ids = [f"{class_names[label]}/{i}.jpg" for i, label in enumerate(labels)]
    table = predictions.table(ids, labels, probabilities, class_names)
    predictions.write(table, run_dir.predictions(split))
    evaluation = metrics.evaluate(table)
    evaluation["calibration"] = calibration.measure(table, 1.25)
    evaluation["rejection"] = rejection.measure(0.95, table, {"white noise": np.float32([0.5, 0.96])})
    evaluation |= {"split": split, "weights_sha256": "ab" * 32, "frozen": PHASE, "fine_tune": fine_tune}
    text = {"encoding": "utf-8", "errors": "surrogateescape"}
    run_dir.evaluation.write_text(json.dumps(evaluation), **text)
    run_dir.classification_report.write_text(metrics.classification_report(table), **text)
    history = pd.DataFrame({"phase": ["frozen"] * 3, "epoch": [1, 2, 3], "loss": [0.5, 0.4491, 0.44]})
    history.to_csv(run_dir.history, index=False)
    manifest = pd.DataFrame({"id": ids, "file": ids, "label": table["label"], "split": ["train", "val", "test"] * 4})
    manifest["problem"] = ""
    manifest.loc[11, ["split", "problem"]] = ["", "truncated after 17 bytes"]
    manifest.to_csv(run_dir.manifest, index=False, **text)
    pd.DataFrame({"file": ["readme.txt"], "reason": ["no image"]}).to_csv(run_dir.ignored, index=False)
    stages = [
        {"name": "frozen", "estimated_seconds": 74.0, "seconds": 75.4},
        {
            "name": "decode",
            "estimated_seconds": 1.5,
            "estimated_bytes": 92_160_000,
            "seconds": 2.0,
            "num_bytes": 95_000_000,
        },
        {"name": "evaluate", "estimated_seconds": 61.0, "estimated_bytes": 0, "seconds": None, "num_bytes": 0},
    ]
    run_dir.stages.write_text(json.dumps({"stages": stages}))
    run_dir.notes.write_text(json.dumps(["float32, because a CPU gains nothing from less", "Warning: it is hot"]))
    hardware = {
        "time": ["2026-01-31T12:00:00+00:00", "2026-01-31T12:01:00+00:00"],
        "session": 1,
        "cpu_percent": ["", 80],
    }
    pd.DataFrame(hardware).to_csv(run_dir.hardware, index=False)
    config = {"dataset": "pets", "head": [512, 256], "group_by": "", "frozen": {"learning_rate": 1e-3}}
    run_dir.config.write_text(json.dumps(config))
    sessions = [{"started": "Monday", "end": "killed"}, {"started": "Tuesday"}]
    run_dir.environment.write_text(json.dumps({"device": {"model": "Abacus 3000"}, "sessions": sessions}))
    for shade, name in enumerate(FIGURES):
        Image.new("RGB", (8, 8), (20 * shade,) * 3).save(run_dir.figures / f"{name}.png")
    return run_dir


def shades(page):
    """The grey levels of the pictures of a page, in their order."""
    contents = [base64.b64decode(source.removeprefix("data:image/webp;base64,")) for source in page.pictures()]
    return [round(np.asarray(Image.open(io.BytesIO(content)).convert("L")).mean(), -1) for content in contents]


def test_shows_every_result_of_the_run(tmp_path):
    run_dir = make_run(tmp_path / "run", fine_tune=PHASE | {"val_accuracy": 0.9123, "seconds": 3700})
    assert run.write_report(run_dir) == run_dir.report
    page = Page(run_dir.report)
    for text in (
        "pets",
        "83.33 %",
        "95 % interval 55.20–95.30 %",
        "12 test images",
        "macro F1",
        "2 errors",
        "Frozen phase 3 2 0.4491 84.42 % 0.3968 86.62 % 1:15 min 25 s 412.2",
        "91.23 %",
        "1:02 h",
        "Decoding 1.5 s 2.0 s – 92 MB 95 MB",
        "Frozen phase 1:14 min 1:15 min 0.2 s – –",
        "Evaluation 1:01 min – – – –",
        "cat dog 1 25.00 %",
        "confidence and accuracy differ by 6.67 %",
        "temperature 1.25,",
        "less than 95.00 % confidence",
        "10 of 10 correct predictions and 2 of 2 errors",
        "white noise 2 50.00 % 9.5–90.5 % 0.5000",
        "cat/0.jpg cat dog 90.00 %",
        "cat 4 0 0 0 4",
        "owl 0 0 3 1 4",
        "all classes 4 4 3 1 12",
        "Skipped images: 1",
        "owl/11.jpg truncated after 17 bytes",
        "readme.txt no image",
        "2 samples in 1:00 min: processors 80 % busy on average. it is hot",
        "float32, because a CPU gains nothing from less",
        "head 512, 256",
        "group_by none",
        "frozen.learning_rate 0.001",
        "device.model Abacus 3000",
        "Monday killed",
        "ab" * 32,
        f"transfer-learning predict {run_dir.path} IMAGE_OR_FOLDER",
        f"transfer-learning evaluate {run_dir.path} --split val",
    ):
        assert text in page.text, text
    assert "missing" not in page.text
    assert page.text.count("it is hot") == 1
    assert sorted(shades(page)) == [20 * number for number in range(len(FIGURES))]


def test_needs_no_other_file_and_no_script(tmp_path):
    page = Page(run.write_report(make_run(tmp_path / "run")))
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(source.startswith("data:image/webp;base64,") for source in page.pictures())
    attributes = dict.fromkeys(page.attributes)
    assert all(name != "href" or ("id", value.removeprefix("#")) in attributes for name, value in attributes)
    content = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "http" not in content and "@import" not in content and "url(" not in content


def test_the_same_files_give_the_same_bytes(tmp_path):
    run_dir = make_run(tmp_path / "run")
    first = run.write_report(run_dir).read_bytes()
    assert run.write_report(run_dir).read_bytes() == first
    assert [path.name for path in run_dir.path.iterdir() if path.name.startswith(".")] == []


def test_the_candidates_of_the_automatic_recipe_are_a_table(tmp_path):
    run_dir = make_run(tmp_path / "run")
    assert "Candidates" not in Page(run.write_report(run_dir)).text
    setting = {"backbone": "efficientnet_lite0", "resize": "crop", "head_init": "lda", "head_features": "all"}
    found = [
        setting
        | {"image_size": size, "loss": loss, "error": error, "seconds": 1, "seconds_per_1000": 12.5, "chosen": good}
        for size, loss, error, good in ((160, 0.5, 0.25, False), (224, 0.25, 0.125, True))
    ]
    run_dir.notes.write_text(json.dumps([{"level": "info", "text": "2 candidates", "candidates": found}]))
    text = Page(run.write_report(run_dir)).text
    assert text.index("224 crop lda all 0.2500 87.50 % 12.5 chosen") < text.index(
        "160 crop lda all 0.5000 75.00 % 12.5"
    )


@pytest.mark.parametrize("where", ["classes", "config", "notes", "environment", "ignored", "problem"])
def test_no_name_acts_as_html(tmp_path, where):
    names = HOSTILE if where == "classes" else ("cat", "dog", "owl")
    run_dir = make_run(tmp_path / "run", class_names=names)
    plain = Page(run.write_report(make_run(tmp_path / "plain", class_names=list("abcdefg")[: len(names)])))
    if where == "config":
        run_dir.config.write_text(json.dumps({"dataset": HOSTILE[0], HOSTILE[1]: HOSTILE}))
    elif where == "notes":
        run_dir.notes.write_text(json.dumps(HOSTILE))
    elif where == "environment":
        run_dir.environment.write_text(json.dumps({HOSTILE[0]: HOSTILE[1], "sessions": [{HOSTILE[1]: HOSTILE[0]}]}))
    elif where == "ignored":
        pd.DataFrame({"file": HOSTILE[:4], "reason": HOSTILE[:4]}).to_csv(run_dir.ignored, index=False)
    elif where == "problem":
        manifest = pd.read_csv(run_dir.manifest, na_filter=False)
        manifest.loc[0, ["file", "problem"]] = HOSTILE[:2]
        manifest.to_csv(run_dir.manifest, index=False)
    page = Page(run.write_report(run_dir))
    assert set(page.tags) == set(plain.tags)
    assert page.tags.count("img") == plain.tags.count("img")
    assert HOSTILE[0] in page.text and HOSTILE[1] in page.text
    assert {name for name, _ in page.attributes} == {name for name, _ in plain.attributes}
    assert where in ("environment", "problem") or "{{ 7 * 7 }}" in page.text


def test_warns_if_the_numbers_are_of_the_validation_split(tmp_path):
    test = Page(run.write_report(make_run(tmp_path / "test")))
    val = Page(run.write_report(make_run(tmp_path / "val", split="val")))
    assert "no test split" not in test.text
    assert "no test split" in val.text and "12 validation images" in val.text and "12 test images" not in val.text


def test_a_run_without_validation_images_does_not_suggest_to_evaluate_them(tmp_path):
    run_dir = make_run(tmp_path / "run")
    manifest = pd.read_csv(run_dir.manifest, na_filter=False)
    manifest[manifest["split"] != "val"].to_csv(run_dir.manifest, index=False)
    assert "--split val" not in Page(run.write_report(run_dir)).text


def test_a_run_that_was_fitted_on_its_validation_images_does_not_suggest_to_evaluate_them(tmp_path):
    run_dir = make_run(tmp_path / "run")
    write_json(run_dir.evaluation, read_json(run_dir.evaluation) | {"is_refitted": True})
    assert "--split val" not in Page(run.write_report(run_dir)).text


def test_a_run_without_errors_says_so_and_needs_no_figure_of_them(tmp_path):
    run_dir = make_run(tmp_path / "run", num_mistakes=0)
    (run_dir.figures / "mistakes.png").unlink()
    page = Page(run.write_report(run_dir))
    assert "None: all 12 test images are classified correctly." in page.text
    assert "missing" not in page.text


def test_a_phase_without_epochs_is_named(tmp_path):
    assert "Fine-tune phase no epochs" in Page(run.write_report(make_run(tmp_path / "run"))).text


@pytest.mark.parametrize(
    "name",
    [
        *[f"figures/{name}.png" for name, row in FIGURES.items() if not row.optional],
        "history.csv",
        "manifest.csv",
        "notes.json",
        "environment.json",
        "predictions/test.csv",
    ],
)
def test_a_missing_part_is_named_on_the_page(tmp_path, name):
    run_dir = make_run(tmp_path / "run")
    (run_dir.path / name).unlink()
    text = Page(run.write_report(run_dir)).text
    assert re.search(rf"{name} .*is missing", text)
    assert "83.33 %" in text


@pytest.mark.parametrize("name", ["ignored.csv", "classification_report.txt", "hardware.csv"])
def test_some_files_are_optional(tmp_path, name):
    run_dir = make_run(tmp_path / "run")
    (run_dir.path / name).unlink()
    page = Page(run.write_report(run_dir))
    assert "is missing" not in page.text
    assert ("processors 80 % busy" in page.text) == (name != "hardware.csv") and page.text.count("it is hot") == 1


def test_a_damaged_figure_is_named_not_shown(tmp_path):
    run_dir = make_run(tmp_path / "run")
    (run_dir.figures / "curves.png").write_bytes(b"<svg onload=alert(1)>")
    page = Page(run.write_report(run_dir))
    assert "figures/curves.png (loss, accuracy and learning rate over the epochs) is missing or damaged" in page.text
    assert len(page.pictures()) == len(FIGURES) - 1


@pytest.mark.parametrize("optional", [True, False])
def test_a_figure_that_an_older_run_lacks_is_missing_only_if_every_run_has_it(tmp_path, monkeypatch, optional):
    run_dir = make_run(tmp_path / "run")
    monkeypatch.setitem(FIGURES, "f1", FigureRow(None, "per-class-metrics", "F1 by class", "All classes.", optional))
    page = Page(run.write_report(run_dir))
    assert ("f1.png (F1 by class) is missing" in page.text) == (not optional)
    Image.new("RGB", (8, 8), (250, 250, 250)).save(run_dir.figures / "f1.png")
    page = Page(run.write_report(run_dir))
    assert "missing" not in page.text and "All classes." in page.text and 250 in shades(page)


def test_plots_are_embedded_without_loss_and_photos_small(tmp_path):
    pixels = np.random.default_rng(0).normal(128, 20, (200, 300, 3)).clip(0, 255).astype(np.uint8)
    path = tmp_path / "noise.png"
    Image.fromarray(pixels).save(path)
    plot, photo = (embedded(path, is_photo) for is_photo in (False, True))
    decoded = Image.open(io.BytesIO(base64.b64decode(plot.source.split(",")[1])))
    assert np.array_equal(np.asarray(decoded), pixels)
    assert (plot.width, plot.height) == (180, 120), "150 pixels per inch become 90"
    assert len(photo.source) < 0.6 * len(plot.source)
    path.write_bytes(path.read_bytes()[:5000])
    assert embedded(path) is None, "truncated"


def test_a_hundred_classes_show_the_lowest_first_and_all_of_them(tmp_path):
    names = [f"class {i}" for i in range(100)]
    page = Page(run.write_report(make_run(tmp_path / "run", class_names=names)))
    assert "The 10 lowest F1" in page.text and "All 100 classes" in page.text
    assert page.text.index("class 2 ") < page.text.index("class 99 ")
    assert "99 class 99 – – – 0" in page.text


def test_a_thousand_classes_have_no_matrix_but_a_table_of_errors(tmp_path):
    run_dir = make_run(tmp_path / "run", class_names=[f"n{number:08d}" for number in range(1000)], num_mistakes=12)
    for name in ("confusion_matrix", "confusion_matrix_normalised"):
        (run_dir.figures / f"{name}.png").unlink()
    page = Page(run.write_report(run_dir))
    assert "missing" not in page.text
    assert "A matrix of 1,000 classes is too large to read" in page.text
    assert "n00000011 n00000012 1 100.00 %" in page.text, "the twelfth error: more than the ten beside a matrix"
    assert " % top-5 accuracy 95 % interval" in page.text
    assert "The 10 lowest F1" in page.text and "All 1,000 classes" in page.text
    assert len(page.text) < 300_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "not a run directory"),
        ("config.json", "[1]", "names no dataset"),
        ("evaluation.json", None, "not finished.*run --resume"),
        ("evaluation.json", "{", "is damaged"),
        ("evaluation.json", "{}", "is not what `run` writes"),
        ("evaluation.json", "[]", "is not what `run` writes"),
        ("notes.json", "\x00", "is damaged"),
        ("manifest.csv", 'id,"file\n', "is not a table"),
        ("predictions/test.csv", "a,b\n", "not a table of predictions"),
    ],
)
def test_a_run_without_a_report_is_one_sentence(tmp_path, name, content, message):
    run_dir = make_run(tmp_path / "run")
    (run_dir.path / name).unlink()
    if content is not None:
        (run_dir.path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        command.main([str(run_dir.path)])
    assert "\n" not in str(caught.value)
    assert not run_dir.report.exists()


def test_the_command_prints_the_path(tmp_path, capsys):
    run_dir = make_run(tmp_path / "run")
    command.main([str(run_dir.path)])
    assert capsys.readouterr().out == f"{run_dir.report}\n"
    assert run_dir.is_finished


@pytest.mark.parametrize("arguments", [[], ["nowhere"], ["--unknown"]])
def test_the_command_refuses_with_exit_code_2(here, refused, arguments):
    refused(command.main, *arguments)
