"""Published checkpoints as data: told apart by their configs, and by nothing that costs time."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest

from lvsa.adapters import BUILT_IN, PIPELINES, adapter_for, get_adapter
from lvsa.adapters import checkpoints as data
from lvsa.adapters.checkpoints import ABSENT, GIVEN, Defaults, KnownModel, all_checkpoints
from lvsa.adapters.checkpoints.known import Presence
from tests.support.tiny_cogvideox import cogvideox_pipeline
from tests.support.tiny_hunyuan import hunyuan_pipeline

ASSETS = Path(__file__).parents[2] / "assets"


def skeleton(pipeline, *, name_or_path=None, spatial=8, **components):
    """Configs without weights, as far as recognition looks at them."""
    pipe = type(pipeline, (), {})()
    pipe.name_or_path = name_or_path
    for name, entries in components.items():
        given = {"image_dim": None, "pos_embed_seq_len": None, "num_frame_per_block": 1, **entries}
        setattr(pipe, name, SimpleNamespace(config=SimpleNamespace(**given)))
    vae = {"scale_factor_spatial": spatial, "scale_factor_temporal": 4}
    pipe.vae = SimpleNamespace(config=SimpleNamespace(**vae))
    return pipe


def depth(layers, channels, **config):
    return {"num_layers": layers, "in_channels": channels, **config}


IMAGE = {"image_dim": 1280}
TINY_WAN = {"num_attention_heads": 4, "attention_head_dim": 40, "text_dim": 64}
TI2V = {"transformer": depth(30, 48), "spatial": 16}
I2V_14B = {"transformer": depth(40, 36, **IMAGE)}
HUNYUAN = "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-"


def hunyuan(target, guidance, **config):
    return {
        "transformer": {"target_size": target, "use_meanflow": False, **config},
        "guider": {"guidance_scale": guidance},
    }


# Pipeline, configs, name and horizon.
PUBLISHED = [
    ("WanPipeline", {"transformer": depth(30, 16)}, "Wan 2.1 T2V 1.3B", 21),
    ("WanPipeline", {"transformer": depth(40, 16)}, "Wan 2.1 T2V 14B", 21),
    ("WanVideoToVideoPipeline", {"transformer": depth(30, 16)}, "Wan 2.1 T2V 1.3B", 21),
    (
        "WanPipeline",
        {"transformer": depth(40, 16), "transformer_2": depth(40, 16)},
        "Wan 2.2 T2V A14B",
        21,
    ),
    ("WanPipeline", TI2V, "Wan 2.2 TI2V 5B", 31),
    ("WanImageToVideoPipeline", TI2V, "Wan 2.2 TI2V 5B", 31),
    ("WanImageToVideoPipeline", I2V_14B, "Wan 2.1 I2V 14B 480P", 21),
    (
        "WanImageToVideoPipeline",
        {"transformer": depth(40, 36, **IMAGE, pos_embed_seq_len=514)},
        "Wan 2.1 FLF2V 14B 720P",
        21,
    ),
    (
        "WanImageToVideoPipeline",
        {"transformer": depth(40, 36), "transformer_2": depth(40, 36)},
        "Wan 2.2 I2V A14B",
        21,
    ),
    ("WanVACEPipeline", {"transformer": depth(30, 16)}, "Wan 2.1 VACE 1.3B", 21),
    ("WanVACEPipeline", {"transformer": depth(40, 16)}, "Wan 2.1 VACE 14B", 21),
    (
        "WanVACEPipeline",
        {"transformer": depth(40, 16), "transformer_2": depth(40, 16)},
        "Wan 2.2 VACE-Fun A14B",
        21,
    ),
    ("WanPipeline", {"transformer": depth(6, 8, **TINY_WAN)}, "tiny-wan", 21),
    ("WanPipeline", {"transformer": depth(6, 8, **{**TINY_WAN, "text_dim": 16})}, None, 21),
    ("WanPipeline", {"transformer": depth(30, 16), "transformer_2": depth(40, 16)}, None, 21),
    ("SkyReelsV2Pipeline", {"transformer": depth(40, 16)}, "SkyReels-V2 T2V 14B 540P", 25),
    (
        "SkyReelsV2ImageToVideoPipeline",
        {"transformer": depth(30, 36, **IMAGE)},
        "SkyReels-V2 I2V 1.3B 540P",
        25,
    ),
    ("SkyReelsV2ImageToVideoPipeline", I2V_14B, "SkyReels-V2 I2V 14B 540P", 25),
    ("HunyuanVideo15Pipeline", hunyuan(640, 6.0), "HunyuanVideo 1.5 480p T2V", 33),
    ("HunyuanVideo15Pipeline", hunyuan(640, 1.0), "HunyuanVideo 1.5 480p T2V distilled", 33),
    ("HunyuanVideo15Pipeline", hunyuan(960, 6.0), "HunyuanVideo 1.5 720p T2V", 33),
    ("HunyuanVideo15ImageToVideoPipeline", hunyuan(960, 6.0), "HunyuanVideo 1.5 720p I2V", 33),
    (
        "HunyuanVideo15ImageToVideoPipeline",
        hunyuan(640, 1.0, use_meanflow=True),
        "HunyuanVideo 1.5 480p I2V step distilled",
        33,
    ),
    ("HunyuanVideo15Pipeline", hunyuan(48, 6.0), None, 33),
]


@pytest.mark.parametrize(("pipeline", "configs", "name", "horizon"), PUBLISHED)
def test_checkpoints_are_recognized_by_their_configs(pipeline, configs, name, horizon):
    adapter, pipe = adapter_for(pipeline), skeleton(pipeline, **configs)
    known = adapter.known_model(pipe)
    assert (known and known.name) == name
    assert adapter.training_horizon(pipe) == horizon


@pytest.mark.parametrize(
    ("kind", "name", "horizon"),
    [
        ("2b", "CogVideoX-2b", 13),
        ("5b", "CogVideoX-5b", 13),
        ("5b-i2v", "CogVideoX-5b-I2V", 13),
        ("5b-v2v", "CogVideoX-5b", 13),
        ("1.5", "CogVideoX1.5-5B", 11),
        ("1.5-i2v", "CogVideoX1.5-5B-I2V", 11),
        ("1.5-v2v", "CogVideoX1.5-5B", 11),
    ],
)
def test_cogvideox_is_recognized_in_any_size(kind, name, horizon):
    adapter, pipe = get_adapter("cogvideox"), cogvideox_pipeline(kind)
    assert adapter.known_model(pipe).name == name
    assert adapter.training_horizon(pipe) == horizon


@pytest.mark.parametrize(
    ("pipeline", "configs", "first", "repository", "horizon"),
    [
        (
            "WanImageToVideoPipeline",
            I2V_14B,
            "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
            "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
            21,
        ),
        (
            "SkyReelsV2Pipeline",
            {"transformer": depth(40, 16)},
            "Skywork/SkyReels-V2-T2V-14B-540P-Diffusers",
            "Skywork/SkyReels-V2-T2V-14B-720P-Diffusers",
            31,
        ),
        (
            "SkyReelsV2ImageToVideoPipeline",
            I2V_14B,
            "Skywork/SkyReels-V2-I2V-14B-540P-Diffusers",
            "Skywork/SkyReels-V2-I2V-14B-720P-Diffusers",
            31,
        ),
    ],
)
def test_checkpoints_with_one_config_are_told_apart_by_their_hub_id(
    pipeline, configs, first, repository, horizon
):
    adapter = adapter_for(pipeline)
    by_id = skeleton(pipeline, **configs, name_or_path=repository)
    assert adapter.known_model(by_id).repository == repository
    assert adapter.training_horizon(by_id) == horizon
    for name in (None, "/models/SkyReels-720P", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"):
        other = skeleton(pipeline, **configs, name_or_path=name)
        assert adapter.known_model(other).repository == first


def test_the_bundled_model_is_recognized_wherever_its_folder_lies():
    pipe = diffusers.WanPipeline.from_pretrained(ASSETS / "tiny-wan")
    known = adapter_for(type(pipe)).known_model(pipe)
    assert known.defaults == Defaults(64, 64, num_frames=81, steps=16, guidance=2.5, fps=16)
    assert (known.name, known.horizon, known.repository) == ("tiny-wan", 21, None)


def test_every_checkpoint_that_comes_along_is_there():
    bundled = [model.name for _, model in all_checkpoints() if model.repository is None]
    assert bundled == [folder.name for folder in ASSETS.iterdir() if folder.is_dir()]


def test_known_models_are_what_their_pipelines_can_make():
    assert [*data.BUILT_IN] == [*BUILT_IN]
    for name, models in data.BUILT_IN.items():
        adapter = get_adapter(name)
        assert adapter.known_models is models
        for model in models:
            assert set(model.pipelines) <= set(adapter.pipelines)
            assert all(
                hasattr(diffusers, cls) and PIPELINES[cls] == name for cls in model.pipelines
            )
    repositories = [model.repository for _, model in all_checkpoints()]
    assert len(set(repositories)) == len(repositories)


@pytest.mark.parametrize("name", ["wan", "skyreels"])
def test_defaults_are_training_videos_of_4_frames_to_a_latent_one(name):
    for model in data.BUILT_IN[name]:
        assert (model.defaults.num_frames - 1) / 4 + 1 == model.horizon


@pytest.mark.parametrize("known", data.BUILT_IN["cogvideox"], ids=lambda known: known.name)
def test_defaults_of_cogvideox_are_its_training_videos(known):
    kind = ("1.5" if "1.5" in known.name else "5b") + ("-i2v" if "I2V" in known.name else "")
    sample = {"sample_height": 96, "sample_width": 170} if "1.5" in known.name else {}
    pipe = cogvideox_pipeline(kind, **{"sample_height": 60, "sample_width": 90, **sample})
    given = known.defaults
    grid = get_adapter("cogvideox").grid(given.num_frames, given.height, given.width, pipe)
    assert grid.frames == known.horizon


def test_defaults_of_hunyuan_are_the_sizes_that_its_pipelines_choose():
    processor = hunyuan_pipeline(image=True).video_processor
    for known in data.BUILT_IN["hunyuan15"]:
        size = (known.defaults.height, known.defaults.width)
        target = known.configs["transformer"]["target_size"]
        assert processor.calculate_default_height_width(9, 16, target) == size
        assert processor.calculate_default_height_width(*size, target) == size


def test_configs_are_data():
    for _, model in all_checkpoints():
        for wanted in model.configs.values():
            entries = [wanted] if isinstance(wanted, Presence) else wanted.values()
            assert all(isinstance(x, Presence | bool | int | float) for x in entries)


@pytest.mark.parametrize(
    ("wanted", "part", "fits"),
    [
        (ABSENT, None, True),
        (ABSENT, {"a": 1}, False),
        (GIVEN, {"a": 1}, True),
        (GIVEN, None, False),
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 1}, {}, False),
        ({"a": 1}, None, False),
        ({"a": ABSENT}, {}, True),
        ({"a": ABSENT}, {"a": None}, True),
        ({"a": ABSENT}, {"a": 0}, False),
        ({"a": GIVEN}, {"a": 0}, True),
        ({"a": GIVEN}, {"a": None}, False),
    ],
)
def test_what_fits(wanted, part, fits):
    model = KnownModel("m", "o/m", ("P",), 1, Defaults(1, 1, 1, 1, 1.0, 1), {"part": wanted})
    pipe = type("P", (), {})()
    pipe.part = None if part is None else SimpleNamespace(config=SimpleNamespace(**part))
    assert model.fits(pipe) is fits
    assert not model.fits(type("Q", (), {"part": pipe.part})())


def test_nothing_heavy_is_imported():
    program = (
        "import sys\nfrom lvsa.adapters.checkpoints import all_checkpoints\n"
        "assert len(all_checkpoints()) > 20\n"
        "print([m for m in ('torch', 'numpy', 'diffusers', 'PIL') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert result.stdout.decode().strip() == "[]"
