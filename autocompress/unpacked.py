"""Networks made of plain layers: attention of torch taken apart, and weights that are computed from others fixed.

`nn.MultiheadAttention` keeps its weights in one matrix and never calls its layers, so that nothing of it could be pruned or
quantised. It becomes a plain linear layer each for query, key, value and output.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import wrap
from torch.nn.utils import prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm


def unpacked(model: nn.Module) -> nn.Module:
    """A copy of `model` with every attention and transformer encoder layer of torch replaced by one that computes the same.

    Attention with biases for keys and values, or with zeros added to them, stays as it is. Weights that are computed from
    others (weight norm, spectral norm, masks of `torch.nn.utils.prune`) become parameters of the values that they have.
    """
    model = copied(model)
    for module in list(model.modules()):
        _fix_weights(module)
    for old, make in _REPLACED:
        for name, module in list(model.named_modules()):
            if type(module) is old and (new := make(module)) is not None:
                new.train(module.training)
                if not name:
                    return new
                model.set_submodule(name, new)
    return model


def copied(model: nn.Module) -> nn.Module:
    """A copy of `model`, with what a forward pass has left in it, a computed weight say, cut off from how it was computed."""
    left = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return deepcopy(model, {id(value): value.detach().clone() for value in left if value.grad_fn is not None})


def _fix_weights(module: nn.Module) -> None:
    if is_parametrized(module):
        assert isinstance(module.parametrizations, nn.ModuleDict)
        # Torch takes the computed weight from the class, which is one made for this layer, and for all copies of it.
        own = type(module)
        module.__class__ = type(own.__name__, own.__bases__, dict(vars(own)))
        for name, computed in list(module.parametrizations.items()):
            computed.eval()  # a spectral norm comes nearer each time that it is asked for in training
            remove_parametrizations(module, name)
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
            _forget_spectral_norm(module)
        elif isinstance(hook, BasePruningMethod):
            prune.remove(module, hook._tensor_name)


def _forget_spectral_norm(module: nn.Module) -> None:
    """Removes what `remove_spectral_norm` (2.13) does not find: the hook that asks stored weights for the norm's own."""
    hooks = module._load_state_dict_pre_hooks
    for key, hook in list(hooks.items()):
        if isinstance(getattr(hook, "hook", hook), SpectralNormLoadStateDictPreHook):
            del hooks[key]


class Attention(nn.Module):
    """What `nn.MultiheadAttention` computes, called as it is; inputs must be batches.

    How many heads there are is read off the width of `query`, so that heads can be pruned.
    """

    # The transformer layers of torch ask for these, and then call it as it is.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        self.batch_first, self.head_dim, self.dropout = packed.batch_first, packed.head_dim, packed.dropout
        if packed._qkv_same_embed_dim:
            weights = list(packed.in_proj_weight.chunk(3))
        else:
            weights = [packed.q_proj_weight, packed.k_proj_weight, packed.v_proj_weight]
        biases: list[Tensor | None] = [None] * 3 if packed.in_proj_bias is None else list(packed.in_proj_bias.chunk(3))
        self.query, self.key, self.value = (_linear(*pair) for pair in zip(weights, biases, strict=True))
        self.output = _linear(packed.out_proj.weight, packed.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,  # the signature is torch's
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,  # a hint that comes with the mask
    ) -> tuple[Tensor, Tensor | None]:
        if not self.batch_first:
            query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        projected = self.query(query), self.key(key), self.value(value)
        queries, keys, values = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in projected)
        mask = None
        if attn_mask is not None or key_padding_mask is not None:
            mask = _added_mask(attn_mask, key_padding_mask, queries)
        if self.training and not need_weights:
            weights = None
            heads = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=self.dropout)
        else:  # written out, it is exported in a few operations
            scores = queries @ keys.transpose(-2, -1) * self.head_dim**-0.5
            weights = nn.functional.softmax(scores if mask is None else scores + mask, dim=-1)
            heads = nn.functional.dropout(weights, self.dropout, training=self.training) @ values
        outputs = self.output(heads.transpose(1, 2).flatten(-2))
        if not self.batch_first:
            outputs = outputs.transpose(0, 1)
        if not need_weights or weights is None:
            return outputs, None
        return outputs, weights.mean(1) if average_attn_weights else weights


class EncoderLayer(nn.Module):
    """What `nn.TransformerEncoderLayer` computes, without its fused kernel, which knows float weights only."""

    def __init__(self, packed: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        self.self_attn, self.linear1, self.linear2 = packed.self_attn, packed.linear1, packed.linear2
        self.norm1, self.norm2, self.norm_first = packed.norm1, packed.norm2, packed.norm_first
        self.dropout, self.dropout1, self.dropout2 = packed.dropout, packed.dropout1, packed.dropout2
        self.activation: Callable[[Tensor], Tensor] = packed.activation

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,  # the signature is torch's
    ) -> Tensor:
        masks = {"attn_mask": src_mask, "key_padding_mask": src_key_padding_mask, "is_causal": is_causal}
        if self.norm_first:
            src = src + self._attend(self.norm1(src), masks)
            return src + self._feed_forward(self.norm2(src))
        src = self.norm1(src + self._attend(src, masks))
        outputs: Tensor = self.norm2(src + self._feed_forward(src))
        return outputs

    def _attend(self, x: Tensor, masks: dict[str, Any]) -> Tensor:
        attended: Tensor = self.dropout1(self.self_attn(x, x, x, need_weights=False, **masks)[0])
        return attended

    def _feed_forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))
        return outputs


class Encoder(nn.Module):
    """What `nn.TransformerEncoder` computes: one layer after another."""

    def __init__(self, packed: nn.TransformerEncoder) -> None:
        super().__init__()
        self.layers, self.norm = packed.layers, packed.norm

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,  # the signature is torch's
    ) -> Tensor:
        for layer in self.layers:
            src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask, is_causal=bool(is_causal))
        return src if self.norm is None else self.norm(src)


@wrap
def _added_mask(attn_mask: Tensor | None, key_padding_mask: Tensor | None, queries: Tensor) -> Tensor:
    """Both masks as one that is added to scores of shape (n, heads, queries, keys)."""
    masks = []
    if attn_mask is not None:
        batch, heads = queries.shape[:2]
        masks.append(_additive(attn_mask.unflatten(0, (batch, heads)) if attn_mask.dim() == 3 else attn_mask, queries))
    if key_padding_mask is not None:
        masks.append(_additive(key_padding_mask[:, None, None, :], queries))
    return masks[0] if len(masks) == 1 else masks[0] + masks[1]


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, float("-inf"))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device, dtype=weight.dtype)
    layer.weight.data = weight.detach().clone()
    layer.weight.requires_grad_(weight.requires_grad)
    if bias is not None:
        layer.bias.data = bias.detach().clone()
    return layer


def _attention(packed: nn.MultiheadAttention) -> nn.Module | None:
    return None if packed.bias_k is not None or packed.add_zero_attn else Attention(packed)


# The innermost first: a layer takes over what has been made of its attention.
_REPLACED: tuple[tuple[type[nn.Module], Callable[[Any], nn.Module | None]], ...] = (
    (nn.MultiheadAttention, _attention),
    (nn.TransformerEncoderLayer, EncoderLayer),
    (nn.TransformerEncoder, Encoder),
)
