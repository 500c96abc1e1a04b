"""Finished runs evaluated again by the command: with test-time augmentation, as an ensemble, as a soup, in pairs."""

import dataclasses
import io
import shutil
import weakref
import zipfile

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.support.shortened import with_files
from transfer_learning import evaluate, predict, report, run
from transfer_learning.cli.parser import run_main
from transfer_learning.config import Phase
from transfer_learning.datasets.prepared import load_prepared
from transfer_learning.errors import UserError
from transfer_learning.evaluation import ensemble, predictions
from transfer_learning.experiments import finished_run
from transfer_learning.experiments.train import run_experiment
from transfer_learning.models.classifier import load_model
from transfer_learning.models.soup import mean_weights
from transfer_learning.storage.files import read_json
from transfer_learning.storage.run_directory import RunDir

SHORT = {"frozen": Phase(epochs=1, learning_rate=1e-2), "fine_tune": Phase()}
OTHERS = {"seed 1": {"seed": 1}, "other": {"image_size": 24, "head": (), "flip": False}}


@pytest.fixture(scope="module")
def runs(small_config, tmp_path_factory):
    """Two runs that differ in their seed, and one of another architecture and image size, by name."""
    folder = tmp_path_factory.mktemp("runs")
    result = {}
    for name, changes in {"seed 0": {}, **OTHERS}.items():
        result[name] = RunDir(folder / name)
        run_experiment(dataclasses.replace(small_config, **SHORT, **changes), result[name])
    return result


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths(runs, *names):
    return [str(runs[name].path) for name in names or ("seed 0", "seed 1")]


def table(path):
    return predictions.probabilities(predictions.read(path))


def evaluated(*arguments):
    assert run_main(evaluate.main, [str(argument) for argument in arguments]) == 0


def test_the_temperature_is_part_of_the_model_and_of_every_prediction(runs, photos, capsys):
    run_dir = runs["seed 0"]
    temperature = read_json(run_dir.evaluation)["calibration"]["temperature"]
    network = load_model(run_dir.read_config(), run_dir.model)
    assert network.temperature == temperature != 1
    assert any("Calibration: temperature" in note["text"] for note in read_json(run_dir.notes))
    predicted = predictions.read(run_dir.predictions("test"))
    pixels = np.stack([np.asarray(Image.open(photos / id)) for id in predicted["id"]])
    alone = keras.models.load_model(run_dir.model)  # no code of ours
    assert np.asarray(alone(pixels.astype(np.float32))) == pytest.approx(predictions.probabilities(predicted), abs=1e-6)
    assert run_main(predict.main, [str(run_dir.path), str(photos)]) == 0
    answers = pd.read_csv(io.StringIO(capsys.readouterr().out)).set_index("file")
    for row in predicted.itertuples():
        assert np.float32(answers.loc[f"{photos}/{row.id}", "confidence"]) == row.confidence


def test_predict_rejects_below_the_threshold_that_validation_images_gave(runs, photos, capsys):
    run_dir = runs["seed 0"]
    rule = read_json(run_dir.evaluation)["rejection"]
    confidences = predictions.read(run_dir.predictions("val"))["confidence"]
    assert np.mean(confidences >= rule["threshold"]) >= rule["accepted_fraction"] and rule["threshold"] in set(
        confidences.tolist()
    )
    assert list(rule["others"]) == ["uniform noise", "test images, scrambled"]
    answers = []
    for more in ([], ["--reject"]):
        assert run_main(predict.main, [str(run_dir.path), str(photos), *more]) == 0
        answers.append(pd.read_csv(io.StringIO(capsys.readouterr().out)))
    plain, ruled = answers
    by_name = [predict.parse([str(run_dir.path), str(photos), name]) for name in ("--reject", "--unknown")]
    assert by_name[0] == by_name[1], "the earlier name is the same flag"
    below = plain["confidence"].astype(np.float32) < np.float32(
        rule["threshold"]
    )  # two float32 differ within nine digits
    assert (ruled["class"] == plain["class"].where(~below, "unknown")).all() and below.any() and not below.all()
    assert (ruled["confidence"] == plain["confidence"]).all()


