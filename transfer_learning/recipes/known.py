"""Recipes: for each known dataset the config that is good for it, and a rule for everybody's own images.

A recipe is a function that returns a RunConfig; flags are differences from it. Its docstring holds the command, the
facts of the system that it follows, and the result with hardware and n.
"""

import dataclasses

from transfer_learning.config import Phase, RunConfig


def pharma() -> RunConfig:
    """``run --dataset pharma``: ten pharmaceutical products, 10,000 images, ResNet50.

    80 / 20 train / test with validation out of train; head 512 and 256 wide with dropout 0.3; head first, then the
    upper layers at a low rate; batch 64. Its author reports: frozen phase train 84.42 %, val 86.62 %; after
    fine-tuning test 89.90 %, macro F1 0.90. Not measured here: neither the images nor the weights can be fetched.
    """
    return RunConfig(
        dataset="pharma",
        backbone="resnet50",
        head=(512, 256),
        dropout=0.3,
        batch_size=64,
        test_fraction=0.2,
        val_fraction=0.15,
        frozen=Phase(epochs=10, learning_rate=1e-3, patience=3),
        fine_tune=Phase(epochs=10, learning_rate=1e-5, unfreeze="conv5", augmentation="light", patience=3),
    )


def drawn_pills() -> RunConfig:
    """``run --dataset drawn_pills``: the offline stand-in for pharma, with weights that come as a package.

    Measured on two cores without a GPU: test 89.0 %, 92.3 % and 91.1 % for seeds 0, 1, 2 (n = 246).
    """
    return RunConfig(
        dataset="drawn_pills",
        backbone="efficientnet_lite0",
        image_size=160,
        head=(256,),
        dropout=0.3,
        batch_size=32,
        test_fraction=0.2,
        val_fraction=0.15,
        frozen=Phase(epochs=15, learning_rate=1e-3, patience=4, augmentation="strong", copies=4),
        fine_tune=Phase(
            epochs=4,
            learning_rate=3e-4,
            optimizer="adamw",
            weight_decay=1e-4,
            schedule="cosine",
            warmup_epochs=0.3,
            unfreeze="stage5",
            augmentation="light",
        ),
    )


def digits() -> RunConfig:
    """``run --dataset digits``: 1,797 real handwritten digits of 8 x 8 pixels, seen at 96.

    Measured on two cores without a GPU: test 99.6 % and 98.9 % for seeds 0 and 1 (n = 279).
    """
    return RunConfig(
        dataset="digits",
        backbone="efficientnet_lite0",
        image_size=96,
        input_size=8,
        flip=False,
        frozen=Phase(epochs=3, learning_rate=3e-4),
        fine_tune=Phase(
            epochs=8,
            learning_rate=5e-4,
            optimizer="adamw",
            weight_decay=1e-4,
            schedule="cosine",
            warmup_epochs=0.5,
            unfreeze="all",
            augmentation="light",
        ),
    )


def fashion_mnist() -> RunConfig:
    """``run --dataset fashion_mnist``: 70,000 grey images of clothes, 28 x 28 pixels, official test of 10,000."""
    return RunConfig(
        dataset="fashion_mnist",
        backbone="efficientnet_lite0",
        image_size=64,
        input_size=28,
        batch_size=128,
        val_fraction=0.1,
        frozen=Phase(epochs=4, learning_rate=3e-4, patience=2),
        fine_tune=Phase(
            epochs=5,
            learning_rate=1e-3,
            optimizer="adamw",
            weight_decay=1e-4,
            schedule="cosine",
            warmup_epochs=0.2,
            unfreeze="all",
            augmentation="light",
        ),
    )


