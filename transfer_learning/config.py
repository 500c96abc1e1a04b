"""The config of a run: one frozen RunConfig with two Phases, its checks, and its JSON.

Every field is a flag of `run` (`--batch-size`, `--fine-tune.learning-rate`). Durations are in epochs here and in train
steps in the training code.
"""

import dataclasses
import importlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, get_type_hints

from transfer_learning.errors import UserError, did_you_mean

PHASES = ("frozen", "fine_tune")
FORMAT = 2  # of the JSON; 1 had other names of some fields, and no number
# What saved configs without these fields mean, where it is not the default.
EARLIER = {"small_classes": "drawn", "fold_batch_norm": False}
EARLIER_VALUES = {"head_init": {"auto": "ridge"}}  # by field: what earlier values are read as
PRECISIONS = ("auto", "float32", "mixed_float16", "mixed_bfloat16")
RESIZES = ("squash", "crop", "pad")
CLASS_WEIGHTS = ("none", "balanced")
NAMED_WEIGHTS = ("imagenet", "none")  # any other value is a file
SMALL_CLASSES = ("ranked", "drawn")
HEAD_FEATURES = ("last", "stages", "all")
HEAD_INITS = ("ridge", "lda", "random")
STRATEGIES = ("auto", "one", "mirrored", "multi-worker")
MONITORS = ("val_loss", "val_accuracy", "loss", "accuracy")
MAX_SIZE = 8192  # pixels per side: a decoded image takes 0.2 GB


