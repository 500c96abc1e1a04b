"""The same input gives the same bytes; names can be read."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from PIL import Image

from tests.support.figures import LONG
from transfer_learning.evaluation.figures.confusion import confusion_matrix
from transfer_learning.evaluation.figures.curves import curves
from transfer_learning.evaluation.figures.images import image_grid
from transfer_learning.evaluation.figures.style import LONGEST_NAME, readable, save, without_font


def test_long_names_that_differ_at_an_end_still_differ():
    shown = readable([f"{LONG} A", f"{LONG} B", f"A {LONG}"])
    assert len(set(shown)) == 3
    assert all(len(name) <= LONGEST_NAME for name in shown)


def test_a_name_without_a_font_is_shown_with_its_number():
    names = ["cat", "\U00013000\U00013001", "caf\U00013000"]
    assert readable(names) == ["cat", "class 1", "2: caf?"]
    assert without_font(names) == [(1, names[1]), (2, names[2])]


HISTORY = pd.DataFrame(
    {
        "phase": ["frozen", "frozen", "fine_tune"],
        "epoch": [1, 2, 3],
        "learning_rate": 1e-3,
        "loss": [1.0, 0.5, 0.4],
        "accuracy": [0.5, 0.7, 0.8],
        "val_loss": np.nan,
        "val_accuracy": np.nan,
    }
)
FIGURES = {
    "matrix": lambda: confusion_matrix(np.eye(10, dtype=int), [f"class {i}" for i in range(10)], True),
    "curves": lambda: curves(HISTORY, {"frozen": 2}),
    "grid": lambda: image_grid(np.full((5, 8, 8, 3), 99, np.uint8), list("abcde"), [True] * 5),
}


@pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES)
def test_the_same_input_gives_the_same_bytes_whatever_the_users_settings(tmp_path, make):
    save(make(), tmp_path / "one.png")
    own = {"font.size": 22, "figure.facecolor": "black", "savefig.dpi": 50, "savefig.transparent": True}
    with matplotlib.rc_context(own):
        save(make(), tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as picture:
        assert "Software" not in picture.info
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert pyplot.get_fignums() == []
