"""Muon's updates are nearly orthogonal, and it learns."""

import torch

from lvsa.studies.tiny_wan import muon


def test_muon_s_update_is_nearly_orthogonal() -> None:
    for shape in ((8, 30), (30, 8)):
        x = muon.orthogonalized(torch.randn(*shape, generator=torch.Generator().manual_seed(0)))
        values = torch.linalg.svdvals(x)
        assert x.shape == shape and values.min() > 0.5 and values.max() < 1.3


def test_muon_learns_a_linear_map() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    layer, target = torch.nn.Linear(8, 8), torch.randn(8, 8, generator=generator)
    optimizers = muon.optimizers(layer.named_parameters(), 0.15, 0.0, ())
    losses = []
    for _ in range(150):
        x = torch.randn(64, 8, generator=generator)
        loss = (layer(x) - x @ target).square().mean()
        layer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.02 * losses[0]