@dataclass(frozen=True)
class Range:
    """The values that a number may have: with its ends (`low`, `high`) or without (`above`, `below`)."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and self.above < value < self.below

    def __str__(self) -> str:
        """``at least 0, below 1``, or "" without a limit."""
        words = {"low": "at least", "above": "above", "below": "below", "high": "at most"}
        limits = {word: getattr(self, name) for name, word in words.items()}
        return ", ".join(f"{word} {limit:.10g}" for word, limit in limits.items() if math.isfinite(limit))


class Names(NamedTuple):
    """The names in a table: all values that a field may have besides its default, or (not `is_complete`) some of them."""

    place: str  # "module:TABLE" below the package
    is_complete: bool = True


def option(
    default: Any,
    help: str,
    *,
    group: str = "",
    choices: tuple[str, ...] | Names = (),
    bounds: Range = Range(),
    was: str = "",
    changes_result: bool = True,
) -> Any:
    """A field of a config.

    Args:
        help: what `--help` says about it.
        group: the heading of `--help` that it is listed under.
        was: an earlier name of the field, still read from files and flags.
        changes_result: whether a resumed run must have the same value.
    """
    metadata = dict(help=help, group=group, choices=choices, bounds=bounds, was=was, changes_result=changes_result)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Phase:
    """One of the two phases of training; each starts with a new optimizer and ends with its best weights."""

    epochs: int = option(0, "passes over the training images; 0 skips the phase", bounds=Range(low=0))
    learning_rate: float = option(1e-3, "highest learning rate of the schedule", bounds=Range(above=0, below=math.inf))
    optimizer: str = option("adam", "optimizer", choices=Names("training.optimizers:OPTIMIZERS"))
    momentum: float = option(0.9, "momentum of sgd", bounds=Range(low=0, below=1))
    weight_decay: float = option(
        0.0, "decoupled weight decay of adamw: each step multiplies it by the learning rate", bounds=Range(low=0)
    )
    schedule: str = option("constant", "learning-rate schedule", choices=Names("training.schedules:SCHEDULES"))
    warmup_epochs: float = option(0.0, "epochs in which the learning rate rises at the start", bounds=Range(low=0))
    min_learning_rate: float = option(
        0.0, "lowest learning rate of triangular2", bounds=Range(low=0), was="lowest_rate"
    )
    cycle_epochs: float = option(1.0, "epochs per triangle of triangular2", bounds=Range(above=0))
    div_factor: float = option(
        25.0, "one_cycle starts at the learning rate divided by this", bounds=Range(low=1), was="start_divisor"
    )
    final_div_factor: float = option(
        1e4, "one_cycle ends at its first learning rate divided by this", bounds=Range(low=1), was="end_divisor"
    )
    plateau_patience: int = option(
        3, "epochs without improvement before plateau lowers the learning rate", bounds=Range(low=1)
    )
    plateau_factor: float = option(
        0.2, "factor by which plateau multiplies the learning rate", bounds=Range(above=0, below=1)
    )
    patience: int = option(0, "epochs without improvement before early stopping; 0: never", bounds=Range(low=0))
    augmentation: str = option("none", "random augmentation", choices=Names("datasets.augmentation:AUGMENTATIONS"))
    copies: int = option(
        0,
        "fixed copies per image (the plain one and augmented ones), computed once and cached; 0: new augmentation in "
        "every epoch",
        bounds=Range(low=0),
        was="views",
    )
    clip_norm: float = option(0.0, "clip the global norm of the gradients to this; 0: no clipping", bounds=Range(low=0))
    ema_decay: float = option(
        0.0,
        "keep a moving average of the weights, with this decay per step, as a candidate for the final weights; 0: no average",
        bounds=Range(low=0, below=1),
    )
    layer_decay: float = option(
        1.0,
        "multiply the learning rate by this from each stage of the backbone to the one below; 1: one rate for all",
        bounds=Range(above=0, high=1),
    )
    unfreeze: str = option(
        "none",
        "layers of the backbone that train: a stage such as conv5 and all above it, a fraction from the top such as 0.3, "
        "all, or none",
        was="open",
    )


data, model, training = (partial(option, group=group) for group in ("data", "model", "training"))
output = partial(option, group="files and machine", changes_result=False)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the result of a run, and the few things that do not (`changes_result` false)."""

    # A folder may move: whether it still holds the same images is decided by their fingerprint.
    dataset: str = data(
        "drawn_pills",
        "folder of class folders, archive, table with the columns path,label, known name, or SCHEME:PLACE",
        choices=Names("datasets.sources.registry:DATASETS", is_complete=False),
        changes_result=False,
    )
    preset: str = training(
        "balanced",
        "how much the automatic recipe compares and trains; fast: no fine-tuning; best: more image sizes, backbones and "
        "epochs; given for a known dataset, it replaces the recipe of that dataset",
        choices=Names("recipes.presets:PRESETS"),
    )
    time_limit: str = training(
        "",
        "time for the whole run, such as 90s, 20m or 2h: what is compared, and the epochs, are chosen to fit; without it "
        "there is no limit",
    )
    backbone: str = model(
        "efficientnet_lite0",
        "pretrained network below the head, or keras:NAME for a network of keras.applications",
        choices=Names("models.backbones:BACKBONES", is_complete=False),
    )
    weights: str = model(
        "imagenet", "initial weights: imagenet, none (random), a file, or a finished run (as with --from)"
    )
    image_size: int = model(
        224, "side of the square image that the backbone gets, in pixels", bounds=Range(low=8, high=MAX_SIZE)
    )
    input_size: int = data(
        0,
        "side at which images are cached and given to the model, in pixels; 0: that of --image-size",
        bounds=Range(low=0, high=MAX_SIZE),
    )
    resize: str = data(
        "squash",
        "how images become square: squash (change the aspect ratio), crop (the centre), or pad (black bars)",
        choices=RESIZES,
    )
    head: tuple[int, ...] = model((), "units of the hidden dense layers, such as 512,256; none: one linear layer only")
    head_features: str = model(
        "last",
        "pooled features that the head gets: of the last feature map, of the stages below it, or all of these",
        choices=HEAD_FEATURES,
    )
    dropout: float = model(
        0.0, "dropout rate after each hidden layer of the head, or before a linear head", bounds=Range(low=0, below=1)
    )
    head_init: str = training(
        "ridge",
        "initial weights of a linear head on cached features: the closed-form solution of ridge regression (ridge) or of "
        "linear discriminant analysis with shrinkage (lda), or random",
        choices=HEAD_INITS,
        was="head_start",
    )
    batch_size: int = training(32, "images per train step", bounds=Range(low=1))
    gradient_accumulation_steps: int = training(
        1,
        "number of parts that a batch is split into, to fit into memory; their gradients are summed",
        bounds=Range(low=1),
        was="micro_batches",
    )
    seed: int = training(
        0,
        "seed of the head's weights, the order of images, augmentation and dropout",
        bounds=Range(low=0, high=2**31 - 1),
    )
    val_fraction: float = data(
        0.15,
        "fraction of the training images for validation, unless the dataset has a validation split",
        bounds=Range(low=0, below=1),
    )
    test_fraction: float = data(
        0.15, "fraction of the images for testing, unless the dataset has a test split", bounds=Range(low=0, below=1)
    )
    group_by: str = data(
        "", "regular expression for paths; images with the same match (or the same first group) stay in one split"
    )
    small_classes: str = data(
        "ranked",
        "splits of classes with fewer than 10 images; ranked: each class has a training image, and with two images a test "
        "image; drawn: by chance",
        choices=SMALL_CLASSES,
    )
    path_column: str = data(
        "", "column of a table that has the paths, if its name is not a usual one", changes_result=False
    )
    label_column: str = data(
        "", "column of a table that has the labels, if its name is not a usual one", changes_result=False
    )
    # What it corrects decides the result, and is in the fingerprint of the images; where the file is does not.
    corrections: str = data(
        "",
        "table of images to relabel or drop: the corrections.csv of `prepare`, after you edited it",
        changes_result=False,
    )
    flip: bool = data(True, "augmentation may mirror images left to right; use --no-flip for text, digits and signs")
    find_learning_rate: bool = training(
        False, "search the learning rate of the fine-tune phase before it starts, in about 130 train steps"
    )
    label_smoothing: float = training(
        0.0, "fraction of each label that is spread over all classes", bounds=Range(low=0, below=1)
    )
    class_weights: str = training(
        "none", "weights of the classes in the loss; balanced: by inverse frequency", choices=CLASS_WEIGHTS
    )
    monitor: str = training(
        "val_loss", "metric that decides the best weights, early stopping and plateau", choices=MONITORS
    )
    decoded_gb: float = data(
        16.0, "if the decoded images take more than this, in GB, they are cached as JPEGs", bounds=Range(low=0)
    )
    precision: str = training(
        "auto",
        "Keras dtype policy; auto: mixed_float16 on GPUs with tensor cores, otherwise float32",
        choices=PRECISIONS,
    )
    fold_batch_norm: bool = training(
        True, "fold BatchNorm of a pretrained backbone into its convolutions, which trains faster"
    )
    jit_compile: bool = training(
        False, "compile train steps with XLA, which takes seconds to minutes; for long runs on a GPU"
    )
    folds: int = training(
        0, "folds for cross-validation of the head, which predicts all images; 0: none", bounds=Range(low=0)
    )
    refit: bool = training(
        False,
        "fit the closed-form head again after training: also on the validation images, and on the fine-tuned backbone if "
        "that is best",
    )
    unseen_classes: str = data(
        "",
        "classes to leave out of training, such as owl,fox; they test the rejection of unknown images",
        was="held_out",
    )
    skip_unreadable: bool = data(False, "skip and count images that cannot be read")
    tensorboard: bool = output(False, "write TensorBoard event files")
    mlflow: str = output("", "log the finished run to the MLflow server with this URI, such as http://localhost:5000")
    inference_file: bool = output(True, "write model.tflite, with which predict starts without TensorFlow")
    csv_log: bool = output(False, "write the file of Keras' CSVLogger, too")
    strategy: str = output(
        "auto",
        "devices that train together; one: the CPU or one GPU; mirrored: all GPUs of this machine; multi-worker: the "
        "processes of TF_CONFIG or of a SLURM step; auto: everything that is available",
        choices=STRATEGIES,
    )
    worker_timeout: float = output(
        600.0, "seconds to wait for a worker that does not connect or answer", bounds=Range(above=0)
    )
    checkpoint_seconds: float = output(
        60.0, "longest time between two checkpoints, in seconds; 0: after every train step", bounds=Range(low=0)
    )
    data_dir: str = output("data", "folder of the known datasets")
    cache_dir: str = output("data/cache", "folder of decoded images and features, shared by all runs")
    cache_gb: float = output(
        100.0, "largest size of the cache in GB; the least recently used entries are deleted", bounds=Range(low=0)
    )
    feature_store: str = output(
        "", "folder or s3://BUCKET/PREFIX with the features that `prepare --workers` has computed"
    )
    frozen: Phase = Phase(epochs=10)
    fine_tune: Phase = Phase(learning_rate=1e-5, unfreeze="all")

    @property
    def stored_size(self) -> int:
        """Side in pixels of the decoded images: `input_size`, or `image_size` where that is 0."""
        return self.input_size or self.image_size

    @property
    def starts_from_closed_form(self) -> bool:
        """Whether the head starts from its closed-form solution: a linear head on cached features."""
        sees_same_pixels = self.frozen.augmentation == "none" or self.frozen.copies > 0
        return self.head_init != "random" and not self.head and self.frozen.epochs > 0 and sees_same_pixels

    @property
    def refits_closed_form(self) -> bool:
        """Whether a closed-form head may be solved again after training: with validation images, or after fine-tuning."""
        return self.refit and self.starts_from_closed_form

    @property
    def phases(self) -> list[str]:
        """The phases that train, in their order."""
        return [name for name in PHASES if self.phase(name).epochs > 0]

    @property
    def num_epochs(self) -> int:
        """Of both phases."""
        return self.frozen.epochs + self.fine_tune.epochs

    def phase(self, name: str) -> Phase:
        return getattr(self, name)

    def check(self) -> None:
        """Raises UserError for the first value that is out of range or contradicts another."""
        _check_values("", self)
        for name in PHASES:
            if self.phase(name).epochs:  # the other settings of a skipped phase are not used
                _check_values(f"{name}.", self.phase(name))
                _check_phase(flag_name(name), self.phase(name))
        limit_seconds(self.time_limit)
        try:
            re.compile(self.group_by)
        except re.error:
            advice = "give, for example, '([^/]*)_' for the text before _"
            raise UserError(f"--group-by {self.group_by} is not a regular expression; {advice}.") from None
        for holds, sentence in (
            (
                self.batch_size % self.gradient_accumulation_steps == 0,
                f"--gradient-accumulation-steps {self.gradient_accumulation_steps} does not divide --batch-size "
                f"{self.batch_size}; give a divisor, such as 2 or 4.",
            ),
            (
                all(width >= 1 for width in self.head),
                f"--head {self.head} has a width below 1; give, for example, 512,256.",
            ),
            (
                self.val_fraction + self.test_fraction < 1,
                f"--val-fraction {self.val_fraction} and --test-fraction {self.test_fraction} leave no training "
                "images; give fractions whose sum is below 1.",
            ),
            (
                self.num_epochs > 0,
                "Both phases have 0 epochs, so nothing would be trained; raise --frozen.epochs or --fine-tune.epochs.",
            ),
            (
                self.frozen.unfreeze == "none",
                f"--frozen.unfreeze {self.frozen.unfreeze} is a contradiction: the frozen phase trains the head alone; "
                "use --fine-tune.unfreeze.",
            ),
            (
                self.fine_tune.epochs == 0 or self.fine_tune.unfreeze != "none",
                "--fine-tune.unfreeze none leaves nothing to fine-tune; name a stage, a fraction or all, "
                "or pass --fine-tune.epochs 0.",
            ),
            (self.folds != 1, "--folds 1 leaves nothing to train on; give 2 or more, or 0 for none."),
            (
                self.folds == 0 or self.frozen.epochs > 0,
                f"--folds {self.folds} trains heads as the frozen phase does, and --frozen.epochs is 0; raise it, or leave "
                "--folds out.",
            ),
            (
                self.weights != "none" or self.frozen.epochs == 0,
                "--weights none has nothing to freeze: a frozen phase would train the head on a random backbone; pass "
                "--frozen.epochs 0 --fine-tune.epochs 20 --fine-tune.unfreeze all --fine-tune.learning-rate 1e-3 "
                "to train from scratch.",
            ),
            (
                self.weights != "none" or self.fine_tune.unfreeze == "all",
                f"--weights none with --fine-tune.unfreeze {self.fine_tune.unfreeze} would leave random layers "
                "untrained; pass --fine-tune.unfreeze all.",
            ),
        ):
            if not holds:
                raise UserError(sentence)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT} | dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str, source: str = "the config") -> "RunConfig":
        """Reads what `to_json` of this or an earlier version wrote; a missing field takes its default. A UserError that
        begins with `source` if it is no JSON, or has an unknown field or a value of another type.
        """
        return with_values(RunConfig(), EARLIER | values_from_json(text, source))


