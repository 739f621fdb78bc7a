"""Export of the checkpoints of training as a folder that `WanPipeline.from_pretrained` loads."""

import logging
import os
import tempfile
from pathlib import Path

import torch
from diffusers import WanPipeline
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from lvsa.studies.tiny_wan.dit_stage import DiTTraining, load_denoiser
from lvsa.studies.tiny_wan.latents import Latents
from lvsa.studies.tiny_wan.model import build_pipeline, build_tokenizer
from lvsa.studies.tiny_wan.vae_stage import load_vae

logger = logging.getLogger(__name__)


def assemble(settings: DiTTraining, data: Latents, work: Path) -> WanPipeline:
    """The pipeline of the trained parts, in float32."""
    vae = load_vae(work, torch.device("cpu"))
    vae.register_to_config(latents_mean=data.mean.tolist(), latents_std=data.std.tolist())
    tokenizer = build_tokenizer()
    model = load_denoiser(settings, len(tokenizer), work)
    model.transformer.set_attn_processor(WanAttnProcessor())
    return build_pipeline(vae, tokenizer, model.text_encoder, model.transformer)


def export(pipe: WanPipeline, folder: Path, card: str) -> int:
    """Writes the pipeline and its model card, whole or not at all.

    Returns:
        Size of the folder in bytes.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Names that nobody can foresee, on the file system of the folder.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as beside:
        part, old = Path(beside) / "part", Path(beside) / "old"
        pipe.save_pretrained(part, safe_serialization=True)
        (part / "README.md").write_text(card, encoding="utf-8")
        # A directory cannot replace one that has files in it, so the old one steps aside first.
        if folder.exists():
            os.replace(folder, old)
        os.replace(part, folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    logger.info("wrote %s, %.1f MB", folder, size / 1e6)
    return size
