"""CogVideoX 2B, 5B and 1.5: joint attention over text and video through shared projections.

The pattern counts frames of tokens. In 2B and 5B such a frame is one latent frame (4 video frames).
In 1.5 the transformer's patches are two latent frames deep (8 video frames), and its text-to-video
and image-to-video pipelines pad the latents to a multiple of that in front: 81 video frames are 21
latent frames, padded to 22, which are 11 frames of tokens.

The VAE decodes its latent frames in pairs. An odd one at the start decodes to a single video frame
and all others to 4, so that T latent frames make 4(T - 1) + 1 video frames where T is odd and 4T
where it is even. Videos of 8k and 8k + 1 frames come back as long as they were asked for; any other
length is an error. (`AutoencoderKLCogVideoX._decode`; its comments count 12 → 48 and 13 → 49.)
"""

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from lvsa.adapters.base import QKV, ModelAdapter, is_pipeline, modules_named, split_heads
from lvsa.adapters.checkpoints.cogvideox import COGVIDEOX, HORIZON
from lvsa.errors import GridError, LVSAError
from lvsa.processor import LVSAProcessor
from lvsa.rope import apply_rotary_3d_cos_sin
from lvsa.shards import FrameGrid

logger = logging.getLogger(__name__)

TEXT_TO_VIDEO = "CogVideoXPipeline"
IMAGE_TO_VIDEO = "CogVideoXImageToVideoPipeline"
VIDEO_TO_VIDEO = "CogVideoXVideoToVideoPipeline"


def decoded_frames(latent_frames: int, factor: int) -> int:
    """Video frames that the VAE decodes from this many latent frames, ``factor`` from each.

    Only an odd first latent frame decodes to one.
    """
    return latent_frames * factor - (factor - 1 if latent_frames % 2 else 0)


@dataclass(frozen=True)
class CogVideoXGrid(FrameGrid):
    """The token grid of a CogVideoX video; its messages name lengths that the VAE makes."""

    latent_patch: int = 1
    """Latent frames per frame of tokens."""
    padding: int = 0
    """Latent frames of the first one that the pipeline adds, and drops before it decodes."""

    def video_frames(self, latent_frames: int) -> int:
        """Video frames that decode from this many frames of tokens."""
        factor = self.temporal_factor // self.latent_patch
        return decoded_frames(latent_frames * self.latent_patch - self.padding, factor)


