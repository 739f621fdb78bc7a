"""Every family goes on from its checkpoints, and decodes what its pipeline would decode."""

import json
from contextlib import nullcontext

import pytest

from lvsa.launch.checkpoint import decoding
from lvsa.launch.checkpoint.decoding import Latents
from tests.launch.test_families import FAMILIES, arguments_for, inputs  # noqa: F401
from tests.launch.test_going_on import interrupted
from tests.support.launched import launched
from tests.support.ranks import run_ranks
from tests.support.tiny import saved

ALWAYS = ["--checkpoint-seconds", "0"]


def by_itself(rank, world, arguments):
    """The launcher with pipelines that decode in their own way, undisturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "without_decoding", lambda pipe: nullcontext(Latents()))
        launched(rank, world, arguments)


def in_parts(rank, world, arguments, steps):
    for step in range(1, steps):
        interrupted(rank, world, [*arguments, *ALWAYS], step)
    launched(rank, world, [*arguments, *ALWAYS])


@pytest.mark.parametrize("family", FAMILIES)
def test_goes_on_after_every_step(family, inputs, tmp_path):  # noqa: F811
    build, given, *_ = FAMILIES[family]
    # Two ranks where they share most: a generator, an image, two transformers.
    world = 2 if family in ("cogvideox-5b-v2v", "hunyuan-i2v", "wan-2.2-i2v") else 1
    # Of three steps a strength of 0.7 leaves two.
    steps = 2 if "--strength" in given else 3
    model = str(saved(build(), tmp_path / "model"))
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    runs = ((by_itself, undisturbed, ()), (in_parts, disturbed, (steps,)))
    for function, folder, more in runs:
        arguments = arguments_for(model, given, inputs, folder)
        if family == "hunyuan-i2v":
            # All ranks run the encoders then, and none does where they ran before.
            arguments.append("--shard-weights")
        if world == 1:
            function(0, 1, arguments, *more)
        else:
            run_ranks(world, function, arguments, *more)
    assert json.loads((disturbed / "clip.json").read_text())["first_step"] == steps - 1
    clips = [(folder / "clip.mp4").read_bytes() for folder in (undisturbed, disturbed)]
    assert clips[0] == clips[1]
