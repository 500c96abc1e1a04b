"""Classes of so few images that a split is empty: the run ends, and says what cannot be measured."""

import dataclasses

import pytest

from tests.support.logs import log_messages
from tests.support.photos import draw_photos
from transfer_learning.config import RunConfig
from transfer_learning.datasets.prepared import load_prepared
from transfer_learning.errors import UserError
from transfer_learning.experiments.finished_run import FinishedRun
from transfer_learning.experiments.train import run_experiment, what_calibrates
from transfer_learning.storage.run_directory import RunDir


def test_one_image_per_class_trains_and_says_what_cannot_be_measured(small_config, tmp_path):
    photos = draw_photos(tmp_path / "photos", num_per_class=1)
    fine_tune = dataclasses.replace(small_config.fine_tune, epochs=0)  # which three images cannot pay for
    config = dataclasses.replace(small_config, dataset=str(photos), head=(), dropout=0.0, fine_tune=fine_tune)
    said = log_messages()
    evaluation = run_experiment(config, RunDir(tmp_path / "run"))
    assert evaluation["split"] == "train" and evaluation["rejection"] is None
    for words in (
        "3 classes (circle, cross, stripes) have no test image, so their accuracy cannot be measured",
        "There are no validation images: the confidences are not calibrated",
        "There are no test images either: the accuracy on new images cannot be measured",
        "on the features (no class has a second image that could be left out).",
        "train accuracy",
    ):
        assert [sentence for sentence in said if words in sentence], words
    assert not [sentence for sentence in said if "fine-tuned weights" in sentence]
    run = FinishedRun(RunDir(tmp_path / "run"))
    assert list(run.predict(photos)["class"]) == ["circle", "cross", "stripes"]
    with pytest.raises(UserError, match="has no test images; give --dataset with other images"):
        run.data("test")


@pytest.mark.parametrize("each", [2, 3, 5])
def test_every_class_trains_and_tests_from_two_images_on(each, small_config, tmp_path):
    photos = draw_photos(tmp_path / "photos", num_per_class=each)
    data = load_prepared(dataclasses.replace(small_config, dataset=str(photos)))
    for split in ("train", "test"):
        assert set(data.manifest.loc[data.manifest["split"] == split, "label"]) == {"circle", "cross", "stripes"}


def test_the_config_of_an_earlier_run_keeps_its_draw(small_config, tmp_path):
    (tmp_path / "config.json").write_text(small_config.to_json().replace('"small_classes": "ranked",', ""))
    assert RunDir(tmp_path).read_config().small_classes == "drawn" and small_config.small_classes == "ranked"
    assert RunConfig.from_json((tmp_path / "config.json").read_text()).small_classes == "drawn"


@pytest.mark.parametrize(
    ("changes", "is_solved", "is_one_group", "expected"),
    [
        ({}, True, False, "leave-one-out predictions"),
        ({"folds": 2}, True, False, "leave-one-out predictions"),
        ({}, True, True, ""),  # each image is left out with all others of its class
        ({}, False, False, ""),
        ({"folds": 2}, False, False, "2 folds"),
        ({"fine_tune": 1, "folds": 2}, True, False, ""),  # their heads are not on the backbone that is saved
        ({"val_fraction": 0.2}, False, False, "the validation images"),
    ],
)
def test_what_calibrates_is_a_head_like_the_saved_one(changes, is_solved, is_one_group, expected, small_config):
    fine_tune = dataclasses.replace(small_config.fine_tune, epochs=changes.get("fine_tune", 0))
    config = dataclasses.replace(small_config, **{"val_fraction": 0.0} | changes | {"fine_tune": fine_tune})
    data = load_prepared(config)
    if is_one_group:
        data = dataclasses.replace(data, manifest=data.manifest.assign(group=data.manifest["label"]))
    assert what_calibrates(config, data, is_solved) == expected


def test_folds_of_frozen_heads_do_not_calibrate_a_fine_tuned_network(small_config, tmp_path):
    config = dataclasses.replace(small_config, head=(), folds=2, val_fraction=0.0)
    with pytest.raises(UserError, match="--unseen-classes stripes needs validation images"):
        run_experiment(dataclasses.replace(config, unseen_classes="stripes"), RunDir(tmp_path / "unseen"))
    said = log_messages()
    evaluation = run_experiment(config, RunDir(tmp_path / "run"))
    assert evaluation["rejection"] is None and not evaluation["calibrated_on"]
    assert evaluation["calibration"]["temperature"] == 1 and not evaluation["folds"]["is_shipped_head"]
    for words in ("the confidences are not calibrated", "are used even if they are worse"):
        assert [sentence for sentence in said if words in sentence], words
