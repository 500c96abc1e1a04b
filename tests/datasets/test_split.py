"""Drawn splits of classes of few images: training first, then test; one more image moves at most one other."""

import hashlib

import pytest

from transfer_learning.datasets.split import SMALL, draw_splits


def digests(name, count):
    return [hashlib.sha256(f"{name} {number}".encode()).hexdigest() for number in range(count)]


def drawn(contents, test=0.15, val=0.15, rank_small=True, groups=None):
    """The split of each content, all of one class."""
    splits = draw_splits(groups or [""] * len(contents), contents, ["a"] * len(contents), test, val, rank_small)
    return dict(zip(contents, splits, strict=True))


CLASSES = [digests(name, 14) for name in range(150)]


@pytest.mark.parametrize(("test", "val"), [(0.15, 0.15), (0.4, 0.4), (0.0, 0.3), (0.9, 0.0)])
def test_one_more_image_moves_at_most_one_other_of_its_class(test, val):
    for contents in CLASSES:
        before = {}
        for count in range(1, len(contents) + 1):
            after = drawn(contents[:count], test, val)
            assert sum(after[content] != split for content, split in before.items()) <= 1
            before = after


def test_training_comes_first_and_then_the_test():
    for contents in CLASSES:
        assert set(drawn(contents[:1]).values()) == {"train"}
        assert set(drawn(contents[:2]).values()) == {"train", "test"}
        for count in range(3, SMALL):
            assert {"train", "test"} <= set(drawn(contents[:count]).values())


def test_classes_that_are_not_small_are_drawn_by_hash_alone():
    for contents in CLASSES:
        for count in range(SMALL, len(contents) + 1):
            assert drawn(contents[:count]) == drawn(contents[:count], rank_small=False)


def test_the_order_and_other_classes_do_not_matter():
    contents = [content for of_class in CLASSES[:20] for content in of_class[:4]]
    labels = [str(number) for number in range(20) for _ in range(4)]
    together = draw_splits([""] * 80, contents[::-1], labels[::-1], 0.15, 0.15)[::-1]
    assert together == [split for of_class in CLASSES[:20] for split in drawn(of_class[:4]).values()]


def test_a_split_with_the_fraction_0_gets_no_image():
    for contents in CLASSES[:20]:
        assert "test" not in drawn(contents[:4], test=0).values()
        assert set(drawn(contents[:4], test=0, val=0).values()) == {"train"}


def test_copies_and_groups_stay_together_and_a_class_of_one_of_them_trains():
    [content] = digests("copy", 1)
    assert draw_splits([""] * 3, [content] * 3, ["a"] * 3, 0.9, 0.9) == ["train"] * 3
    assert set(drawn(digests("x", 5), 0.9, 0.9, groups=["patient"] * 5).values()) == {"train"}
    two = drawn(digests("x", 4), groups=["one", "one", "two", "two"])
    assert list(two.values()) in (["train", "train", "test", "test"], ["test", "test", "train", "train"])
