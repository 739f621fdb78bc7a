"""Checkpoints with something missing, broken or strange: named, before anything is denoised."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lvsa.adapters import adapter_for
from lvsa.errors import CheckpointError
from lvsa.launch.loading.models import find_model
from lvsa.launch.loading.weights import load_pipeline, networks
from tests.support.errors import refuses
from tests.support.tiny import saved, wan_pipeline

FILES = {
    "text_encoder": "model.safetensors",
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return saved(wan_pipeline(), tmp_path_factory.mktemp("models") / "wan")


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "wan")


def load(folder, **options):
    return load_pipeline(
        find_model(str(folder)), torch.float32, adapter_for("WanPipeline"), **options
    )


def edit(folder, name, change):
    path = folder / name / FILES[name]
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def some(folder, name):
    return sorted(load_file(folder / name / FILES[name]))[0]


def test_networks_are_the_components_with_weights(original):
    assert {name for name, _ in networks(find_model(str(original)))} == set(FILES)


def test_a_whole_checkpoint_loads_the_same_twice(folder):
    first, second = (load(folder).text_encoder.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_tensor_is_named(folder, name):
    key = "shared.weight" if name == "text_encoder" else some(folder, name)
    edit(folder, name, lambda tensors: tensors.pop(key))
    with refuses(CheckpointError, name, key):
        load(folder)


@pytest.mark.parametrize("name", FILES)
def test_an_unexpected_tensor_is_named(folder, name):
    edit(folder, name, lambda tensors: tensors.update(stray=torch.zeros(2)))
    with refuses(CheckpointError, name, "stray"):
        load(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_tensor_of_another_shape_is_named(folder, name):
    key = "shared.weight" if name == "text_encoder" else some(folder, name)
    edit(folder, name, lambda tensors: tensors.update({key: torch.zeros(3, 3)}))
    with refuses(CheckpointError, name, key):
        load(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_off_in_transfer(folder, name):
    path = folder / name / FILES[name]
    path.write_bytes(path.read_bytes()[:-100])
    with refuses(CheckpointError, name):
        load(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_there(folder, name):
    (folder / name / FILES[name]).unlink()
    with refuses(CheckpointError, f"{name}/", "*.safetensors"):
        load(folder)


def test_a_shard_that_is_not_there(folder):
    pipe = load(folder)
    shutil.rmtree(folder / "transformer")
    pipe.transformer.save_pretrained(folder / "transformer", max_shard_size="20KB")
    shards = sorted((folder / "transformer").glob("*.safetensors"))
    assert len(shards) > 1
    load(folder)
    shards[0].unlink()
    with refuses(CheckpointError, "transformer/", shards[0].name):
        load(folder)


def test_variants_are_asked_for_by_name(folder):
    for name, file in FILES.items():
        path = folder / name / file
        path.rename(path.with_suffix(".fp16.safetensors"))
    with refuses(CheckpointError, "text_encoder/", "fp16", "--variant"):
        load(folder)
    with refuses(CheckpointError, "text_encoder/", "bf16", "fp16"):
        load(folder, variant="bf16")
    assert load(folder, variant="fp16").transformer is not None


def test_a_component_without_the_variant_is_read_plain_and_said(folder, caplog):
    path = folder / "vae" / FILES["vae"]
    path.rename(path.with_suffix(".fp16.safetensors"))
    load(folder, variant="fp16")
    plain = {
        record.args for record in caplog.records if record.name == "lvsa.launch.loading.weights"
    }
    assert plain == {("text_encoder", "fp16"), ("transformer", "fp16")}


def test_pickled_weights_only_on_request(folder):
    path = folder / "text_encoder" / FILES["text_encoder"]
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()
    with refuses(CheckpointError, "text_encoder/", "pytorch_model.bin", "--allow-pickle"):
        load(folder)
    assert load(folder, allow_pickle=True).text_encoder is not None


def test_pickles_that_run_code_are_not_read_even_then(folder, tmp_path):
    class Attack:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    path = folder / "text_encoder" / FILES["text_encoder"]
    torch.save({"shared.weight": Attack()}, path.with_name("pytorch_model.bin"))
    path.unlink()
    with refuses(CheckpointError, "text_encoder"):
        load(folder, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_a_broken_index_of_shards(folder):
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text("{")
    with refuses(CheckpointError, index.name):
        load(folder)


def test_an_unknown_scheduler_class(folder):
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "NoSuchScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with refuses(CheckpointError, "NoSuchScheduler"):
        load(folder)


@pytest.mark.parametrize("part", ["vae", "scheduler", "tokenizer", "text_encoder", "transformer"])
def test_a_folder_that_is_not_there(folder, part):
    shutil.rmtree(folder / part)
    with refuses(CheckpointError, f"{part}/"):
        load(folder)


def test_an_unknown_network_class(folder):
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "NoSuchModel"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with refuses(CheckpointError, "text_encoder", "NoSuchModel"):
        load(folder)


def test_encoders_stay_on_the_disk_where_they_are_not_needed(folder):
    shutil.rmtree(folder / "text_encoder")
    assert load(folder, encodes=False).text_encoder is None
