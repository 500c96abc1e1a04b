"""ImageNet in every layout that its archives have, with the devkit's own numbers; and what is said where it is not there."""

import json
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import savemat

from tests.support.logs import log_messages
from transfer_learning.cli.parser import run_main
from transfer_learning.config import RunConfig
from transfer_learning.datasets.dataset import Dataset, Example
from transfer_learning.datasets.sources import huggingface, imagenet
from transfer_learning.datasets.sources.registry import load_dataset
from transfer_learning.errors import UserError
from transfer_learning.recipes import known
from transfer_learning.training.schedules import learning_rate

# The devkit numbers its classes in an order that is not that of the ids; rows behind the leaves are groups of classes.
SYNSETS = [
    (1, "n02119789", "kit fox, Vulpes macrotis"),
    (2, "n02100735", "English setter"),
    (3, "n01440764", "tench, Tinca tinca"),
    (4, "n00001740", "entity"),
]
WNIDS = sorted(wnid for number, wnid, _ in SYNSETS if number < 4)
NAMES = ("n01440764 tench", "n02100735 English setter", "n02119789 kit fox")
GROUND_TRUTH = [3, 1, 2, 2, 3, 1]  # of the validation images 1 to 6
LABELS = ["n01440764", "n02119789", "n02100735", "n02100735", "n01440764", "n02119789"]


def write_image(path):
    """A picture of its own for each name, the same in every run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = zlib.crc32("/".join(path.parts[-3:]).encode())
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)).save(path, "JPEG")


def lay_train(top, num_images=3, wnids=WNIDS):
    for wnid in wnids:
        for number in range(num_images):
            write_image(top / "train" / wnid / f"{wnid}_{number}.JPEG")


def lay_flat_val(top, num_images=6):
    for number in range(1, num_images + 1):
        write_image(top / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")


def lay_val_folders(top):
    for number, wnid in enumerate(LABELS, 1):
        write_image(top / "val" / wnid / f"ILSVRC2012_val_{number:08d}.JPEG")


def lay_devkit(folder):
    """As the archive of 2012 has it: a MATLAB array of structures, 1 x n, and a number a line."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = [
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    ]
    rows = np.zeros((len(SYNSETS), 1), dtype=[(name, object) for name in fields])
    for place, (number, wnid, words) in enumerate(SYNSETS):
        leaf = number < 4
        children = np.zeros((1, 0)) if leaf else np.array([[1.0, 2.0, 3.0]])
        rows[place, 0] = (float(number), wnid, words, "a gloss", float(not leaf) * 3, children, float(not leaf), 1300.0)
    savemat(folder / "meta.mat", {"synsets": rows})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in GROUND_TRUTH))


def lay_kaggle(root):
    top = root / "ILSVRC" / "Data" / "CLS-LOC"
    lay_train(top)
    lay_flat_val(top)
    write_image(top / "test" / "ILSVRC2012_test_00000001.JPEG")
    lines = [
        f"ILSVRC2012_val_{number:08d},{wnid} 1 2 30 40 \n" for number, wnid in reversed(list(enumerate(LABELS, 1)))
    ]
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(lines))
    (root / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} {words}\n" for _, wnid, words in SYNSETS[:3]))


def class_folders_without_words(root):
    lay_train(root)
    lay_val_folders(root)


def class_folders_and_devkit(root):
    class_folders_without_words(root)
    lay_devkit(root / "ILSVRC2012_devkit_t12" / "data")


def flat_val_and_devkit(place):
    def lay(root):
        lay_train(root)
        lay_flat_val(root)
        lay_devkit(root / place)

    return lay


LAYOUTS = {
    "class folders": (class_folders_without_words, tuple(WNIDS)),
    "class folders, devkit for the words": (class_folders_and_devkit, NAMES),
    "flat val, devkit unpacked beside": (flat_val_and_devkit("ILSVRC2012_devkit_t12/data"), NAMES),
    "flat val, the two files alone": (flat_val_and_devkit(""), NAMES),
    "the archive of Kaggle": (lay_kaggle, NAMES),
}


