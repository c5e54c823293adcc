"""What compression disturbs and a few batches of training data set right, without a gradient step."""

import torch
from torch import Tensor, nn

from autocompress.student import ActivationQuantizer

_BATCH = 128


def reestimate_batch_norm(model: nn.Module, inputs: Tensor) -> None:
    """Replaces the running statistics of every batch norm by those of `inputs` (n, ...) (EagleEye: Li et al., 2020)."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
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


def observe_activations(model: nn.Module, inputs: Tensor) -> None:
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


def _run(model: nn.Module, inputs: Tensor) -> None:
    with torch.no_grad():
        for batch in inputs.split(_BATCH):
            if len(batch) > 1:  # a batch norm cannot estimate anything from one example
                model(batch)
