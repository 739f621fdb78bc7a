"""Contact sheets: clips as rows of frames."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lvsa.launch.records.output import written_whole


def save_sheet(videos: Tensor, path: Path, columns: int = 9) -> None:
    """Writes clips as a PNG, a clip a row.

    Args:
        videos: ``[B, 3, F, H, W]``, −1 to 1.
        path: of the file.
        columns: frames of a clip, evenly chosen, if it has as many.
    """
    frames = videos.shape[2]
    chosen = torch.linspace(0, frames - 1, min(columns, frames)).round().long()
    # A dark line between pictures, which shows where a shape leaves its own.
    padded = torch.nn.functional.pad(videos[:, :, chosen], (0, 2, 0, 2), value=-1.0)
    rows = padded.permute(0, 3, 2, 4, 1).flatten(0, 1).flatten(1, 2)
    pixels = ((rows.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()
    with written_whole(path) as part:
        Image.fromarray(pixels).save(part, format="PNG")
