"""Images and weights that lie elsewhere than when a run was started, and other labelled images."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import keras
import pandas as pd
import pytest

from tests.support.logs import log_messages
from tests.support.photos import draw_photos
from transfer_learning import evaluate, run
from transfer_learning.cli.parser import run_main
from transfer_learning.config import Phase
from transfer_learning.datasets.dataset import Dataset, Example, FilePart
from transfer_learning.errors import Stopped
from transfer_learning.experiments.export import _about
from transfer_learning.experiments.finished_run import FinishedRun
from transfer_learning.experiments.other_dataset import _labelled, result_name
from transfer_learning.experiments.train import run_experiment
from transfer_learning.storage.files import read_json, write_text
from transfer_learning.storage.run_directory import RunDir


class StopAfter(keras.callbacks.Callback):
    """Ends the run as a signal does, after an epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise Stopped(15)


@pytest.fixture(scope="module")
def begun(small_config, tmp_path_factory):
    """A stopped run and the same one finished, on images and weights that are not there any more."""
    folder = tmp_path_factory.mktemp("moved")
    draw_photos(folder / "photos")
    shutil.copy(small_config.weights, folder / "a.weights.h5")
    config = dataclasses.replace(
        small_config,
        dataset=str(folder / "photos"),
        weights=str(folder / "a.weights.h5"),
        frozen=Phase(epochs=1, learning_rate=1e-2, augmentation="light"),
        fine_tune=Phase(epochs=2, learning_rate=1e-3, unfreeze="all", augmentation="light"),
    )
    run_experiment(config, RunDir(folder / "finished"))
    with pytest.raises(Stopped):
        run_experiment(config, RunDir(folder / "stopped"), [StopAfter()])
    (folder / "wrapper").mkdir()
    (folder / "photos").rename(folder / "wrapper" / "photos")
    (folder / "a.weights.h5").rename(folder / "b.weights.h5")
    return folder


def as_table(folder):
    rows = [f"{path},{path.parent.name}" for path in sorted((folder / "wrapper").rglob("*.png"), reverse=True)]
    (folder / "table.csv").write_text("\n".join(["path,label", *rows, ""]))
    return folder / "table.csv"


def as_link(folder):
    if not (folder / "link").exists():
        (folder / "link").symlink_to(folder / "wrapper" / "photos")
    return folder / "link"


def as_wrapper(folder):
    """One level above, and a name in front of every id."""
    (folder / "outer").mkdir(exist_ok=True)
    if not (folder / "outer" / "wrapper").exists():
        (folder / "outer" / "wrapper").symlink_to(folder / "wrapper")
    return folder / "outer"


@pytest.mark.parametrize(
    "place", [as_table, *(pytest.param(place, marks=pytest.mark.long) for place in (as_link, as_wrapper))]
)
def test_a_stopped_run_goes_on_to_the_same_bits(place, begun, tmp_path):
    shutil.copytree(begun / "stopped", tmp_path / "run")
    flags = ["--dataset", str(place(begun)), "--weights", str(begun / "b.weights.h5")]
    messages = log_messages()
    assert run_main(run.main, ["--resume", str(tmp_path / "run"), *flags]) == 0
    assert any("have other ids" in message for message in messages) == (place is not as_link)
    found, expected = RunDir(tmp_path / "run"), RunDir(begun / "finished")
    for file in (lambda run_dir: run_dir.history, lambda run_dir: run_dir.predictions("test")):
        assert file(found).read_bytes() == file(expected).read_bytes()
    assert read_json(found.evaluation)["weights_sha256"] == read_json(expected.evaluation)["weights_sha256"]
    assert run_main(evaluate.main, [str(tmp_path / "run")]) == 0, "it remembers the new place"


def test_what_is_not_there_any_more_is_named_with_the_flag_for_its_new_place(begun, refused):
    cases = (
        (run.main, ["--resume", begun / "stopped"], "--dataset"),
        (run.main, ["--resume", begun / "stopped", "--dataset", begun / "wrapper"], "--weights"),
        (evaluate.main, [begun / "finished"], "--dataset"),
    )
    for main, arguments, flag in cases:
        assert f"if it was moved, name its new place with {flag}." in refused(main, *arguments)


def test_other_weights_or_images_are_no_moved_ones(begun, tmp_path, weights_file, refused):
    from transfer_learning.models.backbones import build_backbone

    shutil.copytree(begun / "stopped", tmp_path / "run")
    other = tmp_path / "other.weights.h5"
    build_backbone("small_cnn", 16, "none", seed=8).save_weights(other)
    draw_photos(tmp_path / "photos", seed=1)
    for flags, words in (
        (["--dataset", begun / "wrapper", "--weights", other], "has other initial weights"),
        (["--dataset", tmp_path / "photos", "--weights", begun / "b.weights.h5"], "have changed since"),
    ):
        assert words in refused(run.main, "--resume", tmp_path / "run", *flags)


def test_other_epochs_say_what_to_do_instead(begun, refused):
    message = refused(run.main, "--resume", begun / "stopped", "--fine-tune.epochs", "10")
    for words in (
        "fine_tune.epochs is 2, not 10",
        "none can be added",
        f"run --from {begun / 'stopped'}",
        "start a new run with them",
    ):
        assert words in message


