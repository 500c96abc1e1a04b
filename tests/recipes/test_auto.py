"""The automatic recipe: a valid config for any dataset, and a reason for each choice."""

import pytest

from transfer_learning.config import flat
from transfer_learning.recipes.auto import auto_recipe, fine_tune_epochs_for

SURVEYS = {
    "tiny": dict(num_images=6, num_classes=2, smallest_class=3, largest_class=3, short_side=500),
    "unknown size": dict(num_images=60, num_classes=2, smallest_class=30, largest_class=30, short_side=0),
    "icons": dict(num_images=3000, num_classes=10, smallest_class=300, largest_class=300, short_side=28),
    "thumbnails": dict(num_images=3000, num_classes=10, smallest_class=300, largest_class=300, short_side=128),
    "uneven": dict(num_images=1000, num_classes=2, smallest_class=50, largest_class=950, short_side=300),
    "large": dict(num_images=1_281_167, num_classes=1000, smallest_class=732, largest_class=1300, short_side=375),
}


@pytest.mark.parametrize("counts", SURVEYS.values(), ids=SURVEYS)
def test_any_dataset_gets_a_valid_config_with_reasons(counts):
    config, reasons = auto_recipe("photos", **counts)
    config.check()
    assert config.dataset == "photos"
    assert set(reasons) <= set(flat(config)), "each reason bears the name of the field that it is about"
    assert all(reason.endswith(".") and reason == reason.strip() for reason in reasons.values())
    assert "0 pixels" not in reasons["image_size"].split()[-2:], "an unknown size is called unknown"
    assert (config.class_weights == "balanced") == ("class_weights" in reasons) == (counts["num_images"] == 1000)


@pytest.mark.parametrize(
    ("num_images", "image_size", "epochs"),
    [(0, 224, 24), (80, 224, 24), (200, 224, 12), (400, 224, 6), (600, 224, 4), (600, 160, 8), (1000, 224, 2)]
    + [(9_999, 224, 2), (10_000, 224, 3), (1_281_167, 96, 3)],
)
def test_fewer_images_are_trained_for_more_epochs_with_bounds(num_images, image_size, epochs):
    assert fine_tune_epochs_for(num_images, image_size) == epochs