def test_unseen_classes_are_not_trained_on_and_test_the_rejection(small_config, here):
    config = dataclasses.replace(small_config, **SHORT, unseen_classes="stripes")
    evaluation = run_experiment(config, RunDir(here / "run"))
    assert evaluation["class_names"] == ["circle", "cross"] == read_json(RunDir(here / "run").evaluation)["class_names"]
    others = evaluation["rejection"]["others"]
    assert list(others)[0] == "unseen classes" and others["unseen classes"]["num_images"] == 14
    page = (here / "run" / "report.html").read_text()
    assert "Unseen classes" in page and "stripes (14 images)" in page
    before = RunDir(here / "run").predictions("test").read_bytes()
    evaluated("run")
    assert RunDir(here / "run").predictions("test").read_bytes() == before


def test_unseen_classes_need_validation_images(small_config, here):
    config = dataclasses.replace(small_config, **SHORT, unseen_classes="stripes", val_fraction=0.0, monitor="loss")
    with pytest.raises(UserError, match="--unseen-classes stripes .* raise --val-fraction"):
        run_experiment(config, RunDir(here / "run"))
    assert not (here / "run").exists()


def test_rejected_images_are_not_mixed_with_a_class_of_that_name(runs, photos, monkeypatch, refused):
    monkeypatch.setattr(predict, "REJECTED", "cross")
    assert "a class called cross" in refused(predict.main, runs["seed 0"].path, photos, "--reject")


def test_a_missing_split_is_named_with_the_one_that_exists(small_config, here, refused):
    config = dataclasses.replace(small_config, **SHORT, test_fraction=0.0)
    run_experiment(config, RunDir(here / "run"))
    assert "has no test images; give --split val" in refused(evaluate.main, "run")


def test_a_model_without_a_rejection_threshold_says_so(runs, photos, tmp_path_factory, refused):
    run_dir = RunDir(tmp_path_factory.mktemp("others") / "run")
    shutil.copytree(runs["seed 0"].path, run_dir.path)
    with zipfile.ZipFile(runs["seed 0"].model) as source, zipfile.ZipFile(run_dir.model, "w") as copy:
        for name in source.namelist():
            if name != "calibration.json":
                copy.writestr(name, source.read(name))
    assert "--val-fraction" in refused(predict.main, run_dir.path, photos, "--reject")


def test_test_time_augmentation_is_averaged_into_the_run(runs, capsys):
    run_dir = runs["seed 0"]
    before = run_dir.predictions("test").read_bytes()
    evaluated(run_dir.path, "--tta", "flip,crops")
    result, output = read_json(run_dir.evaluation_of("test", True)), capsys.readouterr().out
    assert result["views"][:2] == ["plain", "centre"] and len(result["views"]) == 12
    assert run_dir.predictions("test").read_bytes() == before, "the plain predictions are as they were"
    plain, averaged = (predictions.read(run_dir.predictions("test", tta)) for tta in (False, True))
    assert list(plain["id"]) == list(averaged["id"]) and not np.array_equal(plain["confidence"], averaged["confidence"])
    assert result["accuracy"] == ensemble.is_correct(averaged).mean() == result["gain"]["accuracy_after"]
    assert result["gain"]["accuracy_before"] == ensemble.is_correct(plain).mean()
    low, high = result["gain"]["difference_interval"]
    assert low <= result["gain"]["difference"] <= high
    assert 0 < result["seconds"]["before"] < result["seconds"]["after"]
    for words in ("The average of 12 transforms", "12 forward passes per image", "times as long"):
        assert words in output, words
    assert "warning: --tta" not in output


