"""Order and augmentation of training images: pure in (seed, epoch, image), so that a resumed epoch is the same."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_learning.datasets import augment
from transfer_learning.datasets.pipeline import Examples, batches_in_order, examples_of_split, order, training_batches

SIZE = 12


def make_examples(count, seed=0):
    """Rows out of a larger array, in an order of their own."""
    rng = np.random.default_rng(seed)
    inputs = rng.integers(0, 256, (count + 7, SIZE, SIZE, 3)).astype(np.uint8)
    rows = rng.permutation(count + 7)[:count]
    ids = np.array([f"class {number % 3}/{number}.png" for number in range(count)], object)
    return Examples(inputs, rows, np.arange(count, dtype=np.int32), ids)


def arrays(batches):
    return [(np.asarray(inputs), np.asarray(labels)) for inputs, labels in batches]


def assert_same(one, other):
    assert len(one) == len(other)
    for (inputs, labels), (other_inputs, other_labels) in zip(one, other, strict=True):
        np.testing.assert_array_equal(inputs, other_inputs, strict=True)
        np.testing.assert_array_equal(labels, other_labels, strict=True)


@settings(deadline=None)
@given(count=st.integers(0, 300), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 10**6))
def test_the_order_is_a_permutation_that_hangs_on_seed_and_epoch_alone(count, seed, epoch):
    drawn = order(count, seed, epoch)
    np.testing.assert_array_equal(np.sort(drawn), np.arange(count))
    np.random.default_rng().random()  # whatever else was drawn
    np.testing.assert_array_equal(drawn, order(count, seed, epoch))


def test_seeds_and_epochs_have_orders_of_their_own():
    drawn = [tuple(order(100, seed, epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(drawn)) == 16


@pytest.mark.parametrize("augmentation", ["none", "light", "strong"])
def test_an_epoch_holds_every_example_once_with_its_own_label(augmentation):
    examples = make_examples(23)
    batches = arrays(training_batches(examples, 5, seed=3, epoch=1, augmentation=augmentation))
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 5, 3]
    labels = np.concatenate([labels for _, labels in batches])
    np.testing.assert_array_equal(labels, order(23, 3, 1))  # the label of an example is its number here
    if augmentation == "none":
        images = np.concatenate([inputs for inputs, _ in batches])
        np.testing.assert_array_equal(images, examples.inputs[examples.rows[labels]])


@pytest.mark.parametrize("augmentation", ["none", "light", "strong"])
def test_resumed_at_any_update_it_gives_the_remaining_batches_to_the_bit(augmentation):
    def epoch_from(first_update):
        return arrays(training_batches(examples, 4, 7, 2, first_update, augmentation=augmentation))

    examples = make_examples(18)
    whole = epoch_from(0)
    for first_update in range(6):
        assert_same(epoch_from(first_update), whole[first_update:])


@pytest.mark.parametrize("augmentation", ["light", "strong"])
def test_an_image_is_changed_alike_whatever_stands_beside_it(augmentation):
    def by_label(examples, batch_size):
        batches = arrays(training_batches(examples, batch_size, 7, 2, augmentation=augmentation))
        pairs = [pair for images, labels in batches for pair in zip(images, labels, strict=True)]
        return {examples.ids[label]: image for image, label in pairs}

    examples = make_examples(18)
    fewer = Examples(examples.inputs, examples.rows[::3], np.arange(6, dtype=np.int32), examples.ids[::3])
    whole = by_label(examples, 18)
    for other in (by_label(examples, 1), by_label(examples, 5), by_label(fewer, 4)):
        for id, image in other.items():
            np.testing.assert_array_equal(image, whole[id])


def test_epochs_seeds_and_images_are_changed_each_in_its_own_way():
    examples = make_examples(8)
    same = Examples(examples.inputs, np.repeat(examples.rows[:1], 8), examples.labels, examples.ids)
    seen = {
        image.tobytes()
        for seed in range(2) for epoch in range(3)
        for inputs, _ in arrays(training_batches(same, 8, seed, epoch, augmentation="light")) for image in inputs
    }  # fmt: skip
    assert len(seen) == 2 * 3 * 8


@pytest.mark.parametrize("augmentation", ["light", "strong"])
def test_images_stay_images(augmentation):
    inputs = np.concatenate([np.zeros((8, SIZE, SIZE, 3)), np.full((8, SIZE, SIZE, 3), 255)]).astype(np.uint8)
    examples = Examples(inputs, np.arange(16), np.arange(16, dtype=np.int32), make_examples(16).ids)
    for images, _ in arrays(training_batches(examples, 16, 0, 0, augmentation=augmentation)):
        assert images.dtype == np.float32 and images.shape == (16, SIZE, SIZE, 3)
        assert images.min() >= 0 and images.max() <= 255 and np.isfinite(images).all()


@settings(deadline=None)
@given(
    strength=st.sampled_from(sorted(augment.STRENGTHS)), flip=st.booleans(), seed=st.integers(0, 2**31 - 1),
    epoch=st.integers(0, 10**6), keys=st.lists(st.integers(0, 2**64 - 1), max_size=6),
)  # fmt: skip
def test_what_is_drawn_stays_in_its_range_and_mirrors_only_if_asked(strength, flip, seed, epoch, keys):
    transforms, colours = augment.draw(strength, flip, seed, epoch, np.array(keys, np.uint64), SIZE)
    assert transforms.shape == (len(keys), 8) and colours.shape == (len(keys), 2)
    assert transforms.dtype == colours.dtype == np.float32
    spread = augment.STRENGTHS[strength]
    a, b, c, d, e, f = transforms[:, :6].T
    area = a * e - b * d  # of the source that a pixel of the result covers; negative where mirrored
    low, high = (1 / (1 + sign * spread["zoom"]) ** 2 for sign in (1, -1))
    assert ((low * 0.999 <= abs(area)) & (abs(area) <= high * 1.001)).all()
    assert flip or (area > 0).all()
    middle = (SIZE - 1) / 2
    for shift in (a * middle + b * middle + c - middle, d * middle + e * middle + f - middle):
        assert (abs(shift) <= SIZE * spread["shift"] + 1e-3).all()
    assert (abs(colours[:, 0]) <= 255 * spread["brightness"] + 1e-3).all()
    assert (abs(colours[:, 1] - 1) <= spread["contrast"] + 1e-6).all()


@pytest.mark.parametrize("key", [5, 2**63, 2**64 - 1])
def test_keys_seeds_and_epochs_count_to_their_last_digit(key):
    """A list of a large and a small integer becomes floats in NumPy, which know 53 of 64 bits."""
    drawn = {
        augment.draw("light", True, seed, epoch, np.array([other], np.uint64), SIZE)[0].tobytes()
        for seed in (2**31 - 1, 2**31 - 2) for epoch in (0, 1) for other in (key, key - 1)
    }  # fmt: skip
    assert len(drawn) == 8


def test_half_of_the_images_are_mirrored():
    transforms, _ = augment.draw("light", True, 0, 0, np.arange(2000, dtype=np.uint64), SIZE)
    mirrored = transforms[:, 0] * transforms[:, 4] - transforms[:, 1] * transforms[:, 3] < 0
    assert 0.45 < mirrored.mean() < 0.55


def apply_with(spread, flip, images):
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(augment.STRENGTHS, "test", {**dict.fromkeys(augment.STRENGTHS["light"], 0.0), **spread})
        transforms, colours = augment.draw("test", flip, 0, 0, np.arange(len(images), dtype=np.uint64), images.shape[1])
    changed = augment.apply(tf.constant(images), tf.constant(transforms), tf.constant(colours))
    return changed.numpy(), transforms, colours


def test_with_all_numbers_zero_nothing_changes():
    images = make_examples(4).inputs[:4]
    changed, _, _ = apply_with({}, False, images)
    np.testing.assert_allclose(changed, images, atol=1e-3)


def test_a_mirrored_image_is_mirrored_left_to_right():
    images = make_examples(16).inputs[:16]
    changed, transforms, _ = apply_with({}, True, images)
    mirrored = transforms[:, 0] < 0
    assert 0 < mirrored.sum() < 16
    expected = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    np.testing.assert_allclose(changed, expected, atol=1e-2)


def test_brightness_is_added_and_contrast_is_taken_about_the_mean():
    images = np.full((4, SIZE, SIZE, 3), 100, np.uint8)
    images[:, ::2] = 120
    changed, _, colours = apply_with({"brightness": 0.1, "contrast": 0.3}, False, images)
    expected = (images - 110.0) * colours[:, 1, None, None, None] + 110 + colours[:, 0, None, None, None]
    np.testing.assert_allclose(changed, expected, atol=1e-3)


def test_prediction_sees_all_examples_once_in_their_order():
    examples = make_examples(10)
    batches = arrays(batches_in_order(examples, 4))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), np.arange(10))
    images = np.concatenate([inputs for inputs, _ in batches])
    np.testing.assert_array_equal(images, examples.inputs[examples.rows], strict=True)


def test_the_examples_of_a_split_are_its_rows():
    import pandas as pd

    splits = ["val", "train", "", "train", "val"]
    manifest = pd.DataFrame({"id": list("vwxyz"), "label": list("abbac"), "split": splits})
    inputs = np.zeros((5, SIZE, SIZE, 3), np.uint8)
    rows = np.array([3, 1, -1, 0, 2])
    train, val, test = (
        examples_of_split(manifest, name, ("a", "b", "c"), inputs, rows) for name in ("train", "val", "test")
    )
    assert (list(train.ids), list(train.rows), list(train.labels)) == (["w", "y"], [1, 0], [1, 0])
    assert (list(val.ids), list(val.rows), list(val.labels)) == (["v", "z"], [3, 2], [0, 2])
    assert len(test) == 0 and train.labels.dtype == np.int32


@pytest.mark.parametrize("augmentation", ["none", "light"])
@pytest.mark.parametrize("at_once", [2, 3, 100])
@pytest.mark.parametrize("first_update", [0, 2])
def test_batches_that_come_at_once_are_those_that_come_one_by_one(at_once, first_update, augmentation):
    examples = make_examples(23)
    single = arrays(training_batches(examples, 4, 7, 2, first_update, 1, augmentation))
    joined = arrays(training_batches(examples, 4, 7, 2, first_update, at_once, augmentation))
    assert [len(labels) for _, labels in joined][:-1] == [4 * at_once] * (len(joined) - 1)
    for part in (0, 1):
        np.testing.assert_array_equal(*(np.concatenate([batch[part] for batch in batches]) for batches in (single, joined)))


def test_features_come_as_images_do():
    examples = make_examples(23)
    flat = examples.inputs.reshape(len(examples.inputs), -1)
    for batches in (lambda these: training_batches(these, 4, 7, 2, 1), lambda these: batches_in_order(these, 4)):
        for (image, label), (feature, same) in zip(
            arrays(batches(examples)), arrays(batches(replace(examples, inputs=flat))), strict=True
        ):
            np.testing.assert_array_equal(image.reshape(len(image), -1), feature)
            np.testing.assert_array_equal(label, same)


def test_every_example_is_seen_in_each_of_its_views_in_as_many_epochs():
    examples = make_examples(10)
    num_views = 3
    inputs = np.arange(num_views * 10)[:, None].repeat(2, axis=1).astype(np.float32)  # view v of example i: 10 v + i
    examples = replace(examples, inputs=inputs, rows=np.arange(num_views * 10).reshape(num_views, 10))
    seen = []
    for epoch in range(5, 5 + num_views):
        values = np.concatenate([batch[:, 0] for batch, _ in arrays(training_batches(examples, 4, 0, epoch))])
        assert sorted(values % 10) == list(range(10)), "every example once"
        assert len(set(values // 10)) == num_views, "not all in step"
        seen += values.tolist()
    assert sorted(seen) == list(range(num_views * 10))


def test_kept_views_are_still_those_of_their_version():
    transforms, colours = augment.draw("light", True, 0, np.array([1, 2]), np.array([3, 2**64 - 1], np.uint64), 100)
    expected = [[0.968, 0.048, 0.590, -0.048, 0.968, 7.562, 0, 0], [-1.062, 0.082, 101.045, 0.082, 1.062, -2.141, 0, 0]]
    assert augment.VERSION == 1 and transforms == pytest.approx(np.array(expected), abs=1e-3), (
        "views come out otherwise: raise augment.VERSION, else runs would take old ones for new ones"
    )
    assert colours == pytest.approx(np.array([[-3.168, 1.041], [-6.298, 1.059]]), abs=1e-3)
