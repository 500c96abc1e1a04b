"""The 1,797 handwritten digits that scikit-learn ships: real images, 8 x 8 pixels, no download.

Source: the test set of UCI's Optical Recognition of Handwritten Digits, 16 grey levels.
"""

from pathlib import Path

import numpy as np

from transfer_learning.datasets.dataset import Dataset, Example


def load(data_dir: Path) -> Dataset:
    """Returns the digits as uint8 pixels (8, 8), ink white on black, 17 levels spread over 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    numbered = enumerate(zip(pixels, digits.target, strict=True))
    examples = tuple(Example(f"digits/{number:04d}", str(label), "", image) for number, (image, label) in numbered)
    return Dataset("digits", tuple("0123456789"), examples)
