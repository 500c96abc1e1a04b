"""The rest of a head whose rows were partly copied from an earlier run: new classes in closed form.

The closed form solves all classes. Its rows of new classes are taken relative to the mean of the copied classes, in the
scale in which its scores of these fit those of the copied rows. Where validation images say that the closed form of all
rows is better, as after many new images, that is taken.
"""

import logging
from dataclasses import dataclass, replace

import keras
import numpy as np

from transfer_learning.config import RunConfig
from transfer_learning.datasets.pipeline import Examples
from transfer_learning.models.classifier import Classifier
from transfer_learning.models.head_features import feature_blocks
from transfer_learning.models.standardization import unfold_standardization
from transfer_learning.storage.rows import Rows
from transfer_learning.training.closed_form import CHUNK, closed_form_head, standardization

logger = logging.getLogger(__name__)


@dataclass
class LastInputs:
    """`Rows` (n, width) of what the last layer of a head sees, computed from features on each access."""

    features: Rows
    head: keras.Model

    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.features), self.head.layers[-1].kernel.shape[0]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        inputs = self.features[rows]
        for layer in self.head.layers[1:-1]:
            inputs = inputs if isinstance(layer, keras.layers.Dropout) else layer(inputs)
        return np.asarray(inputs, np.float32)


def complete_head(
    config: RunConfig,
    classifier: Classifier,
    train: Examples,
    val: Examples,
    weights: list[float],
    groups: np.ndarray | None,
) -> None:
    """Sets the rows that were not copied from an earlier run, or all rows where that is better.

    Args:
        train: features of the training images, float32 (n, width).
        val: of the validation images; without any, copied rows stay.
        weights: one per class, see `closed_form_head`.
        groups: of the training images, see `closed_form_head`.
    """
    if config.head_features != "last":
        mean, scale = standardization(train, feature_blocks(classifier.backbone, config.head_features))
        unfold_standardization(classifier, mean, scale)
    logits = classifier.head.get_layer("logits")
    train, val = (replace(one, inputs=LastInputs(one.inputs, classifier.head)) for one in (train, val))
    # Fine-tuning cannot start from discriminant analysis, see `PhaseBuilder.restart_head`.
    kind = "lda" if config.head_init == "lda" and not config.fine_tune.epochs else "ridge"
    solved = closed_form_head(train, len(weights), weights, kind, groups=groups)
    kernel, bias = (values.astype(np.float64) for values in logits.get_weights())
    is_copied = np.isin(classifier.class_names, classifier.copied)
    about = f"{is_copied.sum():,} classes have the rows of {config.weights}"
    if not is_copied.all():
        _fill_in(kernel, bias, is_copied, solved.kernel, solved.bias, train)
        about += f", {(~is_copied).sum():,} the closed form of {kind}"
    if len(val):
        loss, solved_loss = _loss(kernel, bias, val), _loss(solved.kernel, solved.bias, val)
        compared = (
            f"val_loss {loss:.3f} with the rows of {config.weights}, {solved_loss:.3f} with {kind} for all classes"
        )
        if solved_loss < loss:
            kernel, bias = solved.kernel, solved.bias
            about = f"{kind} for all classes"
        about += f" ({compared})"
    logits.set_weights([kernel, bias])
    logger.info(f"The head starts from an earlier run: {about}.")


def _fill_in(
    kernel: np.ndarray,
    bias: np.ndarray,
    is_copied: np.ndarray,
    solved_kernel: np.ndarray,
    solved_bias: np.ndarray,
    train: Examples,
) -> None:
    """Sets rows that were not copied, in place; see above."""
    products = squares = 0.0
    for start in range(0, len(train), CHUNK):
        inputs = train.inputs[train.rows[start : start + CHUNK]].astype(np.float64)
        of_copied = inputs @ kernel[:, is_copied] + bias[is_copied]
        of_solved = inputs @ solved_kernel[:, is_copied] + solved_bias[is_copied]
        of_copied, of_solved = (scores - scores.mean(axis=1, keepdims=True) for scores in (of_copied, of_solved))
        products, squares = products + (of_copied * of_solved).sum(), squares + (of_solved**2).sum()
    scale = max(products / max(squares, 1e-12), 1e-3)
    for rows, solved in ((kernel, solved_kernel), (bias, solved_bias)):
        relative = solved[..., ~is_copied] - solved[..., is_copied].mean(axis=-1, keepdims=True)
        rows[..., ~is_copied] = scale * relative + rows[..., is_copied].mean(axis=-1, keepdims=True)


def _loss(kernel: np.ndarray, bias: np.ndarray, examples: Examples) -> float:
    """Mean cross-entropy of a last layer."""
    from scipy.special import log_softmax

    total = 0.0
    for start in range(0, len(examples), CHUNK):
        part = slice(start, start + CHUNK)
        scores = examples.inputs[examples.rows[part]].astype(np.float64) @ kernel + bias
        labels = examples.labels[part]
        total -= log_softmax(scores, axis=1)[np.arange(len(labels)), labels].sum()
    return total / len(examples)