def test_a_run_that_was_trained_without_flips_is_mirrored_with_a_warning(runs, capsys):
    evaluated(runs["other"].path, "--views", "flip", "--split", "val")
    output = capsys.readouterr().out
    assert "warning: --tta flip" in output and "--no-flip" in output
    assert output.count("--views is now called --tta") == 1
    assert read_json(runs["other"].evaluation_of("val", True))["views"] == ["plain", "plain_mirrored"]


def test_an_ensemble_is_the_mean_of_runs_of_any_architecture(runs, here, refused, capsys):
    names = ("seed 0", "seed 1", "other")
    evaluated(*paths(runs, *names), "--run-dir", "together")
    together = RunDir(here / "together")
    found = {str(path.relative_to(together.path)) for path in together.path.rglob("*") if path.is_file()}
    assert found == {"evaluation_test.json", "predictions/test.csv", ".lock"}
    of_members = [table(runs[name].predictions("test")) for name in names]
    expected = np.mean(np.array(of_members, np.float64), axis=0).astype(np.float32)
    assert np.array_equal(table(together.predictions("test")), expected)
    result = read_json(together.evaluation_of("test"))
    assert [row["run_dir"] for row in result["members"]] == paths(runs, *names)
    assert [row["accuracy"] for row in result["members"]] == [
        read_json(runs[name].evaluation)["accuracy"] for name in names
    ]
    best = max(result["members"], key=lambda row: row["val_accuracy"])
    assert result["gain"]["before"] == best["run_dir"] and result["gain"]["accuracy_before"] == best["accuracy"]
    output = capsys.readouterr().out
    for words in ("Ensemble of 3 runs", "(best validation accuracy)", "3 forward passes", *paths(runs, *names)):
        assert words in output
    assert "not a run directory" in refused(predict.main, "together", runs["other"].path)


def test_an_ensemble_with_test_time_augmentation_has_a_new_directory(runs, here):
    evaluated(*paths(runs), "--tta", "flip", "--split", "val")
    (made,) = (here / "runs").iterdir()
    result = read_json(RunDir(made).evaluation_of("val"))
    assert made.name.startswith("ensemble-") and result["views"] == ["plain", "plain_mirrored"]
    assert result["seconds"]["after"] > result["seconds"]["before"]


def test_two_runs_are_compared_image_by_image(runs, here, capsys):
    evaluated(*paths(runs, "seed 0", "other"), "--paired", "--run-dir", "pair")
    result = read_json(RunDir(here / "pair").comparison_of("test"))
    first, second = (predictions.read(runs[name].predictions("test")) for name in ("seed 0", "other"))
    expected = ensemble.paired_difference(first, second)
    assert {name: result[name] for name in expected} == expected
    assert result["only_before_right_ids"] == ensemble.only_correct(first, second)
    output = capsys.readouterr().out
    assert "McNemar" in output or "no image is classified differently" in output
    counts = {line.split()[1]: line.split()[2:] for line in output.splitlines() if line.startswith(("A c", "A w"))}
    assert counts["correct"] == [str(result["both_right"]), str(result["only_before_right"])]
    assert counts["wrong"] == [str(result["only_after_right"]), str(result["both_wrong"])]
    page = RunDir(here / "pair").comparison_page_of("test").read_text()
    assert f"{100 * result['difference']:+.2f}" in page and f"{result['mcnemar_p']:.3g}" in page
    assert all(f"<li>{id}</li>" in page for id in result["only_before_right_ids"] + result["only_after_right_ids"])


def test_a_run_that_loses_more_than_the_limit_ends_with_exit_code_3(runs, here, capsys):
    pair = paths(runs, "seed 0", "other")
    accuracies = [read_json(runs[name].evaluation)["accuracy"] for name in ("seed 0", "other")]
    better, worse = (pair[np.argmax(accuracies)], pair[np.argmin(accuracies)])
    loss = 100 * abs(accuracies[0] - accuracies[1])
    assert loss, "the runs of this test differ"
    for limit, first, second, exit_code in (
        (0, better, worse, 0),
        (loss, worse, better, 0),
        (loss - 0.1, worse, better, 3),
    ):
        name = f"{limit}{exit_code}"
        flags = ["--paired", "--not-worse-than", str(limit), "--run-dir", name]
        assert run_main(evaluate.main, [first, second, *flags]) == exit_code
        assert read_json(RunDir(here / name).comparison_of("test"))["is_worse"] == (exit_code == 3)
        assert ("points worse than B; the limit is" in capsys.readouterr().out) == (exit_code == 3)
        assert "--not-worse-than" in RunDir(here / name).comparison_page_of("test").read_text()