def imagenet() -> RunConfig:
    """``run --dataset imagenet``: ImageNet-1K, 1,281,167 training images of 1,000 classes, ResNet50.

    Evaluated on the 50,000 official validation images, top-1 and top-5; the best epoch is chosen on 1 % of the training
    images, so that the official ones are used once. All layers train from ImageNet weights for 30 epochs with batches of
    512 images (4 accumulation steps of 128). One cycle up to 0.002 over 30 % of the epochs, div factor 25, final div
    factor 1e4, cosine; mixed_float16; random resized crop and flip. Images are cached as the center square at 256 pixels,
    from which the crops of 224 pixels are taken. Decoded they would take 252 GB, so they are cached as JPEGs (about 60 GB)
    and decoded in every epoch by all processors, two batches ahead.

    The author's optimizer is unknown; we use SGD, because Adam at this rate would destroy the pretrained weights. The head
    is new. The author reports about 14 GB of GPU memory. Accuracy, images/s and GPU memory were not measured: the images
    need an account, the weights a download, and there was no GPU. Without a GPU, add ``--precision float32``: on two cores
    a train step in mixed_float16 took four to ten times as long.

    Measured on made-up images, two cores beside other work: 310,000 files of 1,000 classes are listed, hashed, looked up
    and split in 69 s with 490 MB of memory. A run on a dataset of 100 times --decoded-gb, which opens every image again in
    every epoch, peaks at 1,145 MB, and one at the limit at 1,139 MB (``python -m benchmarks memory``, n = 3).
    """
    return RunConfig(
        dataset="imagenet",
        backbone="resnet50v1_5",
        image_size=224,
        input_size=256,
        resize="crop",
        batch_size=512,
        gradient_accumulation_steps=4,
        val_fraction=0.01,
        precision="mixed_float16",
        frozen=Phase(epochs=0),
        fine_tune=Phase(
            epochs=30,
            learning_rate=0.002,
            optimizer="sgd",
            momentum=0.9,
            schedule="one_cycle",
            warmup_epochs=9,
            div_factor=25,
            final_div_factor=1e4,
            unfreeze="all",
            augmentation="resized_crop",
        ),
    )


def cifar10() -> RunConfig:
    """``run --dataset cifar10``: 60,000 photos of 32 x 32 pixels in 10 classes, official test of 10,000, ResNet18.

    Kept at 32 pixels and enlarged to 224 inside the model, normalised with ImageNet's mean and deviation; ImageNet
    weights, everything frozen but one linear layer, 3 epochs. The split is the official one, a tenth of its training
    images for validation. The layer starts from its ridge solution, which the original does not know of.

    Its author reports, as an example: test 88.7 % after 3 epochs of about 45 s each, on an RTX 2050. Epochs compare with
    that only together with what is frozen, which is computed once, ahead of the first; the summary tells the two apart.
    Accuracy is not measured here: neither the images nor the weights can be fetched without the open internet. On 60,000
    made images in the real layout, reading, decoding and dividing took 55 s and 0.43 GB, on two cores busy with others.
    """
    return RunConfig(
        dataset="cifar10",
        backbone="resnet18",
        image_size=224,
        input_size=32,
        batch_size=64,
        val_fraction=0.1,
        frozen=Phase(epochs=3, learning_rate=3e-4),
    )


def stop_signs() -> RunConfig:
    """``run --dataset stop_signs``: photos of a CV Studio project, with and without a stop sign, ResNet18.

    ImageNet weights, one linear layer for the labels (2 in the original), 224 x 224 pixels; 90 / 10 train / validation and
    no test; only the head is trained, from random weights, by SGD with momentum 0.9, 32 images an update, 10 epochs.

    The rate is triangular2 between 1e-6 and 1e-2. One triangle takes all 10 epochs: the notebook of the course that CV
    Studio belongs to steps PyTorch's CyclicLR (step_size_up 5) once an epoch. Here the rate moves with every update.

    Mirrored and turned by up to 5 degrees, as CV Studio's own transform does. Each image has 10 views, as many as there are
    epochs, and sees each of them once: so no two epochs are alike, what is frozen sees each view once, and another rate or
    optimizer costs seconds. One of the 10 is the plain image.

    Its author reports: validation 100 % in several epochs, about 4 min an epoch. Not measured here: each user labels photos
    of his own, the original's were never published, and the weights cannot be fetched; it was run on 118 drawn signs.
    """
    return RunConfig(
        dataset="stop_signs",
        backbone="resnet18",
        image_size=224,
        head_init="random",
        batch_size=32,
        val_fraction=0.1,
        test_fraction=0.0,
        frozen=Phase(
            epochs=10,
            learning_rate=1e-2,
            optimizer="sgd",
            momentum=0.9,
            schedule="triangular2",
            min_learning_rate=1e-6,
            cycle_epochs=10.0,
            augmentation="rotation",
            copies=10,
        ),
    )


