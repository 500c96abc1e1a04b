"""Sets up the device of a run: GPUs, precision, threads, oneDNN, determinism, seed."""

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
import pynvml
import tensorflow as tf

from transfer_learning.errors import UserError
from transfer_learning.machine.gpus import nvml
from transfer_learning.machine.keras_settings import SETTINGS, apply_settings
from transfer_learning.machine.resources import processor_name, usable_cores

logger = logging.getLogger(__name__)

# Prefixes of environment variables that change the arithmetic of TensorFlow's libraries
ARITHMETIC_FLAGS = tuple("TF_SET_ONEDNN_ ONEDNN_ DNNL_ NVIDIA_TF32_OVERRIDE XLA_FLAGS TF_XLA_FLAGS TF_CUDNN_".split())
TENSOR_CORES = (7, 0)  # NVIDIA compute capability from which float16 products run on tensor cores


@dataclass(frozen=True)
class Devices:
    """The device of a run and its settings."""

    name: str  # of the GPU or the processor
    num_gpus: int
    precision: str  # a Keras dtype policy
    threads: int  # per operation on the processor
    fingerprint: dict[str, str]  # what must be equal for a resumed run to give the same bits


def set_up_devices(precision: str, seed: int, begun_with: Mapping[str, Any] = MappingProxyType({})) -> Devices:
    """Prepares TensorFlow for one run: memory growth, threads, precision, seed, deterministic operations.

    Args:
        precision: "auto" or a Keras dtype policy.
        seed: of everything that Keras draws while the model is built.
        begun_with: "precision" and "threads" of an earlier session of the run, which are used again, because others
            give other bits.

    Raises:
        UserError: TensorFlow already uses the GPU, so memory growth cannot be enabled; or Keras has another backend.
    """
    apply_settings()
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError as error:
            raise UserError(
                f"GPU memory growth cannot be enabled ({error}); call this before anything else uses TensorFlow, in a "
                "notebook after a restart of the kernel."
            ) from None
    default = int(os.environ.get("TF_NUM_INTRAOP_THREADS") or usable_cores())
    threads = begun_with.get("threads") or default
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    except RuntimeError:  # TensorFlow is already in use, as in a notebook
        threads = tf.config.threading.get_intra_op_parallelism_threads() or default
    name = _log_gpus(gpus) if gpus else _log_processor(threads)
    if "precision" in begun_with:
        policy, reason = begun_with["precision"], "as in the earlier session"
    else:
        policy, reason = _choose_precision(precision, gpus)
    keras.mixed_precision.set_dtype_policy(policy)
    keras.utils.set_random_seed(seed)
    # Otherwise some GPU kernels add numbers in another order each time, and no resume could be exact.
    tf.config.experimental.enable_op_determinism()
    logger.info(f"Precision {policy} ({reason}); seed {seed}, deterministic operations.")
    return Devices(name, len(gpus), policy, threads, _fingerprint(name, len(gpus), threads))


def _log_gpus(gpus: list) -> str:
    build = tf.sysconfig.get_build_info()
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    names = [detail.get("device_name", "GPU") for detail in details]
    logger.info(
        f"Device: {len(gpus)} GPU{'s' if len(gpus) > 1 else ''} ({', '.join(names)}), CUDA {build.get('cuda_version', '?')} "
        f"(driver: {driver_cuda_version() or '?'}), cuDNN {build.get('cudnn_version', '?')}."
    )
    return names[0]


def _log_processor(threads: int) -> str:
    if driver := driver_cuda_version():
        cuda = tf.sysconfig.get_build_info().get("cuda_version")
        reason = f"(built for CUDA {cuda}) cannot use it" if cuda else "was built without CUDA"
        logger.warning(
            f"A GPU driver for CUDA {driver} is there, but TensorFlow {reason}; install tensorflow[and-cuda]."
        )
    onednn = "off" if os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0" else "on"
    name = processor_name()
    logger.info(f"Device: {name}, {threads} thread{'s' if threads > 1 else ''}, oneDNN {onednn}; no GPU.")
    return name


def _choose_precision(precision: str, gpus: list) -> tuple[str, str]:
    """A Keras dtype policy, and the reason."""
    if precision != "auto":
        is_slow = precision != "float32" and not gpus
        return precision, "--precision; without a GPU it is slower than float32" if is_slow else "--precision"
    if not gpus:
        return "float32", "16-bit arithmetic is slower on most processors"
    capabilities = [tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus]
    if min(capabilities) >= TENSOR_CORES:
        return "mixed_float16", "the GPU has tensor cores; weights and loss stay float32"
    return "float32", "the GPU has no tensor cores"


def driver_cuda_version() -> str:
    """Returns the newest CUDA version that the installed NVIDIA driver supports, as "12.8"; "" if unknown."""
    try:
        with nvml():
            number = pynvml.nvmlSystemGetCudaDriverVersion_v2()
    except pynvml.NVMLError:  # no driver, an old one, or a failure
        return ""
    return f"{number // 1000}.{number % 1000 // 10}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    packages = ("tensorflow", "keras", "numpy", "pandas", "scikit-learn", "pillow")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def git_commit() -> str:
    """Returns the commit of the checkout that this package runs from, with "+changes" if files differ, or ""."""

    def git(*arguments: str) -> str:
        options: dict[str, Any] = dict(cwd=Path(__file__).parent, stderr=subprocess.PIPE, text=True, timeout=10)
        return subprocess.check_output(["git", *arguments], **options).strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


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
        "keras_settings": " ".join(map(str, SETTINGS.values())),
    }