def test_a_soup_is_a_run_whose_weights_are_the_mean(runs, here, photos, capsys):
    with with_files():
        evaluated(*paths(runs), "--soup", "--run-dir", "soup")
    soup, output = RunDir(here / "soup"), capsys.readouterr().out
    evaluation = read_json(soup.evaluation)
    rows = evaluation["soup"]["members"]
    assert [row["val_accuracy"] for row in rows] == sorted((row["val_accuracy"] for row in rows), reverse=True)
    assert rows[0]["is_taken"] and rows[0]["soup_val_accuracy"] == rows[0]["val_accuracy"]
    config = soup.read_config()
    taken = [RunDir(soup.path.parent / row["run_dir"]) for row in rows if row["is_taken"]]
    expected = mean_weights([load_model(config, run_dir.model).model.get_weights() for run_dir in taken])
    network = load_model(config, soup.model, evaluation["weights_sha256"])
    assert all(np.array_equal(one, other) for one, other in zip(network.model.get_weights(), expected, strict=True))
    accuracy = ensemble.is_correct(predictions.read(soup.predictions("val"))).mean()
    assert accuracy == max(row["soup_val_accuracy"] for row in rows if row["is_taken"])
    assert "The soup " in output and "Soup of " in output and "added" in output

    # Every command takes it for a run.
    assert soup.is_finished and "Model soup" in soup.report.read_text()
    assert "is missing" not in soup.report.read_text()
    assert run_main(run.main, ["--resume", "soup"]) == 0 and "is finished" in capsys.readouterr().out
    before = soup.predictions("test").read_bytes()
    evaluated("soup")
    assert soup.predictions("test").read_bytes() == before
    capsys.readouterr()
    image = photos / "circle" / "000.png"
    assert run_main(predict.main, ["soup", str(image)]) == 0
    assert f"{image}," in capsys.readouterr().out
    assert run_main(report.main, ["soup"]) == 0


def test_a_soup_of_copies_is_bit_identical_to_the_run(runs, here):
    for name in ("one", "two"):
        shutil.copytree(runs["seed 1"].path, here / name)
    evaluated("one", "two", "--soup", "--run-dir", "soup")
    for read in (
        lambda run_dir: read_json(run_dir.evaluation)["weights_sha256"],
        lambda run_dir: run_dir.predictions("test").read_bytes(),
    ):
        assert read(RunDir(here / "soup")) == read(runs["seed 1"])
    assert all(row["is_taken"] for row in read_json(RunDir(here / "soup").evaluation)["soup"]["members"])


@pytest.mark.parametrize("flags", [[], ["--soup"], ["--paired"]], ids=str)
def test_one_model_is_in_memory_at_a_time(runs, monkeypatch, flags):
    models = []

    def load(*arguments):
        assert not [network for network in models if network() is not None], "an earlier network is still there"
        classifier = load_model(*arguments)
        models.append(weakref.ref(classifier.model))
        return classifier

    monkeypatch.setattr("transfer_learning.models.classifier.load_model", load)
    evaluated(*paths(runs), *flags)
    assert len(models) == (3 if flags == ["--soup"] else 2)


@pytest.fixture
def not_evaluated(here, refused):
    def refuse(*arguments):
        line = refused(evaluate.main, *arguments)
        assert not list(here.iterdir()), "something is left"
        return line

    return refuse


