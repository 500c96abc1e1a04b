"""Names of splits, as folders and tables have them: train, Validation, test_set, imgs-val, train2017, "Training Data"."""

import re

WORDS = {
    word: split
    for split, words in {
        "train": "train training trn trainval",
        "val": "val valid validation validate vld dev development eval evaluation",
        "test": "test testing tst holdout",
    }.items()
    for word in words.split()
}
# Words that change nothing beside one of the above.
FILLERS = frozenset(
    "data dataset datasets ds example examples file files folder folders image images img imgs photo photos pic pics "
    "picture pictures sample samples set sets split splits subset".split()
)
# Folders beside splits that hold no labelled images.
UNLABELLED = frozenset(
    "pred predict prediction predictions submission unlabeled unlabelled unsupervised "
    "annotation annotations groundtruth gt labels mask masks".split()
)
LETTERS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+")  # runs of letters; each capital letter begins a word


def split_of(name: str) -> str:
    """The split that a name means, "train", "val" or "test", or "" if it means something else or more."""
    split, rest = split_and_rest(name)
    return "" if rest else split


def split_and_rest(name: str) -> tuple[str, tuple[str, ...]]:
    """The split word in a name and its other words without `FILLERS`: ``seg_train`` -> ``("train", ("seg",))``.

    The split is "" if there is no such word, or if several words contradict each other.
    """
    words = [part for word in LETTERS.findall(name) for part in _parts(word.lower())]
    splits = {WORDS[word] for word in words if word in WORDS}
    rest = tuple(word for word in words if word not in WORDS and word not in FILLERS)
    if splits == {"train", "val"}:  # train_val: what is not for the test
        splits = {"train"}
    return (splits.pop(), rest) if len(splits) == 1 else ("", rest)


def is_unlabelled(name: str) -> bool:
    """Whether a folder of this name, beside split folders, holds images to predict, or masks: ``seg_pred``."""
    words = [word.lower() for word in LETTERS.findall(name)]
    return not UNLABELLED.isdisjoint(words) or words == ["ground", "truth"]


def _parts(word: str) -> tuple[str, ...]:
    """``trainset`` -> ``("train", "set")``; any other word alone."""
    if word not in WORDS and word not in FILLERS:
        for split in WORDS:
            for before, after in ((split, word.removeprefix(split)), (word.removesuffix(split), split)):
                if before + after == word and (before in FILLERS or after in FILLERS):
                    return before, after
    return (word,)
