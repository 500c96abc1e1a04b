"""Order and augmentation of training images: pure in (seed, epoch, image), so that a resumed epoch is the same."""

import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_learning.datasets import augmentation
from transfer_learning.datasets.pipeline import (
    BATCHES_AHEAD,
    Examples,
    Share,
    batches_in_order,
    examples_of_split,
    order,
    training_batches,
)

SIZE = 12
AUGMENTATIONS = ("none", *augmentation.AUGMENTATIONS)
MIXING = [name for name, kind in augmentation.AUGMENTATIONS.items() if kind.share]


def make_examples(count, seed=0):
    """Rows out of a larger array, in an order of their own."""
    rng = np.random.default_rng(seed)
    inputs = rng.integers(0, 256, (count + 7, SIZE, SIZE, 3)).astype(np.uint8)
    rows = rng.permutation(count + 7)[:count]
    ids = np.array([f"class {number % 3}/{number}.png" for number in range(count)], object)
    return Examples(inputs, rows, np.arange(count, dtype=np.int32), ids)


def arrays(batches):
    return [(np.asarray(inputs), np.asarray(labels)) for inputs, labels in batches]


def draw(kind, flip, seed, epoch, keys, size=SIZE):
    """The transforms (n, 8) and the changes of colour (n, 2) that are drawn for images of these keys."""
    parameters = augmentation.draw(kind, flip, seed, epoch, np.array(keys, np.uint64), size)
    return parameters[:, :8], parameters[:, 8:10]


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


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_an_epoch_holds_every_example_once_with_its_own_label(augmentation):
    examples = make_examples(23)
    batches = arrays(training_batches(examples, 5, seed=3, epoch=1, augmentation=augmentation))
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 5, 3]
    labels = np.concatenate([labels for _, labels in batches])
    labels = labels[:, 0] if augmentation in MIXING else labels
    np.testing.assert_array_equal(labels, order(23, 3, 1))  # the label of an example is its number here
    if augmentation == "none":
        images = np.concatenate([inputs for inputs, _ in batches])
        np.testing.assert_array_equal(images, examples.inputs[examples.rows[labels]])


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_resumed_at_any_update_it_gives_the_remaining_batches_to_the_bit(augmentation):
    def epoch_from(first_update):
        return arrays(training_batches(examples, 4, 7, 2, 4 * first_update, augmentation=augmentation))

    examples = make_examples(18)
    whole = epoch_from(0)
    for first_update in range(6):
        assert_same(epoch_from(first_update), whole[first_update:])


@pytest.mark.parametrize("num_workers", [2, 3])
@pytest.mark.parametrize("augmentation", ["none", "light", "mixup"])
def test_the_parts_of_all_workers_are_the_batches_of_one(augmentation, num_workers):
    examples, options = make_examples(16), {"batch_size": 5, "seed": 1, "epoch": 2, "augmentation": augmentation}
    shares = [Share(index, num_workers, 5) for index in range(num_workers)]  # of the last image, some workers get none
    parts = [arrays(training_batches(replace(examples, share=share), **options)) for share in shares]
    joined = [[np.concatenate(values) for values in zip(*batches, strict=True)] for batches in zip(*parts, strict=True)]
    assert_same(joined, arrays(training_batches(examples, **options)))


def test_a_worker_gets_its_part_of_each_of_several_batches():
    parts = [Share(index, 2, 5).of(np.arange(12), False).tolist() for index in range(2)]
    assert parts == [[0, 1, 5, 6, 10], [2, 3, 4, 7, 8, 9, 11]]


@pytest.mark.parametrize("augmentation", sorted(set(AUGMENTATIONS[1:]) - set(MIXING)))
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
        for seed in range(2)
        for epoch in range(3)
        for inputs, _ in arrays(training_batches(same, 8, seed, epoch, augmentation="light"))
        for image in inputs
    }
    assert len(seen) == 2 * 3 * 8


