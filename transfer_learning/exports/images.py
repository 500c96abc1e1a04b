"""The images of the evaluation split of a run, decoded again from their files, without TensorFlow."""

import io
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from transfer_learning.datasets.dataset import FilePart, Source
from transfer_learning.datasets.decoding.decode import content_hash, decode, read_file
from transfer_learning.datasets.decoding.workers import DecodeWorkers
from transfer_learning.datasets.sources.registry import load_dataset
from transfer_learning.errors import UserError
from transfer_learning.evaluation import predictions
from transfer_learning.exports.gate import FLOAT_LIMIT, REDUCED_LIMIT, EvaluatedImages
from transfer_learning.machine.resources import usable_cores
from transfer_learning.storage.files import read_json
from transfer_learning.storage.run_directory import RunDir

CHUNK = 256  # images that are decoded before the next ones are asked for


def load_images(run_dir: RunDir) -> EvaluatedImages:
    """Decodes the images of the evaluation split; their pixels are in a temporary file, since they may be many.

    Raises:
        UserError: the dataset is missing, or an image has changed since the run.
    """
    config, evaluation = run_dir.read_config(), read_json(run_dir.evaluation, split=str)
    recorded = predictions.read(run_dir.predictions(evaluation["split"]))
    sources = {example.id: example.source for example in load_dataset(config.dataset, config.data_dir).examples}
    if missing := [id for id in recorded["id"] if id not in sources]:
        raise UserError(
            f"{config.dataset} lacks {len(missing):,} of {len(recorded):,} {evaluation['split']} images of "
            f"{run_dir.path}, such as {missing[0]}; restore them, and call it in the folder where the run was made."
        )
    chosen = [sources[id] for id in recorded["id"]]
    hashes = dict(pd.read_csv(run_dir.manifest, dtype=str, na_filter=False)[["id", "sha256"]].to_numpy())
    size = config.stored_size
    with tempfile.TemporaryFile() as file:
        pixels = np.memmap(file, np.uint8, "w+", shape=(len(chosen), size, size, 3))
    with DecodeWorkers(size, config.resize) as workers, ThreadPoolExecutor(usable_cores()) as threads:

        def decoded(source: Source) -> tuple[str, np.ndarray | None]:
            if isinstance(source, np.ndarray):
                return content_hash(source), decode(source, size, config.resize).pixels
            digest, image = workers.decode(source)
            return digest, image.pixels

        for start in range(0, len(chosen), CHUNK):
            ids = recorded["id"].iloc[start : start + CHUNK]
            for row, (id, (digest, image)) in enumerate(
                zip(ids, threads.map(decoded, chosen[start : start + CHUNK]), strict=True), start
            ):
                if image is None or digest != hashes.get(id):
                    raise UserError(f"The image {id} has changed since {run_dir.path} was made; restore it.")
                pixels[row] = image
    # The most certain image: small differences of decoding do not change its class.
    row = int(recorded["confidence"].to_numpy().argmax())
    device = read_json(run_dir.environment, device=dict)["device"] if run_dir.environment.exists() else {}
    limit = FLOAT_LIMIT if device.get("precision", "float32") == "float32" else REDUCED_LIMIT
    return EvaluatedImages(recorded, pixels, _encoded(chosen[row]), row, limit)


def _encoded(source: Source) -> bytes:
    if isinstance(source, Path | FilePart):
        return read_file(source)
    stream = io.BytesIO()
    Image.fromarray(source).save(stream, "PNG")
    return stream.getvalue()
