"""Small images of a few classes, drawn in a moment."""

import numpy as np
from PIL import Image

SIZE = 16  # side in pixels


def draw_photos(folder, classes=("circle", "cross", "stripes"), num_per_class=14, seed=0, shape=(SIZE, SIZE)):
    """A folder of class folders with small PNG files: noise with a shape of its own for each class."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(num_per_class):
            image = rng.integers(0, 120, (*shape, 3), np.uint8)
            image[number * 4 : number * 4 + 4, :, number % 3] += 100
            Image.fromarray(image).save(folder / name / f"{index:03d}.png")
    return folder