@pytest.mark.parametrize("kind", MIXING)
def test_mixed_images_hold_as_much_of_the_next_image_as_their_labels_say(kind):
    colours = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250], [0, 0, 0]], np.uint8)
    inputs = np.broadcast_to(colours[:, None, None], (4, 48, 48, 3)).copy()
    ids = np.array(list("abcd"), object)
    examples = Examples(inputs, np.arange(4), np.arange(4, dtype=np.int32), ids)
    shares = []
    for epoch in range(20):
        with pytest.MonkeyPatch.context() as patched:
            patched.setitem(augmentation.STRENGTHS, "light", dict.fromkeys(augmentation.STRENGTHS["light"], 0.0))
            ((images, labels),) = arrays(training_batches(examples, 4, 0, epoch, augmentation=kind))
        own, other, share = labels.T
        np.testing.assert_array_equal(other, np.roll(own, -1))
        expected = share[:, None] * colours[own.astype(int)] + (1 - share[:, None]) * colours[other.astype(int)]
        np.testing.assert_allclose(images.mean(axis=(1, 2)), expected, atol=1e-2)
        shares += list(share)
    assert min(shares) >= 0 and max(shares) <= 1 and max(shares) - min(shares) > 0.3


def test_half_of_the_images_lose_a_rectangle_to_random_erasing():
    parameters = augmentation.draw("erasing", True, 0, 0, np.arange(500, dtype=np.uint64), 100)
    left, top, right, bottom = parameters[:, 10:].T
    area = (right - left) * (bottom - top) / 100**2
    erased = area > 0
    assert 0.4 < erased.mean() < 0.6 and 0.015 < area[erased].min() and area.max() < 0.34
    assert (left >= 0).all() and (top >= 0).all() and (right <= 100).all() and (bottom <= 100).all()
    plain = np.array([[1, 0, 0, 0, 1, 0, 0, 0, 0, 1, *box] for box in parameters[:20, 10:]], np.float32)
    images = np.random.default_rng(0).integers(0, 256, (20, 100, 100, 3)).astype(np.uint8)
    changed = np.asarray(augmentation.apply("erasing", images, plain))
    replaced = (changed != images).any(axis=3).mean(axis=(1, 2))
    np.testing.assert_allclose(replaced, area[:20], atol=0.01)


GREY, COLOUR = [100.0, 100.0, 100.0], [200.0, 100.0, 30.0]


@pytest.mark.parametrize(
    ("change", "value", "before", "after"),
    [
        ("saturation", 0.0, COLOUR, [121.92] * 3),
        ("saturation", 1.0, COLOUR, COLOUR),
        ("saturation", 1.5, GREY, GREY),
        ("brightness", 1.5, COLOUR, [255.0, 150.0, 45.0]),
        ("levels", 4.0, COLOUR, [192.0, 64.0, 0.0]),
        ("threshold", 128.0, COLOUR, [55.0, 100.0, 30.0]),
    ],
)
def test_trivial_changes_of_colour(change, value, before, after):
    parameters = np.array([[1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 256, 256, 0]], np.float32)
    parameters[0, {"brightness": 10, "saturation": 11, "levels": 12, "threshold": 13}[change]] = value
    image = np.broadcast_to(np.array(before, np.uint8), (1, 6, 6, 3))
    changed = np.asarray(augmentation.apply("trivial", image, parameters))
    np.testing.assert_allclose(changed, np.broadcast_to(np.array(after), (1, 6, 6, 3)), atol=0.1)


def test_trivial_makes_one_change_of_every_kind_and_stretches_contrast():
    parameters = augmentation.draw("trivial", False, 0, 0, np.arange(600, dtype=np.uint64), 50)
    plain = np.array([1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 256, 256, 0], np.float32)
    is_changed = abs(parameters - plain) > 1e-6
    assert is_changed[:, [*range(6), *range(9, 15)]].any(axis=0).all()
    assert (is_changed[:, 8:].sum(axis=1) <= 1).all() and not is_changed.all(axis=1).any()
    image = np.random.default_rng(0).integers(90, 110, (1, 6, 6, 3)).astype(np.uint8)
    plain[14] = 1
    changed = np.asarray(augmentation.apply("trivial", image, plain[None]))
    assert changed.min() == 0 and changed.max() == pytest.approx(255)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS[1:])
