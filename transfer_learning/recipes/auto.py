"""The automatic recipe of a dataset without one of its own: a config and a short reason for each choice."""

import math
from dataclasses import replace

from transfer_learning.cli.formatting import counted
from transfer_learning.config import Phase, RunConfig
from transfer_learning.recipes.known import FINE_TUNING


def auto_recipe(
    dataset: str, num_images: int, num_classes: int, smallest_class: int, largest_class: int, short_side: int
) -> tuple[RunConfig, dict[str, str]]:
    """Chooses a config from the size of a dataset.

    Args:
        num_images: images for training and validation.
        smallest_class, largest_class: images of the rarest and of the most frequent class.
        short_side: median of the shorter sides in pixels; 0: unknown.

    Returns:
        The config, and the reasons by the name of their field.
    """
    reasons = {"backbone": "Backbone efficientnet_lite0: its ImageNet weights are installed, and it needs no GPU."}
    if short_side and short_side < 64:
        image_size, input_size = 96, short_side
        reasons["image_size"] = (
            f"Image size 96, cached at {short_side}, the images' own size: the backbone needs larger inputs."
        )
    else:
        image_size, input_size = (160, 0) if short_side and short_side < 192 else (224, 0)
        sides = f"about {short_side} pixels" if short_side else "unknown"
        reasons["image_size"] = f"Image size {image_size}: the images' shorter sides are {sides}."
    batch_size = 32 if num_images >= 640 else 16
    reasons["batch_size"] = (
        f"Batch size {batch_size}: {num_images:,} images give at most "
        f"{counted(math.ceil(num_images / batch_size), 'train step')} per epoch."
    )
    is_imbalanced = smallest_class * 3 < largest_class
    if is_imbalanced:
        reasons["class_weights"] = (
            f"Class weights balanced: the classes have {smallest_class} to {largest_class} images."
        )
    # Ridge regression leaves little to learn in the frozen phase: a few hundred steps improve the head a little.
    frozen_epochs = _clip(round(3000 / max(1, num_images) ** 0.8), 3, 15)
    fine_tune_epochs = fine_tune_epochs_for(num_images, image_size)
    per_class = num_images // num_classes
    augmentation = "light" if num_images / num_classes >= 20 else "strong"
    reasons |= {
        "frozen.epochs": f"Frozen phase: at most {frozen_epochs} epochs with early stopping; ridge regression initializes "
        "the head.",
        "fine_tune.epochs": f"Fine-tuning: {fine_tune_epochs} epochs, a low learning rate that falls to 0.",
        "fine_tune.augmentation": f"Augmentation {augmentation}: about {per_class:,} images per class (--no-flip if "
        "mirroring changes the meaning, as with text).",
    }
    config = RunConfig(
        dataset=dataset,
        backbone="efficientnet_lite0",
        image_size=image_size,
        input_size=input_size,
        dropout=0.2,
        batch_size=batch_size,
        class_weights="balanced" if is_imbalanced else "none",
        frozen=Phase(epochs=frozen_epochs, learning_rate=3e-4, patience=3),
        fine_tune=replace(
            FINE_TUNING,
            epochs=fine_tune_epochs,
            learning_rate=5e-4,
            warmup_epochs=0.5,
            unfreeze="all",
            augmentation=augmentation,
        ),
    )
    return config, reasons


def fine_tune_epochs_for(num_images: int, image_size: int) -> int:
    """About as much computing for every dataset of 100 to 1,200 images: that of 2,450 images of 224 pixels.

    Smaller ones have 24 epochs, larger ones two, and from 10,000 images on three.
    """
    fewest = 2 if num_images < 10_000 else 3
    return _clip(round(2450 * (224 / image_size) ** 2 / max(1, num_images)), fewest, 24)


def _clip(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))
