"""GPUs as NVIDIA's driver reports them (NVML): use, memory, temperature, power, clocks, and why the clocks were lowered."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pynvml

logger = logging.getLogger(__name__)


# Why a clock is lower than it could be, as bits of NVML's mask, in the words of `throttled_by`. Left out is what slows
# no training: an idle GPU, and clocks that somebody set.
REASONS = {
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "heat",
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "heat",
    pynvml.nvmlClocksEventReasonSwPowerCap: "power",
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "power",
    pynvml.nvmlClocksEventReasonHwSlowdown: "hardware",  # heat or power supply; newer drivers say which by another bit
}
# Other drivers and other GPUs answer other questions.
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
    """One GPU."""

    index: int  # as nvidia-smi numbers it
    name: str
    uuid: str
    slowdown_celsius: int | None  # where it lowers its clock; None where it does not say
    power_limit_watts: float | None
    handle: Any  # NVML's

    def sample(self) -> dict[str, float | str | None]:
        """Returns what it does now, by FIGURES; what it does not report is None.

        ``percent`` is the share of the time in which anything ran on it; ``throttled_by`` is what that function returns.

        Raises:
            pynvml.NVMLError: the GPU is lost, or the driver broke down.
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
    """``none``, ``heat``, ``power``, ``heat and power``, or ``hardware`` where the driver does not say which of them."""
    reasons = dict.fromkeys(reason for bit, reason in REASONS.items() if mask & bit)
    if len(reasons) > 1:
        reasons.pop("hardware", None)
    return " and ".join(reasons) or "none"


@contextmanager
def visible_gpus(number: int) -> Iterator[list[Gpu]]:
    """Yields the GPUs that CUDA_VISIBLE_DEVICES leaves to this process; NVML is closed behind the block.

    Args:
        number: of GPUs that TensorFlow found. Where the variable does not lead to as many, all are taken, which is said.

    Raises:
        pynvml.NVMLError: there is no driver, or it cannot be asked.
    """
    pynvml.nvmlInit()
    try:
        gpus = _all_gpus()
        asked = os.environ.get("CUDA_VISIBLE_DEVICES")
        chosen = gpus if asked is None else _named(asked, gpus)
        if len(chosen) != number:
            among = "" if asked is None else f" and CUDA_VISIBLE_DEVICES {asked}"
            logger.info(
                f"Which of the {len(gpus)} GPUs of this machine are used cannot be told from the {number} that TensorFlow "
                f"found{among}: all are watched."
            )
            chosen = gpus
        yield chosen
    finally:
        pynvml.nvmlShutdown()


def answer(question: Callable, *arguments: Any) -> Any:
    """What NVML answers; None where this GPU or driver does not know the question."""
    try:
        return question(*arguments)
    except NO_ANSWER:
        return None


def _all_gpus() -> list[Gpu]:
    gpus = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        with suppress(pynvml.NVMLError):  # one that this process may not open, or that fell off its bus
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            slowdown = answer(
                pynvml.nvmlDeviceGetTemperatureThreshold, handle, pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
            )
            limit = answer(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
            name, uuid = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetUUID(handle)
            gpus.append(Gpu(index, name, uuid, slowdown, limit and limit / 1000, handle))
    return gpus


def _named(asked: str, gpus: list[Gpu]) -> list[Gpu]:
    """The GPUs of such as ``1,0`` or ``GPU-8932f937``; none where the numbers are CUDA's own, and not those of NVML.

    CUDA puts the fastest GPU first, NVML the lowest bus number; like CUDA, it stops at an entry that names no GPU.
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
