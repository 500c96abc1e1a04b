"""The recipes of known datasets; a new one is a function and a row in `RECIPES`.

A recipe is a function that returns a RunConfig; flags are differences from it. Its docstring has the command, the facts of
the published system that it follows, and the result with hardware and n.
"""

from dataclasses import replace

from transfer_learning.config import Phase, RunConfig

# What most fine-tune phases share.
FINE_TUNING = Phase(optimizer="adamw", weight_decay=1e-4, schedule="cosine", unfreeze="all", augmentation="light")


def pharma() -> RunConfig:
    """``run --dataset pharma``: ten pharmaceutical products, 10,000 images, ResNet50.

    80 / 20 train / test, validation images from train; head of 512 and 256 units with dropout 0.3; first the head, then
    conv5 at a low learning rate; batch 64. Its author reports: frozen phase train 84.42 %, val 86.62 %; after fine-tuning
    test 89.90 %, macro F1 0.90. Not measured here: neither images nor weights can be downloaded; see `drawn_pills`.
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
    """``run --dataset drawn_pills``: the offline substitute for pharma, with weights from a Python package.

    The settings are those of the automatic recipe, at 160 pixels, which take half the time of 224.
    """
    return RunConfig(
        dataset="drawn_pills",
        backbone="efficientnet_lite0",
        image_size=160,
        head_features="all",
        head_init="lda",
        refit=True,
        dropout=0.2,
        batch_size=32,
        test_fraction=0.2,
        val_fraction=0.15,
        frozen=Phase(epochs=5, learning_rate=3e-4, patience=3),
        fine_tune=replace(FINE_TUNING, epochs=3, learning_rate=5e-4, warmup_epochs=0.5),
    )


def digits() -> RunConfig:
    """``run --dataset digits``: 1,797 real handwritten digits of 8 x 8 pixels, enlarged to 96.

    Measured on two cores without a GPU: test 99.6 % and 98.9 % for seeds 0 and 1 (n = 279).
    """
    return RunConfig(
        dataset="digits",
        backbone="efficientnet_lite0",
        image_size=96,
        input_size=8,
        flip=False,
        frozen=Phase(epochs=3, learning_rate=3e-4),
        fine_tune=replace(FINE_TUNING, epochs=8, learning_rate=5e-4, warmup_epochs=0.5),
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
        fine_tune=replace(FINE_TUNING, epochs=5, learning_rate=1e-3, warmup_epochs=0.2),
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

    Cached at 32 pixels and enlarged to 224 inside the model, normalized with ImageNet's mean and standard deviation;
    ImageNet weights, everything frozen but one linear layer, 3 epochs. Official split, with a tenth of the training images
    for validation. Unlike in the original, ridge regression initializes the layer.

    Its author reports, as an example: test 88.7 % after 3 epochs of about 45 s each, on an RTX 2050. Our epochs do not
    contain the frozen layers, which are computed once before the first; the summary gives both times. Accuracy is not
    measured here: neither images nor weights can be downloaded. On 60,000 made-up images in the real layout, reading,
    decoding and splitting took 55 s and 0.43 GB, on two cores beside other work.
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
    no test; only the head is trained, from random weights, by SGD with momentum 0.9, batch 32, 10 epochs.

    The learning rate follows triangular2 between 1e-6 and 1e-2. One triangle takes all 10 epochs: the notebook of the
    course that CV Studio belongs to steps PyTorch's CyclicLR (step_size_up 5) once per epoch; here it moves every step.

    Flips and rotations of up to 5 degrees, as in CV Studio's own transform. Each image has 10 copies, one per epoch (one of
    them plain): every epoch is different, the frozen layers compute each copy once, and another learning rate or optimizer
    costs seconds.

    Its author reports: validation 100 % in several epochs, about 4 min per epoch. Not measured here: the original's photos
    were never published, and the weights cannot be downloaded; it was run on 118 drawn signs.
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
    """``run --dataset cv_studio:FOLDER`` or ``cv_studio:s3://BUCKET/PREFIX``: any project of CV Studio, like stop_signs."""
    return replace(stop_signs(), dataset="cv_studio:data/stop_signs")


def cv_studio_boxes() -> RunConfig:
    """``run --dataset cv_studio_boxes:FOLDER``: each bounding box of a project as an image, like stop_signs."""
    return replace(stop_signs(), dataset="cv_studio_boxes:data/stop_signs")


# By the name of the dataset, or by the scheme of SCHEME:PLACE.
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
