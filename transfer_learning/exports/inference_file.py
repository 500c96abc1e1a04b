"""The inference file of a run: a LiteRT file of `exports`, with which `predict` starts without TensorFlow.

LiteRT rather than ONNX: 0.3 s against 0.5 s until the first prediction, 129 against 64 images/s one at a time, 140
against 93 in batches of 32, for the same size (docs/export-and-serving.md).
"""

import logging

import numpy as np

from transfer_learning.errors import UserError
from transfer_learning.exports.formats import FORMATS
from transfer_learning.exports.gate import FLOAT_LIMIT, float_problem
from transfer_learning.exports.network import Network
from transfer_learning.exports.predictor import Predictor
from transfer_learning.storage.files import written_atomically
from transfer_learning.storage.run_directory import RunDir

logger = logging.getLogger(__name__)

FORMAT = FORMATS["litert"]
MOST_IMAGES = 256  # for the check: as many as `export` checks would take longer than the figures


def write_inference_file(network: Network, pixels: np.ndarray, recorded: np.ndarray, run_dir: RunDir) -> None:
    """Writes ``model.tflite`` if it predicts what was recorded; otherwise there is none, and the log says why.

    Args:
        pixels: images of the evaluation split, uint8 (n, size, size, 3).
        recorded: their probabilities in the run's predictions, float32 (n, classes).
    """
    run_dir.inference.unlink(missing_ok=True)  # of an earlier attempt
    try:
        with written_atomically(run_dir.inference) as temporary:
            FORMAT.write(network, temporary)
            if problem := float_problem(Predictor(temporary).probabilities(pixels), recorded, FLOAT_LIMIT):
                raise UserError(problem)
    except Exception as error:  # an operator that LiteRT lacks, no memory for a copy: no reason to lose the run
        reason = " ".join(str(error).split())[:200]
        logger.warning(f"{run_dir.inference.name} was not written, so predict starts slowly, with TensorFlow: {reason}")
