"""What the package logs, as a list."""

import logging

PACKAGE = "transfer_learning"


class _Collector(logging.Handler):
    """Appends each message to the list that was asked for last."""

    messages: list[str] = []

    def emit(self, record):
        self.messages.append(record.getMessage())


_collector = _Collector(logging.INFO)


def log_messages():
    """Returns a new list, to which every message from INFO on is appended until the next call."""
    logger = logging.getLogger(PACKAGE)
    if _collector not in logger.handlers:
        logger.addHandler(_collector)
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    _collector.messages = []
    return _collector.messages
