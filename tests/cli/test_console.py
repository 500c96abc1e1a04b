"""Messages on the terminal and in logs."""

import logging

from transfer_learning.cli.console import each_message_once, early_messages, log_file, logged_to


def test_each_handler_gets_a_repeated_message_once():
    first, second = (_Messages() for _ in range(2))
    logger = logging.getLogger("transfer_learning.test")
    with logged_to(first, second), each_message_once():
        for text in ("a", "b", "a"):
            logger.info(text)
    assert first.texts == second.texts == ["a", "b"]


def test_messages_of_one_logger_are_printed_once_and_logged_once(tmp_path):
    seen, package, below = (
        _Messages(),
        logging.getLogger("transfer_learning"),
        logging.getLogger("transfer_learning.a.b"),
    )
    package.addHandler(seen)
    try:
        with early_messages(), each_message_once("transfer_learning.a"):
            for logger in (package, below):
                logger.warning("before")
            with logged_to(log_file(tmp_path / "log.txt")):
                for logger in (package, below):
                    logger.warning("before")
                below.warning("after")
    finally:
        package.removeHandler(seen)
    assert seen.texts == ["before", "before", "before", "after"], "twice by the other logger"
    logged = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split()[-1] for line in logged] == seen.texts


class _Messages(logging.Handler):
    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())
