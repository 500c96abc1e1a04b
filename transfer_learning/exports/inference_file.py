"""The inference file of a run: a LiteRT file of `exports`, with which `predict` starts without TensorFlow.

LiteRT rather than ONNX: 0.3 s against 0.5 s until the first prediction, 129 against 64 images/s one at a time, 140
against 93 in batches of 32, for the same size (docs/export-and-serving.md).
"""

import inspect
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version

import numpy as np

from transfer_learning.cli.console import muted
from transfer_learning.errors import UserError
from transfer_learning.exports import litert
from transfer_learning.exports.gate import FLOAT_LIMIT, float_problem
from transfer_learning.exports.network import Network
from transfer_learning.exports.predictor import Predictor
from transfer_learning.models.features import activations_entry
from transfer_learning.storage.cache import Cache
from transfer_learning.storage.cache_index import NETWORKS, EntrySpec
from transfer_learning.storage.files import written_atomically
from transfer_learning.storage.run_directory import RunDir

logger = logging.getLogger(__name__)

MOST_IMAGES = 64  # for the check: as many as `export` checks would take longer than the figures
KEY = "linear head"  # of the only record of an entry


def write_inference_file(
    network: Network, pixels: np.ndarray, recorded: np.ndarray, run_dir: RunDir, cache: Cache | None = None
) -> None:
    """Writes ``model.tflite`` if it predicts what was recorded; otherwise there is none, and the log says why.

    Args:
        pixels: images of the evaluation split, uint8 (n, size, size, 3).
        recorded: their probabilities in the run's predictions, float32 (n, classes).
        cache: where other runs find the converted network, and only put the weights of their own head into it; of use
            where the backbone is a pretrained one as it is.
    """
    run_dir.inference.unlink(missing_ok=True)  # of an earlier attempt
    problem = ""
    try:
        for model in _models(network, cache):
            with suppress(UserError), written_atomically(run_dir.inference) as temporary:
                litert.finish(model, network.metadata, temporary)
                if problem := float_problem(Predictor(temporary).probabilities(pixels), recorded, FLOAT_LIMIT):
                    raise UserError(problem)
                return
    except Exception as error:  # an operator that LiteRT lacks, no memory for a copy: no reason to lose the run
        problem = str(error)
    reason = " ".join(problem.split())[:200]
    logger.warning(f"{run_dir.inference.name} was not written, so predict starts slowly, with TensorFlow: {reason}")


def _models(network: Network, cache: Cache | None) -> Iterator[bytes]:
    """The network in LiteRT's format: from the cache, with the weights of its head put into it; then converted anew."""
    layers = [layer for layer in network.classifier.head.layers if layer.weights]
    if cache is None or len(layers) != 1:
        yield litert.converted(network)
        return
    classifier = network.classifier
    key = json.dumps([version("tensorflow"), inspect.getsource(litert), classifier.head.to_json()])
    name = activations_entry(classifier.extractor, key, "", 0).name
    entry = EntrySpec(NETWORKS, name, None, "", {"image_size": network.metadata.image_size})
    # LiteRT divides by the temperature in the last layer, whose kernel it transposes.
    scale = np.float32(1 / classifier.temperature)
    weights = [np.ascontiguousarray(array.T * scale).tobytes() for array in layers[0].get_weights()]
    if known := _found(entry, weights, cache):
        yield known
    model = litert.converted(network)
    if all(model.count(values) == 1 for values in weights):
        _store(entry, model, [model.find(values) for values in weights], cache)
    yield model


def _found(entry: EntrySpec, weights: Sequence[bytes], cache: Cache) -> bytes | None:
    """The network in the cache with these weights of the head."""
    with muted("transfer_learning.storage"), suppress(OSError, ValueError), cache.open(entry) as cached:
        position = cached.positions([KEY])
        if position[0] >= 0:
            model = bytearray(cached.byte_rows[position][0])
            for start, values in zip(json.loads(cached.notes([KEY])[0]), weights, strict=True):
                model[start : start + len(values)] = values
            return bytes(model)
    return None


def _store(entry: EntrySpec, model: bytes, starts: list[int], cache: Cache) -> None:
    """Replaces the network in the cache; without messages, since nothing is lost but time where that fails."""
    with muted("transfer_learning.storage"), suppress(OSError), cache.open(entry) as cached:
        if cache.num_bytes() + len(model) <= cache.limit_gb * 1e9:
            cached.forget([KEY])
            cached.add([KEY], [model], [json.dumps(starts)])
