"""What the tests of figures share: odd names, and which texts overlap when a figure is drawn."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

LONG = "A very long pharmaceutical product name, 500 mg, film-coated tablets"
HOSTILE = ["$x^2$", "a $ b", "<b>bold</b>", "two\nlines", "", " ", "錠剤", "💊", "\udcff", "%s {0} \\frac"]


def drawn(figure):
    """The figure after its layout, as `save` would draw it."""
    FigureCanvasAgg(figure).draw()
    return figure


def overlapping(figure, texts):
    """Pairs of texts that cover each other when the figure is drawn."""
    drawn(figure)
    texts = [text for text in texts if text.get_text()]
    left, low, right, high = np.array([text.get_window_extent().extents for text in texts]).T
    cover = (left < right[:, None]) & (left[:, None] < right) & (low < high[:, None]) & (low[:, None] < high)
    return [(texts[i].get_text(), texts[j].get_text()) for i, j in zip(*np.nonzero(np.triu(cover, 1)), strict=True)]