def test_images_stay_images(augmentation):
    inputs = np.concatenate([np.zeros((8, SIZE, SIZE, 3)), np.full((8, SIZE, SIZE, 3), 255)]).astype(np.uint8)
    examples = Examples(inputs, np.arange(16), np.arange(16, dtype=np.int32), make_examples(16).ids)
    for images, _ in arrays(training_batches(examples, 16, 0, 0, augmentation=augmentation)):
        assert images.dtype == np.float32 and images.shape == (16, SIZE, SIZE, 3)
        assert images.min() >= 0 and images.max() <= 255 and np.isfinite(images).all()


@settings(deadline=None)
@given(
    strength=st.sampled_from(sorted(augmentation.STRENGTHS)),
    flip=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
    epoch=st.integers(0, 10**6),
    keys=st.lists(st.integers(0, 2**64 - 1), max_size=6),
)
def test_what_is_drawn_stays_in_its_range_and_mirrors_only_if_asked(strength, flip, seed, epoch, keys):
    transforms, colours = draw(strength, flip, seed, epoch, keys)
    assert transforms.shape == (len(keys), 8) and colours.shape == (len(keys), 2)
    assert transforms.dtype == colours.dtype == np.float32
    spread = augmentation.STRENGTHS[strength]
    a, b, c, d, e, f = transforms[:, :6].T
    area = a * e - b * d  # of the source that a pixel of the result covers; negative where mirrored
    low, high = (1 / (1 + sign * spread["zoom"]) ** 2 for sign in (1, -1))
    assert ((low * 0.999 <= abs(area)) & (abs(area) <= high * 1.001)).all()
    assert flip or (area > 0).all()
    assert (abs(np.rad2deg(np.arcsin(b / np.sqrt(abs(area))))) <= spread["rotation"] + 1e-3).all()
    middle = (SIZE - 1) / 2
    for shift in (a * middle + b * middle + c - middle, d * middle + e * middle + f - middle):
        assert (abs(shift) <= SIZE * spread["shift"] + 1e-3).all()
    assert (abs(colours[:, 0]) <= 255 * spread["brightness"] + 1e-3).all()
    assert (abs(colours[:, 1] - 1) <= spread["contrast"] + 1e-6).all()


@pytest.mark.parametrize("key", [5, 2**63, 2**64 - 1])
def test_keys_seeds_and_epochs_count_to_their_last_digit(key):
    """A list of a large and a small integer becomes floats in NumPy, which know 53 of 64 bits."""
    drawn = {
        draw("light", True, seed, epoch, [other])[0].tobytes()
        for seed in (2**31 - 1, 2**31 - 2)
        for epoch in (0, 1)
        for other in (key, key - 1)
    }
    assert len(drawn) == 8


@pytest.mark.parametrize("kind", AUGMENTATIONS[1:])
def test_half_of_the_images_are_mirrored(kind):
    transforms, _ = draw(kind, True, 0, 0, np.arange(2000))
    mirrored = transforms[:, 0] * transforms[:, 4] - transforms[:, 1] * transforms[:, 3] < 0
    assert 0.45 < mirrored.mean() < 0.55


def apply_with(spread, flip, images):
    spread = dict.fromkeys(augmentation.STRENGTHS["light"], 0.0) | spread
    changes = augmentation.Augmentation(partial(augmentation._draw_turn, spread), augmentation._transform)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(augmentation.AUGMENTATIONS, "test", changes)
        transforms, changed = change("test", images, flip)
        colours = draw("test", flip, 0, 0, np.arange(len(images)), images.shape[1])[1]
    return changed, transforms, colours


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


def change(kind, images, flip=True):
    """Each image drawn by its number: the transforms, and the changed images."""
    parameters = augmentation.draw(kind, flip, 0, 0, np.arange(len(images), dtype=np.uint64), images.shape[1])
    return parameters[:, :8], augmentation.apply(kind, tf.constant(images), tf.constant(parameters)).numpy()


