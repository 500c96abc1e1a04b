"""The loop: phases, epochs, updates; each can be left after any update and entered again there, to the bit."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence

import keras

from transfer_learning.config import PHASES, RunConfig, difference
from transfer_learning.datasets.pipeline import training_batches
from transfer_learning.errors import UserError
from transfer_learning.run_dir import RunDir
from transfer_learning.training import checkpoint
from transfer_learning.training.history import add_timing, write_history
from transfer_learning.training.phases import ActivePhase, measure
from transfer_learning.training.progress import EpochProgress
from transfer_learning.training.schedules import learning_rate
from transfer_learning.training.state import TrainingState
from transfer_learning.training.stopping import StopRequest


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to. The first three must agree; other surroundings only cost the last bits."""

    config: RunConfig
    dataset: str  # fingerprint of the manifest
    initial_weights: str  # SHA-256 of the network before the first update
    surroundings: dict[str, str]  # versions, device, flags

    def to_values(self) -> dict:
        return dataclasses.asdict(self) | {"config": json.loads(self.config.to_json())}


def train(
    identity: Identity,
    make_phase: Callable[[str], ActivePhase],
    model: keras.Model,
    run_dir: RunDir,
    callbacks: Sequence[keras.callbacks.Callback],
    stop: StopRequest,
    say: Callable[[str], None] = print,
) -> TrainingState:
    """Trains all phases, from the newest checkpoint of `run_dir` where there is one; the best weights are left in place.

    Args:
        make_phase: builds a phase by its name, with the network as the phase before left it.
        model: what the callbacks see as their model.
        stop: asked after every update.

    Raises:
        UserError: the checkpoint belongs to another config or dataset, or the loss is no longer a number.
        Stopped: a signal came; the state is saved.
    """
    state, arrays = _restore(run_dir, identity, say)
    callback_list = keras.callbacks.CallbackList(list(callbacks), model=model) if callbacks else None
    if callback_list:
        callback_list.on_train_begin()
    try:
        return _train_phases(identity, make_phase, model, run_dir, callback_list, stop, state, arrays)
    finally:
        if callback_list:  # also after a stop: this is where Keras' own callbacks close their files
            callback_list.on_train_end()


def _train_phases(
    identity: Identity, make_phase: Callable[[str], ActivePhase], model: keras.Model, run_dir: RunDir,
    callbacks: keras.callbacks.CallbackList | None, stop: StopRequest, state: TrainingState,
    arrays: checkpoint.Arrays | None,
) -> TrainingState:  # fmt: skip
    config = identity.config
    names = [name for name in PHASES if config.phase(name).epochs > 0]
    while True:
        # When all phases are done, the last one is made once more, to take its weights out of the checkpoint.
        active = make_phase(names[min(state.phase, len(names) - 1)])
        if arrays:
            active.assign(arrays)
            arrays = None
        else:
            _save(run_dir, identity, state, active)
        if state.phase == len(names):
            write_history(state.history, run_dir.history)
            return state
        model.stop_training, model.optimizer = False, active.optimizer  # what callbacks look at
        with stop.deferred(), EpochProgress() as progress:
            while not state.phase_is_over(active.settings):
                _train_epoch(identity, active, state, model, run_dir, callbacks, stop, progress)
        active.restore_best()
        state.end_phase()
        if state.phase == len(names):
            _save(run_dir, identity, state, active)
            write_history(state.history, run_dir.history)
            return state


