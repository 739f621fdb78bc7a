"""The rotary embeddings that RIFLEx knows: their temporal frequencies, and which one it lowers.

A new kind is an entry in `ROPES` and the function that changes its tables.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lvsa.errors import LVSAError
from lvsa.wrapping import Undo


@dataclass(frozen=True)
class Component:
    """The one frequency that changes.

    Args:
        k: which, counted from 1.
        old, new: radians per latent frame.
    """

    k: int
    old: float
    new: float

    @property
    def columns(self) -> slice:
        """Of a table that holds each frequency twice, side by side, the temporal axis first."""
        return slice(2 * (self.k - 1), 2 * self.k)

    def lower(self, tables: tuple[Tensor, Tensor], frames: int) -> None:
        """Writes the new frequency into ``cos, sin: [S, D]`` of a video of ``frames`` frames."""
        for table, wave in zip(tables, (torch.cos, torch.sin), strict=True):
            # There are no 64 bits on Apple's GPUs.
            dtype = torch.float32 if table.device.type == "mps" else torch.float64
            angles = torch.arange(frames, dtype=dtype, device=table.device) * self.new
            per_frame = table.shape[0] // frames
            table[:, self.columns] = wave(angles).to(table).repeat_interleave(per_frame)[:, None]


@dataclass(frozen=True)
class TemporalRope:
    """What RIFLEx needs to know of one kind of rotary embedding.

    Args:
        axis: (dimensions, base) of the temporal axis of what holds it.
        known: the intrinsic component that the RIFLEx authors name for a model with the temporal
            axis of this one; None where that is another: the same k would be another frequency.
        patch: lowers a component in a module and returns what takes that back.
    """

    axis: Callable[[Any], tuple[int, float]]
    known: Callable[[Any], int | None]
    patch: Callable[[Any, Component], Undo]


def _patch_tables(rope: Any, component: Component) -> Undo:
    """Wan keeps tables ``freqs_cos, freqs_sin: [positions, D]`` as buffers: they are exchanged."""
    originals = {name: getattr(rope, name) for name in ("freqs_cos", "freqs_sin")}
    cos, sin = (table.clone() for table in originals.values())
    component.lower((cos, sin), frames=cos.shape[0])
    rope.freqs_cos, rope.freqs_sin = cos, sin

    def undo() -> None:
        for name, table in originals.items():
            # The pipeline may have moved to another device meanwhile.
            setattr(rope, name, table.to(getattr(rope, name).device))

    return undo


def _patch_outputs(rope: Any, component: Component) -> Undo:
    """HunyuanVideo 1.5 makes ``cos, sin: [S, D]`` in each forward: a hook goes over them."""

    def lower(module: Any, args: Any, kwargs: Any, output: tuple[Tensor, Tensor]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        _, _, latent_frames, height, width = hidden.shape
        frames = latent_frames // module.patch_size_t
        per_frame = (height // module.patch_size) * (width // module.patch_size)
        for table in output:
            if table.shape[0] != frames * per_frame:
                raise LVSAError(
                    f"RIFLEx met a rotary table of {table.shape[0]} positions; a video of {frames} "
                    f"latent frames × {per_frame} tokens has {frames * per_frame}. A plan must not "
                    f"cut the outputs of {type(module).__name__}"
                )
        component.lower(output, frames)

    return rope.register_forward_hook(lower, with_kwargs=True).remove


def _patch_arguments(transformer: Any, component: Component) -> Undo:
    """CogVideoX is given its tables: `RIFLExPatch.arguments` lowers them, there is nothing here."""
    return lambda: None


# By class of `transformer.rope`, or of a transformer that is given its tables. Components as the
# authors name them (https://github.com/thu-ml/DiT-Extrapolation, formerly RIFLEx): 4 for
# HunyuanVideo, whose period of 50 latent frames is nearest the repetition at 48, and whose temporal
# axis HunyuanVideo 1.5 has kept; 2 for CogVideoX-5B (20, repetition at 20), but not for 1.5, whose
# frames of tokens are two latent frames; 6 for Wan 2.1 (51), by an author's word in issue 8 of that
# repository, although its videos repeat themselves near latent frame 21, which is nearest the
# period of component 4 (22). Nothing is published for Wan 2.2, which has the same axis.
ROPES: dict[str, TemporalRope] = {
    "WanRotaryPosEmbed": TemporalRope(
        axis=lambda rope: (rope.t_dim, 10000.0),
        known=lambda rope: 6 if rope.t_dim == 44 else None,
        patch=_patch_tables,
    ),
    "HunyuanVideo15RotaryPosEmbed": TemporalRope(
        axis=lambda rope: (rope.rope_dim[0], rope.theta),
        known=lambda rope: 4 if (rope.rope_dim[0], rope.theta) == (16, 256.0) else None,
        patch=_patch_outputs,
    ),
    # A quarter of a head is the temporal axis; the base is that of `get_3d_rotary_pos_embed`.
    "CogVideoXTransformer3DModel": TemporalRope(
        axis=lambda model: (model.config.attention_head_dim // 4, 10000.0),
        known=lambda model: 2 if _is_cogvideox_5b(model.config) else None,
        patch=_patch_arguments,
    ),
}


def _is_cogvideox_5b(config: Any) -> bool:
    return config.patch_size_t is None and config.attention_head_dim == 64