def values_from_json(text: str, source: str = "the config") -> dict[str, Any]:
    """The fields that a JSON text names, by the names that `with_values` takes; Raises as `RunConfig.from_json`."""
    try:
        return dict(_read_fields(RunConfig, json.loads(text), ""))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{source} cannot be read ({error}); correct or restore the file, or start a new run."
        ) from None


def values_from_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments by the names that `with_values` takes.

    Args:
        options: values of fields; those of a phase as ``{"fine_tune": {"epochs": 3}}`` or ``{"fine_tune.epochs": 3}``.

    Raises:
        UserError: a name is unknown, or a value has another type than its field.
    """
    fields: dict[str, Any] = {}
    try:
        for name, value in options.items():
            phase, _, inner = name.partition(".")
            if not inner and not isinstance(value, Mapping):
                fields[name] = _plain(value)
                continue
            of_phase = fields.setdefault(phase, {})
            if not isinstance(of_phase, dict):
                raise TypeError(f"{phase} is {of_phase!r}, not an object with fields")
            for field, one in {inner: value}.items() if inner else value.items():
                if of_phase.setdefault(field, _plain(one)) != _plain(one):
                    raise ValueError(f"{phase}.{field} is given as {of_phase[field]} and as {_plain(one)}")
        return dict(_read_fields(RunConfig, fields, ""))
    except (ValueError, TypeError) as error:
        raise UserError(f"The options cannot be used ({error}); give fields of the config, see `run --help`.") from None


def _plain(value: Any) -> Any:
    """A path as text, and numbers of NumPy as those of Python."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if hasattr(value, "dtype") and getattr(value, "shape", None) == () else value