def _train_epoch(
    identity: Identity, active: ActivePhase, state: TrainingState, model: keras.Model, run_dir: RunDir,
    callbacks: keras.callbacks.CallbackList | None, stop: StopRequest, progress: EpochProgress,
) -> None:  # fmt: skip
    config, settings, number = identity.config, active.settings, len(state.history)
    loss_metric, accuracy_metric = active.metrics
    if state.update == 0:
        for metric in active.metrics:
            metric.reset_state()
    batch_size = config.batch_size
    title = f"{active.name} {state.epoch + 1}/{settings.epochs}"
    progress.start_epoch(title, len(active.train), min(state.update * batch_size, len(active.train)))
    if callbacks:
        callbacks.on_epoch_begin(number)

    def figures() -> tuple[float, float]:
        return float(loss_metric.result()), float(accuracy_metric.result())

    # Updates.
    started = saved = time.monotonic()
    for inputs, labels in training_batches(
        active.train, batch_size, config.seed, number, state.update, settings.augmentation, config.flip
    ):
        if callbacks:
            callbacks.on_train_batch_begin(state.update)
        active.optimizer.learning_rate = _rate(active, state, state.update)
        active.update(inputs, labels)
        state.update += 1
        progress.add_images(len(labels), figures)
        if callbacks:
            callbacks.on_train_batch_end(state.update - 1, dict(zip(("loss", "accuracy"), figures(), strict=True)))
        if stop.is_received or time.monotonic() - saved >= config.checkpoint_seconds:
            _save(run_dir, identity, state, active)
            saved = time.monotonic()
            stop.raise_if_received()
    loss, accuracy = figures()
    updates_seconds = time.monotonic() - started

    # Validation, and what follows from it.
    val_loss, val_accuracy = measure(active, active.val, batch_size)
    if not math.isfinite(loss):
        raise UserError(
            f"The loss is {loss} in epoch {state.epoch + 1} of phase {active.name}; a number was expected, so start a "
            f"new run with a lower --{active.name.replace('_', '-')}.learning-rate (it was {settings.learning_rate})."
        )
    row = {
        "phase": active.name, "epoch": number + 1,
        "updates": (state.epoch + 1) * active.updates_per_epoch, "learning_rate": _rate(active, state, state.update - 1),
        "loss": loss, "accuracy": accuracy, "val_loss": val_loss, "val_accuracy": val_accuracy,
    }  # fmt: skip
    is_best = state.end_epoch(row, settings, config.monitor)
    if is_best:
        active.keep_best()
    if callbacks:
        callbacks.on_epoch_end(number, {key: row[key] for key in row if key not in ("phase", "epoch", "updates")})
        state.stopped_by_callback = bool(model.stop_training)
    _save(run_dir, identity, state, active)
    write_history(state.history, run_dir.history)
    left = 0 if state.phase_is_over(settings) else settings.epochs - state.epoch
    timing = progress.end_epoch(row, is_best, left, updates_seconds)
    add_timing(run_dir.timings, {"phase": active.name, "epoch": number + 1, **timing})
    stop.raise_if_received()


def _rate(active: ActivePhase, state: TrainingState, update: int) -> float:
    in_phase = state.epoch * active.updates_per_epoch + update
    return learning_rate(active.settings, in_phase, active.updates_per_epoch, state.plateau_scale)


def _save(run_dir: RunDir, identity: Identity, state: TrainingState, active: ActivePhase) -> None:
    values = {"identity": identity.to_values(), "state": dataclasses.asdict(state)}
    checkpoint.save(run_dir.checkpoint, active.arrays(), values)


def _restore(
    run_dir: RunDir, identity: Identity, say: Callable[[str], None]
) -> tuple[TrainingState, checkpoint.Arrays | None]:
    """The state and arrays of the newest checkpoint, once it is sure that they belong to this run."""
    found = checkpoint.load(run_dir.checkpoint, say)
    if found is None:
        return TrainingState(), None
    arrays, values = found
    theirs = values["identity"]
    config = RunConfig.from_json(json.dumps(theirs["config"]), f"the config inside {run_dir.checkpoint}")
    if fields := difference(config, identity.config):
        named = ", ".join(f"{name} was {old} and is {new}" for name, (old, new) in fields.items())
        raise UserError(f"{run_dir.path} was trained with another config ({named}); restore it, or start a new run.")
    if theirs["dataset"] != identity.dataset:
        raise UserError(
            f"The images, labels or splits of {config.dataset} are not those that {run_dir.path} was trained on; "
            "restore them, or start a new run."
        )
    if theirs["initial_weights"] != identity.initial_weights:
        raise UserError(
            f"The initial weights of {config.backbone} are not those that {run_dir.path} started from; "
            f"restore them ({config.weights}), or start a new run."
        )
    surroundings = {
        name: (theirs["surroundings"].get(name), value)
        for name, value in identity.surroundings.items()
        if theirs["surroundings"].get(name) != value
    }
    if surroundings:
        named = ", ".join(f"{name} was {old} and is {new}" for name, (old, new) in surroundings.items())
        say(f"The run continues in other surroundings ({named}), so its last bits may differ from an unbroken run's.")
    state = TrainingState(**values["state"])
    say(f"Continuing after epoch {len(state.history)}" + (f" and {state.update} updates." if state.update else "."))
    return state, arrays