@pytest.mark.parametrize(("lay", "class_names"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_gives_the_same_set(lay, class_names, tmp_path):
    said = log_messages()
    lay(tmp_path / "imagenet")
    dataset = load_dataset("imagenet", tmp_path)
    assert dataset.name == "imagenet" and dataset.class_names == class_names
    by_split = {
        split: [(example.id, example.label.split()[0]) for example in dataset.examples if example.split == split]
        for split in ("train", "val", "test", "")
    }
    assert by_split["val"] == by_split[""] == [], "what chooses the epoch is drawn from the training images later"
    expected = [(f"train/{wnid}/{wnid}_{number}.JPEG", wnid) for wnid in WNIDS for number in range(3)]
    assert by_split["train"] == expected
    numbers = {id.split("/")[-1]: label for id, label in by_split["test"]}
    assert numbers == {f"ILSVRC2012_val_{number:08d}.JPEG": label for number, label in enumerate(LABELS, 1)}
    assert all(example.source.is_file() for example in dataset.examples)
    assert "imagenet: 3 of 1,000 classes." in said


def test_what_is_no_image_of_a_class_is_counted(tmp_path):
    root = tmp_path / "imagenet"
    class_folders_and_devkit(root)
    (root / "train" / WNIDS[0] / "notes.txt").write_text("x")
    write_image(root / "val" / "n99999999" / "ILSVRC2012_val_00000007.JPEG")
    write_image(root / "test" / "ILSVRC2012_test_00000001.JPEG")
    dataset = load_dataset("imagenet", tmp_path)
    devkit = {f"ILSVRC2012_devkit_t12/data/{name}" for name in (imagenet.GROUND_TRUTH, imagenet.SYNSETS)}
    assert dict(dataset.ignored) == dict.fromkeys(devkit, "beside train and val") | {
        "test/ILSVRC2012_test_00000001.JPEG": "beside train and val",
        f"train/{WNIDS[0]}/notes.txt": "not named like an image (.txt)",
        "val/n99999999/ILSVRC2012_val_00000007.JPEG": "its class n99999999 is not in train",
    }
    num_files = sum(path.is_file() for path in root.rglob("*"))
    assert len(dataset.examples) + len(dataset.ignored) == num_files and dataset.folder == root


def test_a_part_of_the_classes_takes_its_part_of_the_validation_list(tmp_path):
    lay_train(tmp_path / "imagenet", wnids=WNIDS[:2])
    lay_flat_val(tmp_path / "imagenet", 7)
    lay_devkit(tmp_path / "imagenet")
    dataset = load_dataset("imagenet", tmp_path)
    assert [example.label for example in dataset.examples if example.split == "test"] == [
        NAMES[0],
        NAMES[1],
        NAMES[1],
        NAMES[0],
    ]
    reasons = dict(dataset.ignored)
    assert reasons["val/ILSVRC2012_val_00000002.JPEG"] == "its class n02119789 is not in train"
    assert reasons["val/ILSVRC2012_val_00000007.JPEG"] == "in no list of labels"


def nothing_but_tars(root):
    root.mkdir()
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"):
        (root / name).write_bytes(b"")


def tars_of_classes(root):
    class_folders_without_words(root)
    (root / "train" / "n01440764.tar").write_bytes(b"")


def no_val(root):
    lay_train(root)


def no_list(root):
    lay_train(root)
    lay_flat_val(root)


def half_a_devkit(root):
    no_list(root)
    lay_devkit(root)
    (root / "meta.mat").unlink()


def list_of_another_set(root):
    no_list(root)
    lay_devkit(root)
    (root / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n999\n")


def damaged_list(root):
    no_list(root)
    lay_devkit(root)
    (root / "ILSVRC2012_validation_ground_truth.txt").write_text("one\ntwo\n")


def damaged_synsets(root):
    no_list(root)
    lay_devkit(root)
    (root / "meta.mat").write_bytes(b"<html>not found</html>" * 20)


def synsets_of_something_else(root):
    no_list(root)
    lay_devkit(root)
    savemat(root / "meta.mat", {"x": 1})


def damaged_solution(root):
    lay_kaggle(root)
    (root / "LOC_val_solution.csv").write_text("ImageId,Label\n1,2\n")


REFUSED = {
    "archives": (nothing_but_tars, ["unpack", "ILSVRC2012_img_train.tar", "tar xf $t -C ${t%.tar}"]),
    "archives of classes": (tars_of_classes, ["unpack", "n01440764.tar"]),
    "no validation images": (no_val, ["train/n01440764/*.JPEG", "--dataset drawn_pills needs no download"]),
    "no list of their classes": (no_list, ["no class folders", "ILSVRC2012_validation_ground_truth.txt and meta.mat"]),
    "half of the devkit": (half_a_devkit, ["no list of their classes"]),
    "a list of another set": (list_of_another_set, ["ground_truth.txt is damaged", "at 999"]),
    "a damaged list": (damaged_list, ["ground_truth.txt is damaged", "'one'"]),
    "damaged synsets": (damaged_synsets, ["meta.mat is not the devkit's"]),
    "synsets of something else": (synsets_of_something_else, ["meta.mat is not the devkit's", "synsets"]),
    "a damaged list of Kaggle": (damaged_solution, ["LOC_val_solution.csv is damaged", "PredictionString"]),
}


@pytest.mark.parametrize(("lay", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_named_with_the_way_out(lay, words, tmp_path):
    lay(tmp_path / "imagenet")
    with pytest.raises(UserError) as caught:
        load_dataset("imagenet", tmp_path)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_without_a_folder_it_comes_from_hugging_face_evaluated_on_the_official_validation_images(tmp_path, monkeypatch):
    asked = []

    def read(name, data_dir):
        asked.append(name)
        pixels = np.zeros((4, 4, 3), np.uint8)
        rows = [("train/0", "b", "train"), ("train/1", "a", "train"), ("validation/0", "a", "val")]
        return Dataset(f"hf:{name}", ("b", "a"), tuple(Example(*row, pixels) for row in rows))

    monkeypatch.setattr(huggingface, "read", read)
    dataset = load_dataset("imagenet", tmp_path)
    assert asked == ["ILSVRC/imagenet-1k"] and dataset.class_names == ("b", "a")
    assert [example.split for example in dataset.examples] == ["train", "train", "test"]


def test_a_folder_of_hugging_face_is_evaluated_likewise(tmp_path):
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["tench", "kit fox"])})
    rows = {}
    for split, labels in {"train": [0, 1, 0, 1], "validation": [1, 0], "test": [-1]}.items():
        images = []
        for number in range(len(labels)):
            write_image(tmp_path / split / f"{number}.jpg")
            images.append({"bytes": (tmp_path / split / f"{number}.jpg").read_bytes(), "path": None})
        rows[split] = datasets.Dataset.from_dict({"image": images, "label": labels}, features)
    datasets.DatasetDict(rows).save_to_disk(tmp_path / "data" / "imagenet")
    dataset = load_dataset("imagenet", tmp_path / "data")
    assert dataset.name == "imagenet" and dataset.class_names == ("tench", "kit fox")
    assert [example.split for example in dataset.examples] == ["train"] * 4 + ["test"] * 2
    assert dataset.ignored == (("test/0000000", "a row without a label"),)


def test_where_neither_is_there_it_says_what_to_do(tmp_path, monkeypatch):
    def read(name, data_dir):
        raise UserError("hf:ILSVRC/imagenet-1k is gated: log in by `hf auth login`.")

    monkeypatch.setattr(huggingface, "read", read)
    with pytest.raises(UserError) as caught:
        load_dataset("imagenet", tmp_path)
    for words in (str(tmp_path / "imagenet"), imagenet.GROUND_TRUTH, "is gated: log in by `hf auth login`"):
        assert words in str(caught.value)


@pytest.mark.long
def test_the_recipe_runs_end_to_end_on_a_small_part(tmp_path, weights_file, capsys):
    """The recipe's own batch, gradient accumulation, schedule, crop and precision; another backbone and fewer epochs."""
    from transfer_learning import run

    root = tmp_path / "data" / "imagenet"
    lay_train(root, num_images=60)
    lay_flat_val(root)
    lay_devkit(root)
    run_dir = tmp_path / "run"
    arguments = [
        *"--dataset imagenet --backbone small_cnn --image-size 16 --input-size 20".split(),
        *"--fine-tune.epochs 2 --fine-tune.warmup-epochs 0.6".split(),
        *("--data-dir", str(tmp_path / "data"), "--weights", str(weights_file)),
        *("--cache-dir", str(tmp_path / "cache"), "--run-dir", str(run_dir)),
    ]
    assert run_main(run.main, arguments) == 0
    shown = capsys.readouterr().out
    assert "3 of 1,000 classes" in shown
    assert "Precision mixed_float16 (--precision; without a GPU it is slower than float32)" in shown
    config = RunConfig.from_json((run_dir / "config.json").read_text())
    assert (config.batch_size, config.gradient_accumulation_steps, config.stored_size, config.resize) == (
        512,
        4,
        20,
        "crop",
    )
    manifest = pd.read_csv(run_dir / "manifest.csv")
    assert manifest["split"].value_counts()["test"] == 6 and 1 <= manifest["split"].value_counts()["val"] <= 20
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    assert evaluation["split"] == "test" and evaluation["class_names"] == list(NAMES)
    rates = pd.read_csv(run_dir / "history.csv")["learning_rate"]
    assert rates.iloc[0] > rates.iloc[-1] > 0 and rates.iloc[-1] == pytest.approx(0.002 / 25 / 1e4)


def test_the_recipe_has_the_facts_of_the_system():
    config = known.imagenet()
    config.check()
    training = config.fine_tune
    assert (config.backbone, config.weights, config.head) == ("resnet50v1_5", "imagenet", ())
    assert (config.batch_size // config.gradient_accumulation_steps, config.gradient_accumulation_steps) == (128, 4)
    assert (training.epochs, training.schedule, training.unfreeze, config.frozen.epochs) == (30, "one_cycle", "all", 0)
    assert (config.precision, training.augmentation, config.flip) == ("mixed_float16", "resized_crop", True)
    # As PyTorch's OneCycleLR(max_lr=0.002, pct_start=0.3, div_factor=25, final_div_factor=1e4).
    rates = [learning_rate(training, update, 100) for update in range(3000)]
    assert rates[0] == pytest.approx(0.002 / 25) and rates[-1] == pytest.approx(0.002 / 25 / 1e4)
    assert max(rates) == rates[899] == pytest.approx(0.002)
    assert rates[449] == pytest.approx((0.002 + 0.002 / 25) / 2, rel=2e-2)
