"""LoRAs of tiny models: random, and strong enough to show in a video."""

from pathlib import Path

import torch
from peft import LoraConfig

TARGETS = ("to_q", "to_v", "to_out.0", "net.0.proj")


def saved_lora(transformer, file: Path, *, seed=0, rank=4, targets=TARGETS) -> Path:
    """Writes a LoRA for a transformer, in diffusers' format; the transformer gets it as well."""
    torch.manual_seed(seed)
    transformer.add_adapter(LoraConfig(r=rank, target_modules=list(targets)), "made")
    for name, parameter in transformer.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    transformer.save_lora_adapter(str(file.parent), "made", weight_name=file.name)
    return file
