"""What earlier runs have measured, as one JSON object in the cache; no result depends on whether it can be read."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from transfer_learning.errors import UserError
from transfer_learning.storage.files import read_json, write_json

MOST = 500  # measurements in one file, the newest


class Measurements:
    """Values by name, which any JSON value may be; those of a damaged file are forgotten."""

    def __init__(self, path: Path):
        self._path = path

    def get(self, name: str) -> Any:
        """The value, which the caller checks; None if there is none."""
        return self._read().get(name)

    def add(self, name: str, value: Any) -> None:
        """Stores a value, unless the cache cannot be written."""
        known = self._read()
        known.pop(name, None)
        with suppress(OSError, ValueError):  # the cache may be read-only; ValueError: NaN
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, dict([*known.items(), (name, value)][-MOST:]))

    def _read(self) -> dict[str, Any]:
        with suppress(OSError, UserError, TypeError, ValueError):  # TypeError, ValueError: no object
            return dict(read_json(self._path))
        return {}
