"""Keras' global settings are the same whatever the user has set for other programs."""

import json
import os
import subprocess
import sys

import keras
import pytest

from tests.support import ROOT
from tests.support.logs import log_messages
from transfer_learning.errors import UserError
from transfer_learning.machine import keras_settings
from transfer_learning.machine.devices import set_up_devices
from transfer_learning.training.identity import ADDED


@pytest.fixture
def keras_json(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(keras_settings, "_backend_of_the_user", None)
    return tmp_path / "keras.json"


def test_other_settings_are_replaced_with_one_warning(keras_json, monkeypatch):
    keras_json.write_text(json.dumps({"floatx": "float16", "epsilon": 1e-3, "image_data_format": "channels_first"}))
    monkeypatch.setattr(keras_settings, "_backend_of_the_user", "torch")
    keras.config.set_floatx("float16")
    keras.config.set_epsilon(1e-3)
    keras.config.set_image_data_format("channels_first")
    messages = log_messages()
    devices = set_up_devices("float32", 0)
    assert (keras.config.floatx(), keras.config.epsilon()) == ("float32", 1e-7)
    assert (keras.config.backend(), keras.config.image_data_format()) == ("tensorflow", "channels_last")
    (warning,) = [message for message in messages if "Keras settings" in message]
    for words in ("backend torch", "floatx float16", "epsilon 0.001", "image_data_format channels_first"):
        assert words in warning
    assert (
        devices.fingerprint["keras_settings"] == "tensorflow channels_last float32 1e-07" and "keras_settings" in ADDED
    )


@pytest.mark.parametrize("text", [None, "", "{", '{"floatx": "float32", "backend": "tensorflow", "epsilon": 1e-07}'])
def test_usual_settings_give_no_warning(text, keras_json):
    if text is not None:
        keras_json.write_text(text)
    messages = log_messages()
    keras_settings.apply_settings()
    assert not messages


@pytest.mark.parametrize("text", ['{"floatx": "float128"}', "[]"])
def test_settings_with_which_keras_cannot_be_imported_are_named(text, keras_json):
    keras_json.write_text(text)
    code = """import sys
from transfer_learning.cli.parser import quiet_start, run_main
def main(arguments):
    with quiet_start():
        import keras
sys.exit(run_main(main))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: Keras refuses the settings in your keras.json (")


def test_keras_with_another_backend_is_an_error(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(UserError, match="backend jax"):
        keras_settings.apply_settings()


def test_a_variable_for_other_programs_does_not_choose_the_backend():
    code = "import os, transfer_learning; print(os.environ['KERAS_BACKEND'])"
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.stdout == "tensorflow\n"
