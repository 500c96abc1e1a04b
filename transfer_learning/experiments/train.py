"""The story of a run, top to bottom: machine, data, network, training, evaluation, report."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import keras
import pandas as pd
import tensorflow as tf

from transfer_learning.cli.console import log_file, logged_to
from transfer_learning.config import PHASES, RunConfig, flag_name
from transfer_learning.datasets.dataset import split_off_unseen
from transfer_learning.datasets.pipeline import Examples
from transfer_learning.datasets.prepared import PreparedDataset, prepare_dataset
from transfer_learning.datasets.sources.registry import load_dataset
from transfer_learning.errors import UserError, needs_extra
from transfer_learning.experiments.evaluate import calibrate_and_evaluate, draw_figures
from transfer_learning.machine.devices import Devices, git_commit, set_up_devices, versions
from transfer_learning.machine.monitor import Monitor
from transfer_learning.models.backbones import find_backbone
from transfer_learning.models.classifier import Classifier, build_classifier, unfreeze_layers
from transfer_learning.models.freezing import Cut, find_cut
from transfer_learning.reports.run import write_report
from transfer_learning.storage.cache import Cache
from transfer_learning.storage.files import read_json, write_json, write_text
from transfer_learning.storage.notes import NotesHandler
from transfer_learning.storage.run_directory import RunDir
from transfer_learning.training.estimate import RunEstimate, estimate_run
from transfer_learning.training.history import fine_tuned_worse, phase_results
from transfer_learning.training.identity import Identity
from transfer_learning.training.loop import restore, train
from transfer_learning.training.phase_inputs import make_phase_inputs
from transfer_learning.training.phases import ActivePhase, class_weights, start_phase
from transfer_learning.training.ridge import ridge_head
from transfer_learning.training.stopping import StopRequest

logger = logging.getLogger(__name__)


def run_experiment(
    config: RunConfig, run_dir: RunDir, callbacks: Sequence[keras.callbacks.Callback] = (), reasons: Sequence[str] = ()
) -> dict:
    """Trains and evaluates what `config` asks for; a run directory with a checkpoint is continued to the same bits.

    Args:
        callbacks: Keras callbacks, called as by `fit`, epochs counted over both phases. `stop_training` ends the phase
            at the end of its epoch; the learning rate is the config's, and a callback cannot change it. What callbacks
            keep in memory is not part of the exact resume.
        reasons: sentences about choices that were made before, kept with those made here.

    Returns:
        What stands in ``evaluation.json``: results on the judged split, and of each phase.

    Raises:
        UserError: anything that the user can mend.
        Stopped: SIGINT or SIGTERM came; the same call continues.
    """
    config.check()
    if config.tensorboard:
        with needs_extra("tensorboard"):
            import tensorboard  # noqa: F401
    find_backbone(config.backbone).check_unfreeze(config.fine_tune.unfreeze)  # now, not hours later
    with StopRequest() as stop, run_dir.begun(config), oom_as_user_error(config), ExitStack() as watched:
        watched.enter_context(logged_to(log_file(run_dir.log), NotesHandler(run_dir.notes, reasons)))

        # The machine; a resumed run computes as it was begun.
        begun_with = read_json(run_dir.environment)["device"] if run_dir.environment.exists() else {}
        devices = set_up_devices(config.precision, config.seed, begun_with)
        scalars = run_dir.tensorboard / "hardware" if config.tensorboard else None
        monitor = watched.enter_context(Monitor(run_dir.hardware, config.cache_dir, devices.num_gpus, scalars))

        # The network: preprocessing inside, the head new; and what each phase leaves frozen.
        dataset = load_dataset(config.dataset, config.data_dir)
        learnt = split_off_unseen(dataset, config.unseen_classes)
        classifier = build_classifier(config, learnt.class_names)
        logger.info(
            f"{find_backbone(config.backbone).description}; {config.weights} weights. With a head of "
            f"{classifier.head.count_params():,} weights for {len(learnt.class_names)} classes it has "
            f"{classifier.model.count_params():,}."
        )
        cuts = {name: cut_of_phase(name, config, classifier) for name in PHASES if config.phase(name).epochs}
        for name, cut in cuts.items():
            if cut is None and config.phase(name).copies:
                raise UserError(
                    f"--{flag_name(name)}.copies {config.phase(name).copies} keeps what frozen layers make of the views, and "
                    f"with --{flag_name(name)}.unfreeze {config.phase(name).unfreeze} none lie below; name a stage, or pass views 0."
                )

        # What it is going to take.
        foresight = RunEstimate(run_dir.foresight, Cache.of(config))
        if not foresight.stages:
            foresight.announce(*estimate_run(config, learnt, classifier, cuts, devices.fingerprint))

        @contextmanager
        def stage(name: str) -> Iterator[None]:
            with foresight.stage(name), monitor.stage(name):
                yield

        # The data: every file looked at once.
        with stage("decode"):
            data = prepare_dataset(dataset, config)
        del dataset, learnt  # the paths of a million images take a gigabyte, and are needed no more
        if config.monitor.startswith("val") and not len(data.split("val")):
            raise UserError(
                f"{config.dataset} has no val images, which --monitor {config.monitor} needs; raise --val-fraction, or "
                "pass --monitor loss."
            )
        if config.unseen_classes and not len(data.split("val")):
            raise UserError(
                f"--unseen-classes {config.unseen_classes} tries the rule for unknown, which val images tell, and {config.dataset} has "
                "none; raise --val-fraction, or leave --unseen-classes away."
            )
        if not len(data.split(data.eval_split)):
            raise UserError(
                f"{config.dataset} has neither val nor test images, so nothing could be judged; raise --val-fraction or "
                "--test-fraction."
            )
        logger.info(f"{data.describe()}.")

        # What was done already, if it belongs to this run.
        identity = Identity(config, data.fingerprint, classifier.weights_digest(), devices.fingerprint)
        state, arrays = restore(run_dir, identity)
        write_beginning(run_dir, identity, data, devices)

        # Training: each phase starts from what its frozen layers make of the images, or from the images.
        def make_phase(name: str, parts: int = 0, is_begun: bool = False, is_over: bool = False) -> ActivePhase:
            keep = not is_over and (name == "frozen" or foresight.caches_activations)
            settings = replace(config, gradient_accumulation_steps=parts or config.gradient_accumulation_steps)
            return prepare_phase(name, settings, classifier, cuts[name], keep, data, identity, is_begun)

        all_callbacks = [*callbacks, *flagged_callbacks(config, run_dir)]
        state = train(
            identity, state, arrays, make_phase, classifier.model, run_dir, all_callbacks, stop, stage, monitor.trained
        )

        # Evaluation, on the images and through the whole model, which is saved as it is judged.
        with stage("evaluate"):
            classifier, results = calibrate_and_evaluate(classifier, data, run_dir)
            seconds = {name: stage.seconds for name, stage in foresight.stages.items()}
            phases = phase_results(state.history, run_dir.timings, config.monitor, seconds)
            if worse := fine_tuned_worse(phases, config.monitor):
                logger.info(worse)
            evaluation = results[data.eval_split] | {
                "weights_sha256": classifier.weights_digest(),
                "num_parameters": classifier.model.count_params(),
                **dict.fromkeys(PHASES),
                **phases,
            }
            draw_figures(classifier, data, config.seed, state.history, evaluation, run_dir)
            write_json(run_dir.evaluation, evaluation)

        # The report, from the files alone.
        write_report(run_dir)
    return evaluation


@contextmanager
def oom_as_user_error(config: RunConfig) -> Iterator[None]:
    """Turns a lack of memory that no smaller part of a batch has answered into a UserError."""
    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError):
        raise UserError(
            f"The memory is not enough for images of {config.image_size} x {config.image_size}, even few at a time; start "
            "a new run with a smaller --image-size or another --backbone, or end what else uses the memory and try again."
        ) from None


def cut_of_phase(name: str, config: RunConfig, classifier: Classifier) -> Cut | None:
    """Where the phase may start from what its frozen layers made of the images once; None where it cannot."""
    settings = config.phase(name)
    unfreeze_layers(classifier, config.backbone, settings.unfreeze)
    sees_same_pixels = settings.augmentation == "none" or settings.copies > 0
    return find_cut(classifier) if sees_same_pixels else None


def prepare_phase(
    name: str,
    config: RunConfig,
    classifier: Classifier,
    cut: Cut | None,
    keep: bool,
    data: PreparedDataset,
    identity: Identity,
    is_begun: bool = False,
) -> ActivePhase:
    """Opens the layers of a phase and gives it its inputs: what is below the cut, once if `keep` is set, or images.

    is_begun: whether its weights are going to be taken from a checkpoint.
    """
    settings = config.phase(name)
    logger.info(f"Phase {name} trains {unfreeze_layers(classifier, config.backbone, settings.unfreeze)}.")
    if name == "frozen" and not config.head and not config.starts_from_ridge:
        logger.info(
            "The head starts from random weights: its ridge solution was not wanted, or would need features that are kept."
        )
    if cut is None:
        return start_phase(name, config, classifier, data.split("train"), data.split("val"))
    train_examples, val_examples = make_phase_inputs(cut, settings, keep, config, data, identity.runtime)
    if name == "frozen" and config.starts_from_ridge and not is_begun:
        start_from_ridge(config, classifier, train_examples)
    return start_phase(name, config, classifier, train_examples, val_examples, cut)


def start_from_ridge(config: RunConfig, classifier: Classifier, features: Examples) -> None:
    """Puts the closed-form solution into a linear head, from where the frozen phase needs few epochs."""
    weights = class_weights(config.class_weights, features.labels, len(classifier.class_names))
    head = ridge_head(features.in_copy(0), len(classifier.class_names), weights)
    classifier.head.get_layer("logits").set_weights([head.kernel, head.bias])
    logger.info(
        f"The head starts from its ridge solution, whose loss on training images left out one by one is {head.loss:.3f}."
    )


def flagged_callbacks(config: RunConfig, run_dir: RunDir) -> list[keras.callbacks.Callback]:
    """The Keras callbacks that flags ask for."""
    callbacks = []
    if config.tensorboard:
        callbacks.append(keras.callbacks.TensorBoard(str(run_dir.tensorboard), write_graph=False))
    if config.csv_log:
        callbacks.append(keras.callbacks.CSVLogger(str(run_dir.csv_log), append=run_dir.csv_log.exists()))
    return callbacks


def write_beginning(run_dir: RunDir, identity: Identity, data: PreparedDataset, devices: Devices) -> None:
    """Writes what is known before training, and adds this session to those that worked on the run."""
    config = identity.config
    sessions = read_json(run_dir.environment)["sessions"] if run_dir.environment.exists() else []
    session = {"started": datetime.now(UTC).isoformat(timespec="seconds"), **identity.runtime}
    environment = {
        "versions": versions(),
        "device": {
            "name": devices.name,
            "num_gpus": devices.num_gpus,
            "precision": devices.precision,
            "threads": devices.threads,
        },
        "git_commit": git_commit(),
        "dataset": {"name": config.dataset, "fingerprint": identity.dataset, "num_images": len(data.manifest)},
        "initial_weights_sha256": identity.initial_weights,
        "sessions": [*sessions, session],
    }
    write_json(run_dir.environment, environment)
    write_text(run_dir.manifest, data.manifest.to_csv(index=False, lineterminator="\n"))
    ignored = pd.DataFrame(data.ignored, columns=["file", "reason"])
    write_text(run_dir.ignored, ignored.to_csv(index=False, lineterminator="\n"))
