# fmt: off
# ruff: noqa: E501
"""Old runs: what commit 5d2d493 of this project wrote, for later versions to read. Nothing here is to be made again.

They were made once, with the package of that commit, by

    TF_NUM_INTRAOP_THREADS=2 PYTHONPATH=CHECKOUT_OF_5d2d493 python make_fixtures.py FOLDER

which draws the photos into FOLDER, makes weights for the backbone `tiny` (see tiny_backbone.py) that stand for pretrained
ones, and calls the verbs of that commit there, each in a process of its own. All paths are relative to FOLDER, which the
commands themselves would have made absolute: so `config.json` and `plan.json`, made from the flags below by the code of
that commit, are written ahead, with the relative paths, and the run or comparison is begun by `--resume`, as `compare`
begins its runs.

    photos/            3 classes of 12 PNGs of 24 x 24 pixels, 6 of a class that finished_* hold out, a file to ignore
    weights/           tiny.weights.h5, trained for a moment on other photos of that kind
    runs/finished_a    two phases, a head of 8, seed 1;    runs/finished_b  the same with seed 2
    runs/unfinished    SIGTERM came after the second update of the second epoch of fine-tuning
    runs/comparison    compare, two sides, one seed
    cache/             the pools that these runs kept
    expected_history.csv, expected.json    what 5d2d493 made of all this afterwards, each in a copy of its own

Left out at the end, since nothing but a picture depends on them: figures/, learning_curves.png, and the locks. Of
report.html and compare.html a stub is left, which says that the run is finished.
"""

import contextlib
import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tiny_backbone
from PIL import Image
from tiny_backbone import SIZE

HERE = Path(__file__).parent.resolve()
STUB = "<!doctype html><title>A stub of an old run</title>\n"
WEIGHTS = "weights/tiny.weights.h5"

OF_ALL = [
    "--dataset", "photos", "--backbone", "tiny", "--weights", WEIGHTS, "--image-size", str(SIZE), "--input-size", "0",
    "--batch-size", "8", "--val-fraction", "0.25", "--test-fraction", "0.25", "--cache-dir", "cache", "--data-dir", "data",
]
FINISHED = [
    *OF_ALL, "--head", "8", "--dropout", "0.1", "--held-out", "dots", "--label-smoothing", "0.05", "--class-weights",
    "balanced", "--csv-log",
    "--frozen.epochs", "12", "--frozen.learning-rate", "0.03", "--frozen.augmentation", "light", "--frozen.views", "2",
    "--frozen.schedule", "one_cycle", "--frozen.warmup-epochs", "3", "--frozen.patience", "0",
    "--fine-tune.epochs", "6", "--fine-tune.learning-rate", "0.003", "--fine-tune.optimizer", "adamw",
    "--fine-tune.weight-decay", "0.001", "--fine-tune.schedule", "cosine", "--fine-tune.warmup-epochs", "0.5",
    "--fine-tune.open", "block2", "--fine-tune.augmentation", "light",
]
UNFINISHED = [
    *OF_ALL, "--head", "none", "--dropout", "0.1", "--micro-batches", "2", "--seed", "3", "--monitor", "loss",
    "--frozen.epochs", "2", "--frozen.learning-rate", "0.003", "--frozen.augmentation", "strong", "--frozen.views", "3",
    "--frozen.schedule", "triangular2", "--frozen.lowest-rate", "0.0001", "--frozen.warmup-epochs", "0",
    "--fine-tune.epochs", "4", "--fine-tune.learning-rate", "0.002", "--fine-tune.optimizer", "sgd", "--fine-tune.momentum",
    "0.8", "--fine-tune.weight-decay", "0", "--fine-tune.schedule", "plateau", "--fine-tune.warmup-epochs", "1",
    "--fine-tune.patience", "4", "--fine-tune.open", "0.4", "--fine-tune.augmentation", "padded_crop",
]
STOPPED_AFTER = 3, 1  # epoch and update of it, both from 0 on and over both phases
COMPARISON = [
    *OF_ALL[:4], *OF_ALL[6:], "--head", "4", "--frozen.epochs", "0", "--fine-tune.open", "all", "--epochs", "2",
    "--fine-tune.learning-rate", "0.01", "--fine-tune.augmentation", "none", "--seeds", "1", "--reach", "0.3,1",
    "--config", f"warm=--weights {WEIGHTS}", "--config", "cold=--weights none", "--run-dir", "runs/comparison",
]


