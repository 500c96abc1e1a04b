"""What NVML says of GPUs, on machines that are made up: none of this has run on a GPU."""

import pynvml
import pytest

from tests.support.logs import log_messages
from transfer_learning.machine import gpus

NOT_SUPPORTED = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
GPU = {
    "name": "RTX 2050",
    "uuid": "GPU-aa11",
    "use": 83,
    "memory": (3e9, 4e9),
    "celsius": 71,
    "milliwatts": 30_500,
    "sm": 1740,
    "memory_mhz": 7001,
    "reasons": 0,
    "slowdown": 97,
    "limit": 45_000,
}
SAMPLE = {
    "percent": 83,
    "memory_used_mb": 3000.0,
    "memory_total_mb": 4000.0,
    "celsius": 71,
    "watts": 30.5,
    "sm_mhz": 1740,
    "memory_mhz": 7001,
    "throttled_by": "none",
}


class Values:
    def __init__(self, **values):
        vars(self).update(values)


def make_machine(monkeypatch, *machine, missing=(), error=None):
    """Puts GPUs into pynvml: dicts as GPU; a value that is an exception is raised. Returns what was opened and closed."""
    calls = []

    def ask(question, *fixed):
        def answer(handle, *arguments):
            value = handle[question] if isinstance(question, str) else question(handle, *arguments)
            if isinstance(value, Exception):
                raise value
            return value

        return answer

    def init():
        if error:
            raise error
        calls.append("init")

    functions = {
        "nvmlInit": init,
        "nvmlShutdown": lambda: calls.append("shutdown"),
        "nvmlDeviceGetCount": lambda: len(machine),
        "nvmlDeviceGetHandleByIndex": ask(lambda index: machine[index].get("opened", machine[index])),
        "nvmlDeviceGetName": ask("name"),
        "nvmlDeviceGetUUID": ask("uuid"),
        "nvmlDeviceGetTemperatureThreshold": ask("slowdown"),
        "nvmlDeviceGetEnforcedPowerLimit": ask("limit"),
        "nvmlDeviceGetUtilizationRates": ask(
            lambda gpu: gpu["use"] if isinstance(gpu["use"], Exception) else Values(gpu=gpu["use"])
        ),
        "nvmlDeviceGetMemoryInfo": ask(
            lambda gpu: (
                gpu["memory"]
                if isinstance(gpu["memory"], Exception)
                else Values(used=gpu["memory"][0], total=gpu["memory"][1])
            )
        ),
        "nvmlDeviceGetPowerUsage": ask("milliwatts"),
        "nvmlDeviceGetTemperatureV": ask("celsius"),
        "nvmlDeviceGetTemperature": ask("celsius"),
        "nvmlDeviceGetCurrentClocksEventReasons": ask("reasons"),
        "nvmlDeviceGetCurrentClocksThrottleReasons": ask("reasons"),
        "nvmlDeviceGetClockInfo": ask(
            lambda gpu, kind: gpu["sm"] if kind == pynvml.NVML_CLOCK_SM else gpu["memory_mhz"]
        ),
    }
    for name, function in functions.items():
        if name in missing:
            function = ask(lambda *arguments: pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND))
        monkeypatch.setattr(pynvml, name, function)
    return calls


def only_gpu():
    with gpus.visible_gpus(1) as (gpu,):
        return gpu


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)


