"""Time and disk space of each stage of a run: estimates, extrapolated from short measurements, and what it took.

Time grows with the images that are decoded or pass through the network, whose rates are measured. What does not grow
(compiling, drawing figures) is a constant here.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from transfer_learning.cli.formatting import duration, size
from transfer_learning.config import Phase, RunConfig
from transfer_learning.datasets.dataset import SPLITS, UNSEEN, Dataset
from transfer_learning.datasets.decoding.sample import Sample, sample_dataset
from transfer_learning.errors import UserError
from transfer_learning.evaluation import ood
from transfer_learning.models.classifier import BATCH, Classifier
from transfer_learning.models.freezing import Cut
from transfer_learning.models.inference_graph import inference_graph
from transfer_learning.storage.cache import Cache
from transfer_learning.storage.files import read_json, renamed, write_json
from transfer_learning.storage.measurements import Measurements
from transfer_learning.training.final_weights import SOLVED_PARTS
from transfer_learning.training.phase_inputs import activations_of_cut, copy_names

logger = logging.getLogger(__name__)

MEASURED_SECONDS = 0.3  # of passing images through a network, after a warm-up; at least one batch
SAMPLE_ERROR = 0.2  # a sample of some 64 images cannot distinguish a smaller fraction from 0
DISK_FRACTION = 0.5  # of the free space, that the activations of a fine-tune phase may take

# Measured on two cores without a GPU, float32, relative to the time of the same layers in the inference graph.
FORWARD = 1.3  # a forward pass of trainable layers: nothing is folded into constants (1.1 to 1.6)
TRAINING = 5.0  # forward and backward pass and the optimizer (4 to 6)
HEAD_SECONDS = 2e-5  # per image in a train step of the head
PHASE_SECONDS = 3.0  # to compile a phase
CLOSING_SECONDS = 6.5  # saving the model, figures and report


@dataclass
class Stage:
    """One stage of a run: the estimate, and what it took in all sessions together."""

    name: str
    estimated_seconds: float | None = None
    estimated_bytes: int = 0  # added to the cache
    seconds: float | None = None
    num_bytes: int = 0  # growth of the cache, to which a concurrent run may have contributed


class SplitSizes(NamedTuple):
    """Approximate numbers of images."""

    train: int
    val: int
    test: int


class CutCost(NamedTuple):
    """Cost of the activations at the cut of a phase."""

    images_per_second: float  # through the layers below the cut
    num_bytes: int  # per image
    missing: float  # fraction of the images without cached activations
    is_cached: bool = True  # otherwise they are computed in every epoch


class RunEstimate:
    """The stages of a run in their order, stored as JSON in the run directory; a damaged file is replaced."""

    def __init__(self, path: Path, cache: Cache):
        self._path, self._cache = path, cache
        self.stages: dict[str, Stage] = {}
        self.caches_activations = False  # in the fine-tune phase
        if not path.exists():
            return
        try:
            values = renamed(read_json(path), {"keeps_boundary": "caches_activations"})
            self.stages = {stage["name"]: Stage(**stage) for stage in values["stages"]}
            self.caches_activations = bool(values["caches_activations"])
        except (UserError, TypeError, KeyError, AttributeError):
            self.stages = {}
            logger.warning(f"{path} is damaged and is written again; no result depends on it.")

    @property
    def seconds(self) -> dict[str, float | None]:
        """Time that each stage took so far."""
        return {name: stage.seconds for name, stage in self.stages.items()}

    def start(self, stages: Sequence[Stage], caches_activations: bool) -> None:
        """Sets what `estimate_run` returned, before the first stage."""
        self.stages = {stage.name: stage for stage in stages}
        self.caches_activations = caches_activations
        self._write()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time inside the block to the stage, however the block ends."""
        stage, started = self.stages.setdefault(name, Stage(name)), time.monotonic()
        bytes_before = self._cache.num_bytes()
        try:
            yield
        finally:
            stage.num_bytes += max(0, self._cache.num_bytes() - bytes_before)
            stage.seconds = round((stage.seconds or 0.0) + time.monotonic() - started, 3)
            self._write()

    def _write(self) -> None:
        stages = [asdict(stage) for stage in self.stages.values()]
        write_json(self._path, {"stages": stages, "caches_activations": self.caches_activations})