# ---------------------------------------------------------------------------------------------------------------------
# What the runs are made from


def draw_photos(folder: Path, seed: int) -> None:
    """Shapes in a colour of their class on a dark ground of squares; the same pixels each time."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    for name, colour, number in (
        ("circle", (220, 60, 60), 12), ("cross", (60, 210, 60), 12), ("stripes", (70, 70, 230), 12),
        ("dots", (200, 200, 60), 6),
    ):
        (folder / name).mkdir(parents=True)
        for index in range(number):
            centre_x, centre_y, radius = rng.integers(8, 16), rng.integers(8, 16), rng.integers(5, 8)
            across, down = abs(x - centre_x), abs(y - centre_y)
            shape = {
                "circle": across**2 + down**2 <= radius**2,
                "cross": (np.minimum(across, down) <= 1) & (np.maximum(across, down) <= radius),
                "stripes": (x + 2 * y + centre_x) % 8 < 3,
                "dots": (x % 6 < 2) & (y % 6 < 2),
            }[name]
            pixels = np.repeat(rng.integers(0, 4, (SIZE // 4, SIZE // 4, 3)) * 16, 4, axis=0).repeat(4, axis=1)
            pixels = np.where(shape[..., None], np.array(colour) + rng.integers(-2, 3, 3) * 12, pixels)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
                folder / name / f"{index:03d}.png", optimize=True
            )
    (folder / "notes.txt").write_text("no image\n")


def make_weights(path: Path) -> None:
    """Trains the backbone for a while on other photos of the same kind."""
    import keras

    from transfer_learning.models.backbones import BACKBONES, build_backbone

    BACKBONES["tiny"] = tiny_backbone.row()
    keras.utils.set_random_seed(7)
    backbone = build_backbone("tiny", SIZE, "none", seed=7)
    features = keras.layers.GlobalAveragePooling2D()(backbone.output)
    model = keras.Model(backbone.input, keras.layers.Dense(4)(features))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    with tempfile.TemporaryDirectory() as folder:
        draw_photos(Path(folder), seed=7)
        files = sorted(Path(folder).rglob("*.png"))
        images = np.stack([np.asarray(Image.open(file)) for file in files]).astype(np.float32)
        names = [file.parent.name for file in files]
    found = model.fit(images, np.array([sorted(set(names)).index(name) for name in names]), epochs=80, verbose=0)
    print("weights: accuracy", found.history["accuracy"][-1])
    path.parent.mkdir()
    backbone.save_weights(path)


# ---------------------------------------------------------------------------------------------------------------------
# The verbs, each in a process of its own


def verb(*words: str, code: int = 0, folder: Path | None = None) -> str:
    """What it prints on standard output."""
    print("$", *words, flush=True)
    found = subprocess.run(
        [sys.executable, HERE / "tiny_backbone.py", *words], cwd=folder, capture_output=True, text=True
    )
    if found.returncode != code:
        raise SystemExit(f"exit code {found.returncode}\n{found.stdout}\n{found.stderr}")
    return found.stdout


def begin_run(path: str, flags: list[str]) -> None:
    """Writes the config that the command `run` makes from the flags, with paths as they were given."""
    from transfer_learning.choice import chosen_config

    from transfer_learning import run
    from transfer_learning.config import with_values

    config, _ = chosen_config(run.parse(flags))
    config = with_values(config, {"dataset": "photos", "weights": WEIGHTS})
    config.check()
    Path(path).mkdir(parents=True)
    Path(path, "config.json").write_text(config.to_json())


def begin_comparison(flags: list[str]) -> None:
    import dataclasses
    import shlex

    from transfer_learning import compare
    from transfer_learning.config import with_values

    command = shlex.join(["python", "-m", "transfer_learning.compare", *flags])
    directory, plan = compare.begun(compare.parse(flags), command)
    sides = {
        name: with_values(side, {"dataset": "photos", "weights": "none" if side.weights == "none" else WEIGHTS})
        for name, side in plan.sides.items()
    }
    directory.write_plan(dataclasses.replace(plan, sides=sides))


def run_stopped(path: str) -> int:
    """`run --resume` that gets SIGTERM at one update, in this process."""
    import keras
    from transfer_learning.command_line import run_main

    from transfer_learning import experiment, run
    from transfer_learning.models.backbones import BACKBONES

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_batch_end(self, batch, logs=None):
            if (self.epoch, batch) == STOPPED_AFTER:
                os.kill(os.getpid(), signal.SIGTERM)

    BACKBONES["tiny"] = tiny_backbone.row()
    original = experiment.run_experiment
    experiment.run_experiment = lambda config, run_dir, **options: original(config, run_dir, [Stop()], **options)
    return run_main(run.main, ["--resume", path])


# ---------------------------------------------------------------------------------------------------------------------
# What is expected


@contextlib.contextmanager
def copied():
    """A copy of all in another place, and in a state as it will be stored."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "copy"
        shutil.copytree(".", place)
        yield place


