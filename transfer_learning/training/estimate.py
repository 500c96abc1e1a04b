"""What a run is going to take, stage by stage, foretold from a moment of work, and what it took in the end.

The time of a stage grows with the images that are decoded or pass through the network, so both are measured; what does
not grow (compiling, drawing the figures) stands here as a constant. The report shows both figures side by side.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from transfer_learning.cli.formatting import duration, size
from transfer_learning.config import PHASES, Phase, RunConfig
from transfer_learning.datasets.dataset import SPLITS, UNSEEN, Dataset
from transfer_learning.datasets.decoding.sample import Sample, sample_dataset
from transfer_learning.errors import UserError
from transfer_learning.evaluation import ood
from transfer_learning.models.classifier import BATCH, Classifier
from transfer_learning.models.freezing import Cut
from transfer_learning.models.inference_graph import inference_graph
from transfer_learning.storage.cache import Cache
from transfer_learning.storage.files import read_json, renamed, write_json
from transfer_learning.training.phase_inputs import activations_of_cut, copy_names

logger = logging.getLogger(__name__)

MEASURED_SECONDS = 0.3  # of passing images through a network, after a warm-up; at least one batch
SAMPLE_ERROR = 0.2  # a sample of some 64 images cannot tell a smaller share from none
DISK_SHARE = 0.5  # of the free space, that the activations of a fine-tune phase may take

# What was measured on two cores without a GPU, float32: multiples of the time that the same layers take frozen.
FORWARD = 1.3  # a forward pass of layers that may train: nothing is folded into constants (1.1 to 1.6)
TRAINING = 5.0  # that, the way back and the optimizer (4 to 6)
HEAD_SECONDS = 2e-5  # an image in an update of the head
PHASE_SECONDS = 3.0  # until a phase is compiled
CLOSING_SECONDS = 6.5  # the saved model, figures and report


@dataclass
class Stage:
    """One stage of a run: what was foretold, and what it took in all sessions together."""

    name: str
    estimated_seconds: float | None = None
    estimated_bytes: int = 0  # that it adds to the cache
    seconds: float | None = None
    num_bytes: int = 0  # by which the cache grew; another run at the same time may have had a share in it


class Work(NamedTuple):
    """How many images each split holds, about."""

    train: int
    val: int
    test: int


class Kept(NamedTuple):
    """What a phase keeps of an image below its cut."""

    forward_rate: float  # images a second through what is below the cut
    num_bytes: int  # of one image
    missing: float  # share of the images of which nothing is kept yet


class RunEstimate:
    """The stages of a run in their order, kept in a file of the run directory; a damaged one counts as none."""

    def __init__(self, path: Path, cache: Cache):
        self._path, self._cache = path, cache
        self.stages, self.caches_activations = {}, False
        try:
            kept = read_json(path) if path.exists() else {"stages": [], "caches_activations": False}
            kept = renamed(kept, {"keeps_boundary": "caches_activations"})
            self.stages = {stage["name"]: Stage(**stage) for stage in kept["stages"]}
            self.caches_activations = bool(kept["caches_activations"])
        except (UserError, TypeError, KeyError):
            logger.info(f"{path} is damaged, and made again: no result depends on it.")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time inside to the stage, whatever ends it."""
        stage, started = self.stages.setdefault(name, Stage(name)), time.monotonic()
        bytes_before = self._cache.num_bytes()
        try:
            yield
        finally:
            stage.num_bytes += max(0, self._cache.num_bytes() - bytes_before)
            stage.seconds = round((stage.seconds or 0.0) + time.monotonic() - started, 3)
            self._write()

    def announce(self, stages: Sequence[Stage], caches_activations: bool) -> None:
        """Takes the estimates, before the first stage begins."""
        self.stages = {stage.name: stage for stage in stages}
        self.caches_activations = caches_activations
        self._write()

    def _write(self) -> None:
        stages = [asdict(stage) for stage in self.stages.values()]
        write_json(self._path, {"stages": stages, "caches_activations": self.caches_activations})


def estimate_run(
    config: RunConfig, dataset: Dataset, classifier: Classifier, cuts: Mapping[str, Cut | None], runtime: dict[str, str]
) -> tuple[list[Stage], bool]:
    """Decodes a few images, passes some through the network, and returns the stages with what they are going to take.

    Returns:
        The stages, and whether a fine-tune phase shall start from kept activations; both are said, with the reason.
    """
    cache = Cache.of(config)
    sample = sample_dataset(dataset, config.stored_size, config.resize, cache, config.decoded_gb)
    work = work_in(dataset, config)
    rates, kept = Rates(cache.folder / "rates.json"), {}
    for name, cut in cuts.items():
        if cut:
            activations = activations_of_cut(cut, config, sample.pixel_key, runtime)
            views = copy_names(sample.hashes, config.phase(name), config.flip)
            share = cache.cached_fraction(activations, [name for view in views for name in view])
            missing = share_missing(share, work, len(views))
            kept[name] = Kept(rates.of(activations.name, cut, bool(missing)), activations.record_bytes, missing)
    if "frozen" in kept:
        forward_rate = kept["frozen"].forward_rate
    else:
        forward_rate = rate(inference_graph(classifier.extractor, BATCH), classifier.extractor.input_shape[1:])
    keeps = "fine_tune" in kept and choose_kept(
        config.fine_tune, work, forward_rate, kept["fine_tune"], cache.free_bytes(), cache.limit_gb * 1e9
    )
    lower_rate = kept["fine_tune"].forward_rate if "fine_tune" in kept else np.inf
    if not keeps:
        kept.pop("fine_tune", None)
    stages = estimates(config, work, sample, forward_rate, kept, lower_rate)
    total = sum(stage.estimated_seconds for stage in stages)
    logger.info(
        f"Foreseen, from a moment of each kind of work: {', '.join(map(describe, stages))}; {duration(total)} in all."
    )
    return stages, keeps