def estimate_run(
    config: RunConfig, dataset: Dataset, classifier: Classifier, cuts: Mapping[str, Cut | None], runtime: dict[str, str]
) -> tuple[list[Stage], bool]:
    """Measures decoding and forward passes on a few images, logs the estimate, and returns the stages and whether the
    fine-tune phase shall cache the activations at its cut.
    """
    sizes, sample, forward_rate, costs = measure_run(config, dataset, classifier, cuts, runtime)
    stages = estimate_stages(config, sizes, sample, forward_rate, costs)
    total = sum(stage.estimated_seconds or 0.0 for stage in stages)
    logger.info(f"Estimated time: {', '.join(map(describe, stages))}; {duration(total)} in total.")
    return stages, "fine_tune" in costs and costs["fine_tune"].is_cached


def measure_run(
    config: RunConfig, dataset: Dataset, classifier: Classifier, cuts: Mapping[str, Cut | None], runtime: dict[str, str]
) -> tuple[SplitSizes, Sample, float, dict[str, CutCost]]:
    """Returns what `estimate_stages` takes beside a config."""
    cache = Cache.of(config)
    sample = sample_dataset(dataset, config.stored_size, config.resize, cache, config.decoded_gb)
    sizes = split_sizes(dataset, config)
    costs: dict[str, CutCost] = {}
    for name, cut in cuts.items():
        if cut:
            activations = activations_of_cut(cut, config, sample.pixel_key, runtime)
            names = copy_names(sample.hashes, config.phase(name), config.flip)
            cached = cache.cached_fraction(activations, [name for names_of_copy in names for name in names_of_copy])
            missing = missing_fraction(cached, sizes, len(names))
            rate = rate_below(cut, activations.name, cache, anew=bool(missing))
            costs[name] = CutCost(rate, activations.record_bytes, missing)
    if "frozen" in costs:
        forward_rate = costs["frozen"].images_per_second
    else:
        forward_rate = measure_rate(inference_graph(classifier.extractor, BATCH), classifier.extractor.input_shape[1:])
    if cost := costs.get("fine_tune"):
        pays = caching_pays(config.fine_tune, sizes, forward_rate, cost, cache.free_bytes(), cache.limit_gb * 1e9)
        costs["fine_tune"] = cost._replace(is_cached=pays)
    return sizes, sample, forward_rate, costs


def missing_fraction(cached_fraction: float, sizes: SplitSizes, num_copies: int) -> float:
    """Fraction of the activations of a phase that are missing, if `cached_fraction` of a sample's copies are cached.

    The sample is of all images, and a phase needs none of the test images and only the plain copy of validation images.
    """
    most = (num_copies * sizes.train + sizes.val) / max(1, num_copies * sum(sizes))
    missing = 1.0 - cached_fraction / most if most else 0.0
    return missing if missing > SAMPLE_ERROR else 0.0


def split_sizes(dataset: Dataset, config: RunConfig) -> SplitSizes:
    """Estimates how many images each split will hold."""
    named = {split: sum(example.split == split for example in dataset.examples) for split in (*SPLITS, UNSEEN)}
    left: float = len(dataset.examples) - named["val"] - named["test"] - named[UNSEEN]
    test = named["test"] or config.test_fraction * left
    left -= 0 if named["test"] else test
    val = named["val"] or config.val_fraction * left
    return SplitSizes(round(left - (0 if named["val"] else val)), round(val), round(test))


