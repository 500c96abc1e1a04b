"""Pickles read as data: plain values come out as they went in, calls come out uncalled, everything else is an error."""

import collections
import io
import os
import pickle
import pickletools
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_learning.storage import pickled
from transfer_learning.storage.pickled import Call, Name, Reference, read_pickle

KEYS = st.text(max_size=5) | st.binary(max_size=5) | st.integers(-(2**60), 2**60)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


def read(content, allowed=()):
    def check(name):
        if name not in allowed:
            raise ValueError(f"it asks for {name}")

    return read_pickle(io.BytesIO(content), check)


@settings(max_examples=150, deadline=None)
@given(PLAIN, st.integers(3, 5))  # what protocol 2 writes for bytes is a call
def test_plain_values_come_out_as_they_went_in(value, protocol):
    assert read(pickle.dumps(value, protocol)) == value


def test_several_pickles_are_read_one_behind_the_other():
    file = io.BytesIO(b"".join(pickle.dumps(value, 2) for value in (1, [2], "3")) + b"rest")
    assert [read_pickle(file, str) for _ in range(3)] == [1, [2], "3"] and file.read() == b"rest"


@pytest.mark.parametrize("protocol", [2, 4])
def test_calls_are_kept_and_not_made(protocol):
    made = read(pickle.dumps(collections.OrderedDict(a=1), protocol), ["collections.OrderedDict"])
    assert type(made) is Call and (made.function, made.items) == ("collections.OrderedDict", {"a": 1})
    array = read(
        pickle.dumps(np.arange(3, dtype=np.uint8), 2),
        {"numpy._core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype", "_codecs.encode"},
    )
    assert type(array.arguments[0]) is Name and array.state[1] == (3,)


def test_what_lies_outside_is_a_reference():
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("outside", 1) if value == "x" else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump(["x", "y"])
    assert read(stream.getvalue()) == [Reference(("outside", 1)), "y"]


def test_a_name_that_is_not_allowed_is_asked_about_and_nothing_happens(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    for protocol in (2, 4):
        with pytest.raises(ValueError, match="it asks for posix.mkdir"):
            read(pickle.dumps([1, Attack()], protocol))
        assert type(read(pickle.dumps([Attack()], protocol), ["posix.mkdir"])[0]) is Call
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x80\x02})\x85\x85K\x01s.", "a key that is a tuple"),  # the hash of one a million deep overflows the stack
        (b"\x80\x02}]K\x01s.", "a key that is a list"),
        (pickle.dumps({sys.hash_info.modulus: 1}, 2), "a key that is a number of too many digits"),
        (pickle.dumps({-(10**30): 1}, 2), "a key that is a number of too many digits"),
        (b"\x80\x02}(K\x01K\x02K\x01K\x03u.", "several entries of one name"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "numbers more objects"),
        (b"\x80\x02K\x01K\x02a.", "a int where a list is expected"),
        (b"\x80\x02]K\x01b.", "a list where a Call is expected"),
        (b"\x80\x02ca\nb\n)\x81.", "the instruction NEWOBJ"),
        (b"\x80\x02]0].", "the instruction POP"),
        (b"\x80\x02\x85.", "takes more values"),
        (b"\x80\x02K\x01", "exhausted before seeing STOP"),
        (b"(ia\nb\n.", "the instruction INST"),
        (b"cposix\nsystem\n(S'true'\ntR.", "it asks for posix.system"),
    ],
)
def test_what_plain_values_do_not_need_is_an_error(content, words):
    with pytest.raises(Exception, match=words):
        read(content, ["a.b"])


def test_a_pickle_of_too_many_instructions_is_an_error(monkeypatch):
    monkeypatch.setattr(pickled, "MAX_INSTRUCTIONS", 100)
    assert read(pickle.dumps([0] * 90, 2)) == [0] * 90
    with pytest.raises(ValueError, match="more than 100 instructions"):
        read(pickle.dumps([0] * 110, 2))


def test_damage_ends_in_an_exception_or_in_plain_values():
    whole = pickle.dumps({"a": [1, (2.5, None)], "b": collections.OrderedDict(c=b"x" * 20)}, 4)
    rng = np.random.default_rng(0)
    allowed = (Call, Name, Reference, dict, list, tuple, str, bytes, int, float, bool, type(None))
    for _ in range(3000):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), rng.integers(1, 4)):
            content[place] = rng.choice([rng.integers(256), ord(rng.choice(pickletools.opcodes).code)])
        try:
            assert isinstance(read(bytes(content), ["collections.OrderedDict"]), allowed)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, MemoryError, OverflowError):
            pass
