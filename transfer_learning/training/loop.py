"""The training loop: phases, epochs, train steps. It can stop after any step and resume bit-exactly."""

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
from transfer_learning.config import RunConfig, flag_name
from transfer_learning.datasets.pipeline import training_batches
from transfer_learning.errors import Diverged, UserError
from transfer_learning.machine.strategy import Workers
from transfer_learning.storage.run_directory import RunDir
from transfer_learning.training import checkpoint
from transfer_learning.training.final_weights import choose_final_weights, note_start
from transfer_learning.training.history import add_timing, write_history
from transfer_learning.training.identity import Identity
from transfer_learning.training.phase_builder import PhaseBuilder
from transfer_learning.training.phases import ActivePhase, evaluate
from transfer_learning.training.rate_search import find_learning_rate
from transfer_learning.training.schedules import learning_rate
from transfer_learning.training.state import TrainingState
from transfer_learning.training.stopping import StopRequest

logger = logging.getLogger(__name__)

LOSS_CHECK_SECONDS = 2.0  # between two looks at the loss, each of which waits for the GPU


def restore(run_dir: RunDir, identity: Identity) -> tuple[TrainingState, checkpoint.Arrays | None]:
    """Returns the state and arrays of the newest checkpoint of `run_dir`, or a new state and None.

    Raises:
        UserError: it belongs to another config, dataset or network, or every checkpoint is damaged.
    """
    found = checkpoint.load(run_dir.checkpoint)
    if found is None:
        return TrainingState(), None
    arrays, values = found
    try:
        identity.check(values["identity"], run_dir)
        state = TrainingState.from_values(values["state"])
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f"The checkpoints in {run_dir.path} are of a version that this one does not read; start a new run."
        ) from None
    logger.info(
        f"Continuing after epoch {len(state.history)}" + (f" and {state.step} train steps." if state.step else ".")
    )
    return state, arrays


def from_chief(
    workers: Workers, state: TrainingState, arrays: checkpoint.Arrays | None
) -> tuple[TrainingState, checkpoint.Arrays | None]:
    """The state and arrays of worker 0, for all workers."""
    if workers.count == 1:
        return state, arrays
    data = checkpoint.to_bytes(arrays or {}, dataclasses.asdict(state)) if workers.is_chief else b""
    arrays, values = checkpoint.from_bytes(workers.from_chief(data))
    return TrainingState.from_values(values), arrays or None


