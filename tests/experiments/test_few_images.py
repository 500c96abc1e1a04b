"""Classes of so few images that a split is empty: the run ends, and says what cannot be measured."""

import dataclasses

import pytest

from tests.support.logs import log_messages
from tests.support.photos import draw_photos
from transfer_learning.config import RunConfig
from transfer_learning.datasets.prepared import load_prepared
from transfer_learning.errors import UserError
from transfer_learning.experiments.finished_run import FinishedRun
from transfer_learning.experiments.train import run_experiment
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
        "train accuracy",
    ):
        assert [sentence for sentence in said if words in sentence], words
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