def share_missing(cached_fraction: float, work: Work, num_views: int) -> float:
    """Which share of what a phase keeps is missing, if `cached_fraction` of a sample's views is there.

    The sample is of all images, and a phase keeps nothing of the test, and of val the plain view alone.
    """
    most = (num_views * work.train + work.val) / max(1, num_views * sum(work))
    missing = 1.0 - cached_fraction / most if most else 0.0
    return missing if missing > SAMPLE_ERROR else 0.0


def work_in(dataset: Dataset, config: RunConfig) -> Work:
    """About how many images each split is going to hold."""
    named = {split: sum(example.split == split for example in dataset.examples) for split in (*SPLITS, UNSEEN)}
    left = len(dataset.examples) - named["val"] - named["test"] - named[UNSEEN]
    test = named["test"] or config.test_fraction * left
    left -= 0 if named["test"] else test
    val = named["val"] or config.val_fraction * left
    return Work(round(left - (0 if named["val"] else val)), round(val), round(test))


def estimates(
    config: RunConfig,
    work: Work,
    sample: Sample,
    forward_rate: float,
    kept: Mapping[str, Kept],
    lower_rate: float = np.inf,
) -> list[Stage]:
    """The stages of a run in their order.

    Args:
        forward_rate: images a second through the whole frozen network.
        kept: by phase, what it keeps; a phase that is missing computes everything in every epoch.
        lower_rate: images a second through what the fine-tune phase leaves frozen but does not keep.
    """
    num_missing = sample.missing_fraction * sum(work)
    stages = [Stage("decode", num_missing / sample.images_per_second, int(num_missing * sample.record_bytes))]
    for name in PHASES:
        if config.phase(name).epochs:
            arguments = config.phase(name), name == "frozen", work, forward_rate, kept.get(name), lower_rate
            stages.append(Stage(name, *_phase(*arguments)))
    predicting = (work.val + work.test + 2 * ood.NUM_IMAGES) / forward_rate
    return [*stages, Stage("evaluate", CLOSING_SECONDS + predicting)]


def choose_kept(
    settings: Phase, work: Work, forward_rate: float, kept: Kept, free_bytes: float, cache_bytes: float
) -> bool:
    """Returns whether keeping the activations below a fine-tune phase saves time and has space; says which, and why."""
    live, _ = _phase(settings, False, work, forward_rate, None, lower_rate=kept.forward_rate)
    from_kept, num_bytes = _phase(settings, False, work, forward_rate, kept)
    space = min(free_bytes * DISK_SHARE, cache_bytes)
    is_kept = from_kept < live and num_bytes <= space
    with_it, without = f"{duration(from_kept)} and {size(num_bytes)} on disk with it", f"{duration(live)} without"
    why = f", since {size(space)} are free for it" if num_bytes > space else ""
    logger.info(
        f"What fine-tuning leaves frozen is computed {'once' if is_kept else 'in every epoch'}: {with_it}, {without}{why}."
    )
    return is_kept


def _phase(
    settings: Phase, is_head_alone: bool, work: Work, forward_rate: float, kept: Kept | None, lower_rate: float = np.inf
) -> tuple[float, int]:
    """Seconds, and bytes for the cache.

    lower_rate: where nothing is kept, images a second through what lies below a cut; infinite: there is no cut.
    """
    lower_rate = kept.forward_rate if kept else lower_rate
    upper = 0.0 if is_head_alone else max(0.0, 1 / forward_rate - 1 / lower_rate)  # seconds an image, frozen
    epoch = upper * (TRAINING * work.train + FORWARD * work.val) + HEAD_SECONDS * work.train
    if kept is None:
        below = 1 / lower_rate if not is_head_alone else FORWARD / forward_rate
        return PHASE_SECONDS + settings.epochs * (epoch + below * (work.train + work.val)), 0
    num_missing = kept.missing * (max(1, settings.copies) * work.train + work.val)
    seconds = PHASE_SECONDS + num_missing / kept.forward_rate + settings.epochs * epoch
    return seconds, int(num_missing * kept.num_bytes)


class Rates:
    """The rates of frozen networks on this machine, remembered beside what they made of images."""

    def __init__(self, path: Path):
        self._path = path

    def of(self, name: str, cut: Cut, anew: bool) -> float:
        """Images per second through ``cut.below``: measured if `anew` is set or no earlier run has measured it.

        Args:
            name: of the cache entry, which depends on the network, its weights and the machine.
        """
        known = {}
        with suppress(OSError, UserError):
            known = read_json(self._path)
        if not isinstance(known, dict):
            known = {}
        if anew or not isinstance(known.get(name), float) or not known[name] > 0:
            known[name] = rate(cut.below_fn, cut.below.input_shape[1:])
            with suppress(OSError):  # a cache that cannot be written
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._path, known)
        return known[name]


def rate(compute: Callable[[tf.Tensor], tf.Tensor], shape: tuple[int, ...]) -> float:
    """Returns the images that go through `compute` in a second, BATCH at a time; the fastest batch counts."""
    images, seconds = tf.zeros((BATCH, *shape)), []
    np.asarray(compute(images))  # compiles; the next ones may still warm up
    while sum(seconds) < MEASURED_SECONDS:
        started = time.monotonic()
        np.asarray(compute(images))
        seconds.append(time.monotonic() - started)
    return BATCH / min(seconds)


def describe(stage: Stage) -> str:
    """``fine_tune 2:10 min (75 MB on disk)``."""
    disk = f" ({size(stage.estimated_bytes)} on disk)" if stage.estimated_bytes else ""
    return f"{stage.name} {duration(stage.estimated_seconds)}{disk}"
