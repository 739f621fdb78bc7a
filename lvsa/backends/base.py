"""What an attention kernel must do."""

from abc import ABC, abstractmethod
from typing import ClassVar, Self

import torch
from torch import Tensor

from lvsa.errors import LVSAError
from lvsa.layout import BlockLayout
from lvsa.merge import AttentionState


class Backend(ABC):
    """A block-sparse attention kernel. Layouts come with every table that it reads."""

    name: ClassVar[str]

    @classmethod
    def on(cls, device: torch.device, kernel: str | None = None) -> Self:
        """The backend for tensors on a device.

        Args:
            device: where the tensors will be.
            kernel: which of its kernels, from a name like ``sdpa:flash``; None to let it choose.

        Raises:
            LVSAError: for a kernel that it does not have.
            BackendUnavailable: where it cannot run; names what to install, or what runs there.
        """
        cls.refuse(kernel)
        return cls()

    @classmethod
    def refuse(cls, kernel: str | None) -> None:
        """An error for a kernel that was asked for of a backend that has but one."""
        if kernel is not None:
            raise LVSAError(
                f"backend {cls.name!r} has no kernels to choose from; {kernel!r} was asked for"
            )

    def check(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
        """What runs for such tensors and why, in a line for the log and the record.

        Raises:
            BackendUnavailable: where nothing would.
        """
        return self.name

    @abstractmethod
    def attend(
        self,
        q_BLHD: Tensor,
        k_BCHD: Tensor,
        v_BCHD: Tensor,
        layout: BlockLayout,
        scale: float | None = None,
        state: AttentionState | None = None,
        more: bool = False,
    ) -> AttentionState:
        """Softmax attention of every query over its ranges of the block.

        Args:
            q_BLHD: local queries, L = ``layout.n_queries``.
            k_BCHD, v_BCHD: the block; any strides with a contiguous last dimension.
            layout: which ranges each query attends.
            scale: of the scores; 1/sqrt(D) by default.
            state: attention of the same queries over other keys, merged into the result. It
                belongs to the backend from here on, which may write the result into it.
            more: whether the result will be merged with further keys. A backend that merges by
                itself then leaves its output in the dtype of the log-sum-exp, so that it is
                rounded once, at the end.

        Returns:
            Output in the dtype of the queries or of the log-sum-exp, and the natural log-sum-exp
            ``[B, H, L]`` in float32 (float64 for float64). Queries that attend nothing have a zero
            output and −inf.
        """

    @abstractmethod
    def attend_all(
        self,
        q_BLHD: Tensor,
        k_BCHD: Tensor,
        v_BCHD: Tensor,
        scale: float | None = None,
        state: AttentionState | None = None,
        more: bool = False,
    ) -> AttentionState:
        """Softmax attention of every query over every key, of which there may be none.

        Arguments and result as `attend`.
        """
