"""The backend held against vLLM-Omni's own classes: registration, shapes, ranges, refusals."""

import logging
from types import SimpleNamespace

import pytest
import torch

from lvsa.errors import LVSAError, SequenceError
from lvsa.shards import FrameGrid
from tests.serving.support.masks import token_mask
from tests.serving.support.stand_in import configuration, stand_in
from tests.support.errors import refuses
from tests.support.oracle import masked_attention, relative_error

GRID = (40, 1, 3)
S = 120
H, D = 2, 8


@pytest.fixture
def engine():
    with stand_in() as engine:
        engine.context = SimpleNamespace(denoise_step_idx=3)
        engine.config = configuration(additional_config={"lvsa": {"rotate_keyframes": True}})
        engine.dense = f"{__name__}.DenseBackend"
        yield engine


class DenseBackend:
    """A platform's dense backend, which notes what it is made with."""

    def __init__(self, **arguments):
        self.arguments = arguments

    @staticmethod
    def get_name():
        return "DENSE"

    @classmethod
    def get_impl_cls(cls):
        return cls

    def forward(self, query, key, value, attn_metadata=None):
        return masked_attention(query, key, value, scale=self.arguments["softmax_scale"]).float()


def layer(engine, **changed):
    arguments = {"num_heads": H, "head_size": D, "softmax_scale": D**-0.5, "num_kv_heads": H}
    extra = {"prefix": "blocks.0.attn1", "role": "self", "backend_explicit": True}
    return engine.backend.LVSAImpl(**{**arguments, **extra, **changed})


def tensors(tokens, batch=1):
    return torch.randn(3, batch, tokens, H, D, generator=torch.Generator().manual_seed(0))


def metadata(engine, used=S, **more):
    layout = engine.abstract.VideoTokenLayout(prefix_len=0, latent_grid=GRID, used_len=used)
    return engine.abstract.AttentionMetadata(video_layout=layout, **more)


def expected(q, k, v, impl, step):
    return masked_attention(q, k, v, token_mask(impl.attend.pattern(GRID[0]), step, 3))


