"""A hook as docs/serving.md writes it, on a model that tells the engine nothing."""

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.serving.support.engines import BEYOND, STEPS, engine, generated, watched_layers

pytestmark = pytest.mark.vllm_omni
PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
OPTIONS = {"rotate_keyframes": True}


@pytest.fixture
def hook():
    """The page's hook, as a module."""
    (code,) = re.findall(
        r"^```python\n(# lvsa_wan_hook\.py\n.*?)^```", PAGE.read_text(), re.M | re.S
    )
    module = ModuleType("lvsa_wan_hook")
    exec(compile(code, "lvsa_wan_hook.py", "exec"), vars(module))
    return module


def silence(monkeypatch):
    """Wan without a word of its grid or its steps."""
    from vllm_omni.diffusion.forward_context import DenoiseProgressMixin
    from vllm_omni.diffusion.models.wan2_2 import wan2_2_transformer as model

    monkeypatch.setattr(model, "VideoTokenLayout", lambda **_: None)
    monkeypatch.setattr(DenoiseProgressMixin, "record_denoise_step", lambda *_, **__: None)
    monkeypatch.setattr(model.WanTransformer3DModel, "forward", model.WanTransformer3DModel.forward)


def test_without_a_word_the_engine_does_not_start(monkeypatch):
    silence(monkeypatch)
    with pytest.raises((ValueError, RuntimeError)) as caught, engine(OPTIONS):
        pass
    assert all(word in str(caught.value) for word in ("WanPipeline", "attn1", "docs/serving.md"))


def test_the_pages_hook_gives_what_the_model_itself_would(hook, monkeypatch):
    with engine(OPTIONS) as omni:
        expected = generated(omni, BEYOND)
    silence(monkeypatch)
    hook.install()
    with watched_layers() as calls, engine(OPTIONS) as omni:
        for _ in range(2):
            calls.clear()
            assert torch.equal(generated(omni, BEYOND), expected)
            assert sorted({step for _, step, _, _ in calls}) == [*range(STEPS)]
