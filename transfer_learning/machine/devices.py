"""What the machine has, what is used of it, and why: GPUs, precision, threads, oneDNN, determinism, seeds."""

import logging
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import keras
import tensorflow as tf

from transfer_learning.errors import UserError
from transfer_learning.machine.resources import usable_cores

logger = logging.getLogger(__name__)

# Environment variables by which TensorFlow's libraries compute with other numbers, or in another order
ARITHMETIC_FLAGS = (
    "TF_SET_ONEDNN_",
    "ONEDNN_",
    "DNNL_",
    "NVIDIA_TF32_OVERRIDE",
    "XLA_FLAGS",
    "TF_XLA_FLAGS",
    "TF_CUDNN_",
)
# NVIDIA's compute capability from which float16 products run on tensor cores
TENSOR_CORES = (7, 0)


@dataclass(frozen=True)
class Devices:
    """What was chosen."""

    name: str  # of the GPU or the processor
    num_gpus: int
    precision: str  # a Keras dtype policy
    threads: int  # that share an operation on the processor
    fingerprint: dict[str, str]  # what has to be the same for a resumed run to give the same bits


def set_up_devices(precision: str, seed: int, begun_with: Mapping[str, Any] = MappingProxyType({})) -> Devices:
    """Makes TensorFlow ready for one run and says what was found, chosen and why.

    Args:
        precision: "auto", or the name of a Keras dtype policy, which is then honoured on any device.
        seed: of everything that Keras draws while the run builds its model.
        begun_with: what an earlier session of the run chose: its "precision" and "threads" are taken again, because
            another number of either gives other bits.

    Raises:
        UserError: a GPU is there, but TensorFlow was already using it, so memory growth cannot be turned on.
    """
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError as error:
            raise UserError(
                f"GPU memory growth cannot be turned on ({error}); call this before anything else uses TensorFlow, "
                "in a notebook after a restart of the kernel."
            ) from None
    threads = _set_threads(begun_with.get("threads") or _available_threads())
    name = _say_gpus(gpus) if gpus else _say_processor(threads)
    if "precision" in begun_with:
        policy = begun_with["precision"]
        again = f" and {threads} threads" if threads == begun_with.get("threads") else ""
        logger.info(f"Precision {policy}{again}, as the run was begun with.")
    else:
        policy = _choose_precision(precision, gpus)
    keras.mixed_precision.set_dtype_policy(policy)
    keras.utils.set_random_seed(seed)
    # Without it some GPU kernels add numbers in another order each time, and no resume could be exact.
    tf.config.experimental.enable_op_determinism()
    logger.info(f"Seed {seed}; deterministic operations, so that the same run gives the same bits on this machine.")
    return Devices(name, len(gpus), policy, threads, _fingerprint(name, len(gpus), threads))


def _available_threads() -> int:
    return int(os.environ.get("TF_NUM_INTRAOP_THREADS") or usable_cores())


def _set_threads(threads: int) -> int:
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        return threads
    except RuntimeError:  # TensorFlow is in use already, as in a notebook: it keeps the number that it began with
        return tf.config.threading.get_intra_op_parallelism_threads() or _available_threads()


def _say_gpus(gpus: list) -> str:
    built = tf.sysconfig.get_build_info()
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    names = [detail.get("device_name", "GPU") for detail in details]
    logger.info(f"Found {len(gpus)} GPU{'s' * (len(gpus) > 1)}: {', '.join(names)}; memory grows as it is needed.")
    logger.info(
        f"TensorFlow was built for CUDA {built.get('cuda_version', '?')} and cuDNN {built.get('cudnn_version', '?')}; "
        f"the driver supports CUDA {driver_cuda_version() or 'of an unknown version'}."
    )
    return names[0]


def _say_processor(threads: int) -> str:
    driver = driver_cuda_version()
    cuda = tf.sysconfig.get_build_info().get("cuda_version")
    if driver:
        logger.info(
            f"There is a GPU driver for CUDA {driver}, but TensorFlow "
            + (
                f"(built for CUDA {cuda}) cannot use it; install tensorflow[and-cuda]."
                if cuda
                else "was built without."
            )
        )
    onednn = "off (TF_ENABLE_ONEDNN_OPTS=0)"
    if os.environ.get("TF_ENABLE_ONEDNN_OPTS") != "0":
        onednn = "on, since it is faster (TF_ENABLE_ONEDNN_OPTS=0 turns it off)"
    name = _processor_name()
    logger.info(f"Found no GPU: everything runs on {name}, {threads} threads, oneDNN {onednn}.")
    return name


def _choose_precision(precision: str, gpus: list) -> str:
    if precision != "auto":
        slower = "; without a GPU it is slower than float32 (--precision float32)" * (
            precision != "float32" and not gpus
        )
        logger.info(f"Precision {precision}, as asked for{slower}.")
        return precision
    if not gpus:
        logger.info("Precision float32: 16-bit arithmetic is slower on most processors.")
        return "float32"
    capabilities = [tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus]
    if min(capabilities) >= TENSOR_CORES:
        logger.info("Precision mixed_float16: this GPU has tensor cores; weights and loss stay in float32.")
        return "mixed_float16"
    logger.info("Precision float32: this GPU has no tensor cores, so 16 bits would gain little.")
    return "float32"


def driver_cuda_version() -> str:
    """Returns the newest CUDA version that the installed NVIDIA driver supports, as "12.8", or "" where none tells."""
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            number = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:  # no driver, one too old to be asked, or one that broke down
        return ""
    return f"{number // 1000}.{number % 1000 // 10}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    packages = ("tensorflow", "keras", "numpy", "pandas", "scikit-learn", "pillow")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def git_commit() -> str:
    """Returns the commit of the checkout that this package runs from, with "+changes" if files differ, or ""."""
    folder = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "."],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + ("+changes" if changed else "")


def _fingerprint(name: str, num_gpus: int, threads: int) -> dict[str, str]:
    flags = [f"{flag}={value}" for flag, value in sorted(os.environ.items()) if flag.startswith(ARITHMETIC_FLAGS)]
    return {
        **({"flags": " ".join(flags)} if flags else {}),
        **({"driver": driver_cuda_version()} if num_gpus else {}),
        **{package: number for package, number in versions().items() if package not in ("pandas", "scikit-learn")},
        "device": name,
        "num_gpus": str(num_gpus),
        "threads": str(threads),
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", ""),
        "system": platform.system(),
    }


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
