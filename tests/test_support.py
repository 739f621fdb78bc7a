"""The helpers of the tests are able to fail."""

import pytest

from tests.support.errors import names, refuses


@pytest.mark.parametrize(
    ("message", "value", "expected"),
    [
        ("window is -1; at least 0", -1, True),
        ("window is -1; at least 0", 1, False),
        ("rank is 4; allowed: 0 … 3", 3, True),
        ("21 attended frames", 1, False),
        ("scale is 0.5", 0.5, True),
        ("scale is 0.5", 5, False),
        ("scale is 1.5", 1, False),
        ("at most 10,000 frames", 10_000, True),
        ("at most 10,000 frames", 10, False),
        ("frames [5, -1] of (2, 3)", 5, True),
        ("frames [5, -1] of (2, 3)", 3, True),
        ("scale is nan", float("nan"), True),
        ("unknown 'sdap'; known: sdpa", "sdpa", True),
        ("unknown 'sdap'; known: ring", "sdpa", False),
    ],
)
def test_values_are_found_whole(message, value, expected):
    assert names(message, value) == expected


def test_refuses_wants_the_type_and_every_value():
    with refuses(ValueError, 3, "window") as caught:
        raise ValueError("window is 3")
    assert str(caught.value) == "window is 3"
    with pytest.raises(AssertionError, match="4"), refuses(ValueError, 3, 4):
        raise ValueError("window is 3")
    with pytest.raises(KeyError), refuses(ValueError):
        raise KeyError("window")
    with pytest.raises(pytest.fail.Exception), refuses(ValueError):
        pass
