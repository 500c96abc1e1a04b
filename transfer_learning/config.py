"""What a run is asked to do: one frozen RunConfig with two Phases, as JSON, and the difference of two of them.

Every field is a flag of `run` (`--batch-size`, `--fine-tune.learning-rate`). Durations are epochs here and updates in
the training code, converted once.
"""

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from transfer_learning.errors import UserError, did_you_mean

PHASES = ("frozen", "fine_tune")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "plateau", "triangular2", "one_cycle")
AUGMENTATIONS = ("none", "light", "strong", "rotation", "padded_crop", "resized_crop")
PRECISIONS = ("auto", "float32", "mixed_float16", "mixed_bfloat16")
RESIZES = ("squash", "crop", "pad")
CLASS_WEIGHTS = ("none", "balanced")
HEAD_STARTS = ("auto", "random")
MONITORS = ("val_loss", "val_accuracy", "loss", "accuracy")
LARGEST_SIZE = 8192  # pixels a side: an image of them decoded takes 0.2 GB


def option(default: Any, help: str, choices: tuple[str, ...] = (), changes_result: bool = True) -> Any:
    """A dataclass field that knows what `--help` says of it, and whether a resumed run may have another value of it."""
    return field(default=default, metadata={"help": help, "choices": choices, "changes_result": changes_result})


