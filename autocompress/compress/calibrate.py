"""What compression disturbs and a few batches of training data set right, without a gradient step."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress import nested
from autocompress.graph import BatchNorm
from autocompress.nested import Nested
from autocompress.student import ActivationQuantizer

_BATCH = 128


@dataclass(frozen=True)
class NormStatistics:
    """What a batch norm of the uncompressed network goes by, and what some examples brought there; shapes (channels,)."""

    running_mean: Tensor
    running_var: Tensor
    mean: Tensor
    var: Tensor

    @classmethod
    def of(cls, norm: BatchNorm, inputs: Tensor) -> "NormStatistics":
        assert norm.running_mean is not None
        assert norm.running_var is not None
        return cls(norm.running_mean, norm.running_var, *_moments(inputs))

    def carry_over(self, norm: BatchNorm, inputs: Tensor, channels: Tensor | slice) -> None:
        """Sets the statistics of `norm`, which has these `channels` left, by what became of the same examples.

        The running statistics of the uncompressed network have seen all training data: only their change is estimated
        from the examples, so that a network in which nothing changed keeps them.
        """
        mean, var = _moments(inputs)
        ratio = (var + norm.eps) / (self.var[channels] + norm.eps)
        norm.running_mean = self.running_mean[channels] + mean - self.mean[channels]
        norm.running_var = ((self.running_var[channels] + norm.eps) * ratio - norm.eps).clamp_min(0)


def reestimate_batch_norm(model: nn.Module, inputs: Nested, but: Collection[nn.Module] = ()) -> None:
    """Replaces the running statistics of every batch norm by those of `inputs` (n, ...) (EagleEye: Li et al., 2020).

    Those in `but` are left as they are.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm) and module not in but]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over all batches
        norm.train()
    _run(model, inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def observe_activations(model: nn.Module, inputs: Nested) -> None:
    """Sets the range of every activation quantiser to what `inputs` (n, ...) bring about."""
    quantizers = [module for module in model.modules() if isinstance(module, ActivationQuantizer)]
    if not quantizers:
        return
    model.eval()
    for quantizer in quantizers:
        quantizer.low.zero_()
        quantizer.high.zero_()
        quantizer.observing = True
    _run(model, inputs)
    for quantizer in quantizers:
        quantizer.observing = False


def _moments(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel, by batch norm itself: `Tensor.var` takes ten times as long."""
    mean, variance = inputs.new_zeros(inputs.shape[1]), inputs.new_ones(inputs.shape[1])
    nn.functional.batch_norm(inputs, mean, variance, training=True, momentum=1.0)
    count = inputs.numel() // inputs.shape[1]
    return mean, variance * ((count - 1) / count)


def _run(model: nn.Module, inputs: Nested) -> None:
    with torch.no_grad():
        for batch in nested.split(inputs, _BATCH):
            if nested.count(batch) > 1:  # a batch norm cannot estimate anything from one example
                nested.call(model, batch)
