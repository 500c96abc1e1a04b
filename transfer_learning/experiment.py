"""The story of a run, top to bottom: machine, data, network, training, evaluation, report."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import keras
import numpy as np
import pandas as pd

from transfer_learning.config import PHASES, RunConfig
from transfer_learning.datasets.catalogue import load_dataset
from transfer_learning.datasets.dataset import Dataset
from transfer_learning.datasets.manifest import fingerprint, make_manifest
from transfer_learning.datasets.pipeline import examples_of_split
from transfer_learning.datasets.store import Store, open_store
from transfer_learning.devices import Devices, git_commit, set_up_devices, versions
from transfer_learning.errors import UserError
from transfer_learning.evaluation import figures, metrics, predictions
from transfer_learning.files import write_text
from transfer_learning.models.backbones import find_backbone
from transfer_learning.models.classifier import Classifier, build_classifier, open_layers, probabilities, save_model
from transfer_learning.models.features import kept_features
from transfer_learning.models.weights import weights_digest
from transfer_learning.report import write_report
from transfer_learning.run_dir import RunDir
from transfer_learning.training.history import phase_results
from transfer_learning.training.loop import Identity, train
from transfer_learning.training.phases import ActivePhase, start_phase
from transfer_learning.training.stopping import StopRequest

NUM_PICTURES = 20  # in the figures of random images and of mistakes


@dataclasses.dataclass(frozen=True)
class Data:
    """A dataset as a run sees it: decoded, and divided into splits."""

    class_names: tuple[str, ...]
    ignored: tuple[tuple[str, str], ...]
    store: Store
    manifest: pd.DataFrame

    def split(self, name: str):
        return examples_of_split(self.manifest, name, self.class_names, self.store.pixels)

    @property
    def judged_split(self) -> str:
        """The split that a run is judged by: the test, or the validation images of a dataset without one."""
        return "test" if (self.manifest["split"] == "test").any() else "val"


def run_experiment(
    config: RunConfig,
    run_dir: RunDir,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    reasons: Sequence[str] = (),
) -> dict:
    """Trains and evaluates what `config` asks for; a run directory with a checkpoint is continued to the same bits.

    Args:
        callbacks: Keras callbacks, driven as by `fit`, epochs counted over both phases. What they keep in memory is
            not part of the exact resume.
        reasons: sentences about choices that were made before, kept with those made here.

    Returns:
        What stands in ``evaluation.json``: results on the judged split, and of each phase.

    Raises:
        UserError: anything that the user can mend.
        Stopped: SIGINT or SIGTERM came; the same call continues.
    """
    config.check()
    find_backbone(config.backbone).opened_part(config.fine_tune.open)  # not only once the frozen phase is over
    notes = list(reasons)  # what earlier sessions said stands before what this one says
    if run_dir.notes.exists():
        notes = json.loads(run_dir.notes.read_text(encoding="utf-8")) + notes

    def say(sentence: str) -> None:
        print(sentence, flush=True)
        if sentence not in notes:
            notes.append(sentence)

    with StopRequest() as stop:
        # The machine.
        devices = set_up_devices(config.precision, config.seed, say)

        # The data: every file looked at once.
        data = load_data(config, say)
        for split in ("train", "val", "test"):
            if split != "test" and not len(data.split(split)) and (split == "train" or config.monitor.startswith("val")):
                raise UserError(
                    f"{config.dataset} has no {split} images, which --monitor {config.monitor} needs; raise "
                    "--val-fraction, or pass --monitor loss."
                )
        say(f"{describe_data(data)}.")

        # The network: preprocessing inside, the head new.
        classifier = build_classifier(config, data.class_names)
        say(
            f"{config.backbone} ({config.weights} weights) with a head of {classifier.head.count_params():,} weights "
            f"for {len(data.class_names)} classes; {classifier.model.count_params():,} weights in all."
        )

        # The run directory, held by this process until it ends.
        run_dir.path.mkdir(parents=True, exist_ok=True)
        with run_dir.locked():
            identity = Identity(config, fingerprint(data.manifest), classifier.weights_sha256, devices.fingerprint)
            write_beginning(run_dir, identity, data, devices)
            write_text(run_dir.notes, json.dumps(notes, indent=2) + "\n")

            # Training: a frozen phase sees features, a fine-tune phase sees images.
            def make_phase(name: str) -> ActivePhase:
                return prepare_phase(name, config, classifier, data, identity, say)

            all_callbacks = [*callbacks, *flagged_callbacks(config, run_dir)]
            state = train(identity, make_phase, classifier.model, run_dir, all_callbacks, stop, say)
            save_model(classifier, run_dir.model)

            # Evaluation, on the images and through the whole model.
            results = {}
            for split in ("val", "test"):
                if len(data.split(split)):
                    results[split] = evaluate_split(config, classifier, data, split, run_dir)
            evaluation = results[data.judged_split] | {
                "weights_sha256": classifier.weights_sha256,
                **dict.fromkeys(PHASES),
                **phase_results(state.history, run_dir.timings, config.monitor),
            }
            draw_figures(config, data, state.history, evaluation, run_dir)
            write_text(run_dir.evaluation, json.dumps(evaluation, indent=2) + "\n")

            # The report, from the files alone.
            write_text(run_dir.notes, json.dumps(notes, indent=2) + "\n")
            write_report(run_dir)
    return evaluation


def load_data(config: RunConfig, say: Callable[[str], None] = print, dataset: Dataset | None = None) -> Data:
    """Loads, decodes (unless an earlier run did) and splits the dataset that `config` names."""
    dataset = dataset or load_dataset(config.dataset, config.data_dir)
    store = open_store(dataset, config.stored_size, config.resize, config.cache_dir, say)
    manifest = make_manifest(
        dataset, store.facts, config.val_fraction, config.test_fraction, config.skip_unreadable, say
    )  # fmt: skip
    return Data(dataset.class_names, dataset.ignored, store, manifest)


def describe_data(data: Data) -> str:
    """``1,200 images of 10 classes: 812 train, 148 val, 240 test, 0 skipped; 3 other files ignored``."""
    counts = data.manifest["split"].value_counts()
    splits = ", ".join(f"{counts.get(name, 0):,} {name}" for name in ("train", "val", "test"))
    return (
        f"{len(data.manifest):,} images of {len(data.class_names)} classes: {splits}, {counts.get('', 0):,} skipped; "
        f"{len(data.ignored):,} other files ignored"
    )


def prepare_phase(
    name: str, config: RunConfig, classifier: Classifier, data: Data, identity: Identity, say: Callable[[str], None]
) -> ActivePhase:
    """Opens the layers of a phase and chooses its inputs: kept features where nothing below the head can change."""
    say(f"Phase {name} trains {open_layers(classifier, config.backbone, config.phase(name).open)}.")
    train_images, val_images = data.split("train"), data.split("val")
    if name != "frozen" or config.frozen.augmentation != "none":
        return start_phase(name, config, classifier, False, train_images, val_images)
    precision = keras.mixed_precision.dtype_policy().name
    key = json.dumps([
        data.store.key, config.backbone, config.image_size, weights_digest(classifier.extractor.weights), precision,
        identity.surroundings,
    ])  # fmt: skip
    rows = np.concatenate([train_images.rows, val_images.rows])
    features = kept_features(
        classifier.extractor, data.store.pixels, rows, key, config.cache_dir, config.batch_size, say
    )  # fmt: skip
    train_features = train_images.with_inputs(features[: len(train_images)])
    val_features = val_images.with_inputs(features[len(train_images) :])
    return start_phase(name, config, classifier, True, train_features, val_features)


def flagged_callbacks(config: RunConfig, run_dir: RunDir) -> list[keras.callbacks.Callback]:
    """The Keras callbacks that flags ask for."""
    callbacks = []
    if config.tensorboard:
        callbacks.append(keras.callbacks.TensorBoard(str(run_dir.tensorboard), write_graph=False))
    if config.csv_log:
        callbacks.append(keras.callbacks.CSVLogger(str(run_dir.csv_log), append=run_dir.csv_log.exists()))
    return callbacks


def write_beginning(run_dir: RunDir, identity: Identity, data: Data, devices: Devices) -> None:
    """Writes what is known before training, and adds this session to those that worked on the run."""
    config = identity.config
    sessions = json.loads(run_dir.environment.read_text())["sessions"] if run_dir.environment.exists() else []
    session = {"started": datetime.now(UTC).isoformat(timespec="seconds"), **identity.surroundings}
    environment = {
        "versions": versions(),
        "device": {"name": devices.name, "num_gpus": devices.num_gpus, "precision": devices.precision},
        "git_commit": git_commit(),
        "dataset": {"name": config.dataset, "fingerprint": identity.dataset, "num_images": len(data.manifest)},
        "initial_weights_sha256": identity.initial_weights,
        "sessions": [*sessions, session],
    }
    if not run_dir.config.exists():
        write_text(run_dir.config, config.to_json())
    write_text(run_dir.environment, json.dumps(environment, indent=2) + "\n")
    write_text(run_dir.manifest, data.manifest.to_csv(index=False, lineterminator="\n"))
    ignored = pd.DataFrame(data.ignored, columns=["file", "reason"])
    write_text(run_dir.ignored, ignored.to_csv(index=False, lineterminator="\n"))


def evaluate_split(config: RunConfig, classifier: Classifier, data: Data, split: str, run_dir: RunDir) -> dict:
    """Predicts a split from its images, writes ``predictions/<split>.csv`` and returns the metrics."""
    examples = data.split(split)
    predicted = probabilities(classifier, examples.inputs, examples.rows, config.batch_size)
    table = predictions.table(examples.ids, examples.labels, predicted, data.class_names)
    predictions.write(table, run_dir.predictions(split))
    return {"split": split} | metrics.evaluate(table, data.class_names)


def draw_figures(config: RunConfig, data: Data, history: list[dict], evaluation: dict, run_dir: RunDir) -> None:
    """Draws what the report shows, and writes the classification report."""
    split, class_names = evaluation["split"], data.class_names
    table = predictions.read(run_dir.predictions(split))
    write_text(run_dir.classification_report, metrics.classification_report(table, class_names))
    best = {phase: evaluation[phase]["best_epoch"] for phase in PHASES if evaluation[phase]}
    figures.save(figures.curves(pd.DataFrame(history), best), run_dir.figures / "curves.png")
    for normalised, name in ((False, "confusion_matrix.png"), (True, "confusion_matrix_normalised.png")):
        figure = figures.confusion_matrix(evaluation["confusion_matrix"], class_names, normalised)
        figures.save(figure, run_dir.figures / name)
    right = (table["label"] == table["predicted"]).to_numpy()
    by_chance = np.random.default_rng(config.seed).permutation(len(table))
    by_confidence = np.argsort(-table["confidence"].to_numpy(), kind="stable")
    examples = data.split(split)
    for name, rows in (("samples.png", by_chance), ("mistakes.png", by_confidence[~right[by_confidence]])):
        rows = rows[:NUM_PICTURES]
        (run_dir.figures / name).unlink(missing_ok=True)  # a run without mistakes has no picture of them
        if len(rows):
            captions = figures.captions(table.iloc[rows])
            figure = figures.image_grid(examples.inputs[examples.rows[rows]], captions, right[rows])
            figures.save(figure, run_dir.figures / name)
