"""Networks of Hugging Face's transformers, where that is installed: as they are, from probe to exported file."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from autocompress import nested
from autocompress.compress import compress
from autocompress.nested import Nested
from autocompress.policy import LayerPolicy, Policy
from autocompress.probe import probe
from autocompress.target import Target
from autocompress.unpacked import unpacked
from tests.models.test_zoo import ROUNDED, SAME, cut, file_of, gap, outputs_of, run

transformers: Any = pytest.importorskip("transformers")

WORDS, TOKENS, EXAMPLES = 100, 16, 64
# Weights as large as trained ones: with those it begins with, attention is the same everywhere, whatever belongs to a head.
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "initializer_range": 0.4}
TARGET = Target()


def bert() -> tuple[nn.Module, Nested]:
    config = transformers.BertConfig(vocab_size=WORDS, max_position_embeddings=TOKENS, num_labels=3, **SMALL)
    tokens = torch.randint(0, WORDS, (EXAMPLES, TOKENS))
    mask = (torch.arange(TOKENS) < torch.randint(4, TOKENS + 1, (EXAMPLES, 1))).long()
    return transformers.BertForSequenceClassification(config), {"input_ids": tokens, "attention_mask": mask}


def vit() -> tuple[nn.Module, Nested]:
    config = transformers.ViTConfig(image_size=16, patch_size=4, num_labels=3, **SMALL)
    return transformers.ViTForImageClassification(config), {"pixel_values": torch.randn(EXAMPLES, 3, 16, 16)}


@pytest.mark.parametrize("made", [bert, vit])
def test_a_transformer_as_it_is(made: Callable[[], tuple[nn.Module, Nested]]) -> None:
    torch.manual_seed(0)
    network, inputs = made()
    model = unpacked(network.eval())
    layers = probe(model, nested.take(inputs, slice(8)))
    blocks = [group for group in layers.groups if group.unit == 8]
    assert [len(group.writers) for group in blocks] == [3, 3], "query, key and value of each block, by heads of 8 channels"
    linears = {layer.name for layer in layers if layer.kind == "linear"}
    assert len(linears) >= 13
    whole = file_of(model, inputs)
    assert gap(run(whole, inputs), outputs_of(model, inputs)) < SAME

    how = {layer.name: LayerPolicy(weight_bits=4) for layer in layers}
    how |= {name: LayerPolicy(weight_bits=4, activation_bits=8, activation_range="dynamic") for name in linears}
    policy = Policy(channel_sparsity=cut(layers, 0.5), layers=how).canonical(layers, TARGET.menu)
    student = compress(model, policy, inputs, groups=layers.groups)
    half = policy.widths(layers, TARGET.menu)
    assert all(half[writer][1] == 16 for group in blocks for writer in group.writers)
    file = file_of(student, inputs)
    assert gap(run(file, inputs), outputs_of(student, inputs)) < ROUNDED
    assert len(file) < 0.5 * len(whole)
