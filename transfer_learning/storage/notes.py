"""The automatic choices and warnings of a run, which its report lists."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transfer_learning.storage.files import read_json, write_json

NOT_NOTED = "transfer_learning.cli"  # the lines of epochs and progress


Note = dict[str, Any]


class NotesHandler(logging.Handler):
    """Writes each distinct message of a run into ``notes.json``, after those of earlier sessions.

    A note is ``{"level": "info" | "warning", "text": ...}``, one of them with a table ``"candidates"``; versions before
    0.2 wrote the text alone.
    """

    def __init__(self, path: Path, choices: Sequence[Note | str] = ()):
        super().__init__(logging.INFO)
        self._path = path
        self._notes = [as_note(note) for note in read_json(path)] if path.exists() else []
        self._add(*map(as_note, choices))

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith(NOT_NOTED):
            self._add({"level": record.levelname.lower(), "text": record.getMessage()})

    def _add(self, *notes: Note) -> None:
        known = [(note["level"], note["text"]) for note in self._notes]
        self._notes += [note for note in notes if (note["level"], note["text"]) not in known]
        write_json(self._path, self._notes)


def as_note(note: Note | str) -> Note:
    """A note from ``notes.json`` of any version, or of a reason."""
    if isinstance(note, dict):
        return note
    is_warning = note.startswith("Warning: ")
    return {"level": "warning" if is_warning else "info", "text": note.removeprefix("Warning: ")}
