"""Wan 2.1 and 2.2: self-attention over video, text and image by cross-attention."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, ClassVar

from PIL.Image import Image
from torch import Tensor, nn

from lvsa.adapters.base import ModelAdapter, split_heads
from lvsa.adapters.known import Defaults, KnownModel
from lvsa.cp_plans import ModelPlan, get_plan, plan_for
from lvsa.errors import LVSAError
from lvsa.processor import QKV
from lvsa.rope import apply_rotary_1d

# Wan's text encoder always fills this many tokens; whatever stands before them is an image.
TEXT_TOKENS = 512
HORIZON = 21  # 81 video frames
TI2V_SPATIAL_FACTOR = 16
TI2V_HORIZON = 31  # 121 video frames

T2V = ("WanPipeline", "WanVideoToVideoPipeline")
I2V = ("WanImageToVideoPipeline",)
VACE = ("WanVACEPipeline",)


def transformers_are(
    *, layers: int, channels: int, count: int = 1, **config: Callable[[Any], bool]
) -> Callable[[Any], bool]:
    """Whether a pipeline has ``count`` transformers of this depth and these latent channels.

    Args:
        config: further entries of the transformers' config, each with what must hold of it.
    """

    def fits(pipe: Any) -> bool:
        found = [getattr(pipe, name, None) for name in ("transformer", "transformer_2")]
        configs = [transformer.config for transformer in found if transformer is not None]
        return len(configs) == count and all(
            c.num_layers == layers
            and c.in_channels == channels
            and all(holds(getattr(c, name)) for name, holds in config.items())
            for c in configs
        )

    return fits


def absent(value: Any) -> bool:
    return value is None


def given(value: Any) -> bool:
    return value is not None


# Image-to-video models take noise, mask and image latents side by side: 16 + 4 + 16 channels.
IMAGE_14B = transformers_are(layers=40, channels=36, image_dim=given, pos_embed_seq_len=absent)
SMALL = Defaults(height=480, width=832, num_frames=81, steps=50, guidance=5.0, fps=16)
LARGE = Defaults(height=720, width=1280, num_frames=81, steps=50, guidance=5.0, fps=16)
# Sizes and guidance as on the model cards, where they differ from the pipelines' own defaults.
# Checkpoints with the same config are told apart by their hub id alone; without one the first of
# them stands for all.
KNOWN_MODELS = (
    KnownModel(
        "Wan 2.1 T2V 1.3B",
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        T2V,
        HORIZON,
        SMALL,
        transformers_are(layers=30, channels=16),
    ),
    KnownModel(
        "Wan 2.1 T2V 14B",
        "Wan-AI/Wan2.1-T2V-14B-Diffusers",
        T2V,
        HORIZON,
        LARGE,
        transformers_are(layers=40, channels=16),
    ),
    KnownModel(
        "Wan 2.1 I2V 14B 480P",
        "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
        I2V,
        HORIZON,
        SMALL,
        IMAGE_14B,
    ),
    KnownModel(
        "Wan 2.1 I2V 14B 720P",
        "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
        I2V,
        HORIZON,
        LARGE,
        IMAGE_14B,
    ),
    KnownModel(
        "Wan 2.1 FLF2V 14B 720P",
        "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers",
        I2V,
        HORIZON,
        LARGE,
        transformers_are(layers=40, channels=36, image_dim=given, pos_embed_seq_len=given),
    ),
    KnownModel(
        "Wan 2.1 VACE 1.3B",
        "Wan-AI/Wan2.1-VACE-1.3B-diffusers",
        VACE,
        HORIZON,
        SMALL,
        transformers_are(layers=30, channels=16),
    ),
    KnownModel(
        "Wan 2.1 VACE 14B",
        "Wan-AI/Wan2.1-VACE-14B-diffusers",
        VACE,
        HORIZON,
        LARGE,
        transformers_are(layers=40, channels=16),
    ),
    KnownModel(
        "Wan 2.2 T2V A14B",
        "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        T2V[:1],
        HORIZON,
        Defaults(height=720, width=1280, num_frames=81, steps=40, guidance=4.0, fps=16),
        transformers_are(layers=40, channels=16, count=2),
    ),
    KnownModel(
        "Wan 2.2 I2V A14B",
        "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        I2V,
        HORIZON,
        Defaults(height=480, width=832, num_frames=81, steps=40, guidance=3.5, fps=16),
        transformers_are(layers=40, channels=36, count=2, image_dim=absent),
    ),
    KnownModel(
        "Wan 2.2 TI2V 5B",
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        (T2V[0], *I2V),
        TI2V_HORIZON,
        Defaults(height=704, width=1280, num_frames=121, steps=50, guidance=5.0, fps=24),
        transformers_are(layers=30, channels=48),
    ),
)


class WanAdapter(ModelAdapter):
    """Wan for text, image, first and last frame, video and control; one transformer or two."""

    name = "wan"
    pipelines: ClassVar[tuple[str, ...]] = (*T2V, *I2V, *VACE)
    horizon = HORIZON
    known_models: ClassVar[tuple[KnownModel, ...]] = KNOWN_MODELS
    replicated_methods = (
        "encode_prompt",
        "encode_image",
        "prepare_latents",
        "preprocess_conditions",
        "prepare_video_latents",
        "prepare_masks",
    )
    float32_components = ("vae", "image_encoder")

    def known_model(self, pipe: Any) -> KnownModel | None:
        """By its configs, and of several with the same config the one it was loaded from."""
        first = super().known_model(pipe)
        origin = getattr(pipe, "name_or_path", None)
        same = [m for m in self.known_models if first and m.fits is first.fits]
        return next((m for m in same if m.repository == origin), first)

    def training_horizon(self, pipe: Any) -> int:
        """Of the checkpoint; of its kind, which the VAE tells, where the checkpoint is unknown."""
        if self.known_model(pipe) is None and self.spatial_factor(pipe) == TI2V_SPATIAL_FACTOR:
            return TI2V_HORIZON
        return super().training_horizon(pipe)

    def condition_frames(self, pipe: Any, latent_frames: int) -> tuple[int, ...]:
        """The first frame of an image-to-video pipeline, and the last of a first-last-frame model.

        A model made for both frames has a position table over the tokens of two images. Whether
        another one will be called with a last image cannot be seen here: name that frame in the
        settings' condition frames. VACE may condition any frames: name them too.
        """
        if not any(cls.__name__.endswith("ImageToVideoPipeline") for cls in type(pipe).__mro__):
            return ()
        configs: list[Any] = [t.config for t in self.transformers(pipe).values()]
        two = any(config.pos_embed_seq_len is not None for config in configs)
        return tuple(sorted({0, latent_frames - 1})) if two else (0,)

    def pipeline_class(self, index: Mapping[str, Any], given: Collection[str]) -> str:
        """TI2V-5B also starts from an image, a T2V checkpoint of one transformer from a video."""
        if index["_class_name"] == "WanPipeline":
            if index.get("expand_timesteps") and "image" in given:
                return "WanImageToVideoPipeline"
            two = (index.get("transformer_2") or [None])[0] is not None
            if "video" in given and not two and not index.get("expand_timesteps"):
                return "WanVideoToVideoPipeline"
        return super().pipeline_class(index, given)

    def call_arguments(self, pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """Video-to-video takes its length from the video instead of an argument.

        Raises:
            LVSAError: for a video of another length than ``num_frames``, or a VAE that the
                video-to-video pipeline miscounts.
        """
        if all(cls.__name__ != "WanVideoToVideoPipeline" for cls in type(pipe).__mro__):
            return arguments
        if pipe.vae_scale_factor_spatial != self.spatial_factor(pipe):
            raise LVSAError(
                f"{type(pipe).__name__} reckons with {pipe.vae_scale_factor_spatial} pixels to a "
                f"latent pixel; this model's VAE has {self.spatial_factor(pipe)}, so it cannot "
                "start from a video in this version of diffusers"
            )
        arguments = dict(arguments)
        wanted, video = arguments.pop("num_frames", None), arguments.get("video")
        if wanted is None or not isinstance(video, list):
            return arguments
        if len(video) != wanted and all(isinstance(frame, Image) for frame in video):
            raise LVSAError(
                f"the video has {len(video)} frames and num_frames is {wanted}; this pipeline "
                f"makes as many as it is given: set num_frames to {len(video)} or cut the video"
            )
        return arguments

    def extract_qkv(self, attn: Any, hidden: Tensor, encoder: Tensor | None) -> QKV:
        if attn.is_cross_attention:
            q = split_heads(attn, attn.norm_q(attn.to_q(hidden)))
            return q, q, q
        if getattr(attn, "fused_projections", False):
            q, k, v = attn.to_qkv(hidden).chunk(3, dim=-1)
        else:
            q, k, v = attn.to_q(hidden), attn.to_k(hidden), attn.to_v(hidden)
        return (
            split_heads(attn, attn.norm_q(q)),
            split_heads(attn, attn.norm_k(k)),
            split_heads(attn, v),
        )

    def extract_cross_attn_kv(self, attn: Any, encoder: Tensor) -> tuple[Tensor, Tensor]:
        if getattr(attn, "fused_projections", False):
            k, v = attn.to_kv(encoder).chunk(2, dim=-1)
        else:
            k, v = attn.to_k(encoder), attn.to_v(encoder)
        return split_heads(attn, attn.norm_k(k)), split_heads(attn, v)

    def split_encoder_for_cross_attn(
        self, attn: Any, encoder: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        if attn.add_k_proj is None:
            return None, encoder
        n_image = encoder.shape[1] - TEXT_TOKENS
        return encoder[:, :n_image], encoder[:, n_image:]

    def extract_image_kv(self, attn: Any, encoder_image: Tensor) -> tuple[Tensor, Tensor]:
        if getattr(attn, "fused_projections", False):
            k, v = attn.to_added_kv(encoder_image).chunk(2, dim=-1)
        else:
            k, v = attn.add_k_proj(encoder_image), attn.add_v_proj(encoder_image)
        return split_heads(attn, attn.norm_added_k(k)), split_heads(attn, v)

    def apply_rotary(
        self, q: Tensor, k: Tensor, rotary_emb: Any, local_seq: int, rank: int, world: int
    ) -> tuple[Tensor, Tensor]:
        return apply_rotary_1d(q, k, rotary_emb, local_seq, rank, world)

    def attention_modules(self, transformer: nn.Module) -> Iterator[tuple[str, Any]]:
        for path, module in transformer.named_modules():
            if path.endswith(".attn1") and hasattr(module, "set_processor"):
                yield path, module

    def model_plan(self, pipe: Any, transformer: nn.Module) -> ModelPlan:
        per_token = getattr(pipe.config, "expand_timesteps", False)
        return get_plan("wan-per-token-timesteps") if per_token else plan_for(transformer)
