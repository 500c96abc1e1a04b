"""Devices and precision on machines that the tests do not run on; TensorFlow's view of them is faked."""

import keras
import pynvml
import pytest
import tensorflow as tf

from tests.support.logs import log_messages
from transfer_learning.errors import UserError
from transfer_learning.machine import devices


@pytest.fixture
def machine(monkeypatch):
    """Makes a machine: GPUs as (name, compute capability), the driver's CUDA version or "", the CUDA of the build."""

    def make(gpus=(), driver="", cuda="12.5"):
        grown = []
        details = {f"gpu{n}": {"device_name": name, "compute_capability": of} for n, (name, of) in enumerate(gpus)}
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: list(details) if kind == "GPU" else [])
        monkeypatch.setattr(tf.config.experimental, "get_device_details", details.get)
        monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda gpu, on: grown.append((gpu, on)))
        build = {"cuda_version": cuda, "cudnn_version": "9"} if cuda else {}
        monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: build)
        monkeypatch.setattr(devices, "driver_cuda_version", lambda: driver)
        return grown

    return make


def set_up(precision="auto"):
    said = log_messages()
    return devices.set_up_devices(precision, 3), " ".join(said)


@pytest.mark.parametrize(
    ("gpus", "precision", "expected", "words"),
    [
        ((), "auto", "float32", "16-bit arithmetic is slower on most processors"),
        ((), "mixed_float16", "mixed_float16", "Precision mixed_float16 (--precision; without a GPU it is slower"),
        ((("H100", (9, 0)),), "auto", "mixed_float16", "has tensor cores"),
        ((("H100", (9, 0)),), "float32", "float32", "Precision float32 (--precision);"),
        ((("GTX 1080", (6, 1)),), "auto", "float32", "no tensor cores"),
        ((("H100", (9, 0)), ("GTX 1080", (6, 1))), "auto", "float32", "no tensor cores"),  # the weakest decides
    ],
)
def test_the_precision_fits_the_device_unless_a_flag_decides(machine, gpus, precision, expected, words):
    machine(gpus, driver="13.0" if gpus else "")
    chosen, said = set_up(precision)
    assert chosen.precision == keras.mixed_precision.dtype_policy().name == expected
    assert words in said


def test_memory_grows_on_every_gpu_and_both_versions_of_cuda_are_named(machine):
    grown = machine((("A", (8, 0)), ("B", (8, 0))), driver="13.0", cuda="12.5")
    chosen, said = set_up()
    assert grown == [("gpu0", True), ("gpu1", True)]
    assert "Device: 2 GPUs (A, B), CUDA 12.5 (driver: 13.0), cuDNN 9." in said
    assert (chosen.num_gpus, chosen.fingerprint["device"]) == (2, "A")


@pytest.mark.parametrize(("cuda", "words"), [("12.5", "install tensorflow[and-cuda]"), ("", "was built without")])
def test_a_gpu_driver_that_tensorflow_cannot_use_is_a_warning(machine, cuda, words):
    machine((), driver="12.8", cuda=cuda)
    said = set_up()[1]
    assert "GPU driver for CUDA 12.8" in said and words in said


@pytest.mark.parametrize(("value", "words"), [("1", "oneDNN on"), ("0", "oneDNN off")])
def test_onednn_and_threads_are_logged(machine, monkeypatch, value, words):
    machine()
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", value)
    said = set_up()[1]
    assert words in said and " thread" in said


def test_memory_growth_that_cannot_be_enabled_is_a_user_error(machine, monkeypatch):
    machine((("A", (8, 0)),), driver="13.0")

    def too_late(gpu, on):
        raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", too_late)
    with pytest.raises(UserError, match="restart of the kernel"):
        set_up()


@pytest.mark.parametrize(
    "flag", ["TF_SET_ONEDNN_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA", "DNNL_DEFAULT_FPMATH_MODE", "XLA_FLAGS"]
)
def test_flags_that_change_the_arithmetic_are_part_of_what_has_to_be_the_same(flag, machine, monkeypatch):
    machine()
    before = set_up()[0].fingerprint
    monkeypatch.setenv(flag, "something")
    after = set_up()[0].fingerprint
    assert f"{flag}=something" in after["flags"] and after != before


def test_a_gpu_brings_its_driver_into_what_has_to_be_the_same(machine):
    machine(gpus=[("H100", (9, 0))], driver="12.8")
    assert set_up()[0].fingerprint["driver"] == "12.8"


@pytest.mark.parametrize(
    ("failing", "expected"),
    [
        (None, "13.0"),
        ("nvmlInit", ""),
        ("nvmlSystemGetCudaDriverVersion_v2", ""),  # an old driver does not know the question
        ("nvmlShutdown", ""),
    ],
)
def test_a_driver_that_cannot_be_asked_ends_no_run(failing, expected, monkeypatch):
    def fail():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

    answers = {"nvmlInit": None, "nvmlSystemGetCudaDriverVersion_v2": 13000, "nvmlShutdown": None}
    for name, value in answers.items():
        monkeypatch.setattr(pynvml, name, fail if name == failing else lambda value=value: value)
    assert devices.driver_cuda_version() == expected