@dataclass(frozen=True)
class Phase:
    """One of the two stretches of training; each starts with a new optimizer and ends with its best weights."""

    epochs: int = option(0, "passes over the training images; 0 leaves the phase out")
    learning_rate: float = option(1e-3, "highest learning rate of the schedule")
    optimizer: str = option("adam", "how gradients become steps", OPTIMIZERS)
    momentum: float = option(0.9, "momentum of sgd")
    weight_decay: float = option(0.0, "decoupled weight decay, a fraction of each weight per unit of learning rate")
    schedule: str = option(
        "constant", "learning rate over the phase; plateau lowers it when `monitor` stalls", SCHEDULES
    )
    warmup_epochs: float = option(
        0.0, "epochs over which the rate rises, linearly from zero; with one_cycle see divisors"
    )
    lowest_rate: float = option(0.0, "where the triangles of triangular2 begin and end")
    cycle_epochs: float = option(1.0, "epochs of one triangle of triangular2, up and down; each is half as high")
    start_divisor: float = option(25.0, "one_cycle begins at the learning rate divided by this")
    end_divisor: float = option(1e4, "one_cycle ends at its first rate divided by this")
    plateau_patience: int = option(3, "epochs without a better `monitor` before schedule plateau lowers the rate")
    plateau_factor: float = option(0.2, "what schedule plateau multiplies the rate by")
    patience: int = option(0, "epochs without a better `monitor` that end the phase early; 0: never")
    augmentation: str = option("none", "random changes of the training images", AUGMENTATIONS)
    views: int = option(0, "views of each image, the plain one too, that are made once and kept; 0: new in every epoch")
    open: str = option(
        "none", "layers of the backbone that train: a stage such as conv5, the fraction at the top, or all"
    )


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the result of a run, and the few things that do not (`changes_result` false)."""

    # A folder may move: whether it still holds the same images is decided by their fingerprint.
    dataset: str = option(
        "drawn_pills",
        "name, folder of class folders, archive, table path,label, or such as hf:PLACE",
        changes_result=False,
    )
    backbone: str = option("efficientnet_lite0", "pretrained network under the head")
    weights: str = option("imagenet", "where the backbone starts: imagenet, none (random) or a file")
    image_size: int = option(224, "side in pixels of the square that the backbone sees")
    input_size: int = option(0, "side in pixels at which images are kept and given to the model; 0: image_size")
    resize: str = option(
        "squash", "how a picture becomes square: squash it, crop the middle, or pad the sides", RESIZES
    )
    head: tuple[int, ...] = option((), "widths of the dense layers before the last, as 512,256; none: one linear layer")
    dropout: float = option(0.0, "fraction dropped after each dense layer of the head, or before a linear one")
    head_start: str = option("auto", "auto: a linear head on kept features starts from its ridge solution", HEAD_STARTS)
    batch_size: int = option(32, "images an update")
    micro_batches: int = option(1, "parts into which a batch is cut to fit into memory; their gradients are summed")
    seed: int = option(0, "draws the initial head, the order, the augmentation and the dropout")
    val_fraction: float = option(0.15, "share of the training images kept for validation, where the dataset names none")
    test_fraction: float = option(0.15, "share of the images kept for the test, where the dataset names none")
    group_by: str = option(
        "", "regular expression; images in whose path it or its first group finds the same share a split"
    )
    # What it corrects decides the result, and is in the fingerprint of the images; where it lies does not.
    corrections: str = option(
        "", "table of images to relabel or to drop: the corrections.csv of `prepare`, edited", changes_result=False
    )
    flip: bool = option(True, "let augmentation mirror images left to right; not for text, digits and signs")
    label_smoothing: float = option(0.0, "share of each label spread evenly over all classes")
    class_weights: str = option("none", "balanced: each class counts alike however few its images", CLASS_WEIGHTS)
    monitor: str = option("val_loss", "value that decides the best weights, early stopping and the plateau", MONITORS)
    decoded_gb: float = option(16.0, "a set whose decoded images take more is kept as JPEGs of the stored size")
    precision: str = option(
        "auto", "number format of the computation; auto: mixed_float16 on GPUs that gain", PRECISIONS
    )
    held_out: str = option("", "classes, as owl,fox, that are not learnt: their images only try the rule for unknown")
    skip_unreadable: bool = option(False, "go on without images that cannot be read, and count them")
    tensorboard: bool = option(False, "write TensorBoard's event files", changes_result=False)
    csv_log: bool = option(False, "write Keras' CSVLogger file beside history.csv", changes_result=False)
    checkpoint_seconds: float = option(60.0, "longest time between two checkpoints", changes_result=False)
    data_dir: str = option("data", "folder that holds or receives the named datasets", changes_result=False)
    cache_dir: str = option(
        "data/cache", "folder for decoded images and features, kept from run to run", changes_result=False
    )
    cache_gb: float = option(
        100.0, "most that the cache may hold; what was not used for longest goes first", changes_result=False
    )
    frozen: Phase = Phase(epochs=10)
    fine_tune: Phase = Phase(learning_rate=1e-5, open="all")

    @property
    def stored_size(self) -> int:
        """Side in pixels of the decoded images: `input_size`, or `image_size` where that is 0."""
        return self.input_size or self.image_size

    @property
    def starts_from_ridge(self) -> bool:
        """Whether the head starts from its closed-form solution: a linear one, whose features are kept."""
        sees_same_pixels = self.frozen.augmentation == "none" or self.frozen.views > 0
        return self.head_start == "auto" and not self.head and self.frozen.epochs > 0 and sees_same_pixels

    @property
    def num_epochs(self) -> int:
        """Of both phases."""
        return self.frozen.epochs + self.fine_tune.epochs

    def phase(self, name: str) -> Phase:
        return getattr(self, name)

    def check(self) -> None:
        """Raises UserError for the first value that is out of range or contradicts another."""
        _check_choices("", self)
        for name in PHASES:
            _check_choices(f"{name}.", self.phase(name))
            _check_phase(flag_name(name), self.phase(name))
        for holds, sentence in (
            (self.image_size >= 8, f"--image-size {self.image_size} is too small; give 8 pixels or more."),
            (
                max(self.image_size, self.input_size) <= LARGEST_SIZE,
                f"--image-size {self.image_size} with --input-size {self.input_size} is too large; give {LARGEST_SIZE} "
                "pixels or less.",
            ),
            (
                0 <= self.input_size,
                f"--input-size {self.input_size} is negative; give pixels, or 0 for the image size.",
            ),
            (self.batch_size >= 1, f"--batch-size {self.batch_size} is not positive; give 1 or more."),
            (
                self.micro_batches >= 1 and self.batch_size % self.micro_batches == 0,
                f"--micro-batches {self.micro_batches} does not divide --batch-size {self.batch_size}; "
                "give a divisor, such as 2 or 4.",
            ),
            (all(width >= 1 for width in self.head), f"--head {self.head} has a width below 1; give such as 512,256."),
            (0 <= self.dropout < 1, f"--dropout {self.dropout} is no fraction; give 0 or more and less than 1."),
            (
                self.checkpoint_seconds >= 0,
                f"--checkpoint-seconds {self.checkpoint_seconds} is negative; give 0 to save after every update.",
            ),
            (self.decoded_gb >= 0, f"--decoded-gb {self.decoded_gb} is negative; give 0 to keep every set as JPEGs."),
            (self.cache_gb >= 0, f"--cache-gb {self.cache_gb} is negative; give 0 to keep nothing for later runs."),
            (0 <= self.seed < 2**31, f"--seed {self.seed} is out of range; give 0 to 2147483647."),
            (
                0 <= self.label_smoothing < 1,
                f"--label-smoothing {self.label_smoothing} is no fraction; give 0 or more and less than 1.",
            ),
            (
                0 <= self.val_fraction < 1
                and 0 <= self.test_fraction < 1
                and self.val_fraction + self.test_fraction < 1,
                f"--val-fraction {self.val_fraction} and --test-fraction {self.test_fraction} leave no training images; "
                "give fractions whose sum is below 1.",
            ),
            (
                _is_expression(self.group_by),
                f"--group-by {self.group_by} is no regular expression; give such as '([^/]*)_' for what stands ahead of a _.",
            ),
            (
                self.frozen.epochs + self.fine_tune.epochs > 0,
                "Both phases have 0 epochs, so nothing would be trained; raise --frozen.epochs or --fine-tune.epochs.",
            ),
            (
                self.frozen.open == "none",
                f"--frozen.open {self.frozen.open} contradicts itself: the frozen phase trains the head alone; "
                "use --fine-tune.open.",
            ),
            (
                self.fine_tune.epochs == 0 or self.fine_tune.open != "none",
                "--fine-tune.open none leaves nothing to fine-tune; name a stage, a fraction or all, "
                "or pass --fine-tune.epochs 0.",
            ),
            (
                self.weights != "none" or self.frozen.epochs == 0,
                "--weights none has nothing to freeze: a frozen phase would train the head on a random backbone; pass "
                "--frozen.epochs 0 --fine-tune.epochs 20 --fine-tune.open all --fine-tune.learning-rate 1e-3 "
                "to train from scratch.",
            ),
            (
                self.weights != "none" or self.fine_tune.open == "all",
                f"--weights none with --fine-tune.open {self.fine_tune.open} would leave random layers untrained; "
                "pass --fine-tune.open all.",
            ),
        ):
            if not holds:
                raise UserError(sentence)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str, source: str = "the config") -> "RunConfig":
        """Reads what `to_json` wrote.

        Raises:
            UserError: no JSON, an unknown or a missing field, or a value of another type; named with `source`.
        """
        try:
            return _from_fields(RunConfig, json.loads(text), "")
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f"{source} is not a config that this version reads ({error}); restore it, or start a new run."
            ) from None


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
    values = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if isinstance(value, Phase):
            values |= {f"{item.name}.{name}": inner for name, inner in dataclasses.asdict(value).items()}
        else:
            values[item.name] = value
    return values


def difference(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The fields that decide a result and differ, each with its old and new value."""
    free = {item.name for item in dataclasses.fields(RunConfig) if not item.metadata.get("changes_result", True)}
    before, after = flat(old), flat(new)
    return {name: (before[name], after[name]) for name in before if before[name] != after[name] and name not in free}


