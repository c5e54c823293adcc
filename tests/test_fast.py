"""Layouts and precisions that a network is computed in: chosen where they change nothing that matters."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from autocompress.fast import fast_precision, in_fast_layout
from autocompress.testing import ToyNet

has_bfloat16 = torch.cpu.get_capabilities().get("avx512_bf16") or torch.cpu.get_capabilities().get("amx_bf16")
PICTURES = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.skipif(not has_bfloat16, reason="this CPU has no bfloat16 instructions")
def test_half_precision_where_the_outputs_stay_as_they_are() -> None:
    network = ToyNet().eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    precision = fast_precision(network, PICTURES)
    with precision():
        rough = network(PICTURES)
    assert rough.dtype is torch.bfloat16
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


class _Cancelling(nn.Module):
    """Takes the small difference of large numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 4)

    def forward(self, images: Tensor) -> Tensor:
        large: Tensor = self.linear(images.flatten(1)) + 1000
        return large - 1000


class _ForwardOnly(nn.Module):
    """Has no way back in half precision."""

    class _Function(torch.autograd.Function):
        @staticmethod
        def forward(_: object, values: Tensor) -> Tensor:
            return values * 2

        @staticmethod
        def backward(_: object, *gradients: Tensor) -> Tensor:
            if gradients[0].dtype is torch.bfloat16:
                raise RuntimeError("not implemented for 'BFloat16'")
            return gradients[0] * 2

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 4)

    def forward(self, images: Tensor) -> Tensor:
        doubled: Tensor = self._Function.apply(self.linear(images.flatten(1)))  # type: ignore[no-untyped-call]
        return doubled


@pytest.mark.parametrize("network", [_Cancelling(), _ForwardOnly()], ids=lambda network: type(network).__name__)
def test_no_half_precision_where_it_would_cost_or_fail(network: nn.Module) -> None:
    assert fast_precision(network.eval(), PICTURES) is nullcontext


def test_channels_last_but_for_networks_that_view() -> None:
    assert in_fast_layout(ToyNet().eval(), PICTURES).get_parameter("conv1.weight").stride(1) == 1

    class Viewing(ToyNet):
        def forward(self, images: Tensor) -> Tensor:
            features: Tensor = self.stem(images)
            return features.view(len(images), -1)

    assert in_fast_layout(Viewing().eval(), PICTURES).get_parameter("conv1.weight").is_contiguous()


def test_a_network_in_three_dimensions_stays_as_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Unflatten(1, (1, 2)), nn.Conv3d(1, 4, (2, 3, 3))).eval()
    fast = in_fast_layout(network, PICTURES)
    assert all(parameter.is_contiguous() for parameter in fast.parameters())
    assert fast(PICTURES).shape == (16, 4, 1, 6, 6)