class CogVideoXAdapter(ModelAdapter):
    """CogVideoX from text, image and video. "Latent frames" of the contract are token frames."""

    name = "cogvideox"
    pipelines = (TEXT_TO_VIDEO, IMAGE_TO_VIDEO, VIDEO_TO_VIDEO)
    horizon = HORIZON
    known_models = COGVIDEOX
    replicated_methods = ("encode_prompt", "prepare_latents")
    guidance_style = "batch"
    # The only ones with the shift of the signal-to-noise ratio that these models learned.
    schedulers = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")

    def __init__(self) -> None:
        self._fused: WeakSet[nn.Module] = WeakSet()

    # Geometry

    def temporal_factor(self, pipe: Any) -> int:
        """Video frames per frame of tokens: 4, or 8 in CogVideoX 1.5."""
        return self._vae_factor(pipe) * self.patch_size(pipe)[0]

    def spatial_factor(self, pipe: Any) -> int:
        levels: int = len(pipe.vae.config.block_out_channels)
        return 2 ** (levels - 1)

    def latent_frames(self, num_frames: int, pipe: Any) -> int:
        """T, frames of tokens of a video (see the module for what those are).

        Raises:
            GridError: for a number of frames that would not come back from the VAE, or that the
                pipeline refuses; names the nearest ones.
        """
        tokens = self._token_frames(num_frames, pipe)
        if tokens is not None:
            return tokens
        reach = 2 * self.temporal_factor(pipe)
        around = range(max(1, num_frames - reach), max(1, num_frames) + reach + 1)
        valid = [n for n in around if self._token_frames(n, pipe)]
        below = [n for n in valid if n < num_frames][-1:]
        near = " or ".join(map(str, below + [n for n in valid if n > num_frames][:1]))
        pair = 2 * self._vae_factor(pipe)
        if self._pads(pipe):
            allowed = f"{pair}k or {pair}k + 1, which this model's VAE decodes to as many"
        else:
            allowed = (
                f"{pair}k, which video-to-video of this model takes: it does not pad the latent "
                f"frames to a multiple of {self.patch_size(pipe)[0]}"
            )
        raise GridError(f"{num_frames} frames are not {allowed}; nearest: {near}")

    def grid(self, num_frames: int, height: int, width: int, pipe: Any) -> FrameGrid:
        """The token grid of a video.

        Raises:
            GridError: see `latent_frames`, `patches_per_frame`; and for a size for which the model
                has no position embeddings.
        """
        grid = super().grid(num_frames, height, width, pipe)
        assert isinstance(grid, CogVideoXGrid)
        if grid.video_frames(grid.frames) != num_frames:
            # 8k frames fill the token frames without padding.
            grid = replace(grid, padding=0)
        self._check_positions(grid, pipe)
        return grid

    def token_grid(self, frames: int, rows: int, columns: int, pipe: Any) -> "CogVideoXGrid":
        """A grid of tokens, of 8k + 1 video frames where the pipeline can make both."""
        p_t = self.patch_size(pipe)[0]
        base = super().token_grid(frames, rows, columns, pipe)
        return CogVideoXGrid(
            **vars(base), latent_patch=p_t, padding=p_t - 1 if self._pads(pipe) else 0
        )

    def read_grid(
        self, pipe: Any, transformer: nn.Module, arguments: Mapping[str, Any]
    ) -> FrameGrid | None:
        """The token grid of a forward; frames stand before channels here, ``[B, T, C, H, W]``.

        Raises:
            GridError: for a size for which the model has no position embeddings.
        """
        hidden = arguments.get("hidden_states")
        if not isinstance(hidden, Tensor) or hidden.dim() != 5:
            return None
        grid = super().read_grid(pipe, transformer, {"hidden_states": hidden.transpose(1, 2)})
        if grid is not None:
            self._check_positions(grid, pipe)
        return grid

    def pipeline_class(self, index: Mapping[str, Any], given: Collection[str]) -> str:
        """A text-to-video checkpoint also starts from a video."""
        if index["_class_name"] == TEXT_TO_VIDEO and "video" in given:
            return VIDEO_TO_VIDEO
        return super().pipeline_class(index, given)

    def call_arguments(self, pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """As many text tokens as the transformer has positions for; otherwise as they are.

        Video-to-video takes its length from the video and has no ``num_frames``.

        Raises:
            GridError: for a video of another length than ``num_frames``.
            LVSAError: for a missing video.
        """
        arguments = dict(arguments)
        if is_pipeline(pipe, VIDEO_TO_VIDEO):
            wanted, video = arguments.pop("num_frames", None), arguments.get("video")
            if video is None:
                raise LVSAError(f"{VIDEO_TO_VIDEO} was given no video; it needs one to start from")
            if wanted is not None and len(video) != wanted:
                raise GridError(
                    f"the video has {len(video)} frames and {wanted} were asked for; "
                    f"{VIDEO_TO_VIDEO} makes as many as it is given: cut the video to {wanted}, or "
                    f"ask for {len(video)}"
                )
        positions = pipe.transformer.config.max_text_seq_length
        return {"max_sequence_length": positions, **arguments}

    def _vae_factor(self, pipe: Any) -> int:
        return int(pipe.vae.config.temporal_compression_ratio)

    def _pads(self, pipe: Any) -> bool:
        """Whether the pipeline makes whole frames of tokens of any number of latent frames."""
        return self.patch_size(pipe)[0] == 1 or not is_pipeline(pipe, VIDEO_TO_VIDEO)

    def _token_frames(self, num_frames: int, pipe: Any) -> int | None:
        """Frames of tokens of a video; None for a length that is not on the grid."""
        factor, p_t = self._vae_factor(pipe), self.patch_size(pipe)[0]
        latent = (num_frames - 1) // factor + 1
        if num_frames < 1 or decoded_frames(latent, factor) != num_frames:
            return None
        if latent % p_t and not self._pads(pipe):
            return None
        return -(-latent // p_t)

    def _check_positions(self, grid: FrameGrid, pipe: Any) -> None:
        """Stops where the model has no positions for a size; see `CogVideoXPatchEmbed`."""
        config: Any = pipe.transformer.config
        height, width = grid.rows * grid.pixels_per_row, grid.columns * grid.pixels_per_column
        most = config.sample_height // config.patch_size, config.sample_width // config.patch_size
        own_height, own_width = most[0] * grid.pixels_per_row, most[1] * grid.pixels_per_column
        if config.use_learned_positional_embeddings:
            if (grid.rows, grid.columns) != most:
                raise GridError(
                    f"{height} × {width} pixels: this model learned its position embeddings for "
                    f"{own_height} × {own_width} and makes no other size"
                )
            num_frames = grid.video_frames(grid.frames)
            if num_frames != config.sample_frames:
                logger.warning(
                    "the position embeddings that this model learned are for %d frames; for %d "
                    "diffusers puts sinusoidal ones in their place",
                    config.sample_frames,
                    num_frames,
                )
            return
        sliced = config.patch_size_t is not None and config.use_rotary_positional_embeddings
        if sliced and (grid.rows > most[0] or grid.columns > most[1]):
            raise GridError(
                f"{height} × {width} pixels are more than this model's rotary positions reach; "
                f"largest height {own_height}, largest width {own_width}"
            )

    # Projections: text and video go through the same layers. The pipelines pass no mask: padded
    # text tokens are attended like the others, here as in `CogVideoXAttnProcessor2_0`.

    def extract_qkv(self, attn: Any, hidden: Tensor, encoder: Tensor | None) -> QKV:
        if attn in self._fused:
            q, k, v = attn.to_qkv(hidden).chunk(3, dim=-1)
        else:
            q, k, v = attn.to_q(hidden), attn.to_k(hidden), attn.to_v(hidden)
        q, k, v = (split_heads(attn, x) for x in (q, k, v))
        q = q if attn.norm_q is None else attn.norm_q(q)
        k = k if attn.norm_k is None else attn.norm_k(k)
        return q, k, v

    def extract_encoder_qkv(self, attn: Any, encoder: Tensor) -> QKV:
        return self.extract_qkv(attn, encoder, None)

    def apply_rotary(
        self, q: Tensor, k: Tensor, rotary_emb: Any, local_seq: int, rank: int, world: int
    ) -> tuple[Tensor, Tensor]:
        return apply_rotary_3d_cos_sin(q, k, rotary_emb, local_seq, rank, world)

    def format_output(
        self,
        attn: Any,
        hidden: Tensor,
        encoder_output: Tensor | None,
        encoder_seq_len: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        """Video and text; the text goes through the output layers of the video."""
        assert encoder_output is not None, "CogVideoX blocks always have text"
        return hidden, self.output_projection(attn, encoder_output, dtype)

    def attention_modules(self, transformer: nn.Module) -> Iterator[tuple[str, Any]]:
        return modules_named(transformer, "attn1")

    def install_processor(self, pipe: Any, processor: LVSAProcessor) -> int:
        # diffusers' `unfuse_qkv_projections` only brings the processors back: these say whether the
        # fused layers are in use, `attn.fused_projections` does not.
        for transformer in self.transformers(pipe).values():
            for _, module in self.attention_modules(transformer):
                if type(module.processor).__name__.startswith("Fused"):
                    self._fused.add(module)
                else:
                    self._fused.discard(module)
        return super().install_processor(pipe, processor)
