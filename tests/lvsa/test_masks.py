"""What is remembered of masks, and when it is not."""

import pytest
import torch

from lvsa.masks import KEPT, KnownMasks
from lvsa.text import valid_positions


@pytest.fixture
def found(monkeypatch):
    """Masks whose valid text was looked for."""
    looked_for = []
    monkeypatch.setattr(
        "lvsa.masks.valid_positions", lambda mask: looked_for.append(mask) or valid_positions(mask)
    )
    return looked_for


def mask_of(*sources):
    return torch.cat([source.bool() for source in sources], dim=1)


def source(*rows):
    return torch.tensor(rows)


def ask(masks, *sources):
    masks.follow_from(sources)
    mask = mask_of(*sources)
    got, expected = masks.valid_text(mask), valid_positions(mask)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert masks.valid_text(mask) is got


def test_the_mask_of_a_forward_is_looked_at_once_and_that_of_the_same_tensors_no_more(found):
    masks = KnownMasks()
    one, two, other = source([1, 0, 1]), source([0, 1, 1]), source([1, 1, 1])
    for _ in range(3):
        ask(masks, one, two)
        ask(masks, one, other)
    assert len(found) == 2


def test_a_tensor_that_is_written_to_is_another(found):
    masks, one = KnownMasks(), source([1, 0, 1])
    ask(masks, one)
    one[0, 1] = 1
    ask(masks, one)
    assert len(found) == 2


def test_equal_tensors_are_not_the_same(found):
    masks = KnownMasks()
    ask(masks, source([1, 0, 1]))
    ask(masks, source([1, 0, 1]))
    assert len(found) == 2


def test_other_sizes_and_numbers_of_tensors_are_another_mask(found):
    masks, one = KnownMasks(), source([1, 0, 1])
    ask(masks, one)
    ask(masks, one, one)
    masks.follow_from([one])
    masks.valid_text(torch.ones(2, 3))
    assert len(found) == 3


def test_without_tensors_each_forward_is_looked_at(found):
    masks, mask = KnownMasks(), torch.ones(1, 3)
    for _ in range(2):
        masks.follow_from([])
        masks.valid_text(mask)
        masks.valid_text(mask)
    assert len(found) == 2


def test_tensors_of_inference_mode_are_not_trusted(found):
    masks = KnownMasks()
    with torch.inference_mode():
        one = source([1, 0, 1])
        ask(masks, one)
        one[0, 1] = 1
        ask(masks, one)
    assert len(found) == 2


def test_tensors_are_not_kept_alive_and_few_masks_are(found):
    masks, many = KnownMasks(), [source([1, n]) for n in range(KEPT + 1)]
    for one in many:
        ask(masks, one)
    ask(masks, many[0])
    assert len(found) == KEPT + 2
    masks.follow_from([])
    seen = [sight.tensor for known in masks._known for sight in known.sources]
    del many, one
    assert not any(tensor() is not None for tensor in seen)