def test_models_of_another_architecture_make_no_soup(runs, not_evaluated):
    line = not_evaluated(*paths(runs, "seed 0", "other"), "--soup")
    for words in (str(runs["other"].path), "image_size is 16, not 24", "head is (16,), not ()", "without --soup"):
        assert words in line
    assert "flip" not in line and "seed is" not in line, "fields that the weights do not depend on are not named"


@pytest.mark.parametrize("more", [[], ["--soup"], ["--paired"]], ids=str)
def test_runs_on_other_images_are_not_combined(runs, tmp_path_factory, not_evaluated, more):
    """Their manifests are compared before a model is loaded."""
    other = RunDir(tmp_path_factory.mktemp("others") / "run")
    shutil.copytree(runs["seed 1"].path, other.path)
    text = other.manifest.read_text()
    (image, _, digest, label, *_) = next(line for line in text.splitlines() if ",test," in line).split(",")
    for old, new, words in (
        (digest, "0" * 64, "has the sha256"),
        (f",{label},test,", ",stripes!,test,", "has the label"),
        (f"{image},", "new.png,", "has the image"),
    ):
        other.manifest.write_text(text.replace(old, new))
        assert words in not_evaluated(*paths(runs, "seed 0"), other.path, *more)


def test_classes_in_another_order_than_in_training_are_refused(runs, monkeypatch, not_evaluated):
    def reversed_classes(*arguments):
        data = load_prepared(*arguments)
        return dataclasses.replace(data, class_names=data.class_names[::-1])

    monkeypatch.setattr(finished_run, "load_prepared", reversed_classes)
    assert "order of classes" in not_evaluated(*paths(runs, "seed 0"))


def test_an_unfinished_run_is_refused(runs, small_config, tmp_path_factory, not_evaluated):
    path = tmp_path_factory.mktemp("unfinished")
    (path / "config.json").write_text(small_config.to_json())
    assert f"run --resume {path}" in not_evaluated(*paths(runs, "seed 0"), path)


@pytest.mark.parametrize(
    ("names", "flags", "words"),
    [
        (["seed 0"], ["--split", "train"], ["--split", "train", "val", "test"]),
        (["seed 0"], ["--tta", "flop"], ["flop", "Did you mean flip"]),
        (["seed 0"], ["--tta", ""], ["unknown kind ''", "crops, flip"]),
        (["seed 0", "seed 0"], [], ["named twice"]),
        (["seed 0"], ["--soup"], ["--soup", "several runs"]),
        (["seed 0"], ["--paired"], ["--paired compares two", "1 were given"]),
        (["seed 0", "seed 1", "other"], ["--paired"], ["3 were given"]),
        (["seed 0", "seed 1"], ["--soup", "--paired"], ["not allowed with"]),
        (["seed 0", "seed 1"], ["--soup", "--tta", "flip"], ["make the soup, then"]),
        (["seed 0", "seed 1"], ["--soup", "--split", "val"], ["--split", "make the soup, then"]),
        (["seed 0"], ["--run-dir", "x"], ["leave out --run-dir x"]),
        (["seed 0", "seed 1"], ["--not-worse-than", "1"], ["give --paired"]),
        (["seed 0", "seed 1"], ["--paired", "--not-worse-than", "-1"], ["not in 0..100"]),
    ],
)
def test_flags_that_do_not_fit_together(runs, not_evaluated, names, flags, words):
    line = not_evaluated(*paths(runs, *names), *flags)
    assert all(word in line for word in words), line


def test_a_directory_that_holds_something_is_refused(runs, not_evaluated):
    line = not_evaluated(*paths(runs), "--run-dir", runs["other"].path)
    assert "finished run" in line


def test_a_soup_needs_validation_images(runs, tmp_path_factory, not_evaluated):
    other = RunDir(tmp_path_factory.mktemp("others") / "run")
    shutil.copytree(runs["seed 1"].path, other.path)
    other.predictions("val").unlink()
    assert "--val-fraction above 0" in not_evaluated(*paths(runs, "seed 0"), other.path, "--soup")