def estimate_stages(
    config: RunConfig, sizes: SplitSizes, sample: Sample, forward_rate: float, costs: Mapping[str, CutCost]
) -> list[Stage]:
    """Returns the stages of a run in their order.

    Args:
        forward_rate: images per second through the whole frozen network.
        costs: by phase, of those that have a cut.
    """
    num_missing = sample.missing_fraction * sum(sizes)
    stages = [Stage("decode", num_missing / sample.images_per_second, int(num_missing * sample.record_bytes))]
    for name in config.phases:
        seconds, num_bytes = _phase_cost(config.phase(name), name == "frozen", sizes, forward_rate, costs.get(name))
        if name == "fine_tune" and config.refits_closed_form:
            seconds += len(SOLVED_PARTS) * sizes.train / forward_rate
        stages.append(Stage(name, seconds, num_bytes))
    if config.folds:  # a head each, on cached features
        cost = costs.get("frozen")
        seconds, _ = _phase_cost(config.frozen, True, sizes, forward_rate, cost and cost._replace(missing=0.0))
        stages.append(Stage("folds", config.folds * seconds))
    predicting = (sizes.val + sizes.test + 2 * ood.NUM_IMAGES) / forward_rate
    return [*stages, Stage("evaluate", CLOSING_SECONDS + predicting)]


def caching_pays(
    settings: Phase, sizes: SplitSizes, forward_rate: float, cost: CutCost, free_bytes: float, cache_bytes: float
) -> bool:
    """Returns, and logs, whether caching the activations of the fine-tune phase saves time and has space."""
    recomputed, _ = _phase_cost(settings, False, sizes, forward_rate, cost._replace(is_cached=False))
    cached, num_bytes = _phase_cost(settings, False, sizes, forward_rate, cost)
    space = min(free_bytes * DISK_FRACTION, cache_bytes)
    pays = cached < recomputed and num_bytes <= space
    logger.info(
        f"Frozen layers while fine-tuning: {'computed once' if pays else 'computed in every epoch'} "
        f"({duration(cached)} and {size(num_bytes)} with a cache, {duration(recomputed)} without"
        + (f"; {size(space)} are free)." if num_bytes > space else ").")
    )
    return pays


def _phase_cost(
    settings: Phase, is_head_alone: bool, sizes: SplitSizes, forward_rate: float, cost: CutCost | None
) -> tuple[float, int]:
    """Seconds, and bytes in the cache."""
    lower = 1 / cost.images_per_second if cost else 0.0  # seconds per image, below the cut and above it
    upper = 0.0 if is_head_alone else max(0.0, 1 / forward_rate - lower)  # if frozen
    epoch = upper * (TRAINING * sizes.train + FORWARD * sizes.val) + HEAD_SECONDS * sizes.train
    if cost is None or not cost.is_cached:
        lower = FORWARD / forward_rate if is_head_alone else lower
        return PHASE_SECONDS + settings.epochs * (epoch + lower * (sizes.train + sizes.val)), 0
    num_missing = cost.missing * (max(1, settings.copies) * sizes.train + sizes.val)
    seconds = PHASE_SECONDS + num_missing / cost.images_per_second + settings.epochs * epoch
    return seconds, int(num_missing * cost.num_bytes)


def rate_below(cut: Cut, name: str, cache: Cache, anew: bool) -> float:
    """Images per second through the layers below the cut, by the `name` of its cache entry (a hash of network, weights and
    runtime); measured if `anew`, or if no earlier run on this machine did.
    """
    known = Measurements(cache.folder / "rates.json")
    rate = known.get(name)
    if anew or not isinstance(rate, float) or not rate > 0:
        rate = measure_rate(cut.below_fn, cut.below.input_shape[1:])
        known.add(name, rate)
    return rate


def measure_rate(compute: Callable[[tf.Tensor], tf.Tensor], shape: tuple[int, ...]) -> float:
    """Returns the images per second through `compute`, BATCH at a time, of the fastest batch."""
    images, seconds = tf.zeros((BATCH, *shape)), list[float]()
    np.asarray(compute(images))  # compiles
    while sum(seconds) < MEASURED_SECONDS:
        started = time.monotonic()
        np.asarray(compute(images))
        seconds.append(time.monotonic() - started)
    return BATCH / min(seconds)


def describe(stage: Stage) -> str:
    """``fine_tune 2:10 min (75 MB on disk)``."""
    disk = f" ({size(stage.estimated_bytes)} on disk)" if stage.estimated_bytes else ""
    return f"{stage.name} {duration(stage.estimated_seconds or 0.0)}{disk}"
