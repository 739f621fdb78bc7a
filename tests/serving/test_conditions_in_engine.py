"""Videos that begin with images, and VACE, in the real engine: every call is what LVSA defines."""

import json

import pytest

from tests.serving.support import engines
from tests.serving.support.engines import GUIDANCE, STEPS, engine, watched_layers
from tests.serving.support.masks import token_mask
from tests.support.oracle import masked_attention, relative_error
from tests.support.tiny_wan_family import picture, wan_i2v, wan_vace

pytestmark = pytest.mark.vllm_omni
FRAMES, HEIGHT, WIDTH = 45, 32, 48
T, P = 12, 6
SPARSE = {"horizon": 5, "window_size": 4, "rotate_keyframes": True}


@pytest.mark.parametrize(
    ("make", "layers", "given"),
    [
        (wan_i2v, 2, {"image": picture(HEIGHT, WIDTH)}),
        (wan_vace, 5, {}),
        (wan_vace, 5, {"video": [picture(HEIGHT, WIDTH, n) for n in range(FRAMES)]}),
    ],
    ids=["i2v", "vace", "vace-video"],
)
def test_every_call_is_what_the_definition_says(make, layers, given, tmp_path, monkeypatch):
    from vllm_omni.inputs.data import OmniDiffusionSamplingParams

    monkeypatch.setattr(engines, "MODEL", str(tmp_path))
    make().save_pretrained(tmp_path, safe_serialization=True)
    # What a checkpoint does not have is not in a published index; the engine takes the name for it.
    index = tmp_path / "model_index.json"
    parts = json.loads(index.read_text())
    index.write_text(json.dumps({n: v for n, v in parts.items() if v != [None, None]}))
    parameters = OmniDiffusionSamplingParams(
        num_frames=FRAMES, height=HEIGHT, width=WIDTH, num_inference_steps=STEPS,
        guidance_scale=GUIDANCE, guidance_scale_provided=True, seed=0,
    )  # fmt: skip
    prompt = {"prompt": engines.PROMPT, "negative_prompt": "dull", "multi_modal_data": given}
    with watched_layers() as calls, engine(SPARSE) as omni:
        calls.clear()
        omni.generate(prompt, parameters)
    assert [step for _, step, _, _ in calls] == [
        step for step in range(STEPS) for _ in range(2 * layers)
    ]
    for layer, step, qkv, out in calls[::layers]:
        mask = token_mask(layer.attend.pattern(T), step, P)
        assert relative_error(out, masked_attention(*qkv, mask)) < 1e-5
        assert relative_error(out, masked_attention(*qkv)) > 1e-3
