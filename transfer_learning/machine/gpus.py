"""GPUs as NVIDIA's driver (NVML) reports them: use, memory, temperature, power, clocks, reasons of throttling."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import pynvml

logger = logging.getLogger(__name__)

# Bits of NVML's mask of throttle reasons -> `throttled_by`. An idle GPU and clocks that somebody set are left out.
REASONS = {
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "heat",
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "heat",
    pynvml.nvmlClocksEventReasonSwPowerCap: "power",
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "power",
    pynvml.nvmlClocksEventReasonHwSlowdown: "hardware",  # heat or power supply; newer drivers set another bit as well
}
# Errors of a query that this driver or GPU does not support
NO_ANSWER = (
    pynvml.NVMLError_NotSupported,
    pynvml.NVMLError_FunctionNotFound,
    pynvml.NVMLError_InvalidArgument,
    pynvml.NVMLError_ArgumentVersionMismatch,
    pynvml.NVMLError_NoPermission,
)

FIGURES = ("percent", "memory_used_mb", "memory_total_mb", "celsius", "watts", "sm_mhz", "memory_mhz", "throttled_by")


@dataclass(frozen=True)
class Gpu:
    """One GPU, opened in NVML."""

    index: int  # as nvidia-smi numbers it
    name: str
    uuid: str
    slowdown_celsius: int | None  # where it throttles; None: not reported
    power_limit_watts: float | None
    handle: Any  # NVML's

    def sample(self) -> dict[str, Any]:
        """The current value of each of FIGURES, None where the GPU reports none; NVMLError if it is lost or the driver
        fails. ``percent`` is the share of time in which a kernel ran.
        """
        use = answer(pynvml.nvmlDeviceGetUtilizationRates, self.handle)
        memory = answer(pynvml.nvmlDeviceGetMemoryInfo, self.handle)
        watts = answer(pynvml.nvmlDeviceGetPowerUsage, self.handle)
        celsius = answer(pynvml.nvmlDeviceGetTemperatureV, self.handle, pynvml.NVML_TEMPERATURE_GPU)
        if celsius is None:  # drivers before CUDA 12.9
            celsius = answer(pynvml.nvmlDeviceGetTemperature, self.handle, pynvml.NVML_TEMPERATURE_GPU)
        reasons = answer(pynvml.nvmlDeviceGetCurrentClocksEventReasons, self.handle)
        if reasons is None:  # drivers before 535
            reasons = answer(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, self.handle)
        return {
            "percent": use and use.gpu,
            "memory_used_mb": memory and memory.used / 1e6,
            "memory_total_mb": memory and memory.total / 1e6,
            "celsius": celsius,
            "watts": None if watts is None else watts / 1000,
            "sm_mhz": answer(pynvml.nvmlDeviceGetClockInfo, self.handle, pynvml.NVML_CLOCK_SM),
            "memory_mhz": answer(pynvml.nvmlDeviceGetClockInfo, self.handle, pynvml.NVML_CLOCK_MEM),
            "throttled_by": None if reasons is None else throttled_by(reasons),
        }


def throttled_by(mask: int) -> str:
    """``none``, ``heat``, ``power``, ``heat and power``, or ``hardware`` if the driver does not say which."""
    reasons = dict.fromkeys(reason for bit, reason in REASONS.items() if mask & bit)
    if len(reasons) > 1:
        reasons.pop("hardware", None)
    return " and ".join(reasons) or "none"


@contextmanager
def visible_gpus(number: int) -> Iterator[list[Gpu]]:
    """Yields the GPUs that CUDA_VISIBLE_DEVICES leaves to this process; NVML is closed after the block.

    Args:
        number: of GPUs that TensorFlow found. If the variable selects another number, all are yielded.

    Raises:
        pynvml.NVMLError: there is no driver, or it fails.
    """
    with nvml():
        gpus = _all_gpus()
        asked = os.environ.get("CUDA_VISIBLE_DEVICES")
        chosen = gpus if asked is None else _named(asked, gpus)
        if len(chosen) != number:
            logger.info(f"TensorFlow uses {number} of {len(gpus)} GPUs, which ones is unknown; all are monitored.")
            chosen = gpus
        yield chosen


@contextmanager
def nvml() -> Iterator[None]:
    """Opens NVIDIA's driver for the block; NVMLError if there is none, or if it fails."""
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def cuda_names() -> list[str]:
    """CUDA's names of the GPUs that CUDA_VISIBLE_DEVICES leaves, or of all that the driver reports; none without one."""
    if (asked := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return list(takewhile(lambda name: name not in ("", "-1"), map(str.strip, asked.split(","))))  # as CUDA does
    try:
        with nvml():
            return [str(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def answer(question: Callable, *arguments: Any) -> Any:
    """NVML's answer; None if this GPU or driver does not support the query."""
    try:
        return question(*arguments)
    except NO_ANSWER:
        return None


def _all_gpus() -> list[Gpu]:
    gpus = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        with suppress(pynvml.NVMLError):  # not accessible, or lost
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            slowdown = answer(
                pynvml.nvmlDeviceGetTemperatureThreshold, handle, pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
            )
            limit = answer(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
            name, uuid = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetUUID(handle)
            gpus.append(Gpu(index, name, uuid, slowdown, limit and limit / 1000, handle))
    return gpus


def _named(asked: str, gpus: list[Gpu]) -> list[Gpu]:
    """The GPUs of ``1,0`` or ``GPU-8932f937``; none if the numbers may be CUDA's order and not NVML's.

    CUDA numbers by speed, NVML by bus; like CUDA, this stops at an entry that names no GPU.
    """
    numbers_agree = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len({gpu.name for gpu in gpus}) == 1
    chosen = []
    for entry in map(str.strip, asked.split(",")):
        if entry.isdigit() and not numbers_agree:
            return []
        named = [gpu for gpu in gpus if (gpu.index == int(entry) if entry.isdigit() else gpu.uuid.startswith(entry))]
        if len(named) != 1 or not entry:
            break
        chosen += named
    return chosen
