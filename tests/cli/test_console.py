"""Messages on the terminal and in logs."""

import logging

from transfer_learning.cli.console import each_message_once, logged_to


def test_each_handler_gets_a_repeated_message_once():
    first, second = (_Messages() for _ in range(2))
    logger = logging.getLogger("transfer_learning.test")
    with logged_to(first, second), each_message_once():
        for text in ("a", "b", "a"):
            logger.info(text)
    assert first.texts == second.texts == ["a", "b"]


class _Messages(logging.Handler):
    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())