def named(fields: dict[str, tuple[Any, Any]]) -> str:
    """What `difference` found, in words."""
    return ", ".join(f"{name} is {old}, not {new}" for name, (old, new) in fields.items())


def flag_name(name: str) -> str:
    """``fine_tune.learning_rate`` -> ``fine-tune.learning-rate``."""
    return name.replace("_", "-")


def _check_choices(prefix: str, values: RunConfig | Phase) -> None:
    for item in dataclasses.fields(values):
        choices, value = item.metadata.get("choices"), getattr(values, item.name)
        if choices and value not in choices:
            raise UserError(f"--{flag_name(prefix + item.name)} {value} is unknown.{did_you_mean(str(value), choices)}")


def _is_expression(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _check_phase(flag: str, phase: Phase) -> None:
    if phase.epochs == 0:  # left out: what a recipe says of it contradicts nothing
        return
    for holds, sentence in (
        (phase.epochs >= 0, f"--{flag}.epochs {phase.epochs} is negative; give 0 to leave the phase out."),
        (
            phase.learning_rate > 0 and math.isfinite(phase.learning_rate),
            f"--{flag}.learning-rate {phase.learning_rate} is no positive number; give such as 1e-3.",
        ),
        (0 <= phase.momentum < 1, f"--{flag}.momentum {phase.momentum} is out of range; give 0 or more, below 1."),
        (phase.weight_decay >= 0, f"--{flag}.weight-decay {phase.weight_decay} is negative; give 0 or more."),
        (
            phase.weight_decay == 0 or phase.optimizer == "adamw",
            f"--{flag}.weight-decay needs decoupled decay, which --{flag}.optimizer {phase.optimizer} has not; "
            f"pass --{flag}.optimizer adamw.",
        ),
        (
            phase.views == 0 or (phase.views >= 2 and phase.augmentation != "none"),
            f"--{flag}.views {phase.views} with --{flag}.augmentation {phase.augmentation} makes no views; give 2 or more "
            "with an augmentation (the first one is the plain image), or 0.",
        ),
        (
            phase.schedule != "triangular2" or 0 <= phase.lowest_rate < phase.learning_rate,
            f"--{flag}.lowest-rate {phase.lowest_rate} is not below --{flag}.learning-rate {phase.learning_rate}; give 0 "
            "or more, and less than that.",
        ),
        (
            phase.schedule != "triangular2" or phase.cycle_epochs > 0,
            f"--{flag}.cycle-epochs {phase.cycle_epochs} is no length; give more than 0.",
        ),
        (
            phase.schedule != "triangular2" or phase.warmup_epochs == 0,
            f"--{flag}.warmup-epochs {phase.warmup_epochs} contradicts --{flag}.schedule triangular2, which rises by "
            "itself; leave it at 0.",
        ),
        (
            phase.schedule != "one_cycle" or min(phase.start_divisor, phase.end_divisor) >= 1,
            f"--{flag}.start-divisor {phase.start_divisor} and --{flag}.end-divisor {phase.end_divisor} would begin or end "
            "above the highest rate; give 1 or more.",
        ),
        (phase.patience >= 0, f"--{flag}.patience {phase.patience} is negative; give 0 to train every epoch."),
        (
            phase.plateau_patience >= 1,
            f"--{flag}.plateau-patience {phase.plateau_patience} is below 1; give 1 or more.",
        ),
        (
            0 < phase.plateau_factor < 1,
            f"--{flag}.plateau-factor {phase.plateau_factor} does not lower a rate; give more than 0, less than 1.",
        ),
        (
            0 <= phase.warmup_epochs <= phase.epochs,
            f"--{flag}.warmup-epochs {phase.warmup_epochs} does not fit into --{flag}.epochs {phase.epochs}; "
            "give 0 or more, and no more than the epochs.",
        ),
    ):
        if not holds:
            raise UserError(sentence)


def _from_fields(cls: type, values: dict[str, Any], prefix: str) -> Any:
    hints = get_type_hints(cls)
    if not isinstance(values, dict):
        raise TypeError(f"{prefix or 'it'} is no table of fields")
    if unknown := sorted(values.keys() - hints.keys()):
        raise ValueError(f"unknown field {prefix}{unknown[0]}")
    if missing := sorted(hints.keys() - values.keys()):
        raise ValueError(f"no field {prefix}{missing[0]}")
    read = {}
    for name, hint in hints.items():
        value = values[name]
        if hint is Phase:
            value = _from_fields(Phase, value, f"{name}.")
        elif hint is float and type(value) is int:
            value = float(value)
        elif hint == tuple[int, ...] and isinstance(value, list) and all(type(item) is int for item in value):
            value = tuple(value)
        elif type(value) is not hint:
            expected = "a list of int" if hint == tuple[int, ...] else hint.__name__
            raise TypeError(f"{prefix}{name} is {value!r}, not {expected}")
        read[name] = value
    return cls(**read)