@pytest.mark.parametrize(
    ("changes", "missing", "expected"),
    [
        ({}, (), {}),
        ({"milliwatts": NOT_SUPPORTED}, (), {"watts": None}),
        ({"use": NOT_SUPPORTED}, (), {"percent": None}),  # a GPU that is cut into instances
        ({"memory": NOT_SUPPORTED}, (), {"memory_used_mb": None, "memory_total_mb": None}),  # it shares the machine's
        ({"sm": NOT_SUPPORTED, "memory_mhz": NOT_SUPPORTED}, (), {"sm_mhz": None, "memory_mhz": None}),
        ({"celsius": NOT_SUPPORTED, "reasons": NOT_SUPPORTED}, (), {"celsius": None, "throttled_by": None}),
        ({"use": 0, "celsius": 0, "milliwatts": 0}, (), {"percent": 0, "celsius": 0, "watts": 0.0}),
        ({}, ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetCurrentClocksEventReasons"), {}),  # an old driver
        ({}, ("nvmlDeviceGetTemperature", "nvmlDeviceGetCurrentClocksThrottleReasons"), {}),  # a future one
        ({"slowdown": NOT_SUPPORTED, "limit": NOT_SUPPORTED}, (), {}),
    ],
)
def test_a_figure_that_a_gpu_does_not_report_is_none_and_the_others_are_there(changes, missing, expected, monkeypatch):
    make_machine(monkeypatch, GPU | changes, missing=missing)
    sample = only_gpu().sample()
    assert sample == SAMPLE | expected
    assert tuple(sample) == gpus.FIGURES


def test_what_is_known_of_a_gpu_from_the_beginning(monkeypatch):
    make_machine(monkeypatch, GPU)
    gpu = only_gpu()
    assert (gpu.index, gpu.name, gpu.slowdown_celsius, gpu.power_limit_watts) == (0, "RTX 2050", 97, 45.0)
    make_machine(monkeypatch, GPU | {"slowdown": NOT_SUPPORTED, "limit": NOT_SUPPORTED})
    assert (only_gpu().slowdown_celsius, only_gpu().power_limit_watts) == (None, None)


def test_a_lost_gpu_raises(monkeypatch):
    make_machine(monkeypatch, GPU | {"celsius": pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)})
    with pytest.raises(pynvml.NVMLError, match="lost"):
        only_gpu().sample()


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (0x0, "none"),
        (0x1, "none"),  # idle
        (0x2 | 0x10 | 0x100, "none"),  # clocks that somebody, another GPU or a display has set
        (0x4, "power"),
        (0x80, "power"),
        (0x20, "heat"),
        (0x40, "heat"),
        (0x8, "hardware"),
        (0x8 | 0x40, "heat"),
        (0x8 | 0x80, "power"),
        (0x4 | 0x20, "heat and power"),
        (0xFFFF, "heat and power"),
    ],
)
def test_reasons_are_described(mask, expected):
    assert gpus.throttled_by(mask) == expected


TWO = [GPU, GPU | {"uuid": "GPU-bb22"}]
UNLIKE = [GPU, GPU | {"uuid": "GPU-bb22", "name": "H100"}]


@pytest.mark.parametrize(
    ("machine", "visible", "order", "number", "expected", "said"),
    [
        (TWO, None, None, 2, [0, 1], False),
        (TWO, "1", None, 1, [1], False),
        (TWO, "1, 0", None, 2, [1, 0], False),
        (TWO, "GPU-bb22", None, 1, [1], False),
        (TWO, "GPU-b", None, 1, [1], False),
        (TWO, "GPU-", None, 1, [0, 1], True),  # names both
        (TWO, "0,-1,1", None, 1, [0], False),  # CUDA stops at what is no GPU
        (TWO, "0,7,1", None, 1, [0], False),
        (TWO, "MIG-aa11", None, 1, [0, 1], True),
        (UNLIKE, "1", None, 1, [0, 1], True),  # CUDA's GPU 1 may be either
        (UNLIKE, "1", "PCI_BUS_ID", 1, [1], False),
        (UNLIKE, "GPU-aa11", None, 1, [0], False),
        (TWO, None, None, 1, [0, 1], True),  # TensorFlow can use but one
    ],
)
def test_the_gpus_that_tensorflow_sees_are_watched(machine, visible, order, number, expected, said, monkeypatch):
    make_machine(monkeypatch, *machine)
    for name, value in (("CUDA_VISIBLE_DEVICES", visible), ("CUDA_DEVICE_ORDER", order)):
        if value is not None:
            monkeypatch.setenv(name, value)
    sentences = log_messages()
    with gpus.visible_gpus(number) as found:
        assert [gpu.index for gpu in found] == expected
    assert ["all are monitored" in sentence for sentence in sentences] == [True] * said


@pytest.mark.parametrize(
    ("visible", "names"), [(None, ["0", "1"]), ("1, 0", ["1", "0"]), ("", []), ("-1", []), ("1,-1,0", ["1"])]
)
def test_workers_share_the_gpus_that_cuda_leaves(visible, names, monkeypatch):
    make_machine(monkeypatch, *TWO)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus.cuda_names() == names


def test_a_gpu_that_may_not_be_opened_is_left_out(monkeypatch):
    closed = {"opened": pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)}
    make_machine(monkeypatch, closed, GPU)
    assert only_gpu().index == 1


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_without_a_driver_nothing_is_opened(code, monkeypatch):
    calls = make_machine(monkeypatch, error=pynvml.NVMLError(code))
    with pytest.raises(pynvml.NVMLError), gpus.visible_gpus(1):
        pass
    assert calls == []


def test_nvml_is_closed_behind_the_block_whatever_ends_it(monkeypatch):
    calls = make_machine(monkeypatch, GPU)
    with pytest.raises(ZeroDivisionError), gpus.visible_gpus(1):
        1 / 0  # noqa: B018
    assert calls == ["init", "shutdown"]