def with_values(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    """`config` with fields replaced; a field of a phase is named with a dot: ``{"frozen.epochs": 3, "seed": 1}``."""
    top = {name: value for name, value in values.items() if "." not in name}
    for phase in PHASES:
        fields = {name.split(".")[1]: value for name, value in values.items() if name.startswith(f"{phase}.")}
        if fields:
            top[phase] = dataclasses.replace(top.get(phase, config.phase(phase)), **fields)
    return dataclasses.replace(config, **top)


def flat(config: RunConfig) -> dict[str, Any]:
    """All values by the names that `with_values` takes, in the order of the fields."""
    values: dict[str, Any] = {}
    for name, value in vars(config).items():
        is_phase = isinstance(value, Phase)
        values |= {f"{name}.{inner}": item for inner, item in vars(value).items()} if is_phase else {name: value}
    return values


def difference(old: RunConfig, new: RunConfig, may_have_moved: bool = False) -> dict[str, tuple[Any, Any]]:
    """The fields that decide a result and differ, each with its old and new value.

    Args:
        may_have_moved: two files of weights do not differ, since `training.identity` compares their contents.
    """
    free = {item.name for item in dataclasses.fields(RunConfig) if not item.metadata.get("changes_result", True)}
    before, after = flat(old), flat(new)
    if may_have_moved and not {old.weights, new.weights} & set(NAMED_WEIGHTS):
        free.add("weights")
    return {name: (before[name], after[name]) for name in before if before[name] != after[name] and name not in free}


def named(fields: dict[str, tuple[Any, Any]]) -> str:
    """A sentence about what `difference` returned."""
    return ", ".join(f"{name} is {old}, not {new}" for name, (old, new) in fields.items())


def limit_seconds(time_limit: str) -> float:
    """The seconds of ``90s``, ``20m`` or ``1.5h``; infinite for "". UserError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", time_limit)
    if time_limit and (not found or float(found[1]) == 0):
        raise UserError(
            f"--time-limit {time_limit} is not a time above 0 with a unit; give, for example, 90s, 20m or 2h."
        )
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]] if found else math.inf


def flag_name(name: str) -> str:
    """``fine_tune.learning_rate`` -> ``fine-tune.learning-rate``."""
    return name.replace("_", "-")


def choices_of(item: dataclasses.Field) -> tuple[str, ...]:
    """The allowed values of a field, or () where any value of its type is."""
    choices = item.metadata["choices"]
    if not isinstance(choices, Names):
        return choices
    if not choices.is_complete:
        return ()
    names = _names_in(choices.place)
    return names if item.default in names else (str(item.default), *names)


def known_of(item: dataclasses.Field) -> tuple[str, ...]:
    """Some of the allowed values of a field, such as the datasets known by name."""
    choices = item.metadata["choices"]
    return _names_in(choices.place) if isinstance(choices, Names) and not choices.is_complete else ()


def _names_in(place: str) -> tuple[str, ...]:
    module, _, table = place.partition(":")
    return tuple(getattr(importlib.import_module(f"{__package__}.{module}"), table))


def _check_values(prefix: str, values: RunConfig | Phase) -> None:
    """Raises UserError for the first field that is not one of its choices or not in its range."""
    for item in dataclasses.fields(values):
        if item.name in PHASES:
            continue
        flag, value, bounds = flag_name(prefix + item.name), getattr(values, item.name), item.metadata["bounds"]
        if (choices := choices_of(item)) and value not in choices:
            raise UserError(f"--{flag} {value} is unknown.{did_you_mean(str(value), choices)}")
        if isinstance(value, int | float) and value not in bounds:
            raise UserError(f"--{flag} {value} is out of range; give {str(bounds) or 'a finite number'}.")


def _check_phase(flag: str, phase: Phase) -> None:
    for holds, sentence in (
        (
            phase.weight_decay == 0 or phase.optimizer == "adamw",
            f"--{flag}.weight-decay needs --{flag}.optimizer adamw, and it is {phase.optimizer}; pass "
            f"--{flag}.optimizer adamw, or --{flag}.weight-decay 0.",
        ),
        (
            phase.copies == 0 or (phase.copies >= 2 and phase.augmentation != "none"),
            f"--{flag}.copies {phase.copies} with --{flag}.augmentation {phase.augmentation} makes no augmented "
            "copies; give 2 or more with an augmentation (the first copy is the plain image), or 0.",
        ),
        (
            phase.schedule != "triangular2" or phase.min_learning_rate < phase.learning_rate,
            f"--{flag}.min-learning-rate {phase.min_learning_rate} is not below --{flag}.learning-rate "
            f"{phase.learning_rate}; give a lower one.",
        ),
        (
            phase.schedule != "triangular2" or phase.warmup_epochs == 0,
            f"--{flag}.warmup-epochs {phase.warmup_epochs} contradicts --{flag}.schedule triangular2, which has "
            "a rise of its own; pass 0.",
        ),
        (
            phase.warmup_epochs <= phase.epochs,
            f"--{flag}.warmup-epochs {phase.warmup_epochs} does not fit into --{flag}.epochs {phase.epochs}; "
            "give at most the number of epochs.",
        ),
    ):
        if not holds:
            raise UserError(sentence)


def _read_fields(cls: type, values: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Name and value of each field in `values`, which may have names and values of earlier versions."""
    if not isinstance(values, dict):
        what = f"{prefix.rstrip('.')} is {values!r}," if prefix else "it is"
        raise TypeError(f"{what} not an object with fields")
    hints = get_type_hints(cls)
    known = {name: item for item in dataclasses.fields(cls) for name in (item.name, item.metadata.get("was")) if name}
    for name, value in values.items():
        if name == "format" and not prefix:
            if value not in range(1, FORMAT + 1):
                raise ValueError(f"format {value} is of a newer version, this one reads up to {FORMAT}")
            continue
        if name not in known:
            raise ValueError(f"unknown field {prefix}{name}")
        item = known[name]
        value = EARLIER_VALUES.get(item.name, {}).get(value, value) if isinstance(value, str) else value
        hint = hints[item.name]
        if hint is Phase:
            yield from _read_fields(Phase, value, f"{item.name}.")
            continue
        if hint is float and type(value) is int:
            value = float(value)
        elif hint == tuple[int, ...] and isinstance(value, list | tuple) and all(type(part) is int for part in value):
            value = tuple(value)
        elif type(value) is not hint:
            expected = "a list of int" if hint == tuple[int, ...] else hint.__name__
            raise TypeError(f"{prefix}{name} is {value!r}, not {expected}")
        yield f"{prefix}{item.name}", value
