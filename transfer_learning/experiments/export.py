"""Export a finished run: write each format, keep it only if it passes the gate, write the table and the model card."""

import gc
import importlib
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from transfer_learning.cli.console import muted
from transfer_learning.cli.formatting import listed
from transfer_learning.cli.parser import quiet_start
from transfer_learning.config import RunConfig
from transfer_learning.datasets.dataset import SPLITS
from transfer_learning.datasets.decoding import value_range
from transfer_learning.datasets.moved import read_manifest
from transfer_learning.datasets.prepared import PreparedDataset, load_prepared
from transfer_learning.datasets.sources.registry import DATASETS
from transfer_learning.errors import UserError, needs_extra
from transfer_learning.evaluation import predictions
from transfer_learning.exports.formats import Format
from transfer_learning.exports.gate import check
from transfer_learning.exports.images import load_images
from transfer_learning.exports.inference_file import MOST_IMAGES, write_inference_file
from transfer_learning.exports.metadata import Metadata
from transfer_learning.exports.model_card import write_card
from transfer_learning.exports.network import Network
from transfer_learning.machine.devices import set_up_devices
from transfer_learning.models.backbones import find_backbone
from transfer_learning.models.classifier import Classifier, load_model
from transfer_learning.storage.cache import Cache
from transfer_learning.storage.files import check_writable, read_json, write_json
from transfer_learning.storage.run_directory import RunDir

logger = logging.getLogger(__name__)

CARD = "README.md"  # beside the files
CALIBRATION_IMAGES = 100  # training images for int8 formats; litert's guide asks for 100 to 500


def export_run(
    run_dir: RunDir, formats: Sequence[Format], folder: Path, int8_limit: float, dataset: str = ""
) -> list[dict[str, Any]]:
    """Writes a finished run in these formats.

    A file that fails its gate does not get its final name. The table of the gate, ``export.json``, and the model card
    cover all files in the folder that have the weights of the run.

    Args:
        int8_limit: the loss of accuracy at which an integer format fails, 0..1.
        dataset: where the images are, if not where they were.

    Returns:
        What the gate found for each format, see `gate.check`.

    Raises:
        UserError: the model, the images or a package is missing, or the folder cannot be written or holds files of others.
    """
    table = folder / run_dir.export_table.name
    _check_folder(folder, table, [CARD, *(format.path for format in formats)], run_dir)
    with needs_extra("export"):  # the card comes last: its package is looked for now
        importlib.import_module("huggingface_hub")
    images = load_images(run_dir, dataset)
    network = load_network(run_dir, dataset)
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        for format in formats:
            path = Path(partial) / format.path
            logger.info(f"Writing {format.name} ...")
            with quiet_start():
                format.write(network, path)
            result = check(format, path, images, int8_limit) | {"weights_sha256": network.metadata.weights_sha256}
            results.append(result)
            if result["problem"]:
                logger.error(f"{folder / format.path} was not written: {result['problem']}.")
                continue
            if (folder / format.path).is_dir():
                shutil.rmtree(folder / format.path)  # a folder cannot be replaced
            os.replace(path, folder / format.path)
    rows = _rows(table, network.metadata, results)
    write_json(table, {"formats": rows})
    if passed := [row for row in rows if not row["problem"]]:
        write_card(folder / CARD, network.metadata, read_json(run_dir.evaluation), passed, _about(run_dir))
    return results


def _check_folder(folder: Path, table: Path, names: Sequence[str], run_dir: RunDir) -> None:
    """Raises UserError if the files would replace some that no export wrote, such as a README.md of the user."""
    check_writable(folder, "--output")
    others = [name for name in names if (folder / name).exists()]
    if others and not table.exists() and folder != run_dir.export:  # there an export may have been killed
        raise UserError(
            f"--output {folder} holds {listed(others)} without the {table.name} of an export, and would replace it; choose a "
            "new or an empty folder."
        )


def load_network(run_dir: RunDir, dataset: str = "") -> Network:
    """Loads the trained model of a finished run in float32, whatever the precision of its training.

    Args:
        dataset: where the images are, if not where they were.

    Raises:
        UserError: the model is missing, damaged, or not the one that was evaluated.
    """
    gc.collect()  # layers and variables refer to each other, so an earlier model may still be in memory
    config, evaluation = run_dir.read_config(), read_json(run_dir.evaluation, weights_sha256=str)
    ranges = value_range.recorded(read_json(run_dir.environment, dataset=dict))
    with muted():
        set_up_devices("float32", config.seed)
    classifier = load_model(config, run_dir.model, evaluation["weights_sha256"])
    metadata = metadata_of(classifier, config, evaluation["weights_sha256"], ranges)

    def calibration_images() -> np.ndarray:
        train = load_prepared(replace(config, dataset=dataset or config.dataset), ranges).split("train")
        chosen = np.random.default_rng(config.seed).permutation(len(train))[:CALIBRATION_IMAGES]
        return train.inputs[train.rows[np.sort(chosen)]]

    return Network(classifier, metadata, calibration_images)


def metadata_of(classifier: Classifier, config: RunConfig, weights_sha256: str, ranges: value_range.Ranges) -> Metadata:
    """What every exported file of a run says about itself."""
    names, calibration = classifier.class_names, (classifier.temperature, classifier.rejection_threshold)
    return Metadata(names, config.stored_size, config.resize, *calibration, weights_sha256, ranges)


def add_inference_file(
    classifier: Classifier, data: PreparedDataset, config: RunConfig, run_dir: RunDir, cache: Cache | None = None
) -> None:
    """Writes the inference file of a run that has just been evaluated; for `cache` see `write_inference_file`."""
    if keras.config.dtype_policy().compute_dtype != "float32":
        logger.info(
            f"{run_dir.inference.name} was not written: {config.precision} predictions differ from float32 ones."
        )
        return
    metadata = metadata_of(classifier, config, classifier.weights_digest(), data.images.ranges)
    examples, table = data.split(data.eval_split), predictions.read(run_dir.predictions(data.eval_split))
    some = np.unique(np.linspace(0, len(examples) - 1, MOST_IMAGES).astype(int))
    recorded = predictions.probabilities(table)[some]
    network = Network(classifier, metadata, lambda: examples.inputs[examples.rows])
    write_inference_file(network, examples.inputs[examples.rows[some]], recorded, run_dir, cache)


def _rows(table: Path, metadata: Metadata, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table: these results, and those of earlier calls whose files are still there and have the same weights."""
    earlier = read_json(table, formats=list)["formats"] if table.exists() else []
    new = {row["format"] for row in results}
    rows = list(results)
    for row in earlier:
        if row["format"] in new:
            continue
        if row.get("weights_sha256") == metadata.weights_sha256:
            rows.append(row)
        elif (table.parent / row["file"]).exists():
            logger.warning(
                f"{table.parent / row['file']} has other weights than the run; export {row['format']} again."
            )
    return rows


def _about(run_dir: RunDir) -> dict[str, Any]:
    """What the model card says of the data and the pretrained weights."""
    config = run_dir.read_config()
    source = DATASETS.get(config.dataset)
    counts = None
    if (manifest := read_manifest(run_dir.manifest)) is not None:
        counts = {name: int((manifest["split"] == name).sum()) for name in SPLITS}
    return {
        "dataset": config.dataset if source or ":" in config.dataset else Path(config.dataset).stem,
        "backbone": config.backbone,
        "weights_licence": find_backbone(config.backbone).weights_licence if config.weights == "imagenet" else "",
        "images_licence": source.licence if source else "",
        "counts": counts,
    }