def read(*parts) -> dict:
    return json.loads(Path(*parts).read_text())


def sha256(*parts) -> str:
    return hashlib.sha256(Path(*parts).read_bytes()).hexdigest()


def expected() -> dict:
    values = {"commit": "5d2d4931bd1704836eef6f3dedbc480a1bcbec67"}
    images = [f"photos/{name}/000.png" for name in ("circle", "cross", "stripes")]
    with copied() as place:
        for name in ("finished_a", "finished_b"):
            run = Path("runs", name)
            evaluation = read(run, "evaluation.json")
            rows = list(csv.DictReader(verb("predict", str(run), *images, folder=place).splitlines()))
            unknown = verb("predict", str(run), *images, "photos/dots/000.png", "--unknown", folder=place).splitlines()
            again = {}
            for split in ("val", "test"):
                verb("evaluate", str(run), "--split", split, folder=place)
                again[split] = read(place, run, f"evaluation_{split}.json")["accuracy"]
                assert sha256(place, run, "predictions", f"{split}.csv") == sha256(run, "predictions", f"{split}.csv")
            verb("evaluate", str(run), "--views", "flip", folder=place)
            verb("report", str(run), folder=place)
            assert (place / run / "report.html").stat().st_size > 10_000
            values[name] = {
                "predict": [{**row, "confidence": float(row["confidence"])} for row in rows],
                "predict_unknown": [row["class"] for row in csv.DictReader(unknown)],
                "class_names": evaluation["class_names"],
                "split": evaluation["split"],
                "accuracy": again,
                "accuracy_in_views_flip": read(place, run, "evaluation_test_views.json")["accuracy"],
                "weights_sha256": evaluation["weights_sha256"],
                "num_parameters": evaluation["num_parameters"],
                "predictions_sha256": {split: sha256(run, "predictions", f"{split}.csv") for split in ("val", "test")},
            }
        both = ["runs/finished_a", "runs/finished_b"]
        verb("evaluate", *both, "--run-dir", "runs/ensemble", folder=place)
        verb("evaluate", *both, "--paired", "--run-dir", "runs/paired", folder=place)
        verb("evaluate", *both, "--soup", "--run-dir", "runs/soup", folder=place)
        ensemble, soup = read(place, "runs/ensemble/evaluation_test.json"), read(place, "runs/soup/evaluation.json")
        paired = read(place, "runs/paired/comparison_test.json")
        values["ensemble"] = {"accuracy": ensemble["accuracy"]}
        values["paired"] = {name: paired[name] for name in paired if name.startswith("only_")}
        values["soup"] = {
            name: soup[name] for name in ("accuracy", "weights_sha256", "members", "soup") if name in soup
        }

        # The run that was stopped: continued, and beside it one that never was, with the same bits.
        verb("run", "--resume", "runs/unfinished", folder=place)
        config = place / "runs" / "unbroken" / "config.json"
        config.parent.mkdir()
        shutil.copy(place / "runs" / "unfinished" / "config.json", config)
        verb("run", "--resume", "runs/unbroken", folder=place)
        run = place / "runs" / "unfinished"
        for name in ("history.csv", "predictions/val.csv", "predictions/test.csv"):
            assert sha256(run, name) == sha256(config.parent, name), name
        evaluation = read(run, "evaluation.json")
        assert evaluation["weights_sha256"] == read(config.parent, "evaluation.json")["weights_sha256"]
        shutil.copy(run / "history.csv", "expected_history.csv")
        values["unfinished"] = {
            "stopped_after": {"epochs": STOPPED_AFTER[0], "updates": STOPPED_AFTER[1] + 1},
            "history": "expected_history.csv",
            "weights_sha256": evaluation["weights_sha256"],
            "accuracy": evaluation["accuracy"],
            "split": evaluation["split"],
            "predictions_sha256": {split: sha256(run, "predictions", f"{split}.csv") for split in ("val", "test")},
            "environment": read(run, "environment.json")["sessions"][-1],
        }

        before = read("runs/comparison/comparison.json")
        verb("compare", "--resume", "runs/comparison", folder=place)  # tells it again
        assert read(place, "runs/comparison/comparison.json") == before
        values["comparison"] = {
            "sides": {name: {"accuracy": side["accuracy"], "runs": [run["directory"] for run in side["runs"]]}
                      for name, side in before["sides"].items()},
            "seeds": before["seeds"],
        }
        verb("compare", "--resume", "runs/comparison", "--seeds", "2", folder=place)  # and goes on with it
        values["comparison"]["accuracy_with_two_seeds"] = {
            name: side["accuracy"] for name, side in read(place, "runs/comparison/comparison.json")["sides"].items()
        }
        values["cache"] = verb("cache", "--cache-dir", "cache", folder=Path.cwd()).splitlines()
    return values