class Trainer:
    """Trains the phases of one run.

    Args:
        identity: what the checkpoints of the run belong to.
        phases: builds each phase on the network as the phase before left it.
        run_dir: gets checkpoints, history and timings.
        stop: checked after every call of train steps; a signal takes effect once the state is on disk.
        callbacks: Keras callbacks, called as by `fit`; epochs are counted over all phases.
        stage: called with the name of a phase; the context manager is entered while the phase is built and trained.
        on_steps: called with the images and the last learning rate of train steps, see `EpochProgress`.
    """

    def __init__(
        self,
        identity: Identity,
        phases: PhaseBuilder,
        run_dir: RunDir,
        stop: StopRequest,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        stage: Callable[[str], AbstractContextManager] = nullcontext,
        on_steps: Callable[[int, float | None], None] = lambda num_images, learning_rate: None,
    ):
        self.identity, self.config = identity, identity.config
        self.phases, self.model = phases, phases.classifier.model
        self.run_dir, self.writer = run_dir, checkpoint.Writer(run_dir.checkpoint)
        self.stop, self.stage, self.on_steps = stop, stage, on_steps
        self.callbacks = keras.callbacks.CallbackList(list(callbacks), model=self.model) if callbacks else None
        self.workers = phases.workers

    def train(self, state: TrainingState, arrays: checkpoint.Arrays | None = None) -> TrainingState:
        """Trains all phases, from what `restore` returned; the network ends with the best weights of the last phase.

        Raises:
            Diverged: the loss of training or validation, or a weight, is NaN or infinite.
            tf.errors.ResourceExhaustedError: the memory does not suffice for a single image at a time.
            Stopped: a signal came; the state is saved.
            OSError: a checkpoint cannot be written; the ones before are complete.
        """
        names = self.config.phases
        if self.callbacks:
            self.callbacks.on_train_begin()
        try:
            with self.writer:
                while state.phase < len(names):
                    with self.stage(names[state.phase]):
                        try:
                            self._train_phase(state, arrays)
                            arrays = None
                        except tf.errors.ResourceExhaustedError:
                            num_parts = _more_parts(self.config, state)
                            if num_parts is None or self.workers.count > 1:
                                raise
                            state, arrays = self._restore_with_parts(num_parts)
        finally:
            if self.callbacks:  # also after a stop: this is where Keras' own callbacks close their files
                self.callbacks.on_train_end()
        if arrays:  # training was over before: only the weights are needed
            active = self.phases.build(names[-1], state.gradient_accumulation_steps, is_resumed=True, is_over=True)
            active.assign(arrays)
        write_history(state.history, self.run_dir.history)
        return state

    def save(self, state: TrainingState, arrays: checkpoint.Arrays) -> None:
        """Starts to write a checkpoint, if this is worker 0; the next train step does not wait for it."""
        if not self.workers.is_chief:
            return
        values = {"identity": self.identity.to_values(), "state": dataclasses.asdict(state)}
        self.writer.save(arrays, values)

    def _train_phase(self, state: TrainingState, arrays: checkpoint.Arrays | None) -> None:
        """Trains the rest of the current phase, restores its best weights and moves `state` to the next phase."""
        active = self.phases.build(
            self.config.phases[state.phase], state.gradient_accumulation_steps, is_resumed=arrays is not None
        )
        if arrays:
            active.assign(arrays)
        else:
            self._share_start(active, state)
            if self.config.monitor.startswith("val") and len(active.val):
                if state.phase:
                    note_start(active, state, self.config.monitor)
                    state.solves_head = self.phases.may_solve_head
                elif self.phases.may_keep_start:
                    loss, accuracy = evaluate(active)
                    active.keep_best()
                    state.best_value = loss if self.config.monitor == "val_loss" else accuracy
            if state.phase:
                self.phases.restart_head()
                self._share_start(active, state)
            if self.config.find_learning_rate and active.name == "fine_tune":
                state.rate_search = find_learning_rate(active, self.config)
            self.save(state, active.arrays())
        self.model.stop_training, self.model.optimizer = False, active.optimizer  # read by callbacks
        with self.stop.deferred(), EpochProgress(self.on_steps) as progress:
            while not state.phase_is_over(active.settings):
                _Epoch(self, active, state, progress).run()
        if state.epoch < active.settings.epochs and state.cannot_win(active.settings):
            logger.info(
                f"Fine-tuning ends after {state.epoch} of {active.settings.epochs} epochs: its val_loss "
                f"{state.best_value:.4f} is too far above the {state.initial_value:.4f} of the frozen phase."
            )
        active.restore_best()
        if active.initial:
            solve_head = self.phases.solve_head if state.solves_head else None
            state.final_weights = choose_final_weights(
                active, self.config.monitor, solve_head, self.phases.data.groups("val")
            )
        state.end_phase()
        if state.phase == len(self.config.phases):
            self.save(state, active.arrays())

    def _share_start(self, active: ActivePhase, state: TrainingState) -> None:
        """All workers start a phase with the arrays of worker 0."""
        if self.workers.count > 1:
            active.assign(from_chief(self.workers, state, active.arrays())[1] or {})

    def _restore_with_parts(self, num_parts: int) -> tuple[TrainingState, checkpoint.Arrays | None]:
        """The newest checkpoint, to go on with each batch in `num_parts` parts."""
        self.writer.wait()
        state, arrays = restore(self.run_dir, self.identity)
        state.gradient_accumulation_steps = num_parts
        logger.warning(
            f"Memory ran out: from step {state.step + 1} of epoch {len(state.history) + 1} on each batch of "
            f"{self.config.batch_size} is computed in {num_parts} parts (gradient accumulation)."
        )
        return state, arrays


def _more_parts(config: RunConfig, state: TrainingState) -> int | None:
    """The next divisor of the batch size that is at least twice the number of parts so far; None if there is none."""
    now = state.gradient_accumulation_steps or config.gradient_accumulation_steps
    return next((parts for parts in range(2 * now, config.batch_size + 1) if config.batch_size % parts == 0), None)


