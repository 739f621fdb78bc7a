"""--lora: what is read, where it goes, and what is refused before weights are loaded."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lvsa.errors import CheckpointError, LVSAError
from lvsa.launch.loading import lora as loading
from lvsa.launch.loading.lora import check_loras, merge_loras
from lvsa.launch.loading.lora_file import EXPERTS, LoRA
from tests.support.errors import refuses
from tests.support.tiny import wan_latents, wan_pipeline, wan_transformer
from tests.support.tiny_hunyuan import hunyuan_pipeline
from tests.support.tiny_lora import saved_lora

FIRST, SECOND = EXPERTS.values()


@pytest.fixture
def file(tmp_path):
    return saved_lora(wan_pipeline().transformer, tmp_path / "style.safetensors")


def transformers(pipe):
    names = (FIRST, SECOND)
    return {n: model for n in names if (model := getattr(pipe, n, None)) is not None}


def merged(pipe, *texts):
    merge_loras(check_loras(texts, pipe, transformers(pipe)), pipe, transformers(pipe))
    return pipe


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", LoRA("a.safetensors")),
        ("a.safetensors:0.5", LoRA("a.safetensors", 0.5)),
        ("org/name:-1", LoRA("org/name", -1.0)),
        ("a.safetensors:high", LoRA("a.safetensors", 1.0, FIRST)),
        ("a.safetensors:2:low", LoRA("a.safetensors", 2.0, SECOND)),
    ],
)
def test_source_scale_and_expert(text, expected):
    assert LoRA.parse(text) == expected


@pytest.mark.parametrize("text", ["", "a:b:c", "a:0.5:middle", "a:nan", "a:inf:low", ":1"])
def test_what_cannot_be_read_so_is_refused(text):
    with refuses(LVSAError, "--lora", text, "FILE_OR_ID[:SCALE][:high|low]"):
        LoRA.parse(text)


def test_a_merged_lora_is_the_one_that_peft_runs(file):
    """Beside the weights, as diffusers loads it, it makes the same video, up to rounding."""
    beside = wan_pipeline()
    beside.transformer.load_lora_adapter(
        str(file.parent), weight_name=file.name, prefix=None, adapter_name="style"
    )
    beside.transformer.set_adapters(["style"], [0.5])
    expected = wan_latents(beside, steps=2)
    pipe = merged(wan_pipeline(), f"{file}:0.5")
    torch.testing.assert_close(wan_latents(pipe, steps=2), expected, rtol=1e-4, atol=1e-4)
    assert (expected - wan_latents(wan_pipeline(), steps=2)).abs().max() > 1e-2
    assert not any("lora" in name for name, _ in pipe.transformer.named_parameters())


def test_the_published_prefix_is_known(file, tmp_path):
    tensors = load_file(file)
    save_file(tensors, tmp_path / "bare.safetensors")
    tensors = {f"transformer.{name}": tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "prefixed.safetensors")
    a, b = (
        merged(wan_pipeline(), str(tmp_path / "bare.safetensors")),
        merged(wan_pipeline(), str(tmp_path / "prefixed.safetensors")),
    )
    for one, other in zip(a.transformer.parameters(), b.transformer.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("suffix", "changed"), [("", {FIRST, SECOND}), (":high", {FIRST}), (":1:low", {SECOND})]
)
def test_experts(file, suffix, changed):
    plain = wan_pipeline(two_transformers=True)
    pipe = merged(wan_pipeline(two_transformers=True), f"{file}{suffix}")
    for name, model in transformers(pipe).items():
        before, after = (m.blocks[0].attn1.to_q.weight for m in (getattr(plain, name), model))
        assert torch.equal(before, after) == (name not in changed)


def test_several_add_up(file, tmp_path):
    other = saved_lora(wan_pipeline().transformer, tmp_path / "b" / "b.safetensors", seed=1)
    plain, first, second = (
        merged(wan_pipeline(), *texts).transformer.blocks[0].attn1.to_q.weight
        for texts in ((), (f"{file}:0.5",), (str(other.parent),))
    )
    both = merged(wan_pipeline(), f"{file}:0.5", str(other.parent)).transformer
    torch.testing.assert_close(both.blocks[0].attn1.to_q.weight, first + second - plain)


def test_a_pipeline_without_a_loader_of_its_own_takes_one_too(tmp_path):
    pipe, made = hunyuan_pipeline(), hunyuan_pipeline().transformer
    file = saved_lora(made, tmp_path / "h.safetensors", targets=("to_q",))
    merged(pipe, str(file))
    # With the scale that the file says, alpha over rank.
    made.fuse_lora()
    layer, expected = (model.transformer_blocks[0].attn.to_q for model in (pipe.transformer, made))
    torch.testing.assert_close(layer.weight, expected.weight)


# Refused


def refused(error, text, *values, pipe=None):
    pipe = pipe or wan_pipeline()
    with refuses(error, "--lora", *values):
        check_loras([text], pipe, transformers(pipe))


def test_of_another_model(tmp_path):
    wide = saved_lora(wan_transformer(num_attention_heads=4), tmp_path / "wide.safetensors")
    layer = "blocks.0.attn1.to_out.0.lora_A.weight"
    refused(CheckpointError, str(wide), wide, layer, (4, 48), (24, 24), "WanTransformer3DModel")
    deep = saved_lora(wan_transformer(num_layers=3), tmp_path / "deep.safetensors")
    refused(CheckpointError, str(deep), deep, "blocks.2.attn1.to_out.0.lora_A.weight")


def test_files_that_are_none(tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors")
    refused(CheckpointError, str(broken), broken)
    pickled = tmp_path / "old.bin"
    pickled.write_bytes(b"")
    refused(CheckpointError, str(pickled), pickled, "*.safetensors")
    refused(CheckpointError, "/nowhere/a.safetensors", "/nowhere/a.safetensors", "org/name")
    refused(CheckpointError, "typo.safetensors", "typo.safetensors", "org/name/FILE")
    refused(CheckpointError, str(tmp_path.joinpath("empty")) + "/", "empty")
    save_file({"bias": torch.zeros(1)}, tmp_path / "strange.safetensors")
    refused(CheckpointError, f"{tmp_path}/strange.safetensors", "bias")


def test_a_folder_with_two(file):
    file.with_name("other.safetensors").write_bytes(file.read_bytes())
    refused(CheckpointError, str(file.parent), 2, "other.safetensors", "style.safetensors")


def test_a_dora(file):
    tensors = load_file(file) | {"blocks.0.attn1.to_q.dora_scale": torch.ones(24)}
    save_file(tensors, file)
    refused(CheckpointError, str(file), file, "DoRA")


def test_an_expert_that_the_model_does_not_have(file):
    refused(LVSAError, f"{file}:low", file, ":high", ":low", "WanPipeline")


def test_without_peft(file, monkeypatch):
    monkeypatch.setattr(loading.diffusers.utils, "is_peft_available", lambda: False)
    refused(LVSAError, str(file), "pip install peft", "lvsa-launcher[lora]")