def cv_studio() -> RunConfig:
    """``run --dataset cv_studio:FOLDER`` or ``cv_studio:s3://BUCKET/PREFIX``: any project of CV Studio, as stop_signs."""
    return dataclasses.replace(stop_signs(), dataset="cv_studio:data/stop_signs")


def cv_studio_boxes() -> RunConfig:
    """``run --dataset cv_studio_boxes:FOLDER``: each box of a project, cut out, as stop_signs."""
    return dataclasses.replace(stop_signs(), dataset="cv_studio_boxes:data/stop_signs")


# By the name of the dataset, or by the scheme of those that lie at a place of the user's.
RECIPES = {
    "pharma": pharma,
    "cifar10": cifar10,
    "stop_signs": stop_signs,
    "imagenet": imagenet,
    "drawn_pills": drawn_pills,
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "cv_studio": cv_studio,
    "cv_studio_boxes": cv_studio_boxes,
}


def auto_recipe(
    dataset: str, num_images: int, num_classes: int, smallest_class: int, largest_class: int, short_side: int
) -> tuple[RunConfig, dict[str, str]]:
    """Chooses a config for a folder or table without a recipe, and says for its main fields why each was chosen.

    Args:
        num_images: images that may be trained on.
        smallest_class: images of the rarest class; `largest_class`: of the most frequent one.
        short_side: median of the shorter sides, in pixels; 0 where unknown.

    Returns:
        The config, and a sentence by the name of the field that it is about.
    """
    reasons = {
        "backbone": "Backbone efficientnet_lite0: its ImageNet weights are installed already, and it is quick without "
        "a GPU."
    }
    if short_side and short_side < 64:
        image_size, input_size = 96, short_side
        reasons["image_size"] = (
            f"Images are kept at {short_side} pixels, their own size, and enlarged to 96 inside the model: "
            "the backbone finds little in fewer."
        )
    else:
        image_size, input_size = (160, 0) if short_side and short_side < 192 else (224, 0)
        sides = f"about {short_side} pixels" if short_side else "unknown"
        reasons["image_size"] = f"Image size {image_size}: the images' shorter sides are {sides}."
    batch_size = 32 if num_images >= 640 else 16
    reasons["batch_size"] = (
        f"Batch size {batch_size}: {num_images:,} images to train and validate with make at most "
        f"{-(-num_images // batch_size)} updates an epoch."
    )
    balanced = smallest_class * 3 < largest_class
    if balanced:
        reasons["class_weights"] = (
            f"Class weights balanced: the classes hold {smallest_class} to {largest_class} images, "
            "and the rare ones would be drowned."
        )
    # The head starts from its ridge solution, which a few hundred updates improve a little.
    frozen_epochs = _between(3, round(3000 / max(1, num_images) ** 0.8), 15)
    fine_tune_epochs = _between(3, round(12000 / max(1, num_images)), 12)
    opened = "all" if num_images >= 500 else "stage5"
    augmentation = "light" if num_images / num_classes >= 20 else "strong"
    reasons |= {
        "frozen.epochs": f"Frozen phase of at most {frozen_epochs} epochs, ended early when validation stalls: a linear "
        "head starts from its closed-form solution, and little is left to learn.",
        "fine_tune.epochs": f"Fine-tuning for {fine_tune_epochs} epochs, at a low rate that falls to zero.",
        "fine_tune.unfreeze": f"Fine-tuning opens {opened}: "
        + (
            "there are images enough to move every layer."
            if opened == "all"
            else "few images would spoil lower layers."
        ),
        "fine_tune.augmentation": f"Augmentation {augmentation} while fine-tuning: about {num_images // num_classes} "
        "images a class; pass --no-flip if mirroring changes the meaning, as with text.",
    }
    config = RunConfig(
        dataset=dataset,
        backbone="efficientnet_lite0",
        image_size=image_size,
        input_size=input_size,
        dropout=0.2,
        batch_size=batch_size,
        class_weights="balanced" if balanced else "none",
        frozen=Phase(epochs=frozen_epochs, learning_rate=3e-4, patience=3),
        fine_tune=Phase(
            epochs=fine_tune_epochs,
            learning_rate=5e-4,
            optimizer="adamw",
            weight_decay=1e-4,
            schedule="cosine",
            warmup_epochs=0.5,
            unfreeze=opened,
            augmentation=augmentation,
        ),
    )
    return config, reasons


def _between(least: int, value: int, most: int) -> int:
    return max(least, min(value, most))
