"""Image grids show each image with its caption and mark."""

import numpy as np
import pytest

from tests.support.figures import LONG, overlapping
from transfer_learning.evaluation import predictions
from transfer_learning.evaluation.figures.images import beside_grad_cam, captions, image_grid
from transfer_learning.evaluation.figures.style import save


@pytest.mark.parametrize(("num_images", "side"), [(1, 224), (2, 8), (5, 28), (6, 32), (25, 8), (4, 128)])
def test_image_grid_shows_each_image_with_its_caption_and_mark(tmp_path, num_images, side):
    random = np.random.default_rng(0)
    images = random.integers(256, size=(num_images, side, side, 3), dtype=np.uint8)
    correct = [i % 2 == 0 for i in range(num_images)]
    figure = image_grid(images, [f"{LONG} {i}\ntrue: {LONG}" for i in range(num_images)], correct)
    [axes] = figure.axes
    assert [text.get_text()[0] for text in axes.texts] == ["✓" if right else "✗" for right in correct]
    assert len({outline.get_edgecolor() for outline in axes.patches}) == min(2, num_images)
    for shown, image in zip(axes.images, images, strict=True):
        np.testing.assert_array_equal(shown.get_array(), image)
    assert overlapping(figure, axes.texts) == []
    boxes = np.array([artist.get_window_extent().extents for artist in (*axes.texts, *axes.patches)])
    assert boxes.min() >= 0 and (boxes[:, 2:] <= figure.bbox.size).all(), "nothing is cut off"
    save(figure, tmp_path / "grid.png")


@pytest.mark.parametrize(("side", "shown"), [(8, 160), (28, 140), (160, 160), (224, 224)])
def test_the_grad_cam_map_is_beside_the_image(tmp_path, side, shown):
    image = np.random.default_rng(0).integers(0, 100, (side, side, 3), np.uint8)
    importance = np.zeros((4, 4), np.float32)
    importance[0, 0] = 1
    pair = beside_grad_cam(image, importance)
    assert pair.shape == (shown, 2 * shown, 3) and pair.dtype == np.uint8
    factor = shown // side
    np.testing.assert_array_equal(pair[::factor, :shown:factor], image)
    bright, dark = pair[: shown // 8, shown : shown + shown // 8], pair[-shown // 4 :, -shown // 4 :]
    assert bright.mean() > dark.mean() + 50
    assert np.ptp(dark.astype(int), axis=2).max() == 0, "unimportant regions are grey"
    grid = image_grid([pair] * 8, ["one\ntwo"] * 8, [True] * 8, wide=2)
    first, second, third, *_ = [outline.get_bbox() for outline in grid.axes[0].patches]
    assert first.width == pytest.approx(2 * first.height) and first.y0 == second.y0 < third.y0, "two in each row"
    save(grid, tmp_path / "attention.png")


def test_captions_name_both_classes_and_never_round_up_to_certain():
    names, probabilities = ["right", "wrong", "\udcff"], [[0, 0.9998, 0.0002], [0, 0, 1]]
    table = predictions.table(["x", "y"], np.array([0, 2]), probabilities, names)
    assert captions(table) == ["wrong 99.9 %\ntrue: right", "class 2 100.0 %\ntrue: class 2"]
