"""What the frozen backbone makes of every image as it is: what the frozen phase keeps of its images, for all of them."""

import numpy as np

from transfer_learning.config import RunConfig
from transfer_learning.datasets.prepared import PreparedDataset
from transfer_learning.errors import UserError
from transfer_learning.machine.devices import set_up_devices
from transfer_learning.models.classifier import build_classifier, unfreeze_layers
from transfer_learning.models.features import FrozenPart, NamedImages, cached_activations
from transfer_learning.models.freezing import find_cut
from transfer_learning.storage.cache import Cache
from transfer_learning.training.phase_inputs import activations_of_cut


def plain_features(config: RunConfig, data: PreparedDataset) -> tuple[np.ndarray, np.ndarray, str]:
    """Returns the features of all readable images; a run with this config finds them kept.

    Returns:
        Features, float32 (k, width); the positions of their images in the manifest, int64 (k,); what they are, in words.

    Raises:
        UserError: the backbone has random weights, or none below the head; or there is no space for the features.
    """
    devices = set_up_devices(config.precision, config.seed)
    classifier = build_classifier(config, data.class_names)
    unfreeze_layers(classifier, config.backbone, "none")
    cut = find_cut(classifier)
    if cut is None:
        raise UserError(
            f"--features needs a pretrained backbone, and {config.backbone} with --weights {config.weights} is none; leave "
            "the flag out, or name another backbone."
        )
    entry = activations_of_cut(cut, config, data.images.pixel_key, devices.fingerprint)
    positions = np.flatnonzero(data.images.rows >= 0)
    images = NamedImages(
        data.images.pixels, data.images.rows[positions], data.manifest["sha256"].iloc[positions].tolist()
    )
    kept, rows = cached_activations(FrozenPart(entry, lambda batch: cut.below_fn(batch)), images, Cache.of(config))
    return kept[rows], positions, f"{entry.describe()} of all readable images"
