"""The dense backend of the platform: vLLM-Omni's SDPA on the CPU."""

from vllm_omni.diffusion.attention.backends.sdpa import SDPABackend, SDPAImpl


class DenseImpl(SDPAImpl):
    """Scaled dot products of PyTorch, on whatever device the tensors are."""

    def forward(self, query, key, value, attn_metadata=None):
        return self._forward_impl(query, key, value, attn_metadata)


class DenseBackend(SDPABackend):
    """vLLM-Omni's SDPA; the original dispatches by platform and knows no CPU."""

    @staticmethod
    def get_impl_cls():
        return DenseImpl
