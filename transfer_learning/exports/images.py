"""The images of the evaluation split of a run, decoded again from their files, without TensorFlow."""

import io
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from transfer_learning.datasets.dataset import FilePart, Source
from transfer_learning.datasets.decoding import value_range
from transfer_learning.datasets.decoding.decode import content_hash, read_file
from transfer_learning.datasets.decoding.workers import DecodeWorkers
from transfer_learning.datasets.moved import read_manifest
from transfer_learning.datasets.prepared import load_dataset_of
from transfer_learning.errors import UserError
from transfer_learning.evaluation import predictions
from transfer_learning.exports.gate import FLOAT_LIMIT, REDUCED_LIMIT, EvaluatedImages
from transfer_learning.storage.files import read_json
from transfer_learning.storage.run_directory import RunDir

CHUNK = 256  # images that are decoded before the next ones are asked for


def load_images(run_dir: RunDir, dataset: str = "") -> EvaluatedImages:
    """Decodes the images of the evaluation split; their pixels are in a temporary file, since they may be many.

    Args:
        dataset: where the images are, if not where they were; then they are known by their contents.

    Raises:
        UserError: the dataset is missing, or an image is missing or has changed since the run.
    """
    config, evaluation = run_dir.read_config(), read_json(run_dir.evaluation, split=str)
    recorded = predictions.read(run_dir.predictions(evaluation["split"]))
    place, environment = dataset or config.dataset, read_json(run_dir.environment, device=dict, dataset=dict)
    examples = load_dataset_of(replace(config, dataset=place)).examples
    manifest = read_manifest(run_dir.manifest)
    if manifest is None:
        raise UserError(f"{run_dir.manifest} is missing or damaged; restore it.")
    hashes = dict(manifest[["id", "sha256"]].to_numpy())
    sources = {example.id: example.source for example in examples}
    if not set(recorded["id"]) <= set(sources):
        by_hash = {content_hash(example.source): example.source for example in examples}
        sources = {id: by_hash[hashes[id]] for id in recorded["id"] if hashes.get(id) in by_hash}
    if missing := [id for id in recorded["id"] if id not in sources]:
        raise UserError(
            f"{place} lacks {len(missing):,} of {len(recorded):,} {evaluation['split']} images of {run_dir.path}, such as "
            f"{missing[0]}; restore them, or name their folder with --dataset."
        )
    chosen = [sources[id] for id in recorded["id"]]
    size, ranges = config.stored_size, value_range.recorded(environment)
    with tempfile.TemporaryFile() as file:
        pixels = np.memmap(file, np.uint8, "w+", shape=(len(chosen), size, size, 3))
    with DecodeWorkers(size, config.resize, ranges=ranges) as workers:
        for start in range(0, len(chosen), CHUNK):
            decoded = workers.map(chosen[start : start + CHUNK])
            for row, (digest, image) in enumerate(decoded, start):
                id = recorded["id"].iloc[row]
                if image.problem or digest != hashes.get(id):
                    raise UserError(f"The image {id} has changed since {run_dir.path} was made; restore it.")
                pixels[row] = image.pixels
    # The most certain image: small differences of decoding do not change its class.
    row = int(recorded["confidence"].to_numpy().argmax())
    limit = FLOAT_LIMIT if environment["device"].get("precision", "float32") == "float32" else REDUCED_LIMIT
    return EvaluatedImages(recorded, pixels, _encoded(chosen[row]), row, limit)


def _encoded(source: Source) -> bytes:
    if isinstance(source, Path | FilePart):
        return read_file(source)
    stream = io.BytesIO()
    Image.fromarray(source).save(stream, "PNG")
    return stream.getvalue()
