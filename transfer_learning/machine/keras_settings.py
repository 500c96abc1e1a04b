"""Keras' global settings: always the same, whatever KERAS_BACKEND and keras.json ask for in the user's other programs."""

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from transfer_learning.errors import UserError
from transfer_learning.storage.files import read_json

logger = logging.getLogger(__name__)

SETTINGS = {"backend": "tensorflow", "image_data_format": "channels_last", "floatx": "float32", "epsilon": 1e-7}
_backend_of_the_user = os.environ.get("KERAS_BACKEND")


def keras_home() -> Path:
    """The folder of keras.json and of downloaded weights: KERAS_HOME, or ~/.keras."""
    return Path(os.path.expanduser(os.environ.get("KERAS_HOME") or "~/.keras"))


def choose_backend() -> None:
    """Has to be called before Keras is imported, which reads the variable once."""
    os.environ["KERAS_BACKEND"] = str(SETTINGS["backend"])


def apply_settings() -> None:
    """Sets all SETTINGS, with a warning for those that the user has set to others.

    Raises:
        UserError: Keras was imported with another backend before this package.
    """
    import keras

    if keras.config.backend() != SETTINGS["backend"]:
        raise UserError(
            f"Keras was imported with the backend {keras.config.backend()}, and {SETTINGS['backend']} is needed; import "
            "transfer_learning before keras, or set KERAS_BACKEND=tensorflow."
        )
    keras.config.set_image_data_format(SETTINGS["image_data_format"])
    keras.config.set_floatx(SETTINGS["floatx"])
    keras.config.set_epsilon(SETTINGS["epsilon"])
    if others := {name: value for name, value in user_settings().items() if value != SETTINGS[name]}:
        named = ", ".join(f"{name} {value} (now {SETTINGS[name]})" for name, value in others.items())
        logger.warning(f"Your Keras settings are not used: {named}; results do not depend on them.")


def user_settings() -> dict[str, Any]:
    """The SETTINGS that KERAS_BACKEND and keras.json name."""
    values: Any = {}
    with suppress(OSError, UserError):  # Keras ignores such a file, too
        values = read_json(keras_home() / "keras.json")
    if _backend_of_the_user:
        values["backend"] = _backend_of_the_user
    return {name: values[name] for name in SETTINGS if name in values}
