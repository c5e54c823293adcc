"""What a forward function asks of its layers is answered in the exported file too."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.compress import compress
from autocompress.policy import LayerPolicy, Policy
from autocompress.runtimes import runtime_of
from autocompress.target import Target

CODES, INTEGER = LayerPolicy(weight_bits=4), LayerPolicy(weight_bits=7, activation_bits=8)
GROUPS = LayerPolicy(weight_bits=4, group_size=32)
DYNAMIC = LayerPolicy(weight_bits=7, activation_bits=8, activation_range="dynamic")


class Asks(nn.Module):
    """Casts to the type of its weights, as Hugging Face's vision transformers do."""

    def __init__(self, *, traceable: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.hidden, self.head = nn.Conv2d(1, 64, 3), nn.Linear(64, 64), nn.Linear(64, 4)
        self.traceable = traceable

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.conv(images.to(self.conv.weight.dtype))).mean((2, 3))
        x = torch.relu(self.hidden(x.to(self.hidden.weight.dtype)))
        out: Tensor = self.head(x) * self.head.weight.shape[0]
        return out if self.traceable or out.dtype == self.head.weight.dtype else out.to(self.head.weight.dtype)


# Activations of a network that cannot be traced have no ranges that are known beforehand.
CASES = [
    *(("onnxruntime", how, traceable) for how in (None, CODES, GROUPS, DYNAMIC) for traceable in (True, False)),
    ("onnxruntime", INTEGER, True),
    *(("torch", how, traceable) for how in (None, CODES, GROUPS) for traceable in (True, False)),
]


@pytest.mark.parametrize(("runtime", "how", "traceable"), CASES)
def test_a_layer_is_asked_for_the_type_and_the_shape_of_its_weight(
    runtime: str, how: LayerPolicy | None, traceable: bool
) -> None:
    network, images = Asks(traceable=traceable).eval(), torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    layers = {} if how is None else {"hidden": how} | ({"conv": how, "head": how} if how in (CODES, INTEGER) else {})
    student = compress(network, Policy(layers=layers), images)
    of = runtime_of(Target(runtime=runtime))
    given = of.load(of.export(student, images[:4]), Target(runtime=runtime))(images.numpy())
    expected = student(images).detach().numpy()
    assert isinstance(given, np.ndarray)
    assert np.abs(given - expected).mean() < 0.03 * expected.std()