def test_registration_is_idempotent_and_found_by_name(engine, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lvsa"), "parent", logging.getLogger())
    for _ in range(2):
        engine.plugin.register()
        known = engine.registry.DiffusionAttentionBackendEnum
        assert known["LVSA"].get_class() is engine.backend.LVSABackend
        assert [name for name in known.__members__ if "LVSA" in name] == ["LVSA"]
    assert logging.getLogger("lvsa").parent is logging.getLogger("vllm")


@pytest.mark.parametrize(("installed", "known"), [("0.22.0", False), ("0.31.0.dev2", True)])
def test_older_engines_go_without_lvsa(engine, installed, known, monkeypatch, caplog):
    monkeypatch.setattr(engine.plugin, "version", lambda _: installed)
    monkeypatch.setattr(logging.getLogger("lvsa"), "parent", logging.getLogger())
    engine.plugin.register()
    assert ("LVSA" in engine.registry.DiffusionAttentionBackendEnum.__members__) == known
    said = [record.getMessage() for record in caplog.records]
    assert [installed in message and "0.30" in message for message in said] == [True] * (not known)


def test_the_classes_are_whole(engine):
    backend, impl = engine.backend.LVSABackend, engine.backend.LVSAImpl
    assert issubclass(backend, engine.abstract.AttentionBackend)
    assert issubclass(impl, engine.abstract.AttentionImpl)
    assert not backend.__abstractmethods__ | impl.__abstractmethods__
    assert backend.get_name() == "LVSA"
    assert backend.get_impl_cls() is impl
    assert backend.get_metadata_cls() is engine.abstract.AttentionMetadata
    assert backend.supports_head_size(40)
    assert backend.supports_attention_mask()
    assert not backend.supports_paged_kv
    assert not impl.supports_kv_cache_dtype("fp8", "cuda")
    with pytest.raises(NotImplementedError):
        backend.get_builder_cls()


@pytest.mark.parametrize("step", [0, 4])
def test_a_forward_follows_the_layout_and_the_step(engine, step):
    impl, (q, k, v) = layer(engine), tensors(S)
    engine.context.denoise_step_idx = step
    out = impl.forward(q, k, v, metadata(engine))
    assert relative_error(out, expected(q, k, v, impl, step)) < 1e-5
    assert relative_error(out, masked_attention(q, k, v)) > 1e-2


def test_padding_is_never_attended(engine):
    impl, (q, k, v) = layer(engine), tensors(S + 2)
    out = impl.forward(q, k, v, metadata(engine))
    assert relative_error(out[:, :S], expected(q[:, :S], k[:, :S], v[:, :S], impl, 3)) < 1e-5
    assert not out[:, S:].any()


@pytest.mark.parametrize("world", [2, 3, 7])
def test_gathered_keys_and_a_ranks_queries(engine, world):
    impl, (q, k, v) = layer(engine), tensors(S)
    whole = expected(q, k, v, impl, 3)
    share = -(-S // world)
    k, v = (torch.nn.functional.pad(x, (0, 0, 0, 0, 0, share * world - S), value=9) for x in (k, v))
    for rank in range(world):
        rows = q[:, rank * share : (rank + 1) * share]
        padded = torch.nn.functional.pad(rows, (0, 0, 0, 0, 0, share - rows.shape[1]))
        ranges = (engine.abstract.QueryRange(0, share, rank * share),)
        out = impl.forward(padded, k, v, metadata(engine, query_ranges=ranges))
        assert out.shape == padded.shape
        mine = whole[:, rank * share : (rank + 1) * share]
        assert relative_error(out[:, : mine.shape[1]], mine) < 1e-5
        assert not out[:, mine.shape[1] :].any()


def test_layers_of_one_model_share_patterns_and_tables(engine):
    assert layer(engine).attend is layer(engine, prefix="blocks.1.attn1").attend


def test_cross_attention_is_dense_and_said_once(engine, caplog):
    caplog.set_level(logging.INFO, "lvsa")
    impls = [layer(engine, role=role) for role in ("cross", "cross", "longcat_video_avatar.cross")]
    q, k, v = tensors(S)
    out = impls[0].forward(q, k[:, :5], v[:, :5], None)
    assert relative_error(out, masked_attention(q, k[:, :5], v[:, :5])) < 1e-5
    assert impls[0].dense.arguments["role"] == "cross"
    said = [record.getMessage() for record in caplog.records if "DENSE" in record.getMessage()]
    assert len(said) == 2  # one for each role


def test_self_attention_without_a_layout_names_the_model_and_the_layer(engine):
    impl = layer(engine)
    for nothing in (None, engine.abstract.AttentionMetadata()):
        with refuses(SequenceError, "WanPipeline", "blocks.0.attn1", S, "per_role"):
            impl.forward(*tensors(S), nothing)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"ring_degree": 2}, ("ring_degree", 2, "ulysses_degree", "allgather_degree")),
        ({"diffusion_kv_cache_dtype": "fp8"}, ("diffusion_kv_cache_dtype", "fp8", "auto")),
        ({"additional_config": {"lvsa": {"window": 3}}}, ("window", "window_size")),
        ({"additional_config": {"lvsa": {"window_size": -4}}}, (-4,)),
        ({"model": "tests"}, ("model_index.json",)),
    ],
)
def test_configurations_that_lvsa_does_not_honor_are_refused(engine, changed, named, caplog):
    engine.config = configuration(**changed)
    for _ in range(2):
        with refuses(LVSAError, *named) as caught:
            layer(engine)
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert said == [f"[LVSA] {caught.value}"]


@pytest.mark.parametrize("dtype", [None, "auto", "float"])
def test_the_models_own_type_is_no_quantization(engine, dtype):
    engine.config = configuration(diffusion_kv_cache_dtype=dtype)
    assert layer(engine).dense is None


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"causal": True}, ("blocks.0.attn1", True)),
        ({"num_kv_heads": 1}, (2, 1)),
        ({"backend_kwargs": {"topk": 3}}, ("topk",)),
    ],
)
def test_layers_that_lvsa_does_not_serve_are_refused(engine, changed, named):
    with refuses(LVSAError, *named):
        layer(engine, **changed)