def strip() -> None:
    """Leaves out what is large and that nothing is read from."""
    for folder in (*Path("runs").rglob("figures"),):
        shutil.rmtree(folder)
    for lock in (*Path("runs").rglob(".lock"), *Path("runs").rglob("learning_curves.png")):
        lock.unlink()
    for name in ("report.html", "compare.html"):
        for page in Path("runs").rglob(name):
            page.write_text(STUB)


def main(folder: str) -> None:
    os.environ["TF_NUM_INTRAOP_THREADS"] = "2"
    Path(folder).mkdir(parents=True)
    os.chdir(folder)
    draw_photos(Path("photos"), seed=20240131)
    make_weights(Path(WEIGHTS))
    begin_run("runs/finished_a", [*FINISHED, "--seed", "1"])
    begin_run("runs/finished_b", [*FINISHED, "--seed", "2"])
    begin_run("runs/unfinished", UNFINISHED)
    begin_comparison(COMPARISON)
    for name in ("finished_a", "finished_b"):
        print(verb("run", "--resume", f"runs/{name}"))
    stopped = subprocess.run([sys.executable, __file__, "--stopped", "runs/unfinished"])
    assert stopped.returncode == 143 and not Path("runs/unfinished/evaluation.json").exists()
    print(verb("compare", "--resume", "runs/comparison"))
    strip()
    Path("expected.json").write_text(json.dumps(expected(), indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "--stopped":
        sys.exit(run_stopped(sys.argv[2]))
    main(sys.argv[1])
