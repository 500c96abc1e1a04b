"""A run that started from a finished one, compared with it on the same images."""

import logging
from typing import Any

import numpy as np

from transfer_learning.config import RunConfig
from transfer_learning.datasets.decoding import value_range
from transfer_learning.datasets.moved import read_manifest
from transfer_learning.datasets.prepared import PreparedDataset, decoded_otherwise
from transfer_learning.evaluation import ensemble, predictions
from transfer_learning.models.classifier import Classifier, probabilities
from transfer_learning.models.earlier_run import earlier_run, load_earlier, names_run
from transfer_learning.storage.files import read_json
from transfer_learning.storage.run_directory import RunDir

logger = logging.getLogger(__name__)


def compare_with_earlier(
    classifier: Classifier, config: RunConfig, data: PreparedDataset, run_dir: RunDir
) -> dict[str, Any]:
    """Compares an evaluated run with the one that it started from, on images that this one did not train on.

    Only images of classes that both know count. Validation images of the earlier run count as trained on, because they
    chose its weights.

    Returns:
        ``run_dir`` and ``weights_sha256`` of the earlier run, ``copied_classes``, ``num_trained_on`` and
        ``num_other_classes`` (images that were left out), and ``comparison``, the result of
        `ensemble.paired_difference`, or None if no image is left.

    Raises:
        UserError: the earlier run is not there any more.
    """
    earlier_dir, earlier_config = earlier_run(config.weights)
    earlier = load_earlier(earlier_dir, earlier_config)
    rows = np.flatnonzero(data.manifest["split"] == data.eval_split)
    part = data.manifest.iloc[rows]
    is_trained_on = part["sha256"].isin(images_trained_on(earlier_dir)).to_numpy()
    is_other_class = ~part["label"].isin(earlier.class_names).to_numpy()
    result: dict[str, Any] = {
        "run_dir": str(earlier_dir.path),
        "weights_sha256": earlier.weights_digest(),
        "copied_classes": list(classifier.copied),
        "num_trained_on": int(is_trained_on.sum()),
        "num_other_classes": int((is_other_class & ~is_trained_on).sum()),
        "comparison": None,
    }
    if is_trained_on.any():
        logger.warning(
            f"{earlier_dir.path} was trained or validated on {is_trained_on.sum():,} of the {len(part):,} {data.eval_split} "
            f"images, so the accuracy is too high; the comparison with that run leaves them out."
        )
    is_left = ~is_trained_on & ~is_other_class & (data.eval_split != "train")
    if is_left.any():
        predicted = _predicted(earlier, earlier_dir, config, data, rows[is_left])
        is_right = ensemble.is_correct(predictions.read(run_dir.predictions(data.eval_split)))
        was_right = predicted == part["label"].to_numpy(object)[is_left]
        result["comparison"] = ensemble.compare_correct(was_right, is_right[is_left])
    logger.info(describe(result))
    return result


def describe(result: dict[str, Any]) -> str:
    """The result of `compare_with_earlier` in a sentence or two."""
    earlier, left_out = f"the earlier run {result['run_dir']}", []
    if result["num_trained_on"]:
        left_out.append(f"{result['num_trained_on']:,} that decided its weights")
    if result["num_other_classes"]:
        left_out.append(f"{result['num_other_classes']:,} of classes that it does not know")
    more = f" Left out: {' and '.join(left_out)}." if left_out else ""
    if result["comparison"] is None:
        return f"Not compared with {earlier}: no image is left.{more}"
    return ensemble.describe(result["comparison"], earlier, "This run") + more


def images_trained_on(run_dir: RunDir) -> set[str]:
    """SHA-256 of the images that decided the weights of a run, or of those that it started from."""
    found: set[str] = set()
    while run_dir.config.exists():
        manifest = read_manifest(run_dir.manifest)
        if manifest is None:
            logger.warning(f"{run_dir.manifest} cannot be read, so the images that this run trained on are not known.")
        else:
            found |= set(manifest.loc[manifest["split"].isin(("train", "val")), "sha256"])
        weights = run_dir.read_config().weights
        if not names_run(weights):
            break
        run_dir = RunDir(weights)
    return found


def _predicted(
    earlier: Classifier, run_dir: RunDir, config: RunConfig, data: PreparedDataset, rows: np.ndarray
) -> np.ndarray:
    """The classes that the earlier run predicts for these rows of the manifest, as names.

    Args:
        config: of the new run, for its dataset and cache.
    """
    own = run_dir.read_config()
    ranges = value_range.recorded(read_json(run_dir.environment, device=dict, dataset=dict))
    pixels, places = data.images.pixels, data.images.rows[rows]
    if (own.stored_size, own.resize, ranges) != (config.stored_size, config.resize, data.images.ranges):
        hashes = data.manifest["sha256"].iloc[rows]
        pixels, places = decoded_otherwise(config, hashes, own.stored_size, own.resize, ranges)
    found = probabilities(earlier, pixels, places)
    return np.array(earlier.class_names, object)[found.argmax(axis=1)]
