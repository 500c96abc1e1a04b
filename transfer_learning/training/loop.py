"""The loop: phases, epochs, updates; each can be left between two calls of updates and entered again there, to the bit."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import keras
import numpy as np
import tensorflow as tf

from transfer_learning.cli.progress import EpochProgress
from transfer_learning.config import PHASES, RunConfig, flag_name
from transfer_learning.datasets.pipeline import training_batches
from transfer_learning.errors import Diverged, UserError
from transfer_learning.storage.files import renamed
from transfer_learning.storage.run_directory import RunDir
from transfer_learning.training import checkpoint
from transfer_learning.training.history import add_timing, write_history
from transfer_learning.training.identity import Identity
from transfer_learning.training.phases import ActivePhase, measure
from transfer_learning.training.schedules import learning_rate
from transfer_learning.training.state import TrainingState
from transfer_learning.training.stopping import StopRequest

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 2.0  # at the loss, whether it is still a number


def restore(run_dir: RunDir, identity: Identity) -> tuple[TrainingState, checkpoint.Arrays | None]:
    """Returns the state and the arrays of the newest checkpoint of `run_dir`; the beginning where there is none.

    Raises:
        UserError: it belongs to another config, dataset or network, or every checkpoint is damaged.
    """
    found = checkpoint.load(run_dir.checkpoint)
    if found is None:
        return TrainingState(), None
    arrays, values = found
    try:
        identity.check(values["identity"], run_dir)
        state = TrainingState(**renamed(values["state"], {"micro_batches": "gradient_accumulation_steps"}))
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f"{run_dir.path} was begun by another version, which kept another state; start a new run."
        ) from None
    logger.info(
        f"Continuing after epoch {len(state.history)}" + (f" and {state.update} updates." if state.update else ".")
    )
    return state, arrays


def train(
    identity: Identity,
    state: TrainingState,
    arrays: checkpoint.Arrays | None,
    make_phase: Callable[..., ActivePhase],
    model: keras.Model,
    run_dir: RunDir,
    callbacks: Sequence[keras.callbacks.Callback],
    stop: StopRequest,
    timed: Callable[[str], AbstractContextManager] = nullcontext,
    trained: Callable[[int, float | None], None] = lambda num_images, learning_rate: None,
) -> TrainingState:
    """Trains all phases from `state` on; the best weights of the last one are left in place.

    Args:
        state, arrays: what `restore` returned.
        make_phase: builds a phase by its name and the parts of a batch (0: as the config has it), with the network as
            the phase before left it; `is_begun` says that its arrays come from a checkpoint, `is_over` that nothing is
            left to train.
        model: what the callbacks see as their model.
        stop: asked after every call of updates; it takes effect once the state is on disk.
        timed: called with a phase's name; what it returns is entered while the phase is made and trained.
        trained: told of updates, as by `EpochProgress`.

    Raises:
        UserError: the loss, of training or validation, is no longer a finite number.
        tf.errors.ResourceExhaustedError: the memory is too small for a single image at a time.
        Stopped: a signal came; the state is saved.
        OSError: a checkpoint cannot be written; the ones before are whole.
    """
    callback_list = keras.callbacks.CallbackList(list(callbacks), model=model) if callbacks else None
    if callback_list:
        callback_list.on_train_begin()
    try:
        with checkpoint.Writer(run_dir.checkpoint) as writer:
            return _train_phases(
                identity, state, arrays, make_phase, model, run_dir, writer, callback_list, stop, timed, trained
            )
    finally:
        if callback_list:  # also after a stop: this is where Keras' own callbacks close their files
            callback_list.on_train_end()


def _train_phases(
    identity: Identity,
    state: TrainingState,
    arrays: checkpoint.Arrays | None,
    make_phase: Callable[..., ActivePhase],
    model: keras.Model,
    run_dir: RunDir,
    writer: checkpoint.Writer,
    callbacks: keras.callbacks.CallbackList | None,
    stop: StopRequest,
    timed: Callable[[str], AbstractContextManager],
    trained: Callable[[int, float | None], None],
) -> TrainingState:
    names = [name for name in PHASES if identity.config.phase(name).epochs > 0]
    while state.phase < len(names):
        with timed(names[state.phase]):
            active = make_phase(names[state.phase], state.gradient_accumulation_steps, is_begun=arrays is not None)
            if arrays:
                active.assign(arrays)
                arrays = None
            else:
                _save(writer, identity, state, active.arrays())
            model.stop_training, model.optimizer = False, active.optimizer  # what callbacks look at
            try:
                with stop.deferred(), EpochProgress(trained) as progress:
                    while not state.phase_is_over(active.settings):
                        _Epoch(identity, active, state, model, run_dir, writer, callbacks, stop, progress).run()
            except tf.errors.ResourceExhaustedError:
                if not (parts := _more_parts(identity.config, state)):
                    raise
                del active  # and its memory
                writer.wait()
                state, arrays = restore(run_dir, identity)
                state.gradient_accumulation_steps = parts
                logger.info(
                    f"Memory ran out, so from update {state.update + 1} of epoch {len(state.history) + 1} on each batch of "
                    f"{identity.config.batch_size} is computed in {parts} parts, whose gradients are summed."
                )
                continue
            active.restore_best()
            state.end_phase()
            if state.phase == len(names):
                _save(writer, identity, state, active.arrays())
    if arrays:  # all was done before: only the weights are wanted, as the last phase kept them
        make_phase(names[-1], state.gradient_accumulation_steps, is_begun=True, is_over=True).assign(arrays)
    write_history(state.history, run_dir.history)
    return state


def _more_parts(config: RunConfig, state: TrainingState) -> int | None:
    """The next larger number of parts that a batch can be cut into, at least twice as many; None when there is none."""
    now = state.gradient_accumulation_steps or config.gradient_accumulation_steps
    return next((parts for parts in range(2 * now, config.batch_size + 1) if config.batch_size % parts == 0), None)


@dataclasses.dataclass
class _Epoch:
    """One epoch, or what a stopped session left of it."""

    identity: Identity
    active: ActivePhase
    state: TrainingState
    model: keras.Model
    run_dir: RunDir
    writer: checkpoint.Writer
    callbacks: keras.callbacks.CallbackList | None
    stop: StopRequest
    progress: EpochProgress

    def run(self) -> None:
        active, state, config, number = self.active, self.state, self.identity.config, len(self.state.history)
        self.number = state.epoch + 1  # in the phase, also once the state is at the next one
        self.saved = self.looked = self.started = time.monotonic()
        self.seconds_before, self.checkpoint_seconds = state.seconds, 0.0
        if state.update == 0:
            active.start_epoch()
        batch_size, num_images = config.batch_size, len(active.train)
        title = f"{active.name} {self.number}/{active.settings.epochs}"
        self.progress.start_epoch(title, num_images, min(state.update * batch_size, num_images))
        if self.callbacks:
            self.callbacks.on_epoch_begin(number)

        # Updates: several in a call where nobody wants to look in between.
        at_once = 1 if self.callbacks or config.checkpoint_seconds == 0 else active.steps_per_execution
        for inputs, labels in training_batches(
            active.train,
            batch_size * at_once,
            config.seed,
            number,
            state.update * batch_size,
            active.augmentation,
            config.flip,
        ):
            updates = range(state.update, state.update - (-len(labels) // batch_size))
            if self.callbacks:
                self.callbacks.on_train_batch_begin(state.update)
            rates = [self.rate(update) for update in updates]
            active.train_steps(inputs, labels, rates)
            state.update = updates.stop
            self.progress.add_images(len(labels), rates[-1], self.figures)
            if self.callbacks:
                self.callbacks.on_train_batch_end(state.update - 1, self.figures())
            self.save_if_due()
        self.check_loss()
        figures, images_per_second = self.figures(), num_images / max(self.seconds(), 1e-9)

        # Validation, and what follows from it.
        val_loss, val_accuracy = measure(active, self.save_if_due)
        figures |= {"val_loss": val_loss, "val_accuracy": val_accuracy}
        if len(active.val) and not math.isfinite(val_loss):
            raise self.diverged(f"The val_loss is {val_loss} after update {self.updates_done():,}")
        row = {
            "phase": active.name,
            "epoch": number + 1,
            "updates": (state.epoch + 1) * active.steps_per_epoch,
            "learning_rate": self.rate(state.update - 1),
            **figures,
        }
        timing = {"seconds": self.seconds(), "images_per_second": images_per_second}
        is_best = state.end_epoch(row, active.settings, config.monitor)
        if is_best:
            active.keep_best()
        if self.callbacks:
            self.callbacks.on_epoch_end(number, {**figures, "learning_rate": row["learning_rate"]})
            state.stopped_by_callback = bool(self.model.stop_training)
        self.save()
        write_history(state.history, self.run_dir.history)
        timing["checkpoint_seconds"] = self.checkpoint_seconds  # in this session
        add_timing(self.run_dir.timings, {"phase": active.name, "epoch": number + 1, **timing})
        epochs_left = 0 if state.phase_is_over(active.settings) else active.settings.epochs - state.epoch
        self.progress.end_epoch(row, timing, is_best, epochs_left)
        self.stop.raise_if_received()

    def figures(self) -> dict[str, float]:
        """Loss and accuracy over the epoch so far."""
        return {metric.name: float(metric.result()) for metric in self.active.metrics}

    def rate(self, update: int) -> float:
        """The learning rate of an update of this epoch."""
        in_phase = self.state.epoch * self.active.steps_per_epoch + update
        return learning_rate(self.active.settings, in_phase, self.active.steps_per_epoch, self.state.plateau_scale)

    def seconds(self) -> float:
        """What the epoch has taken so far, in all sessions."""
        return self.seconds_before + time.monotonic() - self.started

    def save_if_due(self) -> None:
        """Saves when a signal has come, which then takes effect, or when the last checkpoint is old enough."""
        if time.monotonic() - self.looked >= SECONDS_BETWEEN_LOOKS:  # to look is to wait for a GPU
            self.looked = time.monotonic()
            self.check_loss()
        if self.stop.is_received or time.monotonic() - self.saved >= self.identity.config.checkpoint_seconds:
            self.state.seconds = self.seconds()
            self.save()
            self.saved = time.monotonic()
            self.stop.raise_if_received()

    def save(self) -> None:
        self.check_loss()
        started = time.monotonic()
        arrays = self.active.arrays()
        if not all(np.isfinite(array).all() for array in arrays["weights"]):
            raise self.diverged(f"A weight is no finite number after update {self.updates_done():,}")
        _save(self.writer, self.identity, self.state, arrays)
        self.checkpoint_seconds += time.monotonic() - started

    def check_loss(self) -> None:
        """Raises UserError where the loss has stopped being a finite number; nothing is saved from there on."""
        if not math.isfinite(loss := self.figures()["loss"]):
            first = self.updates_done() - self.state.update + int(self.active.finite_steps) + 1
            raise self.diverged(f"The loss is {loss} from update {first:,} on")

    def updates_done(self) -> int:
        """Updates of the phase so far."""
        return self.state.epoch * self.active.steps_per_epoch + self.state.update

    def diverged(self, what: str) -> Diverged:
        name, settings = flag_name(self.active.name), self.active.settings
        return Diverged(
            f"{what} of phase {self.active.name} (epoch {self.number}), so the training has diverged; start a new "
            f"run with a lower --{name}.learning-rate (it was {settings.learning_rate}); the last checkpoint of this one is "
            "from before."
        )


def _save(writer: checkpoint.Writer, identity: Identity, state: TrainingState, arrays: checkpoint.Arrays) -> None:
    """Begins to write a copy that was taken between two updates; the next one does not wait for it."""
    writer.save(arrays, {"identity": identity.to_values(), "state": dataclasses.asdict(state)})