def test_outside_the_engine_there_is_no_configuration(engine):
    engine.config = None
    with refuses(LVSAError, "engine"):
        layer(engine)


def test_variables_of_the_published_plugin_are_mapped_and_named(engine, caplog, monkeypatch):
    monkeypatch.setenv("LVSA_SPARSITY_SCALE", "0.5")
    monkeypatch.setenv("LVSA_WAN_HOOK", "1")
    impls = [layer(engine) for _ in range(3)]
    options = impls[0].attend.options
    assert (options.sparsity_scale, options.rotate_keyframes) == (0.5, True)
    said = [record.getMessage() for record in caplog.records]
    assert sum("LVSA_WAN_HOOK" in message for message in said) == 1
    assert sum("LVSA_SPARSITY_SCALE" in message for message in said) == 1


def test_options_without_effect_are_named(engine, caplog):
    options = {"key_frame_interval": 16, "horizon": 30}
    engine.config = configuration(additional_config={"lvsa": options})
    layer(engine)
    assert any("horizon" in record.getMessage() for record in caplog.records)


class Transformer(torch.nn.Module):
    """Two blocks' worth of attention in a model that tells the engine nothing."""

    def __init__(self, impl):
        super().__init__()
        self.impl, self.steps = impl, []

    def forward(self, hidden_states, timestep, text=0):
        """A docstring that stays."""
        return self.impl.forward(*tensors(S + text), None)


def read(transformer, arguments):
    frames, rows, columns = arguments["hidden_states"].shape[2:]
    return FrameGrid(frames, rows, columns), arguments["timestep"]


def test_a_hook_tells_grid_and_step(engine):
    class Model(Transformer):
        pass

    watch, request = engine.hook.watch, engine.request
    original = Model.forward
    watch(Model, read)
    once = Model.forward
    watch(Model, read)
    assert Model.forward is once is not original
    assert Model.forward.__doc__ == original.__doc__
    model, latents = Model(layer(engine)), torch.zeros(1, 1, *GRID)
    for _ in range(2):  # two requests, each with a context of its own
        engine.context = SimpleNamespace(denoise_step_idx=None)
        steps = []
        for t in (1000.0, 600.0, 200.0):
            timestep = torch.tensor([t])
            for passed in (timestep, timestep.clone()):  # guidance
                out = model(latents, timestep=passed)
                steps.append(request.current_step())
        assert steps == [0, 0, 1, 1, 2, 2]
        assert request.current_grid() == FrameGrid(*GRID)
    assert relative_error(out, expected(*tensors(S), model.impl, 2)) < 1e-5


def test_text_behind_the_video_is_attended_by_all(engine):
    watch = engine.hook.watch
    engine.context = SimpleNamespace(denoise_step_idx=0)

    class Model(Transformer):
        pass

    watch(Model, read)
    model = Model(layer(engine))
    out = model(torch.zeros(1, 1, *GRID), torch.tensor([5.0]), text=4)
    q, k, v = tensors(S + 4)
    mask = torch.ones(S + 4, S + 4, dtype=torch.bool)
    mask[:S, :S] = token_mask(model.impl.attend.pattern(40), 0, 3)
    assert relative_error(out, masked_attention(q, k, v, mask)) < 1e-5


def test_the_engines_step_goes_before_a_count(engine):
    engine.context = SimpleNamespace(denoise_step_idx=7)
    engine.request.publish(FrameGrid(1, 1, 1), torch.tensor([1.0]))
    assert engine.request.current_step() == 7


def test_outside_a_forward_there_is_no_step(engine):
    engine.context = None
    engine.request.publish(FrameGrid(1, 1, 1), torch.tensor([1.0]))
    assert engine.request.current_step() is None
    assert engine.request.current_grid() is None


def test_the_hook_of_hunyuanvideo_reads_patches(engine):
    hook = engine.hunyuan15
    transformer = SimpleNamespace(patch_size=2, patch_size_t=1)
    timestep = torch.tensor([3.0])
    arguments = {"hidden_states": torch.zeros(1, 8, 5, 6, 8), "timestep": timestep}
    assert hook.read(transformer, arguments) == (FrameGrid(5, 3, 4), timestep)
