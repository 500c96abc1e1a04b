"""The table of export formats; a new one is a module with `write`, `load` and SNIPPET, and a row."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transfer_learning.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from transfer_learning.exports.metadata import Loaded, Metadata
    from transfer_learning.exports.network import Network

SNIPPET_RESIZES = {
    "squash": "image.resize(({0}, {0}), Image.Resampling.BICUBIC)",
    "crop": "ImageOps.fit(image, ({0}, {0}), Image.Resampling.BICUBIC)",
    "pad": "ImageOps.pad(image, ({0}, {0}), Image.Resampling.BICUBIC)",
}


@dataclass(frozen=True)
class Format:
    """A row of the table."""

    name: str
    path: str  # of the file or folder, inside the folder of an export
    runtime: str  # the package that loads it, as it is imported
    description: str
    module: str = ""  # in this package; "": that of its name
    writer: str = "write"
    is_float: bool = True  # else its gate is the accuracy
    marker: str = ""  # a file that every folder of this format has

    def write(self, network: "Network", path: Path) -> None:
        """Writes the file, or the folder, at `path`."""
        getattr(self._module, self.writer)(network, path)

    def load(self, path: Path, threads: int) -> "Loaded":
        """Opens it with its own runtime; ValueError if it is damaged or has no metadata of this program."""
        return self._module.load(path, threads)

    @property
    def install(self) -> str:
        """The packages that its snippet imports."""
        runtime = "tensorflow keras" if self.runtime == "keras" else self.runtime.replace("_", "-")
        return runtime if self.runtime == "tensorflow" else f"{runtime} numpy pillow"

    def snippet(self, metadata: "Metadata") -> str:
        """A program for the model card that classifies photo.jpg with a file of this format, and prints the class and its
        probability; the gate runs exactly this.
        """
        resize = SNIPPET_RESIZES[metadata.resize].format(metadata.image_size)
        return self._module.SNIPPET.lstrip().format(file=self.path, resize=resize)

    @property
    def _module(self):
        return importlib.import_module(f"{__package__}.{self.module or self.name}")  # imports its runtime


_ROWS = (
    Format(
        "saved_model", "saved_model", "tensorflow", "TensorFlow Serving, KServe, TensorFlow", marker="saved_model.pb"
    ),
    Format("onnx", "model.onnx", "onnxruntime", "ONNX Runtime on any platform, browsers, Triton"),
    Format("litert", "model.tflite", "ai_edge_litert", "Android, iOS, small machines"),
    Format(
        "litert-int8",
        "model_int8.tflite",
        "ai_edge_litert",
        "the same with 8-bit integers",
        module="litert",
        writer="write_int8",
        is_float=False,
    ),
    Format("openvino", "openvino", "openvino", "Intel processors, OpenVINO Model Server", marker="model.xml"),
    Format("keras", "model.keras", "keras", "Keras on TensorFlow, JAX or PyTorch", module="keras_file"),
)
FORMATS = {row.name: row for row in _ROWS}


def format_of(path: Path) -> Format:
    """Returns the format of a file or folder of `export`, by its suffix or what is in it; UserError if it is none."""
    for row in FORMATS.values():
        suffix = Path(row.path).suffix
        has_marker = row.marker and (path.name == row.marker or (path / row.marker).exists())
        if has_marker or (suffix and path.suffix == suffix):
            return row
    raise UserError(
        f"{path} is not an exported file: expected {', '.join(row.path for row in FORMATS.values())}; make one with "
        "transfer-learning export RUN_DIR."
    )


def chosen_formats(names: str) -> list[Format]:
    """Returns the rows that ``--format NAME,NAME`` or ``all`` names, in the order of the table.

    Raises:
        UserError: a name is unknown.
    """
    chosen = list(FORMATS) if names == "all" else [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in FORMATS:
            raise UserError(f"--format {names}: there is no format {name!r}.{did_you_mean(name, [*FORMATS, 'all'])}")
    return [row for row in FORMATS.values() if row.name in chosen]
