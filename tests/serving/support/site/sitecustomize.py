"""Start-up with this folder on PYTHONPATH: torchvision imports beside a CPU build of PyTorch.

PyPI's torchvision is a CUDA build, whose operators a CPU build cannot load. As it is imported it
registers shapes for two of them, and fails where they do not exist. Nothing here calls them.
"""

import sys
from importlib.abc import MetaPathFinder

OPERATORS = ("nms", "qnms")
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class _BeforeTorchvision(MetaPathFinder):
    """Defines the operators when torchvision is first looked for, and finds nothing itself."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            for name in OPERATORS:
                library.define(name + SIGNATURE)
            torch._lvsa_torchvision = library  # its operators live as long as it does


sys.meta_path.insert(0, _BeforeTorchvision())
