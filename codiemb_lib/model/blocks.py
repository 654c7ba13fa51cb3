"""Blocks of texts of unlike lengths in one forward pass, and dropout that costs little.

A block is some texts padded to one length. The tokens of all blocks are rows of one matrix: layers
that look at a token alone take them at once, and attention goes block by block. So texts need not
be padded to the longest in the pass, nor passes be small to avoid it.

On a CPU dropout is a good part of a training step. Here its random bits come by the word, and
attention with it has its gradient in closed form.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

ARCHITECTURES = ("bert", "roberta", "xlm-roberta")  # attention looks both ways, at all tokens

_NAME = "codiemb_blocks"


class Block(NamedTuple):
    """Texts of one padded length T, to attention: B * T rows of what it is given."""

    texts: int  # B
    length: int  # T
    mask: Tensor | None  # (B, 1, 1, T), added to scores: -inf at padding, else 0; None: all 0

    @classmethod
    def of(cls, ids: Tensor, lengths: Tensor, moved: Callable[[Tensor], Tensor]) -> Self:
        """The block of padded ids (B, T), with the lengths (B,) of its texts; its mask is moved."""
        B, T = ids.shape
        mask = None
        if (lengths < T).any():
            padding = torch.arange(T) >= lengths[:, None]
            mask = moved(torch.zeros(B, 1, 1, T).masked_fill_(padding[:, None, None], -torch.inf))
        return cls(B, T, mask)


def prepare(backbone: nn.Module) -> bool:
    """Let a backbone drop out cheaply, and take blocks if its architecture can; whether it does.

    Its call then has a keyword `blocks`, a list of :class:`Block`, beside `input_ids` and
    `position_ids` of shape (1, N), those of all blocks in a row.
    """
    # Off in the whole process: cuDNN plans anew for each shape, which takes longer than a step.
    torch.backends.cuda.enable_cudnn_sdp(False)
    for module in backbone.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout
    # A model with code of its own takes no blocks, even if it calls itself by such a name.
    of_transformers = type(backbone).__module__.startswith("transformers.models.")
    takes_blocks = of_transformers and backbone.config.model_type in ARCHITECTURES
    if takes_blocks:  # of this object alone: configurations are saved without it
        backbone.config._attn_implementation = _NAME
    return takes_blocks


def first_position(backbone: nn.Module) -> int:
    """The position of a text's first token: RoBERTa's lies behind that of the padding."""
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1


def keep_mask(
    shape: Sequence[int], p: float, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, float]:
    """Which entries dropout keeps, as ones among zeros, and the factor for those that it keeps.

    Each entry is kept on its own, with a probability of 1 - p rounded to a multiple of 2^-16; the
    factor is the inverse of that. The bits are those of SFC64, seeded by torch's generator.
    """
    dropped = round(p * 2**16)
    seed = int(torch.randint(2**62, ()))
    count = int(np.prod(shape))
    words = np.random.SFC64(seed).random_raw(-(-count // 4))  # four entries a word
    bits = torch.from_numpy(words.view(np.int16)[:count]).view(*shape)
    kept = torch.empty(*shape, dtype=dtype)  # products with a boolean tensor are slower
    return torch.ge(bits, dropped - 2**15, out=kept), 2**16 / (2**16 - dropped)


class Dropout(nn.Dropout):
    """Dropout whose mask comes from :func:`keep_mask` where the tensor lies on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Zero some entries and scale the others, in training alone."""
        if self.training and 0 < self.p < 1 and input.device.type == "cpu":
            kept, factor = keep_mask(input.shape, self.p, input.dtype)
            return input * kept.mul_(factor)
        return super().forward(input)


class _Attention(torch.autograd.Function):
    """softmax(scale * Q K' + mask), with dropout, times V: tensors (N, H, d), block by block.

    With weights A, and D = A with entries dropped and scaled: dV = D' dO; dD = dO V', of which dA
    is what was kept, scaled; dS = A * (dA - rowsum(A * dA)); dQ = scale * dS K; dK = scale * dS' Q.
    """

    @staticmethod
    def forward(ctx, query, key, value, blocks: Sequence[Block], scale, p) -> Tensor:
        output = torch.empty_like(query)
        saved, ctx.factors = [], []
        for block, rows in _rows(blocks):
            q, k, v = (_heads(x[rows], block).flatten(0, 1) for x in (query, key, value))
            scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=scale)
            if block.mask is not None:
                _by_text(scores, block).add_(block.mask)
            weights = torch.softmax(scores, -1)  # (B * H, T, T)
            kept, factor = keep_mask(weights.shape, p, weights.dtype)
            mixed = torch.bmm(torch.mul(weights, kept, out=scores), v)
            torch.mul(_by_text(mixed, block), factor, out=_heads(output[rows], block))
            saved += [q, k, v, weights, kept]
            ctx.factors.append(factor)
        ctx.blocks, ctx.scale = blocks, scale
        ctx.save_for_backward(*saved)
        return output

    @staticmethod
    def backward(ctx, gradient: Tensor):
        dquery, dkey, dvalue = (torch.empty_like(gradient) for _ in range(3))
        saved = iter(ctx.saved_tensors)
        for (block, rows), factor in zip(_rows(ctx.blocks), ctx.factors, strict=True):
            q, k, v, weights, kept = (next(saved) for _ in range(5))
            g = _by_text(torch.empty_like(q), block)
            g = torch.mul(_heads(gradient[rows], block), factor, out=g).flatten(0, 1)
            work = weights * kept
            dv = torch.bmm(work.transpose(1, 2), g)
            dweights = torch.bmm(g, v.transpose(1, 2), out=work).mul_(kept)
            dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
            dscores *= ctx.scale
            parts = torch.bmm(dscores, k), torch.bmm(dscores.transpose(1, 2), q), dv
            for into, part in zip((dquery, dkey, dvalue), parts, strict=True):
                _heads(into[rows], block).copy_(_by_text(part, block))
        return dquery, dkey, dvalue, None, None, None


def _rows(blocks: Sequence[Block]) -> Iterator[tuple[Block, slice]]:
    start = 0
    for block in blocks:
        end = start + block.texts * block.length
        yield block, slice(start, end)
        start = end


def _heads(x: Tensor, block: Block) -> Tensor:
    """A block's rows (B * T, H, d) as (B, H, T, d)."""
    return x.unflatten(0, (block.texts, block.length)).transpose(1, 2)


def _by_text(x: Tensor, block: Block) -> Tensor:
    """(B * H, T, ...) as (B, H, T, ...)."""
    return x.unflatten(0, (block.texts, -1))


def block_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    blocks: Sequence[Block] | None = None,
    **others,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, of blocks if given: (1, H, N, d) to (1, N, H, d)."""
    if blocks is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    # Squeezed, since the gradient of x[0] is a tensor of zeros and a copy.
    query, key, value = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))  # (N, H, d)
    if dropout and query.dtype == torch.float32 and query.device.type == "cpu":
        return _Attention.apply(query, key, value, blocks, scale, dropout)[None], None
    outputs = []
    for block, rows in _rows(blocks):
        q, k, v = (_heads(x[rows], block) for x in (query, key, value))
        mask = None if block.mask is None else block.mask.to(q.dtype)
        mixed = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale
        )
        outputs.append(mixed.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None], None


AttentionInterface.register(_NAME, block_attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
