"""Images of no class, to test the rejection of unknown images."""

import numpy as np

NUM_IMAGES = 96  # of each of the two kinds
SEED = 0


def uniform_noise(num_images: int, size: int) -> np.ndarray:
    """Returns independent uniform values, uint8 (num_images, size, size, 3)."""
    return np.random.default_rng(SEED).integers(0, 256, (num_images, size, size, 3), np.uint8)


def scrambled(images: np.ndarray) -> np.ndarray:
    """Shuffles the pixels of each image, so that only the colours remain; uint8 (n, size, size, 3) as the result."""
    pixels = images.reshape(len(images), -1, 3)
    order = np.random.default_rng(SEED).random(pixels.shape[:2]).argsort(axis=1)
    return np.take_along_axis(pixels, order[:, :, None], axis=1).reshape(images.shape)
