"""CogVideoX 2B and 5B, trained on 49 video frames, and 1.5, run at 81.

Horizons count frames of tokens: latent frames in 2B and 5B, pairs of them in 1.5, whose 81 video
frames are 21 latent frames, padded to 22. (1.5 is also offered for 10 seconds, 161 video frames:
``horizon=21`` takes that as the horizon.)

Sampling as in zai-org/CogVideo: inference/cli_demo.py (trailing timesteps; DPM and dynamic guidance
for the 5B models, DDIM and constant guidance for 2B), README.md (number formats as in training, and
lengths of 8k + 1 and 16k + 1 frames).
"""

from dataclasses import replace

from lvsa.adapters.checkpoints.known import GIVEN, Defaults, KnownModel

HORIZON = 13
HORIZON_1_5 = 11

TEXT_MODELS = ("CogVideoXPipeline", "CogVideoXVideoToVideoPipeline")
IMAGE_MODELS = ("CogVideoXImageToVideoPipeline",)

FIRST = Defaults(
    height=480,
    width=720,
    num_frames=49,
    steps=50,
    guidance=6.0,
    fps=8,
    scheduler="CogVideoXDPMScheduler",
    timestep_spacing="trailing",
    dynamic_guidance=True,
    frames_multiple=8,
    source="zai-org/CogVideo: inference/cli_demo.py, README.md",
)
SECOND = replace(FIRST, height=768, width=1360, num_frames=81, fps=16, frames_multiple=16)

COGVIDEOX = (
    KnownModel(
        name="CogVideoX1.5-5B",
        repository="zai-org/CogVideoX1.5-5B",
        pipelines=TEXT_MODELS,
        horizon=HORIZON_1_5,
        defaults=SECOND,
        configs={"transformer": {"patch_size_t": GIVEN}},
    ),
    KnownModel(
        name="CogVideoX1.5-5B-I2V",
        repository="zai-org/CogVideoX1.5-5B-I2V",
        pipelines=IMAGE_MODELS,
        horizon=HORIZON_1_5,
        defaults=SECOND,
        configs={"transformer": {"patch_size_t": GIVEN}},
    ),
    KnownModel(
        name="CogVideoX-5b",
        repository="zai-org/CogVideoX-5b",
        pipelines=TEXT_MODELS,
        horizon=HORIZON,
        defaults=FIRST,
        configs={"transformer": {"use_rotary_positional_embeddings": True}},
    ),
    KnownModel(
        name="CogVideoX-2b",
        repository="zai-org/CogVideoX-2b",
        pipelines=TEXT_MODELS,
        horizon=HORIZON,
        defaults=replace(
            FIRST, scheduler="CogVideoXDDIMScheduler", dynamic_guidance=False, dtype="float16"
        ),
        configs={"transformer": {"use_rotary_positional_embeddings": False}},
    ),
    KnownModel(
        name="CogVideoX-5b-I2V",
        repository="zai-org/CogVideoX-5b-I2V",
        pipelines=IMAGE_MODELS,
        horizon=HORIZON,
        defaults=FIRST,
        configs={"transformer": GIVEN},
    ),
)
