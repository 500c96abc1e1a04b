"""Runs without the two kinds of files that take longest, and with them where a test is about these."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from transfer_learning.evaluation.figures import style
from transfer_learning.experiments import evaluate, export, soups, train

COARSE = 60  # dots per inch: a sixth of the pixels


@contextmanager
def without_files() -> Iterator[None]:
    """Runs leave out figures and inference file."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (train, soups):
            for name in ("draw_figures", "add_inference_file"):
                patch.setattr(module, name, lambda *_: None)
        yield


@contextmanager
def with_files() -> Iterator[None]:
    """Within `without_files`: runs write them again, the figures with fewer pixels."""
    with pytest.MonkeyPatch.context() as patch, with_inference_file():
        patch.setattr(style, "DOTS_PER_INCH", COARSE)
        for module in (train, soups):
            patch.setattr(module, "draw_figures", evaluate.draw_figures)
        yield


@contextmanager
def with_inference_file() -> Iterator[None]:
    """Within `without_files`: runs write the inference file again."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (train, soups):
            patch.setattr(module, "add_inference_file", export.add_inference_file)
        yield
