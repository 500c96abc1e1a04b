"""The run directory, which every command after `run` takes; only this module knows its file names."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from transfer_learning.config import EARLIER, RunConfig, difference, named, values_from_json, with_values
from transfer_learning.errors import UserError
from transfer_learning.storage.files import check_writable, write_text

# Errors of flock on file systems without locks, as on some clusters; there a second process is not refused.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class RunDir:
    """The paths inside one run directory."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(os.path.expanduser(path))
        self.config = self.path / "config.json"  # every field of the RunConfig
        self.environment = self.path / "environment.json"  # versions, device, git commit, dataset fingerprint, sessions
        self.notes = self.path / "notes.json"  # automatic choices with their reasons, and warnings
        self.log = self.path / "log.txt"  # all messages of all sessions, with time and level
        self.stages = self.path / "foresight.json"  # the stages of the run: estimated and actual time and disk space
        self.manifest = self.path / "manifest.csv"  # one row per example: file, hash, label, split, size, problem
        self.ignored = self.path / "ignored.csv"  # one row per other file of the dataset's folder, with the reason
        self.checkpoint = self.path / "checkpoint"  # the last two training states, for `--resume`
        self.history = self.path / "history.csv"  # one row per epoch; the same bits however often the run was stopped
        self.timings = self.path / "timings.csv"  # one row per epoch: seconds and images per second
        self.hardware = self.path / "hardware.csv"  # one row per sample: usage of processors, memory, disks and GPUs
        self.model = self.path / "model.keras"  # the trained model: images in, probabilities out
        self.inference = self.path / "model.tflite"  # the same for `predict`, which then starts without TensorFlow
        self.evaluation = self.path / "evaluation.json"  # the metrics on the evaluation split
        self.label_issues = self.path / "label_issues.csv"  # of out-of-fold predictions; a table for --corrections
        self.classification_report = self.path / "classification_report.txt"
        self.figures = self.path / "figures"
        self.report = self.path / "report.html"  # the report; written last, so a run with a report is finished
        self.export = self.path / "export"  # exported files and their model card
        self.export_table = self.export / "export.json"  # what the gate found for each of them
        self.tensorboard = self.path / "tensorboard"
        self.csv_log = self.path / "csv_log.csv"
        self.lock = self.path / ".lock"

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    def absolute(self) -> "RunDir":
        """The same directory, also after the working directory has changed, as in a notebook."""
        return RunDir(self.path.absolute())

    def predictions(self, split: str, tta: bool = False) -> Path:
        """One row per image: id, label, predicted class, confidence, probabilities; with or without augmentation."""
        return self.path / "predictions" / f"{split}{'_views' if tta else ''}.csv"

    def evaluation_of(self, split: str, tta: bool = False) -> Path:
        """The results of `evaluate` for a split, with or without test-time augmentation."""
        return self.path / f"evaluation_{split}{'_views' if tta else ''}.json"

    def comparison_of(self, split: str) -> Path:
        """The results of `evaluate --paired` for a split, in a directory of their own."""
        return self.path / f"comparison_{split}.json"

    def comparison_page_of(self, split: str) -> Path:
        """The report of `comparison_of`."""
        return self.path / f"comparison_{split}.html"

    @property
    def is_finished(self) -> bool:
        return self.report.exists()

    @property
    def is_in_use(self) -> bool:
        """Whether a process is writing the run, as far as its lock says."""
        try:
            with open(self.lock) as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:  # there is no lock, or the file system has none
            return isinstance(error, BlockingIOError)
        return False

    def read_config(self) -> RunConfig:
        """The config of the run; UserError if the file is missing, damaged or holds invalid values."""
        try:
            text = self.config.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            raise UserError(
                f"{self.config} is missing; restore it, or name the place that the run was moved to."
            ) from None
        values = values_from_json(text, str(self.config))
        if "dataset" not in values:
            raise UserError(
                f"{self.config} names no dataset, so it is not the config of a run; restore it, or start a new run."
            )
        config = with_values(RunConfig(), EARLIER | values)
        config.check()
        return config

    @contextmanager
    def begun(self, config: RunConfig) -> Iterator[None]:
        """Locks the run for this process and writes its config before anything else, so that it can be resumed;
        UserError if the directory holds a finished run or one with another config, or another process has it.

        A new run that ends with a UserError before its first checkpoint is deleted, because resuming it would only
        repeat it.
        """
        with self.locked():  # first: another process may just have started or finished this run
            if self.is_finished:
                raise UserError(f"{self.path} holds a finished run (see {self.report}); choose another directory.")
            is_new = not self.config.exists()
            if not is_new and (fields := difference(self.read_config(), config, may_have_moved=True)):
                raise UserError(
                    f"{self.path} has another config ({named(fields)}); restore it, or choose another directory."
                )
            if is_new:
                write_text(self.config, config.to_json())
            try:
                yield
            except UserError:
                if is_new and not self.checkpoint.exists():
                    written = (self.notes, self.stages, self.environment, self.manifest, self.ignored, self.config)
                    for file in (*written, self.hardware, self.log, self.lock):
                        file.unlink(missing_ok=True)
                    shutil.rmtree(self.tensorboard, ignore_errors=True)
                    with suppress(OSError):
                        self.path.rmdir()  # not empty
                raise

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the run for this process, however that ends; UserError if another process holds the lock."""
        self.path.mkdir(parents=True, exist_ok=True)
        # No links: the run directory may be a stranger's, and the target of a link would be emptied.
        with open(os.open(self.lock, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.path} is being written by another process; wait for it to end, or choose another --run-dir."
                ) from None
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    raise
            yield


def holds_no_files(path: Path) -> bool:
    """Whether a folder holds hidden files at most, such as the lock of a command that was killed at its start."""
    return path.is_dir() and all(entry.name.startswith(".") for entry in path.iterdir())


def new_run_dir(path: str | os.PathLike | None, name: str) -> RunDir:
    """The directory for a new run: `path`, which must hold no run or other files, or ``runs/NAME-TIME``."""
    if path is None:
        path = Path("runs") / f"{name.replace(':', '_')}-{datetime.now():%Y%m%d-%H%M%S}"  # of keras:NAME
        if path.exists():  # two runs in one second
            path = path.with_name(f"{path.name}-{os.getpid()}")
    if not os.fspath(path):
        raise UserError("--run-dir is empty; give a new or empty directory, or leave it out for a new one under runs/.")
    run_dir = RunDir(Path(path))
    if run_dir.path.exists() and not run_dir.path.is_dir():
        raise UserError(f"--run-dir {path} is a file; a new or empty directory was expected, so choose another name.")
    if run_dir.config.exists():
        if run_dir.is_finished:
            raise UserError(
                f"--run-dir {path} holds a finished run (see {run_dir.report}); choose another directory, or delete it."
            )
        raise UserError(
            f"--run-dir {path} holds an unfinished run; continue it with --resume {path}, or choose another directory."
        )
    if run_dir.path.is_dir() and not holds_no_files(run_dir.path):
        raise UserError(f"--run-dir {path} holds other files; choose a new or an empty directory.")
    check_writable(run_dir.path, "--run-dir")
    return run_dir


def check_place(path: str, flag: str) -> None:
    """Raises UserError for the absolute path of a file or folder that a run used and that is not there any more."""
    if os.path.isabs(path) and not os.path.exists(path):
        raise UserError(f"{path} is not there any more; if it was moved, name its new place with {flag}.")


def existing_run_dir(path: str | os.PathLike) -> RunDir:
    """Opens the directory of a run; UserError if it is none, or a link leads out of it: what is read and written there
    may have been chosen by a stranger.
    """
    run_dir = RunDir(Path(path))
    if not run_dir.path.is_dir():
        raise UserError(f"There is no run directory {path}; give the directory that `run` printed, such as runs/NAME.")
    if not run_dir.config.exists():
        raise UserError(f"{path} is not a run directory: it has no config.json; give the directory that `run` printed.")
    inside = run_dir.path.resolve()
    for folder, folders, files in os.walk(run_dir.path):
        for entry in (Path(folder, name) for name in (*folders, *files)):
            if entry.is_symlink() and not entry.resolve().is_relative_to(inside):
                raise UserError(
                    f"{path} holds the link {entry.relative_to(run_dir.path)}, which leads out of it; if you trust it, "
                    "replace it by its target."
                )
    return run_dir


def evaluated_run_dir(path: str | os.PathLike) -> RunDir:
    """Opens the directory of a finished run; UserError as `existing_run_dir`, or if it has no evaluation yet."""
    run_dir = existing_run_dir(path)
    if not run_dir.evaluation.exists():
        raise UserError(f"The run {path} is unfinished; continue it with run --resume {path}, then try again.")
    return run_dir