def shifted(image, left, top, is_mirrored):
    """The image seen `left` and `top` pixels further on, in black."""
    size = len(image)
    wide = np.pad(image, ((size, size), (size, size), (0, 0)))
    part = wide[size + top : 2 * size + top, size + left : 2 * size + left]
    return part[:, ::-1] if is_mirrored else part


def test_a_padded_crop_is_a_shift_by_whole_pixels_in_black():
    images = np.random.default_rng(0).integers(1, 256, (400, 32, 32, 3)).astype(np.uint8)
    transforms, changed = change("padded_crop", images)
    shifts = set()
    for image, (a, b, c, d, e, f, *_), result in zip(images, transforms, changed, strict=True):
        left, top = c - (31 if a < 0 else 0), f
        np.testing.assert_array_equal(result, shifted(image, int(left), int(top), a < 0))
        assert (abs(a), b, d, e) == (1, 0, 0, 1)
        shifts.add((left, top))
    for axis in (0, 1):
        assert {shift[axis] for shift in shifts} == set(range(-4, 5)), (
            "4 of 32 pixels to each side, as CIFAR's recipe has it"
        )
    assert len(shifts) > 75, "one axis knows nothing of the other"


def parts(transforms, size):
    """Left, top, width and height of what each transform enlarges, in pixels."""
    a, _, c, _, e, f = transforms[:, :6].T.astype(np.float64)
    width, height = abs(a) * size, e * size
    return np.round(np.stack([np.minimum(c, c + a * (size - 1)) + 0.5 - abs(a) / 2, f + 0.5 - e / 2, width, height]), 3)


def torchvision_draws(rng, size):
    """Width and height as in the documentation of RandomResizedCrop."""
    for _ in range(10):
        area = rng.uniform(0.08, 1.0) * size**2
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        width, height = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < width <= size and 0 < height <= size:
            return width, height
    return size, size


def test_a_resized_crop_takes_parts_as_torchvision_does():
    size, count = 64, 20_000
    transforms, colours = draw("resized_crop", True, 0, 0, np.arange(count), size)
    left, top, width, height = parts(transforms, size)
    assert (colours == [0, 1]).all() and (transforms[:, [1, 3, 6, 7]] == 0).all(), "nothing but a part and a flip"
    for sides in (left, top, width, height):
        assert (sides == np.round(sides)).all(), "whole pixels"
    assert (left >= 0).all() and (top >= 0).all() and (left + width <= size).all() and (top + height <= size).all()
    share, aspect = width * height / size**2, width / height
    assert 0.07 < share.min() < 0.1 and 0.97 < share.max() <= 1
    assert 0.7 < aspect.min() < 0.78 and 1.28 < aspect.max() < 1.43
    rng = np.random.default_rng(0)
    expected = np.array([torchvision_draws(rng, size) for _ in range(count)]).T
    for ours, theirs in ((share, expected.prod(axis=0) / size**2), (aspect, expected[0] / expected[1])):
        quantiles = np.linspace(0.05, 0.95, 19)
        np.testing.assert_allclose(np.quantile(ours, quantiles), np.quantile(theirs, quantiles), atol=0.02)
    room = width < size
    place = left[room] / (size - width[room])
    assert abs(place.mean() - 0.5) < 0.01 and place.min() == 0 and place.max() == 1


def test_a_resized_crop_is_its_part_enlarged():
    images = np.random.default_rng(0).integers(0, 256, (12, 24, 24, 3)).astype(np.uint8)
    transforms, changed = change("resized_crop", images)
    for image, (left, top, width, height), result, is_mirrored in zip(
        images, parts(transforms, 24).T.astype(int), changed, transforms[:, 0] < 0, strict=True
    ):
        expected = tf.image.resize(image[top : top + height, left : left + width], (24, 24)).numpy()
        result = result[:, ::-1] if is_mirrored else result
        # Beyond the middles of its outermost pixels, a part is continued by the image, and torchvision's by itself.
        x, y = (int(np.ceil(12 / sides)) for sides in (width, height))
        np.testing.assert_allclose(result[y:-y, x:-x], expected[y:-y, x:-x], atol=0.02)


