"""The arrays of a state dict each have one place in the network, or nothing is set."""

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from transfer_learning.errors import UserError
from transfer_learning.models.pytorch_weights import PyTorchWeights, load_state_dict

TINY_WEIGHTS = PyTorchWeights("tiny of nobody", {"stem": "conv1", "deep": "block.conv", "norm": "block.bn"}.get, "fc")
ADVICE = "give another file"
RANDOM = np.random.default_rng(0)


def random(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


@pytest.fixture
def model():
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, (1, 2), use_bias=False, name="stem")(image)
    x = keras.layers.DepthwiseConv2D((2, 3), use_bias=False, name="deep")(x)
    return keras.Model(image, keras.layers.ReLU()(keras.layers.BatchNormalization(name="norm")(x)))


@pytest.fixture
def state():
    return {
        "conv1.weight": random(4, 3, 1, 2),
        "block.conv.weight": random(4, 1, 2, 3),
        "block.bn.weight": random(4),
        "block.bn.bias": random(4),
        "block.bn.running_mean": random(4),
        "block.bn.running_var": random(4),
        "block.bn.num_batches_tracked": np.array(7),
        "fc.weight": random(10, 4),
        "fc.bias": random(10),
    }


@pytest.fixture
def load(model, state, tmp_path):
    def call():
        save_file(state, tmp_path / "state.safetensors")
        load_state_dict(model, tmp_path / "state.safetensors", TINY_WEIGHTS, ADVICE)

    return call


def test_each_number_has_the_place_that_it_had(model, state, load):
    load()
    stem, deep, norm = (model.get_layer(name) for name in ("stem", "deep", "norm"))
    for output, channel, row, column in np.ndindex(4, 3, 1, 2):
        assert stem.kernel[row, column, channel, output] == state["conv1.weight"][output, channel, row, column]
    for channel, row, column in np.ndindex(4, 2, 3):
        assert deep.kernel[row, column, channel, 0] == state["block.conv.weight"][channel, 0, row, column]
    for variable, name in (
        (norm.gamma, "weight"),
        (norm.beta, "bias"),
        (norm.moving_mean, "running_mean"),
        (norm.moving_variance, "running_var"),
    ):
        assert np.array_equal(variable, state[f"block.bn.{name}"]), name


@pytest.mark.parametrize(
    "absent", [["block.bn.num_batches_tracked"], ["fc.weight", "fc.bias"]], ids=["counter", "classifier"]
)
def test_what_needs_no_place_need_not_be_there(model, state, load, absent):
    for name in absent:
        del state[name]
    load()
    assert np.array_equal(model.get_layer("norm").beta, state["block.bn.bias"])


def test_float16_is_taken_as_it_is(model, state, load):
    state["block.bn.bias"] = state["block.bn.bias"].astype(np.float16)
    load()
    assert model.get_layer("norm").beta.dtype == "float32"
    assert np.array_equal(model.get_layer("norm").beta, state["block.bn.bias"])


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"conv1.weight": None}, "1 missing (the first: conv1.weight)"),
        ({"block.bn.running_var": None, "block.bn.running_mean": None}, "2 missing (the first: block.bn.running_mean)"),
        ({"block.conv.bias": random(4)}, "1 unknown (the first: block.conv.bias)"),
        (
            {"fc2.weight": random(4), "conv1.num_batches_tracked": np.array(1)},
            "2 unknown (the first: conv1.num_batches_",
        ),
        (
            {"conv1.weight": random(1, 2, 3, 4)},
            "shape (the first: conv1.weight, (1, 2, 3, 4) in place of (4, 3, 1, 2))",
        ),
        ({"conv1.weight": random(4, 3, 2)}, "(4, 3, 2) in place of (4, 3, 1, 2)"),
        ({"block.bn.bias": random(5)}, "1 of another shape (the first: block.bn.bias, (5,) in place of (4,))"),
        ({"block.bn.num_batches_tracked": np.array([1])}, "num_batches_tracked, (1,) in place of ()"),
        ({"fc.weight": random(10, 5)}, "fc.weight, (10, 5) in place of (10, 4)"),
        ({"fc.bias": random(9)}, "fc.weight, (10, 4) in place of (9, 4)"),
        ({"fc.bias": None}, "fc.weight, (10, 4) in place of (0, 4)"),
        (
            {"block.bn.bias": np.zeros(4)},
            "number format (the first: block.bn.bias, float64 in place of float32 or float16)",
        ),
        ({"conv1.weight": np.zeros((4, 3, 1, 2), np.int8)}, "conv1.weight, int8 in place of float32 or float16"),
        ({"block.bn.num_batches_tracked": np.array(1.0)}, "num_batches_tracked, float64 in place of int64"),
        (
            {"block.bn.bias": np.zeros(5), "conv1.weight": None, "extra": random(1)},
            "1 missing (the first: conv1.weight); 1 unknown (the first: extra); 1 of another shape (the first: "
            "block.bn.bias, (5,) in place of (4,)); 1 of another number format (the first: block.bn.bias, float64",
        ),
    ],
)
def test_a_state_dict_of_another_network_is_refused_before_anything_is_set(model, state, load, change, answer):
    before = model.get_weights()
    for name, array in change.items():
        if array is None:
            del state[name]
        else:
            state[name] = array
    with pytest.raises(UserError) as caught:
        load()
    message = str(caught.value)
    assert answer in message and "state.safetensors does not fit: expected the 6 arrays of tiny of nobody" in message
    assert message.endswith(f"; {ADVICE}.")
    assert all(np.array_equal(*pair) for pair in zip(before, model.get_weights(), strict=True))
