"""Measured choices: the candidate with the least leave-one-out loss, from training images alone, never a given field."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.support.photos import draw_photos
from transfer_learning.config import Phase, with_values
from transfer_learning.datasets.prepared import load_prepared
from transfer_learning.datasets.sources.registry import load_dataset
from transfer_learning.recipes import measure
from transfer_learning.recipes.deadline import Deadline
from transfer_learning.recipes.measure import measured_choices
from transfer_learning.recipes.resolve import config_from_values


@pytest.fixture(scope="module")
def config(small_config):
    return dataclasses.replace(small_config, head=(), dropout=0.0, frozen=Phase(epochs=3), val_fraction=0.45)


def chosen_for(config, given=()):
    return measured_choices(config, load_dataset(config.dataset, "data"), given, Deadline())


def test_the_head_with_the_least_loss_is_chosen_and_measured_once(config, monkeypatch, tmp_path):
    config, path = dataclasses.replace(config, cache_dir=str(tmp_path)), tmp_path / "candidates.json"
    monkeypatch.setattr(measure, "sizes_to_compare", lambda config: [config.image_size, 2 * config.image_size])
    values, reasons, candidates = chosen_for(config)
    assert {(one.head_features, one.head_init) for one in candidates} == {
        (kind, init) for kind in ("last", "stages", "all") for init in ("ridge", "lda")
    }
    assert {one.image_size for one in candidates} == {16, 32}
    of_size = [one for one in candidates if one.image_size == values["image_size"]]
    of_size = [one for one in of_size if one.head_features != "stages"]  # from which no fine-tuning starts
    best = measure._best(of_size)
    assert (values["head_features"], values["head_init"]) == (best.head_features, best.head_init)
    usual = {one.image_size: one for one in candidates if (one.head_features, one.head_init) == measure.PREFERRED}
    assert all(one.gain == pytest.approx(usual[one.image_size].loss - one.loss, abs=1e-9) for one in candidates)
    assert all(0 <= one.error <= 1 and np.isfinite(one.loss) and one.seconds > 0 for one in candidates)
    assert all(one.seconds_per_1000 > 0 for one in candidates) and sum(one.chosen for one in candidates) == 1
    assert "leave-one-out loss" in reasons["head_features"] and "16" in reasons["image_size"]
    assert "resize" not in reasons, "the images are square"
    with_values(config, values).check()
    with monkeypatch.context() as patch:
        patch.setattr(measure, "cached_activations", None)  # another run on the same images measures nothing
        again = chosen_for(dataclasses.replace(config, seed=1, frozen=Phase(epochs=5)))
        assert (again[0], again[2]) == (values, candidates)
        assert again[1]["head_features"].endswith(", by an earlier run.")
        with pytest.raises(TypeError):  # other images are trained on
            chosen_for(dataclasses.replace(config, val_fraction=0.2))
        path.write_text('{"damaged')
        with pytest.raises(TypeError):
            chosen_for(config)


@pytest.mark.parametrize(("most", "per_class", "expected"), [(10, 1, 10), (4, 2, 6), (1000, 1, None)])
def test_of_a_large_dataset_some_images_of_all_classes_are_used(most, per_class, expected, config, monkeypatch):
    used, score = [], measure._score
    monkeypatch.setattr(measure, "MAX_IMAGES", most)
    monkeypatch.setattr(measure, "MIN_PER_CLASS", per_class)
    monkeypatch.setattr(measure, "_key", lambda *_: None)
    monkeypatch.setattr(
        measure, "_score", lambda *given: used.append(given[2].manifest.iloc[given[3]]) or score(*given)
    )
    chosen_for(config, ("image_size", "resize"))
    [part] = used
    train = load_prepared(config).manifest.query("split == 'train'")
    assert len(part) == (expected or len(train)) and set(part["split"]) == {"train"}
    assert set(part["label"]) == set(train["label"])


def test_given_fields_are_not_measured(config):
    given = ("image_size", "head_features", "head_init", "resize")
    values, _, candidates = chosen_for(dataclasses.replace(config, head_features="stages"), given)
    assert not set(given) & set(values)
    assert [(one.head_features, one.head_init) for one in candidates] == [("stages", "ridge")]


@pytest.mark.parametrize("options", [{"head": (16,)}, {"head_init": "random"}])
def test_without_a_closed_form_nothing_is_measured(options, config):
    assert chosen_for(dataclasses.replace(config, **options)) == ({}, {}, [])


def test_images_that_are_not_square_are_squashed_cropped_and_padded(config, tmp_path, caplog):
    wide = dataclasses.replace(config, dataset=str(draw_photos(tmp_path / "wide", shape=(16, 32))))
    with caplog.at_level("INFO"):
        values, reasons, candidates = chosen_for(wide, ("image_size",))
    assert {one.resize for one in candidates} == {"squash", "crop", "pad"}
    computed = [message for message in caplog.messages if message.startswith("Computing the features")]
    assert all(f", resize {name});" in line for name, line in zip(("squash", "crop", "pad"), computed, strict=True))
    assert values["resize"] in reasons["resize"]


@pytest.mark.parametrize(
    ("gains", "chosen"),
    [
        ({("last", "ridge"): (0.1, 0.03)}, ("last", "ridge")),
        ({("last", "ridge"): (0.1, 0.04)}, ("all", "lda")),
        ({("last", "ridge"): (0.2, 0.11), ("last", "lda"): (0.1, 0.01)}, ("last", "lda")),
        ({("last", "ridge"): (-0.2, 0.01)}, ("all", "lda")),
    ],
)
def test_another_head_than_lda_on_all_has_to_beat_it_by_three_standard_errors(gains, chosen):
    heads = {("all", "lda"): (0.0, 0.0)} | gains
    candidates = [
        measure.Candidate("b", 1, "pad", *head, 1 - gain, 0, 1, 1, gain, error) for head, (gain, error) in heads.items()
    ]
    best = measure._best(candidates)
    assert (best.head_features, best.head_init) == chosen
    assert measure._best(candidates[1:]).loss == min(one.loss for one in candidates[1:]), (
        "without it the least loss counts"
    )


@pytest.mark.parametrize(
    ("losses", "num_images", "size"),
    [
        ([1.0, 1.05, 1.0], 1000, 32),
        ([1.0, 1.2, 1.2], 1000, 16),
        ([1.0, 0.97, 0.9], 1001, 48),
        ([1.0, 0.97, 1.0], 1001, 16),
    ],
)
def test_of_few_images_the_usual_size_stays_unless_it_is_clearly_worse(losses, num_images, size, config, monkeypatch):
    def score(config, *_):
        loss = losses[config.image_size // 16 - 1]
        return [measure.Candidate("small_cnn", config.image_size, "squash", "all", "lda", loss, 0.1, 1, 2)]

    monkeypatch.setattr(measure, "_score", score)
    monkeypatch.setattr(measure, "_key", lambda *_: None)
    monkeypatch.setattr(measure, "USUAL_SIZE", 32)
    monkeypatch.setattr(measure, "FEW_IMAGES", 1000 if num_images <= 1000 else 0)
    monkeypatch.setattr(measure, "sizes_to_compare", lambda config: [16, 32, 48])
    assert chosen_for(config, ["resize"])[0]["image_size"] == size


@pytest.mark.parametrize(
    ("losses", "given", "chosen"),
    [
        ({"small_cnn": 1.0, "resnet18": 0.97, "resnet50": 1.2}, (), "small_cnn"),
        ({"small_cnn": 1.0, "resnet18": 0.94, "resnet50": 0.92}, (), "resnet18"),
        ({"small_cnn": 1.0, "resnet18": 0.5, "resnet50": 0.4}, (), "resnet50"),
        ({"small_cnn": 1.0, "resnet18": 0.5, "resnet50": 0.4}, ("backbone",), "small_cnn"),
    ],
)
def test_a_slower_backbone_has_to_lower_the_loss_by_5_percent(losses, given, chosen, config, tmp_path, monkeypatch):
    config = dataclasses.replace(config, cache_dir=str(tmp_path))

    def score(config, *_):
        setting = config.backbone, config.image_size, config.resize
        return [
            measure.Candidate(*setting, kind, "ridge", losses[config.backbone], 0.1, 1, 2) for kind in ("last", "all")
        ]

    monkeypatch.setattr(measure, "_score", score)
    monkeypatch.setattr(measure, "sizes_to_compare", lambda config: [config.image_size])
    monkeypatch.setattr(measure, "backbones_to_compare", lambda config: ["resnet18", "resnet50"])
    values, reasons, candidates = chosen_for(config, given)
    assert [one.backbone for one in candidates if one.chosen] == [chosen]
    if given:
        assert "backbone" not in values and len(candidates) == 2
    else:
        assert values["backbone"] == chosen and len(candidates) == 6
        assert reasons["backbone"].endswith(", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()) + ".")


def test_what_takes_too_long_for_a_time_limit_is_left_out(config, tmp_path, monkeypatch):
    config = dataclasses.replace(config, cache_dir=str(tmp_path))

    def score(config, *_):
        setting = config.backbone, config.image_size, config.resize
        return [measure.Candidate(*setting, "all", "ridge", 1 / config.image_size, 0.1, 1, seconds_per_1000=20.0)]

    monkeypatch.setattr(measure, "_score", score)
    monkeypatch.setattr(measure, "sizes_to_compare", lambda config: [16, 32, 1024])
    values, reasons, _ = measured_choices(
        config, load_dataset(config.dataset, "data"), ["resize"], deadline=Deadline("10m")
    )
    assert values["image_size"] == 32 and reasons["time_limit"].endswith("--time-limit 10m: image size 1024.")


def test_fewer_than_six_validation_images_decide_nothing(config, monkeypatch):
    candidate = measure.Candidate("small_cnn", 16, "squash", "all", "lda", 1.0, 0.1, 1, 2)
    monkeypatch.setattr(measure, "_score", lambda *_: [candidate])
    monkeypatch.setattr(measure, "_key", lambda *_: None)
    few = dataclasses.replace(config, val_fraction=0.1)
    assert 0 < (load_prepared(few).manifest["split"] == "val").sum() < measure.MIN_VAL
    values, reasons, _ = chosen_for(few)
    assert values["fine_tune.epochs"] == 0 and "too few" in reasons["fine_tune"]
    assert values["folds"] == measure.MAX_FOLDS and values["monitor"] == "loss"  # so that the head trains on all images
    assert not {"folds", "monitor"} & set(chosen_for(few, ["val_fraction"])[0])
    more = dataclasses.replace(config, val_fraction=0.2)
    assert measure.MIN_VAL <= (load_prepared(more).manifest["split"] == "val").sum() < 10
    assert not {"fine_tune.epochs", "folds"} & set(chosen_for(more)[0])
    none = dataclasses.replace(config, val_fraction=0.0)
    values = chosen_for(none)[0]
    assert values["monitor"] == "loss"
    with_values(none, values).check()


def test_the_log_says_that_few_images_are_not_fine_tuned(config, tmp_path):
    photos = draw_photos(tmp_path / "photos", num_per_class=12)
    values = {"dataset": str(photos), "image_size": 16}
    values |= {name: getattr(config, name) for name in ("backbone", "weights", "cache_dir")}
    chosen, reasons = config_from_values(values, measure=True)
    assert chosen.fine_tune.epochs == 0 and (chosen.frozen.epochs, chosen.frozen.learning_rate) == (1, 1e-9)
    said = " ".join(reason for reason in reasons if isinstance(reason, str))
    assert "No fine-tuning: " in said and "Frozen phase: 1 epoch" in said and "epochs with early stopping" not in said
    chosen, reasons = config_from_values(values | {"frozen.epochs": 10}, measure=True)
    assert chosen.frozen.learning_rate > 1e-5 and any("No fine-tuning: " in reason for reason in reasons)


def test_heads_that_leave_nothing_out_are_not_said_to_be_compared(config, tmp_path):
    photos = draw_photos(tmp_path / "photos", num_per_class=2)  # one of them for testing
    values, reasons, candidates = chosen_for(dataclasses.replace(config, dataset=str(photos)))
    assert candidates == [] and "loss" not in reasons["head_features"]
    assert "not compared with others: no class has a second training image" in reasons["head_features"]


def test_test_images_are_not_looked_at(config, tmp_path, monkeypatch):
    config = dataclasses.replace(config, cache_dir=str(tmp_path))
    seen = []
    real = measure.cached_activations
    monkeypatch.setattr(
        measure, "cached_activations", lambda f, images, c: seen.extend(images.names) or real(f, images, c)
    )
    chosen_for(config)
    manifest = load_prepared(config).manifest
    assert seen and set(seen) == set(manifest.loc[manifest["split"] == "train", "sha256"])


def test_a_table_with_other_column_names_is_measured(config, tmp_path):
    files = sorted(Path(config.dataset).rglob("*.png"))
    table = tmp_path / "table.csv"
    table.write_text("".join(["file,kind\n", *(f"{file},{file.parent.name}\n" for file in files)]))
    values = {"dataset": str(table), "path_column": "file", "label_column": "kind", "image_size": 16}
    values |= {name: getattr(config, name) for name in ("backbone", "weights", "cache_dir")}
    chosen, reasons = config_from_values(values, measure=True)
    assert chosen.path_column == "file" and any("leave-one-out loss" in reason for reason in reasons)
    assert len(reasons[-1]["candidates"]) == 6 and "6 candidates" in reasons[-1]["text"]