class _Epoch:
    """One epoch, or the rest of one that an earlier session left unfinished."""

    def __init__(self, trainer: Trainer, active: ActivePhase, state: TrainingState, progress: EpochProgress):
        self.trainer, self.active, self.state, self.progress = trainer, active, state, progress
        self.config, self.callbacks = trainer.config, trainer.callbacks
        self.index = len(state.history)  # from 0, over all phases
        self.number = state.epoch + 1  # from 1, within the phase
        self.seconds_before, self.checkpoint_seconds = state.seconds, 0.0
        self.must_stop = False
        self.started = self.saved = self.loss_checked = time.monotonic()

    def run(self) -> None:
        active = self.active
        self.train()
        images_per_second = len(active.train) / max(self.seconds(), 1e-9)
        metrics = active.metrics.result() | self.validate()
        row = {
            "phase": active.name,
            "epoch": self.index + 1,
            "updates": self.number * active.steps_per_epoch,
            "learning_rate": self.learning_rate(self.state.step - 1),
            **metrics,
        }
        self.end(row, images_per_second)

    def train(self) -> None:
        """Makes the train steps that are left in the epoch."""
        active, state, batch_size, num_images = self.active, self.state, self.config.batch_size, len(self.active.train)
        if state.step == 0:
            active.metrics.reset()
        title = f"{active.name} {self.number}/{active.settings.epochs}"
        self.progress.start_epoch(title, num_images, min(state.step * batch_size, num_images))
        if self.callbacks:
            self.callbacks.on_epoch_begin(self.index)
        # Several steps per call, unless something has to happen after each of them.
        steps_per_call = 1 if self.callbacks or self.config.checkpoint_seconds == 0 else active.steps_per_execution
        images_per_call = batch_size * steps_per_call
        for inputs, labels in training_batches(
            active.train,
            images_per_call,
            self.config.seed,
            self.index,
            start=state.step * batch_size,
            augmentation=active.augmentation,
            flip=self.config.flip,
        ):
            images = min(images_per_call, num_images - state.step * batch_size)  # of which workers have a part each
            next_step = state.step + math.ceil(images / batch_size)
            if self.callbacks:
                self.callbacks.on_train_batch_begin(state.step)
            learning_rates = [self.learning_rate(step) for step in range(state.step, next_step)]
            active.train_steps(inputs, labels, learning_rates)
            state.step = next_step
            self.progress.add_images(images, learning_rates[-1], active.metrics.result)
            if self.callbacks:
                self.callbacks.on_train_batch_end(next_step - 1, active.metrics.result())
            self.agree()
            self.save_if_due()
        self.check_loss()

    def agree(self) -> None:
        """All workers stop after the step after which one of them has got a signal."""
        workers, stop = self.trainer.workers, self.trainer.stop
        if workers.count > 1:
            self.check_loss()  # which is that of all: they end with the same error
            self.must_stop = workers.any(stop.is_received)
            if self.must_stop:
                stop.receive()

    def validate(self) -> dict[str, float]:
        val_loss, val_accuracy = evaluate(self.active, self.save_if_due)
        if len(self.active.val) and not math.isfinite(val_loss):
            raise self.diverged(f"The val_loss is {val_loss} after step {self.steps_in_phase():,}")
        return {"val_loss": val_loss, "val_accuracy": val_accuracy}

    def end(self, row: dict, images_per_second: float) -> None:
        """Moves the state to the next epoch, calls callbacks, writes checkpoint, history and timings."""
        active, state, run_dir = self.active, self.state, self.trainer.run_dir
        timing = {"seconds": self.seconds(), "images_per_second": images_per_second}
        is_best = state.end_epoch(row, active.settings, self.config.monitor)
        if is_best:
            active.keep_best()
        if self.callbacks:
            logs = {name: row[name] for name in ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")}
            self.callbacks.on_epoch_end(self.index, logs)
            state.stopped_by_callback = self.trainer.workers.any(bool(self.trainer.model.stop_training))
        self.save()
        write_history(state.history, run_dir.history)
        timing["checkpoint_seconds"] = self.checkpoint_seconds  # in this session
        add_timing(run_dir.timings, {"phase": active.name, "epoch": row["epoch"], **timing})
        epochs_left = 0 if state.phase_is_over(active.settings) else active.settings.epochs - state.epoch
        self.progress.end_epoch(row, timing, is_best, epochs_left)
        self.agree()
        if self.must_stop or self.trainer.workers.count == 1:
            self.trainer.stop.raise_if_received()

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step of this epoch."""
        step_in_phase = (self.number - 1) * self.active.steps_per_epoch + step
        settings, found = self.active.settings, self.state.rate_search.get("learning_rate")
        if found and self.active.name == "fine_tune":
            settings = dataclasses.replace(settings, learning_rate=found)
        return learning_rate(settings, step_in_phase, self.active.steps_per_epoch, self.state.plateau_scale)

    def seconds(self) -> float:
        """Time of the epoch so far, in all sessions."""
        return self.seconds_before + time.monotonic() - self.started

    def save_if_due(self) -> None:
        """Writes a checkpoint if a signal came, which then takes effect, or if the last one is old enough."""
        if time.monotonic() - self.loss_checked >= LOSS_CHECK_SECONDS:
            self.loss_checked = time.monotonic()
            self.check_loss()
        must_stop = self.must_stop if self.trainer.workers.count > 1 else self.trainer.stop.is_received
        if must_stop or time.monotonic() - self.saved >= self.config.checkpoint_seconds:
            self.state.seconds = self.seconds()
            self.save()
            self.saved = time.monotonic()
            if must_stop or self.trainer.workers.count == 1:
                self.trainer.stop.raise_if_received()

    def save(self) -> None:
        """A NaN or infinite loss or weight aborts the run before the checkpoint."""
        self.check_loss()
        started = time.monotonic()
        arrays = self.active.arrays()
        if not all(np.isfinite(array).all() for array in arrays["weights"]):
            raise self.diverged(f"A weight is NaN or infinite after step {self.steps_in_phase():,}")
        self.trainer.save(self.state, arrays)
        self.checkpoint_seconds += time.monotonic() - started

    def check_loss(self) -> None:
        """Raises Diverged if the loss of the epoch so far is NaN or infinite."""
        if not math.isfinite(loss := self.active.metrics.result()["loss"]):
            first = self.steps_in_phase() - self.state.step + int(self.active.metrics.finite_steps) + 1
            raise self.diverged(f"The loss is {loss} from step {first:,} on")

    def steps_in_phase(self) -> int:
        """Train steps of the phase so far."""
        return self.state.epoch * self.active.steps_per_epoch + self.state.step

    def diverged(self, what: str) -> Diverged:
        name, settings = self.active.name, self.active.settings
        return Diverged(
            f"{what} of phase {name} (epoch {self.number}): training has diverged; start a new run with a lower "
            f"--{flag_name(name)}.learning-rate (it was {settings.learning_rate})."
        )
