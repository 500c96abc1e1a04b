"""The backbone `tiny` of the old runs beside this file: some thousand weights, so that a run fits into a repository.

It is no row of the table. A test puts it there for as long as it lasts:

    monkeypatch.setitem(BACKBONES, "tiny", tiny_backbone.row())

and a process of its own is one verb with the row in the table, started in a copy of this folder:

    python tiny_backbone.py predict runs/finished_a photos/circle/000.png
"""

import dataclasses
import importlib
import os
import subprocess
import sys

SIZE = 24  # pixels a side of the photos, and --image-size of the runs
NUM_FILTERS = (4, 8, 8)


def row():
    """The row of the table: that of small_cnn with another name and builder."""
    from transfer_learning.models.backbones import BACKBONES

    small_cnn = BACKBONES["small_cnn"]
    name_field = "title" if hasattr(small_cnn, "title") else "description"  # in version 0.1, too
    return dataclasses.replace(
        small_cnn,
        name="tiny",
        **{name_field: "Three convolutions with max-pooling, 1,020 weights"},
        builder=f"{__name__}:tiny",
        preprocessing="minus_one_to_one",
        stages=("block1", "block2", "block3"),
        minimum_size=8,
    )


def tiny(input_tensor):
    """Three blocks of convolution, batch normalisation, ReLU and 2x2 max-pooling as a `keras.Model`."""
    from keras import Model, layers
    from keras.utils import get_source_inputs

    x = input_tensor
    for block, num_filters in enumerate(NUM_FILTERS, start=1):
        x = layers.Conv2D(
            num_filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"block{block}_conv"
        )(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"block{block}_bn")(x)
        x = layers.ReLU(name=f"block{block}_relu")(x)
        x = layers.MaxPooling2D(2, padding="same", name=f"block{block}_pool")(x)
    return Model(get_source_inputs(input_tensor), x, name="tiny")


def run_child(run_dir, stop):
    """What `compare` starts for each run, with the row in its table."""
    with stop.deferred():
        subprocess.run([sys.executable, __file__, "run", "--resume", str(run_dir.path)], check=True)


def main(verb, *arguments):
    sys.path.insert(0, os.getcwd())
    from transfer_learning.command_line import run_main

    from transfer_learning.models.backbones import BACKBONES

    BACKBONES["tiny"] = row()
    module = importlib.import_module(f"transfer_learning.{verb}")
    if verb == "compare":
        module.run_child = run_child
    return run_main(module.main, list(arguments))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
