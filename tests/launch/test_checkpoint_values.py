"""Values that a checkpoint holds, through a file and back."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lvsa.errors import CheckpointError
from lvsa.launch.checkpoint import file
from lvsa.launch.checkpoint.header import read_facts
from lvsa.launch.checkpoint.values import Attributes, Unsaveable, pack, unpack
from tests.support.errors import refuses

CPU = torch.device("cpu")
SHARED = torch.arange(6.0)

VALUES = {
    "plain": [None, True, 0, -3, 2**70, 1.5, -0.0, "ä\n", [], (), {}],
    "no JSON numbers": (math.inf, -math.inf, math.nan),
    "nested": {"a": ({"b": [1, (2, 3)]},), 7: "key of another type"},
    "tensors": [torch.randn(2, 3), torch.tensor(4), torch.zeros(0, 3), torch.arange(3)],
    "dtypes": [torch.ones(3, dtype=d) for d in (torch.bfloat16, torch.float16, torch.bool)],
    "NumPy": (np.float32(0.1), np.int64(7), np.array([[1.5, math.inf]]), np.arange(3)),
    "of torch": (torch.float64, torch.Size([1, 2])),
    "views": (SHARED, SHARED[2:4], SHARED.view(2, 3).T),
    "attributes": Attributes("UniPC", {"last": torch.ones(2), "more": Attributes("X", {"n": 1})}),
}


def through_a_file(value, path: Path):
    file.write(path, pack(value).copied(), {"steps": 3})
    packed, facts = file.read(path)
    assert facts == read_facts(path) == {"steps": 3}
    return unpack(packed, CPU)


def same(a, b) -> bool:
    """Equal in type and in every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, float):
        return repr(a) == repr(b)
    if isinstance(a, Attributes):
        return a.of == b.of and same(a.values, b.values)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("name", VALUES)
def test_values_come_back_as_they_were(name, tmp_path):
    assert same(through_a_file(VALUES[name], tmp_path / "a.safetensors"), VALUES[name])


def test_a_tensor_in_two_places_is_written_once(tmp_path):
    packed = pack({"last_sample": SHARED, "outputs": [SHARED, None, SHARED]})
    assert len(packed.tensors) == 1 and packed.bytes == 24
    again = through_a_file({"a": SHARED, "b": [SHARED]}, tmp_path / "a.safetensors")
    assert again["a"] is again["b"][0]


def test_copies_do_not_change_with_what_was_copied():
    tensor = torch.zeros(3)
    copy = pack(tensor).copied()
    tensor += 1
    assert torch.equal(unpack(copy, CPU), torch.zeros(3))


@pytest.mark.parametrize(
    ("value", "where", "what"),
    [
        ({"a": [1, object()]}, "a[1]", "object"),
        ((1, {2}), "[1]", "set"),
        ({"deep": {"er": lambda: 1}}, "deep.er", "function"),
        ({"m": torch.empty(1, device="meta")}, "m", "tensor"),
    ],
)
def test_what_cannot_be_saved_is_named_with_its_place(value, where, what):
    with refuses(Unsaveable, where, what):
        pack(value)


def test_nothing_in_a_file_runs_code(tmp_path):
    """Safetensors and JSON: no class or function is looked up by a name, but for dtypes."""
    path = tmp_path / "a.safetensors"
    file.write(path, pack({"x": torch.ones(1), "y": Attributes("Path", {"z": 1})}), {})
    header = path.read_bytes()
    length = int.from_bytes(header[:8], "little")
    assert set(json.loads(header[8 : 8 + length])) == {"__metadata__", "0.x"}
    assert unpack(file.read(path)[0], CPU)["y"] == Attributes("Path", {"z": 1})


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "other", "missing"])
def test_a_broken_file_is_named(damage, tmp_path):
    path = tmp_path / "state.safetensors"
    file.write(path, pack(torch.ones(100)), {"steps": 3})
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-50])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "header":
        path.write_bytes(b"\xff" * 8 + data[8:])
    elif damage == "other":
        path.write_bytes(data.replace(b'"lvsa"', b'"asvl"'))
    else:
        path.unlink()
    with refuses(CheckpointError, path):
        file.read(path)
    if damage != "cut":
        with refuses(CheckpointError, path):
            read_facts(path)
