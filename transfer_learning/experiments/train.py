"""A run from top to bottom: devices, dataset, classifier, estimate, training, evaluation, report."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import keras
import pandas as pd
import tensorflow as tf

from transfer_learning.cli.console import log_file, logged_to
from transfer_learning.cli.parser import command_line
from transfer_learning.config import PHASES, RunConfig
from transfer_learning.datasets.dataset import split_off_unseen
from transfer_learning.datasets.decoding import value_range
from transfer_learning.datasets.moved import with_recorded_ids
from transfer_learning.datasets.prepared import PreparedDataset, decode_part, prepare_dataset, take_dataset_of
from transfer_learning.errors import UserError, needs_extra
from transfer_learning.evaluation import metrics
from transfer_learning.experiments.earlier_run import compare_with_earlier
from transfer_learning.experiments.evaluate import Unseen, calibrate_and_evaluate, draw_figures
from transfer_learning.experiments.export import add_inference_file
from transfer_learning.experiments.folds import check_start, divide, evaluate_folds, predict_folds
from transfer_learning.machine.cluster import Cluster
from transfer_learning.machine.devices import Devices, git_commit, set_up_devices, versions
from transfer_learning.machine.monitor import Monitor
from transfer_learning.machine.strategy import form_workers, lost_worker_as_user_error
from transfer_learning.models.backbones import find_backbone
from transfer_learning.models.classifier import Classifier, build_classifier
from transfer_learning.models.earlier_run import names_run
from transfer_learning.models.standardization import fold_standardization, standardized
from transfer_learning.reports.mlflow import check_server, log_run
from transfer_learning.reports.run import write_report
from transfer_learning.storage.cache import Cache
from transfer_learning.storage.files import read_json, write_json, write_text
from transfer_learning.storage.notes import Note, NotesHandler
from transfer_learning.storage.run_directory import RunDir
from transfer_learning.training.closed_form import has_others
from transfer_learning.training.estimate import RunEstimate, estimate_run
from transfer_learning.training.final_weights import keeps_backbone
from transfer_learning.training.history import describe_phase, phase_results
from transfer_learning.training.identity import Identity
from transfer_learning.training.loop import Trainer, from_chief, restore
from transfer_learning.training.phase_builder import PhaseBuilder, find_cuts
from transfer_learning.training.refit import refit_head
from transfer_learning.training.stopping import StopRequest

logger = logging.getLogger(__name__)


def run_experiment(
    config: RunConfig,
    run_dir: RunDir,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    reasons: Sequence[Note | str] = (),
    cluster: Cluster | None = None,
) -> dict[str, Any]:
    """Trains and evaluates what `config` asks for; a run directory with a checkpoint is continued bit-exactly.

    Args:
        callbacks: Keras callbacks, called as by `fit`; epochs are counted over both phases. `stop_training` ends the
            phase after its epoch. A callback cannot change the learning rate, and its state is not resumed.
        reasons: for choices that were made before, added to the notes of the run.
        cluster: the worker processes that train it together, each of which calls this; worker 0 alone writes to the real
            `run_dir`, and the others to one of their own that nobody needs.

    Returns:
        The content of ``evaluation.json``: metrics on the evaluation split, and the results of each phase; {} for a worker
        other than 0.

    Raises:
        UserError: anything that the user can fix; `Diverged` for a NaN or infinite loss, `WorkerLost` if another worker
            has ended.
        Stopped: SIGINT, SIGTERM or SIGUSR1 came; the same call continues the run.
    """
    num_workers = len(cluster.addresses) if cluster else 1
    check_before(config, num_workers)
    lost_worker = lost_worker_as_user_error(num_workers, config.worker_timeout)
    oom = oom_as_user_error(config, num_workers)
    with StopRequest() as stop, run_dir.begun(config), logged_to(log_file(run_dir.log)), oom:
        with lost_worker, logged_to(NotesHandler(run_dir.notes, reasons)), ExitStack() as stack:
            # Devices. A resumed run computes with the precision and threads that it began with.
            begun_with = read_json(run_dir.environment) if run_dir.environment.exists() else {}
            devices = set_up_devices(config.precision, config.seed, begun_with.get("device", {}))
            workers = form_workers(config.strategy, cluster, config.worker_timeout)
            stop.take_signals()
            scalars = run_dir.tensorboard / "hardware" if config.tensorboard else None
            monitor = stack.enter_context(Monitor(run_dir.hardware, config.cache_dir, devices.num_gpus, scalars))

            # The files of the dataset, and the classifier with its preprocessing inside and a new head.
            dataset = take_dataset_of(config)
            without_unseen = split_off_unseen(dataset, config.unseen_classes)
            classifier = plain = build_classifier(config, without_unseen.class_names)
            if config.head_features != "last":
                classifier = standardized(plain)
            logger.info(describe_classifier(config, classifier))
            cuts = find_cuts(config, classifier)

            # Estimated time and disk space of each stage, once per run.
            estimate = RunEstimate(run_dir.stages, Cache.of(config))
            if not estimate.stages and workers.is_chief:
                estimate.start(*estimate_run(config, without_unseen, classifier, cuts, devices.fingerprint))

            @contextmanager
            def stage(name: str) -> Iterator[None]:
                with estimate.stage(name), monitor.stage(name):
                    yield

            # The images: decoded into the cache, divided into splits.
            with stage("decode"):
                begun_ranges = value_range.recorded(begun_with) if begun_with else None
                if workers.count > 1:  # each decodes a part, which the others find if they share the cache
                    decode_part(dataset, config, workers.part(len(dataset.examples)))
                    workers.wait()
                data = prepare_dataset(dataset, config, ranges=begun_ranges)
                if begun_with:
                    data = with_recorded_ids(data, run_dir.manifest, begun_with["dataset"]["fingerprint"])
            del dataset, without_unseen  # the paths of a million images take a gigabyte
            is_solved = config.refits_closed_form and bool(cuts.get("frozen")) and not classifier.copied
            calibrating = what_calibrates(config, data, is_solved)
            check_splits(config, data, calibrating)
            config = without_validation(config, data, calibrating)
            if config.folds:
                divide(config, data)  # fails now, not after the training
            logger.info(f"{data.describe()}.")

            # Training, from the newest checkpoint if there is one.
            runtime = devices.fingerprint | {"workers": str(workers.count)}
            identity = Identity(config, data.fingerprint, classifier.weights_digest(), runtime)
            workers.check_equal({"dataset": identity.dataset, "start of the weights": identity.initial_weights})
            state, arrays = from_chief(workers, *restore(run_dir, identity))
            write_environment(run_dir, identity, data, devices)
            if config != run_dir.read_config():  # images or weights have moved; later commands look in the new place
                write_text(run_dir.config, config.to_json())
            cached = PHASES if workers.any(estimate.caches_activations) else ("frozen",)
            phases = PhaseBuilder(
                config, classifier, data, cuts=cuts, runtime=devices.fingerprint, cached=cached, workers=workers
            )
            all_callbacks = [*callbacks, *config_callbacks(config, run_dir)]
            trainer = Trainer(identity, phases, run_dir, stop, all_callbacks, stage, monitor.trained)
            state = trainer.train(state, arrays)
            if not workers.is_chief:
                logger.info(f"Worker {workers.index} is done; worker 0 evaluates the run.")
                return {}
            val_logits, left_out = refit_head(phases, state)
            unseen = Unseen(*left_out, "left-out") if left_out else None
            if classifier is not plain:
                classifier = fold_standardization(classifier, plain)

            # Out-of-fold predictions of the images that are trained on.
            folds = None
            if config.folds:
                with stage("folds"):
                    found = predict_folds(config, data, devices.fingerprint, stop, left_out is not None)
                    folds = evaluate_folds(found, config, data, run_dir)
                    if not len(data.split("val")) and not unseen and folds["is_shipped_head"]:
                        unseen = Unseen(found.logits, found.labels, data.groups("train"), "out-of-fold")

            # Evaluation of the model that is saved, from images to probabilities; by cached features, of which some images
            # are a check, if the run ends with the backbone that it began with.
            features = phases.features if keeps_backbone(config, state.final_weights) else None
            with stage("evaluate"):
                classifier, results = calibrate_and_evaluate(classifier, data, run_dir, unseen, val_logits, features)
                by_phase = phase_results(state.history, run_dir.timings, config.monitor, estimate.seconds)
                evaluation = results[data.eval_split] | {
                    "weights_sha256": classifier.weights_digest(),
                    "num_parameters": classifier.model.count_params(),
                    **dict.fromkeys(PHASES),
                    **by_phase,
                    "final_weights": state.final_weights,
                    "rate_search": state.rate_search,
                    "is_refitted": val_logits is not None,
                }
                if folds:
                    evaluation["folds"] = folds
                if names_run(config.weights):
                    evaluation["earlier_run"] = compare_with_earlier(classifier, config, data, run_dir)
                draw_figures(classifier, data, config.seed, state.history, evaluation, run_dir)
                if config.inference_file:
                    cache = Cache.of(config) if features else None
                    add_inference_file(classifier, data, config, run_dir, cache)
                write_json(run_dir.evaluation, evaluation)

        # The report, from the files alone.
        write_report(run_dir)
        for name, result in by_phase.items():
            logger.info(describe_phase(name, result))
        logger.info(metrics.describe(evaluation))
        logger.info(f"Report: {run_dir.report}")
        if config.mlflow:
            _log_to_mlflow(run_dir, config.mlflow)
        logger.info(f"Next: {command_line('predict', str(run_dir.path), 'IMAGE')}")
    return evaluation


def _log_to_mlflow(run_dir: RunDir, uri: str) -> None:
    try:
        logger.info(f"Logged to MLflow at {uri} as run {log_run(run_dir, uri)}.")
    except UserError as error:  # the run is finished all the same
        again = command_line("report", str(run_dir.path), "--mlflow", uri)
        logger.warning(f"{error} The run is not logged there; log it with: {again}")


def check_before(config: RunConfig, num_workers: int) -> None:
    """Raises UserError for what would otherwise fail in the middle of a run."""
    config.check()
    check_start(config)
    if config.tensorboard:
        with needs_extra("tensorboard"):
            import tensorboard  # noqa: F401
    if config.mlflow:
        check_server(config.mlflow)
    find_backbone(config.backbone).check_unfreeze(config.fine_tune.unfreeze)
    if config.find_learning_rate and num_workers > 1:
        raise UserError(
            f"--find-learning-rate works with one worker, and this run has {num_workers}; search in a run with one worker, "
            "and give the rate that it finds as --fine-tune.learning-rate."
        )


def describe_classifier(config: RunConfig, classifier: Classifier) -> str:
    """``Network: efficientnet_lite0 with imagenet weights and a new head; 3,413,024 parameters.``"""
    num_copied, num_classes = len(classifier.copied), len(classifier.class_names)
    head = f"the head of {num_copied:,} of {num_classes:,} classes" if num_copied else "a new head"
    return (
        f"Network: {config.backbone} with {config.weights} weights and {head}; "
        f"{classifier.model.count_params():,} parameters."
    )


@contextmanager
def oom_as_user_error(config: RunConfig, num_workers: int) -> Iterator[None]:
    """Turns a lack of memory that smaller parts of a batch could not solve into a UserError."""
    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError):
        if num_workers > 1:
            raise UserError(
                "The memory of a worker is not enough for its part of a batch; continue with one worker, which splits "
                "batches, or start a new run with more --gradient-accumulation-steps."
            ) from None
        raise UserError(
            f"The memory is not enough for images of {config.image_size} x {config.image_size}; start a new run with a "
            "smaller --image-size or --backbone, or end other programs and try again."
        ) from None


def what_calibrates(config: RunConfig, data: PreparedDataset, is_solved: bool) -> str:
    """Names the images that calibrate the confidences: "leave-one-out predictions", for instance; "" if none do.

    Args:
        is_solved: the head is a closed form, which `refit_head` solves again.
    """
    if len(data.split("val")):
        return "the validation images"
    if config.fine_tune.epochs:  # its network knows all of the training images
        return ""
    if is_solved and has_others(data.split("train").labels, data.groups("train")).any():
        return "leave-one-out predictions"
    return f"{config.folds} folds" if config.folds else ""


def check_splits(config: RunConfig, data: PreparedDataset, calibrating: str) -> None:
    """Raises UserError if images are missing that the config needs for validation or evaluation."""
    if not len(data.split("val")):
        if config.find_learning_rate and config.fine_tune.epochs:
            raise UserError(
                f"--find-learning-rate compares rates on validation images, and {config.dataset} has none; raise "
                "--val-fraction, or leave the flag out."
            )
        if config.monitor.startswith("val") and config.val_fraction == 0 and not config.folds:
            raise UserError(
                f"--monitor {config.monitor} needs validation images, and {config.dataset} has none; raise "
                "--val-fraction, or pass --monitor loss."
            )
        if config.unseen_classes and not calibrating:
            raise UserError(
                f"--unseen-classes {config.unseen_classes} needs validation images for the rejection threshold, and "
                f"{config.dataset} has none; raise --val-fraction, or leave the flag out."
            )
    if data.eval_split == "train" and config.val_fraction == config.test_fraction == 0 and not config.folds:
        raise UserError(
            f"{config.dataset} has neither validation nor test images, so nothing could be evaluated; raise "
            "--val-fraction or --test-fraction."
        )


def without_validation(config: RunConfig, data: PreparedDataset, calibrating: str) -> RunConfig:
    """The config of a run whose classes have too few images for validation, after a warning; else `config` itself."""
    if len(data.split("val")):
        return config
    monitor = f", and --monitor is loss instead of {config.monitor}." if config.monitor.startswith("val") else "."
    if calibrating:
        logger.info(f"There are no validation images: {calibrating} calibrate the confidences{monitor}")
    else:
        logger.warning(
            "There are no validation images: the confidences are not calibrated, unknown images are not rejected"
            + monitor
        )
    if len(config.phases) == 2:
        logger.warning(
            "Without validation images, the fine-tuned weights cannot be compared with those of the frozen phase. They are "
            "used even if they are worse; raise --val-fraction, add images, or pass --fine-tune.epochs 0."
        )
    if data.eval_split == "train":
        logger.warning(
            "There are no test images either: the accuracy on new images cannot be measured, and the figures below are "
            f"those of the training images; {'use the figures of the folds' if config.folds else 'add images'}."
        )
    return replace(config, monitor=config.monitor.removeprefix("val_"))


def config_callbacks(config: RunConfig, run_dir: RunDir) -> list[keras.callbacks.Callback]:
    """The Keras callbacks that the config asks for."""
    callbacks = []
    if config.tensorboard:
        callbacks.append(keras.callbacks.TensorBoard(str(run_dir.tensorboard), write_graph=False))
    if config.csv_log:
        callbacks.append(keras.callbacks.CSVLogger(str(run_dir.csv_log), append=run_dir.csv_log.exists()))
    return callbacks


def write_environment(run_dir: RunDir, identity: Identity, data: PreparedDataset, devices: Devices) -> None:
    """Writes versions, device, dataset and this session, the manifest, and the list of ignored files."""
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
        "dataset": {
            "name": config.dataset,
            "fingerprint": identity.dataset,
            "num_images": len(data.manifest),
            "value_ranges": value_range.to_json(data.images.ranges),
        },
        "initial_weights_sha256": identity.initial_weights,
        "sessions": [*sessions, session],
    }
    write_json(run_dir.environment, environment)
    write_text(run_dir.manifest, data.manifest.to_csv(index=False, lineterminator="\n"))
    ignored = pd.DataFrame(data.ignored, columns=["file", "reason"])
    write_text(run_dir.ignored, ignored.to_csv(index=False, lineterminator="\n"))