def test_an_image_in_which_no_part_lies_is_taken_whole(monkeypatch):
    monkeypatch.setattr(augmentation, "CROP_AREA", (1.0, 1.0))
    monkeypatch.setattr(augmentation, "CROP_ASPECT", (1.3, 1.4))
    images = make_examples(8).inputs[:8]
    _, changed = change("resized_crop", images, flip=False)
    np.testing.assert_array_equal(changed, images)


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
    single = arrays(training_batches(examples, 4, 7, 2, 4 * first_update, augmentation))
    joined = arrays(training_batches(examples, 4 * at_once, 7, 2, 4 * first_update, augmentation))
    assert [len(labels) for _, labels in joined][:-1] == [4 * at_once] * (len(joined) - 1)
    for part in (0, 1):
        np.testing.assert_array_equal(
            *(np.concatenate([batch[part] for batch in batches]) for batches in (single, joined))
        )


def test_features_come_as_images_do():
    examples = make_examples(23)
    flat = examples.inputs.reshape(len(examples.inputs), -1)
    for batches in (lambda these: training_batches(these, 4, 7, 2, 4), lambda these: batches_in_order(these, 4)):
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


COPIES = {  # the transforms of two images that are to come out
    "light": [[0.968, 0.048, 0.590, -0.048, 0.968, 7.562, 0, 0], [-1.062, 0.082, 101.045, 0.082, 1.062, -2.141, 0, 0]],
    "strong": [
        [0.919, 0.113, 1.105, -0.113, 0.919, 16.852, 0, 0],
        [-1.158, 0.226, 101.731, 0.226, 1.158, -9.054, 0, 0],
    ],
    "rotation": [[1.0, 0.025, -1.199, -0.025, 1.0, 1.229, 0, 0], [-0.999, 0.039, 97.056, 0.039, 0.999, -1.871, 0, 0]],
    "padded_crop": [[-1, 0, 103, 0, 1, 3, 0, 0], [-1, 0, 91, 0, 1, 8, 0, 0]],
    "trivial": [[1, 0, 4.587, 0, 1, 0, 0, 0], [1, 0, 0, -0.604, 1, 29.876, 0, 0]],
    "resized_crop": [[-0.94, 0, 97.03, 0, 0.93, 4.965, 0, 0], [-0.69, 0, 74.155, 0, 0.58, 33.79, 0, 0]],
}
COPIES |= dict.fromkeys(("erasing", *MIXING), COPIES["light"])


@pytest.mark.parametrize("kind", AUGMENTATIONS[1:])
def test_cached_copies_are_still_those_of_their_version(kind):
    transforms, colours = draw(kind, True, 0, np.array([1, 2]), [3, 2**64 - 1], 100)
    assert augmentation.VERSION == 1 and transforms == pytest.approx(np.array(COPIES[kind]), abs=1e-3), (
        "augmented copies have changed: raise augmentation.VERSION, else runs would read old ones from the cache"
    )
    if kind == "light":
        assert colours == pytest.approx(np.array([[-3.168, 1.041], [-6.298, 1.059]]), abs=1e-3)


class CountedImages:
    """Images that count how many batches of them were asked for."""

    def __init__(self, images):
        self.images, self.shape, self.dtype, self.num_asked = images, images.shape, images.dtype, 0

    def __getitem__(self, positions):
        self.num_asked += 1
        return self.images[positions]


@pytest.mark.parametrize("augmentation", ["none", "light"])
def test_only_a_few_batches_are_in_memory_however_long_the_epoch(augmentation):
    examples = make_examples(400)
    images = CountedImages(examples.inputs)
    taken = 0
    for _ in training_batches(replace(examples, inputs=images), 4, 0, 0, augmentation=augmentation):
        taken += 1
        if taken in (1, 2, 50):
            time.sleep(0.2)  # whoever would read on does so now
        # in use, ahead, and for augmentation two at work and one that is handed over
        assert images.num_asked <= taken + BATCHES_AHEAD + (1 if augmentation == "none" else 3)
    assert images.num_asked == taken == 100
