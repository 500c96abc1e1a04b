"""The end of ``--time-limit``."""

import math
import time

from transfer_learning.cli.formatting import duration
from transfer_learning.config import limit_seconds
from transfer_learning.errors import UserError

USED = 0.8  # of the time: estimates may be too low


class Deadline:
    """What is left of the time for a run, all of which is planned ahead."""

    def __init__(self, time_limit: str = ""):
        self.text, self._limit, self._started = time_limit, limit_seconds(time_limit), time.monotonic()

    def __bool__(self) -> bool:
        return bool(self.text)

    @property
    def left(self) -> float:
        """Seconds that may still be planned for; infinite without a limit."""
        return USED * self._limit - (time.monotonic() - self._started)

    def check(self, seconds: float, work: str) -> None:
        """Raises UserError if `work` takes longer than what is left."""
        if seconds > self.left:
            least = math.ceil(self._limit + (seconds - self.left) / USED)
            raise UserError(
                f"--time-limit {self.text} is too short: {work} takes about {duration(seconds)} here; give {least}s or "
                "more, or a smaller --image-size."
            )
