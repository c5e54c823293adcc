"""What the layers of a student compute and learn, and in which layout."""

import pytest
import torch
from torch import Tensor, nn

from autocompress.student import SMALLEST_SCALE, ActivationQuantizer, StudentLayer, largest_code


def rounded_by_hand(weight: Tensor, scale: Tensor, largest: int) -> Tensor:
    """LSQ as the paper writes it, out of operations that know their own gradients."""
    step = (scale * (damping := (weight[0].numel() * largest) ** -0.5) + (scale * (1 - damping)).detach()).view(-1, 1, 1, 1)
    steps = weight / step
    inside = steps.clamp(-largest, largest)
    rounded: Tensor = (inside + (inside.round() - inside).detach()) * step
    return rounded


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_and_scales_get_the_gradients_of_the_paper(bits: int) -> None:
    layer = StudentLayer(nn.Conv2d(3, 5, 3), bits=bits)
    assert layer.scale is not None
    with torch.no_grad():
        layer.layer.weight.normal_(generator=torch.Generator().manual_seed(0))
        layer.scale.mul_(0.7)  # some weights lie beyond the grid
    goal = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad((layer.effective_weight() * goal).sum(), [layer.layer.weight, layer.scale])
    by_hand = rounded_by_hand(layer.layer.weight, layer.scale, largest_code(bits))
    theirs = torch.autograd.grad((by_hand * goal).sum(), [layer.layer.weight, layer.scale])
    assert torch.allclose(layer.effective_weight(), by_hand, atol=1e-6)
    assert torch.allclose(ours[0], theirs[0], atol=1e-6)
    assert torch.allclose(ours[1], theirs[1], atol=1e-5)
    assert bool((ours[0] == 0).any())  # there were such weights


@pytest.mark.parametrize("bits", [2, 4])
def test_a_group_of_inputs_is_rounded_as_a_layer_of_its_own(bits: int) -> None:
    torch.manual_seed(0)
    linear, goal = nn.Linear(70, 5), torch.randn(5, 70)
    whole = StudentLayer(linear, bits=bits, group_size=32)
    (gradient,) = torch.autograd.grad((whole.effective_weight() * goal).sum(), [linear.weight])
    assert whole.scale is not None
    assert whole.scale.shape == (5, 3)
    codes, scale = whole.codes()
    for place, of_group in enumerate((slice(0, 32), slice(32, 64), slice(64, 70))):
        part = nn.Linear(of_group.stop - of_group.start, 5)
        part.weight.data = linear.weight.data[:, of_group].clone()
        alone = StudentLayer(part, bits=bits)
        assert torch.equal(alone.effective_weight(), whole.effective_weight()[:, of_group])
        assert torch.equal(alone.codes()[0], codes[:, of_group])
        assert torch.equal(alone.codes()[1], scale[:, place])
        (alone_gradient,) = torch.autograd.grad((alone.effective_weight() * goal[:, of_group]).sum(), [part.weight])
        assert torch.equal(alone_gradient, gradient[:, of_group])


def test_the_scales_of_groups_are_learned() -> None:
    layer = StudentLayer(nn.Linear(70, 5), bits=4, group_size=32)
    layer(torch.randn(8, 70)).square().sum().backward()
    assert layer.scale is not None
    assert layer.scale.grad is not None
    assert bool((layer.scale.grad != 0).all())


def test_a_scale_that_has_gone_below_zero_still_rounds() -> None:
    layer = StudentLayer(nn.Conv2d(3, 5, 3), bits=4)
    assert layer.scale is not None
    with torch.no_grad():
        layer.scale[0] = -1.0
    weight = layer.effective_weight().detach()
    assert bool(weight.isfinite().all())
    assert float(weight[0].abs().max()) <= SMALLEST_SCALE * largest_code(4)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bits", [None, 4])
def test_a_rounded_convolution_keeps_the_layout_of_the_network(bits: int | None, masked: bool) -> None:
    conv = nn.Conv2d(1, 8, 3)  # one input channel: its layout shows in nothing but the strides
    mask = torch.ones_like(conv.weight, dtype=torch.bool) if masked else None
    layer = StudentLayer(conv, bits=bits, mask=mask).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pictures = torch.randn(4, 1, 12, 12)
    assert conv(pictures).is_contiguous(memory_format=torch.channels_last)
    assert layer(pictures).is_contiguous(memory_format=torch.channels_last)
    layer(pictures).sum().backward()
    assert conv.weight.grad is not None


def test_activations_in_half_precision_are_rounded_on_the_same_grid() -> None:
    quantizer = ActivationQuantizer()
    quantizer(torch.tensor([0.0, 3.0]))
    quantizer.observing = False
    values = torch.linspace(-1, 4, 1000).bfloat16()
    ours = quantizer(values)
    assert ours.dtype is torch.bfloat16
    assert torch.equal(ours, quantizer(values.float()).bfloat16())
