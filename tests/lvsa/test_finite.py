"""Not-a-number is found in the tensor that holds it."""

import pytest
import torch

from lvsa.errors import NonFiniteError
from lvsa.finite import FiniteCheck
from tests.support.errors import refuses


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_first_bad_tensor_is_named(value, dtype):
    check = FiniteCheck()
    good = torch.full((3,), torch.finfo(dtype).max, dtype=dtype)
    check.check("latents after step 0", good)
    bad = good.clone()
    bad[1] = value
    with refuses(NonFiniteError, "latents after step 1", str(dtype).removeprefix("torch.")):
        check.check("latents after step 1", bad)
    check.finish()


def test_integers_and_shapes_without_values_pass():
    check = FiniteCheck()
    check.check("tokens", torch.ones(2, dtype=torch.int64))
    check.check("meta", torch.empty(2, device="meta"))
    check.finish()


class Late:
    """An event of a device that has not come so far yet."""

    def __init__(self):
        self.done, self.waits = False, 0

    def query(self):
        return self.done

    def synchronize(self):
        self.waits += 1
        self.done = True


def test_a_result_on_its_way_is_waited_for_at_the_end_alone():
    check, late = FiniteCheck(), Late()
    check.check("step 0", torch.ones(1))
    check._pending.append(_pending("step 1", late))
    check.check("step 2", torch.ones(1))
    assert late.waits == 0, "the loop does not stop for it"
    with refuses(NonFiniteError, "step 1"):
        check.finish()
    assert late.waits == 1
    check._pending.append(_pending("step 0", Late()))
    check.forget()
    check.finish()


def _pending(what, event):
    from lvsa.finite import _Pending

    return _Pending(what, torch.float16, torch.tensor(False), event)