@pytest.mark.parametrize("place", [as_link, as_wrapper])  # as a table below
def test_a_finished_run_is_evaluated_on_its_moved_images(place, begun):
    before = RunDir(begun / "finished").predictions("test").read_bytes()
    assert run_main(evaluate.main, [str(begun / "finished"), "--dataset", str(place(begun))]) == 0
    assert RunDir(begun / "finished").predictions("test").read_bytes() == before


def test_a_table_is_read_by_the_columns_that_are_named_or_were_named_for_the_run(begun, tmp_path, capsys):
    shutil.copytree(begun / "finished", tmp_path / "run")
    table = pd.read_csv(as_table(begun)).rename(columns={"path": "where", "label": "what"})
    table.assign(path="x", label="y").to_csv(tmp_path / "other.csv", index=False)
    command = [str(tmp_path / "run"), "--dataset", str(tmp_path / "other.csv")]
    before = RunDir(tmp_path / "run").predictions("test").read_bytes()
    assert run_main(evaluate.main, command) == 2
    assert run_main(evaluate.main, [*command, "--path-column", "where", "--label-column", "what"]) == 0
    assert "holds the images that" in capsys.readouterr().out
    config = RunDir(tmp_path / "run").config
    config.write_text(
        dataclasses.replace(RunDir(tmp_path / "run").read_config(), path_column="where", label_column="what").to_json()
    )
    assert run_main(evaluate.main, command) == 0
    assert RunDir(tmp_path / "run").predictions("test").read_bytes() == before


def test_other_labelled_images_are_evaluated_by_the_names_of_their_classes(begun, tmp_path, capsys):
    folder = draw_photos(tmp_path / "new photos.v2", classes=("Circle", "cross", "croos"), num_per_class=5, seed=3)
    manifest = pd.read_csv(RunDir(begun / "finished").manifest)
    known = manifest.loc[(manifest["split"] == "val") & (manifest["label"] == "cross"), "id"].iloc[
        0
    ]  # fitted in a refit
    shutil.copy(begun / "wrapper" / "photos" / known, folder / "cross" / "copy.png")
    (folder / "cross" / "bad.png").write_bytes(b"no image")
    assert run_main(evaluate.main, [str(begun / "finished"), "--dataset", str(folder)]) == 0
    output = capsys.readouterr().out
    result = read_json(RunDir(begun / "finished").evaluation_of("new_photos"))
    assert result["num_examples"] == 11 and result["class_names"] == ["circle", "cross", "stripes"]
    assert result["unknown_classes"] == {"croos": 5} and result["num_unreadable"] == 1
    assert "5 images are left out" in output and "(croos). Did you mean cross?" in output
    assert "Circle to circle" in output and "has no images of these classes of the run: stripes" in output
    assert f"new_photos accuracy {result['accuracy']:.2%}" in output
    assert result["num_trained_on"] == 1 and "was trained or validated on 1 of these images" in output
    assert RunDir(begun / "finished").predictions("new_photos").exists()


def test_a_run_on_files_whose_names_are_not_utf8_is_read_again(small_config, tmp_path):
    run_dir = RunDir(tmp_path)
    write_text(run_dir.config, small_config.to_json())
    run_dir.manifest.write_bytes(b"id,file,sha256,label,split\n\xff.png,\xff.png,0,a,test\n")
    assert list(FinishedRun(run_dir).examples("test")["id"]) == ["\udcff.png"]
    assert _about(run_dir)["counts"] == {"train": 0, "val": 0, "test": 1}


def test_an_unreadable_image_inside_another_file_is_named():
    examples = [Example(f"a.tar/{name}", "circle", "", FilePart(Path("a.tar"), 0, 9)) for name in ("good", "bad")]
    facts = pd.DataFrame({"problem": ["", "cut off"], "sha256": "0", "width": 9, "height": 9, "kind": ""})
    run, said = SimpleNamespace(name="run", class_names=["circle"]), log_messages()
    _labelled(Dataset("tar", ("circle",), tuple(examples)), SimpleNamespace(facts=facts), run, "tar", None)
    assert said == ["1 images cannot be read and are left out, such as a.tar/bad: cut off."]


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("a", "b"), "no image of a class of"),
        (("cross",), None),
        (("a",), "its classes are a, and those of the run circle"),
    ],
)
def test_images_of_one_class_are_enough_and_of_none_are_explained(classes, words, begun, tmp_path, capsys):
    draw_photos(tmp_path / "x", classes=classes, num_per_class=2)
    code = run_main(evaluate.main, [str(begun / "finished"), "--dataset", str(tmp_path / "x")])
    assert code == (2 if words else 0) and (words or "x accuracy") in str(capsys.readouterr())


@pytest.mark.parametrize(
    ("place", "name"),
    [("a/b c.csv", "b_c"), ("hf:x/y", "y"), ("a/test", "dataset_test"), ("..", None), ("a/x_views", "dataset_x_views")],
)
def test_results_on_other_images_never_replace_those_of_a_split(place, name, here):
    assert result_name(place) == (name or here.parent.name)
