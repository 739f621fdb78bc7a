"""What a video depends on besides its settings, as its record says it."""

import hashlib
import os
import subprocess

import pytest
import torch
from PIL import Image

from lvsa.errors import RankMismatch
from lvsa.launch.arguments import parse
from lvsa.launch.config import GenerateConfig
from lvsa.launch.job import make_job
from lvsa.launch.records import output, provenance
from lvsa.launch.records.provenance import Later, code_version, digest, folder_digests, hardware
from tests.support.errors import refuses
from tests.support.launched import launched
from tests.support.ranks import run_ranks
from tests.support.tiny import saved
from tests.support.tiny_wan_family import wan_i2v


def git(folder, *arguments):
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_the_commit_of_a_checkout_and_whether_it_was_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert code_version() is None, "no checkout"
    git(tmp_path, "init")
    (tmp_path / "file").write_text("first")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD").strip()
    assert code_version() == {"commit": commit, "modified": False}
    (tmp_path / "file").write_text("second")
    assert code_version() == {"commit": commit, "modified": True}
    # A package installed into somebody's checkout is not that checkout.
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "site-packages")
    (tmp_path / "site-packages").mkdir()
    assert code_version() is None
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", os.devnull)
    assert code_version() is None, "no git"


def test_digests_are_those_of_sha256sum(tmp_path):
    (tmp_path / "vae" / "deep").mkdir(parents=True)
    (tmp_path / "vae" / "a.bin").write_bytes(b"a" * 2**20)
    (tmp_path / "vae" / "deep" / "b.bin").write_bytes(b"b")
    (tmp_path / "index.json").write_text("{}")
    (tmp_path / ".cache").mkdir()
    sums = subprocess.run(
        ["sha256sum", "a.bin", "deep/b.bin"], cwd=tmp_path / "vae", capture_output=True, check=True
    ).stdout
    found = folder_digests(tmp_path)
    assert found == {
        "index.json": hashlib.sha256(b"{}").hexdigest(),
        "vae": hashlib.sha256(sums).hexdigest(),
    }
    (tmp_path / "vae" / "deep" / "b.bin").write_bytes(b"c")
    changed = folder_digests(tmp_path)
    assert changed["vae"] != found["vae"] and changed["index.json"] == found["index.json"]


def test_weights_and_inputs_of_a_job(tmp_path):
    model = saved(wan_i2v(), tmp_path / "model")
    image = tmp_path / "red.png"
    Image.new("RGB", (96, 32), "red").save(image)
    arguments = ["--model", str(model), "--image", str(image), "--prompt", "x", "--num-frames",
                 "9", "--height", "32", "--width", "96"]  # fmt: skip
    job = make_job(parse(arguments), 1, torch.device("cpu"))
    origins = provenance.provenance(job.source)
    assert provenance.input_digests(job.config.video) == {"image": {"sha256": digest(image)}}
    assert {"transformer", "vae", "model_index.json"} <= set(origins["weights"]["sha256"])
    image.unlink()
    gone = provenance.input_digests(job.config.video)["image"]
    assert str(image) in gone["error"], "said, and no reason to lose the record"


def test_hardware_of_a_rank():
    facts = hardware(torch.device("cpu"))
    assert facts["device"] == "cpu" and facts["threads"] == torch.get_num_threads()
    assert facts["host"] and facts["cpu"] and facts["cores"] >= 1


def test_later_work_is_waited_for_and_its_errors_are_raised():
    assert Later(lambda: 3).result() == 3
    with pytest.raises(ZeroDivisionError):
        Later(lambda: 1 / 0).result()


def other_versions(rank, world, folder):
    versions = output.versions
    output.versions = lambda: {**versions(), "numpy": f"2.{rank}"}
    with refuses(RankMismatch, "numpy", "'2.0' on rank 0", "'2.1' on rank 1"):
        launched(rank, world, ["--prompt", "x", "--output-dir", folder])


def test_ranks_with_other_versions_stop(tmp_path):
    run_ranks(2, other_versions, str(tmp_path))


def test_records_hold_numbers_that_json_knows(tmp_path):
    output.write_record(tmp_path / "a.json", {"config": GenerateConfig().as_dict()})
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError):
            output.write_record(tmp_path / "b.json", {"seconds": number})
    assert not (tmp_path / "b.json").exists()
