"""Closed-form heads are solved once, and again whenever anything that they depend on has changed."""

import dataclasses

import numpy as np
import pytest

from transfer_learning.datasets.pipeline import Examples
from transfer_learning.models.features import ComputedActivations
from transfer_learning.storage.cache import Cache
from transfer_learning.training import solved_heads
from transfer_learning.training.closed_form import closed_form_head
from transfer_learning.training.solved_heads import STORED, SolvedHeads

GENERATOR = np.random.default_rng(0)
LABELS = np.arange(40, dtype=np.int32) % 3
FEATURES = GENERATOR.normal(size=(50, 12)).astype(np.float32) + LABELS[np.arange(50) % 40][:, None]
EXAMPLES = Examples(FEATURES, GENERATOR.permutation(50)[:40], LABELS, LABELS.astype(object))
USUAL = {"kind": "lda", "blocks": (8, 4), "groups": np.arange(40) // 2}


@pytest.fixture
def solved(monkeypatch):
    """The kinds of heads that were solved."""
    kinds = []

    def counted(examples, num_classes, class_weights, kind, *others):
        kinds.append(kind)
        return closed_form_head(examples, num_classes, class_weights, kind, *others)

    monkeypatch.setattr(solved_heads, "closed_form_head", counted)
    return kinds


@pytest.fixture
def heads(tmp_path):
    return SolvedHeads(Cache(tmp_path / "cache"), {"device": "a processor"})


def assert_as_solved(head, examples=EXAMPLES, weights=(1.0, 1.0, 2.0), **settings):
    expected = closed_form_head(examples, 3, list(weights), **USUAL | settings)
    for name in STORED:
        np.testing.assert_array_equal(getattr(head, name), getattr(expected, name), strict=True, err_msg=name)
    for found, array in zip(head.left_out, expected.left_out, strict=True):
        np.testing.assert_array_equal(found, array, strict=True)
    assert type(head.loss) is float


def test_a_head_is_solved_once_and_read_with_the_same_bits(heads, solved):
    for _ in range(3):
        assert_as_solved(heads.solve(EXAMPLES, 3, [1.0, 1.0, 2.0], **USUAL))
    assert solved == ["lda"]


@pytest.mark.parametrize(
    "changes",
    [
        {"examples": dataclasses.replace(EXAMPLES, inputs=np.nextafter(FEATURES, np.float32(9)))},
        {"examples": dataclasses.replace(EXAMPLES, labels=LABELS[::-1].copy())},
        {"examples": dataclasses.replace(EXAMPLES, rows=EXAMPLES.rows[::-1])},
        {"weights": [1.0, 1.0, 1.0]},
        {"kind": "ridge"},
        {"blocks": ()},
        {"blocks": (6, 6)},
        {"groups": None},
        {"groups": np.arange(40) // 4},
    ],
    ids=["features", "labels", "rows", "class weights", "kind", "not standardized", "blocks", "alone", "groups"],
)
def test_another_one_is_solved_for_other(changes, heads, solved):
    heads.solve(EXAMPLES, 3, [1.0, 1.0, 2.0], **USUAL)
    settings = {"examples": EXAMPLES, "weights": [1.0, 1.0, 2.0]} | USUAL | changes
    of_kind = {name: settings[name] for name in USUAL}
    assert_as_solved(heads.solve(settings["examples"], 3, settings["weights"], **of_kind), **settings)
    assert len(solved) == 2


def test_another_one_is_solved_on_another_device(heads, solved):
    for device in ("a processor", "another"):
        dataclasses.replace(heads, runtime={"device": device}).solve(EXAMPLES, 3, [1.0] * 3, **USUAL)
    assert len(solved) == 2


@pytest.mark.parametrize("damage", ["a flipped bit", "a cut file", "a file in place of the cache", "no room"])
def test_a_damaged_or_full_cache_only_costs_time(damage, heads, solved, tmp_path):
    if damage == "no room":
        heads = dataclasses.replace(heads, cache=Cache(heads.cache.folder, limit_gb=0))
    if damage == "a file in place of the cache":
        heads.cache.folder.write_text("in the way")
    heads.solve(EXAMPLES, 3, [1.0, 1.0, 2.0], **USUAL)
    for records in heads.cache.folder.glob("*/*/records.bin"):
        data = bytearray(records.read_bytes())
        data[len(data) // 2 :] = b"" if damage == "a cut file" else bytes(255 - byte for byte in data[len(data) // 2 :])
        records.write_bytes(data)
    for _ in range(2):
        assert_as_solved(heads.solve(EXAMPLES, 3, [1.0, 1.0, 2.0], **USUAL))
    assert len(solved) == (2 if damage in ("a flipped bit", "a cut file") else 3), (
        "solved again, and stored if it can be"
    )


def test_features_that_are_computed_whenever_they_are_read_are_not_read_for_it(heads, solved):
    computed = object.__new__(ComputedActivations)
    computed.shape, computed.__dict__["_frozen"] = FEATURES.shape, None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ComputedActivations, "__getitem__", lambda self, rows: FEATURES[rows])
        heads.solve(dataclasses.replace(EXAMPLES, inputs=computed), 3, [1.0] * 3, **USUAL)
    assert solved == ["lda"] and not heads.cache.folder.exists()
