"""The plan's meshes: what a model does in a step, the ranking, and who holds what."""

import pytest
import torch

from lvsa.adapters import adapter_for
from lvsa.cp_plans.trial import meta_twin
from lvsa.hardware import find_hardware
from lvsa.launch.arguments import parse
from lvsa.launch.job import make_job
from lvsa.launch.meshes.drawing import mesh_lines
from lvsa.launch.meshes.ranking import ranked, ranking_lines
from lvsa.launch.meshes.work import FRAMES, Growth, count, work_of
from lvsa.launch.report import report
from lvsa.shards import FrameGrid
from tests.support import tiny, tiny_cogvideox, tiny_hunyuan, tiny_wan_family

CPU = torch.device("cpu")
FAMILIES = {
    "wan": tiny.wan_pipeline,
    "i2v": tiny_wan_family.wan_i2v,
    "ti2v": tiny_wan_family.wan_ti2v,
    "vace": tiny_wan_family.wan_vace,
    "skyreels": tiny_wan_family.skyreels,
    "hunyuan": tiny_hunyuan.hunyuan_pipeline,
    "cogvideox-2b": lambda: tiny_cogvideox.cogvideox_pipeline("2b"),
    "cogvideox-1.5": lambda: tiny_cogvideox.cogvideox_pipeline("1.5"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_counted_is_a_parabola_of_the_attention(family):
    """Of every family: the square is that of the layers' attention, the rest is a line."""
    pipe = FAMILIES[family]()
    adapter, transformer = adapter_for(type(pipe).__name__), pipe.transformer
    plan = adapter.model_plan(pipe, transformer)
    grid = FrameGrid(5, 2, 3)
    counted = [
        count(meta_twin(transformer), plan, FrameGrid(frames, 2, 3)) for frames in (*FRAMES, 5)
    ]
    flops = Growth.of([c.flops for c in counted[:3]], 6)
    config = transformer.config
    layers = sum(1 for _ in adapter.attention_modules(transformer))
    channels = config.num_attention_heads * config.attention_head_dim
    assert flops.square == pytest.approx(4 * channels * layers)
    assert flops.start + 30 * flops.slope + 900 * flops.square == pytest.approx(counted[3].flops)
    moved = Growth.of([c.bytes for c in counted[:3]], 6)
    # But for masks and tables of positions, which have sizes of their own.
    assert moved.start + 30 * moved.slope == pytest.approx(counted[3].bytes, rel=0.03)
    work = work_of(transformer, plan, grid, layers=layers, dtype=torch.bfloat16, passes=2)
    assert work.token.flops == flops.slope > 0
    assert work.token.bytes == moved.slope / 2 > 0
    assert (work.heads * work.head_dim, work.layers) == (channels, layers)


def test_work_on_a_token_by_hand():
    """Wan: four products of self-attention, two of cross-attention and its attention over 512
    text tokens, two of the feed-forward, those of the patches in and out."""
    pipe = tiny.wan_pipeline()
    transformer, grid = pipe.transformer, FrameGrid(5, 2, 3)
    plan = adapter_for("WanPipeline").model_plan(pipe, transformer)
    work = work_of(transformer, plan, grid, layers=2, dtype=torch.float32, passes=1)
    C, ffn, patch, text = 24, 32, 4 * 4, 512
    layer = 2 * (4 * C * C + 2 * C * C + 2 * C * ffn) + 4 * text * C
    assert work.token.flops == 2 * layer + 2 * 2 * patch * C
    assert work.sample == patch * 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.saved(tiny.wan_pipeline(), tmp_path_factory.mktemp("model"))


def job(model, *more, world=1):
    given = ["--model", str(model), "--prompt", "x", "--num-frames", "45", "--height", "32",
             "--width", "64", "--lvsa", "--dry-run", "--dtype", "bfloat16", *more]  # fmt: skip
    return make_job(parse(given), world, CPU)


HARDWARE = ["--hardware", "h100", "--ranks", "8"]


def test_the_plan_ranks_meshes_where_hardware_is_named(model):
    planned = job(model, *HARDWARE, "--ulysses", "2", "--exchange", "ring")
    found = ranked(planned, find_hardware("h100"))
    assert [cost.seconds for cost in found] == sorted(cost.seconds for cost in found)
    assert {cost.mesh.guidance for cost in found} == {1, 2}
    lines = ranking_lines(planned)
    marked = [line for line in lines if "this job" in line]
    (here,) = [c for c in found if (str(c.mesh), c.exchange) == (str(planned.mesh), "ring")]
    assert len(marked) == 1 and "4 frames × 2 heads, ring" in marked[0]
    assert f"{here.seconds:.4g}" in marked[0] and f"{here.inside / 1e6:.4g}" in marked[0]
    assert f"{found[0].seconds:.4g}" in lines[3]
    assert all(line in report(planned) for line in lines)
    for other in (["--ranks", "8"], ["--hardware", "h100"]):
        assert ranking_lines(job(model, *other)) == []
    assert ranking_lines(job(model, *HARDWARE, "--dtype", "float32")) == []


def test_guidance_of_one_pass_has_no_mesh_for_two(model):
    found = ranked(job(model, *HARDWARE, "--guidance", "1"), find_hardware("h100"))
    assert {cost.mesh.guidance for cost in found} == {1}


def test_who_holds_what_on_a_mesh(model):
    """96 tokens and two heads on two nodes of two ranks."""
    lines = mesh_lines(job(model, "--ranks", "4", "--ulysses", "2"))
    rows = [line.split() for line in lines[2:6]]
    assert [(row[0], row[2], row[4], row[-1]) for row in rows] == [
        ("0", "0", "23", "0"),
        ("1", "24", "47", "1"),
        ("2", "48", "71", "0"),
        ("3", "72", "95", "1"),
    ]
    assert rows[3][5:8] == ["48", "–", "95"]
    assert any("frames" in line and "0 2" in line for line in lines[6:])
    assert any("heads" in line and "0 1" in line for line in lines[6:])
    assert mesh_lines(job(model)) == []
    many = mesh_lines(job(model, "--ranks", "32", "--hardware", "h100", "--guidance-parallel"))
    assert any("16 more" in line for line in many)
    assert "between nodes" in many[-1] and "between nodes" in many[-2]
