"""Attention and its masks against a softmax written out, torch's own layers, and what may not leak."""

import pytest
import torch
from torch import Tensor, nn

from luthier.core.attention import Attention, Mask, attend
from luthier.core.block import Context, PostNorm, PreNorm
from luthier.core.feedforward import FeedForward
from luthier.core.packed import Documents, packed_attention

F64 = {"dtype": torch.float64}


def tensors(heads: int = 4, groups: int = 2, queries: int = 7, keys: int = 7, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    make = torch.Generator().manual_seed(0)
    shapes = ((batch, heads, queries, 8), (batch, groups, keys, 8), (batch, groups, keys, 8))
    q, k, v = (torch.randn(shape, generator=make, **F64) for shape in shapes)
    return q, k, v


def written_out(q: Tensor, k: Tensor, v: Tensor, allow: Tensor, bias: Tensor | float = 0.0, scale: float = 8**-0.5) -> Tensor:
    """Row by row: softmax over the keys the query sees, nothing where it sees none."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = q @ k.mT * scale + bias
    allow = allow.expand(scores.shape)
    out = torch.zeros_like(q)
    for b, h, t in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        seen = allow[b, h, t]
        if seen.any():
            out[b, h, t] = scores[b, h, t][seen].softmax(-1) @ v[b, h][seen]
    return out


def lower(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril()


def test_causal_window_padding_and_free_masks_see_what_they_say():
    q, k, v = tensors()
    keys = torch.ones(2, 7, dtype=torch.bool)
    keys[0, :2] = False
    free = torch.rand(2, 1, 7, 7, generator=torch.Generator().manual_seed(1)) > 0.4
    for mask, allow in (
        (Mask(), torch.ones(7, 7, dtype=torch.bool)),
        (Mask(causal=True), lower(7)),
        (Mask(causal=True, window=3), lower(7) & ~lower(7).tril(-3)),
        (Mask(causal=True, keys=keys), lower(7) & keys[:, None, None]),
        (Mask(allow=free), free),
        (Mask(causal=True, allow=free), free & lower(7)),
    ):
        torch.testing.assert_close(attend(q, k, v, mask), written_out(q, k, v, allow), rtol=1e-12, atol=1e-12)


def test_a_query_that_sees_no_key_gives_zero_and_passes_no_gradient():
    q, k, v = (x.requires_grad_() for x in tensors())
    allow = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    allow[0, :, 3] = False
    out = attend(q, k, v, Mask(allow=allow))
    assert (out[0, :, 3] == 0).all() and (out[0, :, 2] != 0).all()
    out.sum().backward()
    assert q.grad is not None and (q.grad[0, :, 3] == 0).all() and not any(x.grad.isnan().any() for x in (q, k, v))  # type: ignore[union-attr]


def test_bias_and_scale_are_added_and_multiplied():
    q, k, v = tensors()
    bias = torch.randn(1, 4, 7, 7, **F64)
    got = attend(q, k, v, Mask(causal=True), bias, scale=1.0)
    torch.testing.assert_close(got, written_out(q, k, v, lower(7), bias, 1.0), rtol=1e-12, atol=1e-12)


def test_later_queries_see_all_earlier_keys():
    q, k, v = tensors(queries=3)
    torch.testing.assert_close(attend(q, k, v, Mask(causal=True)), written_out(q, k, v, lower(7)[-3:]), rtol=1e-12, atol=1e-12)


LENGTHS = (5, 1, 9, 130, 3, 260)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("how", ["by document", "padded"])
def test_packed_documents_attend_as_if_alone(causal, how):
    total = sum(LENGTHS)
    q, k, v = (x.requires_grad_() for x in tensors(queries=total, keys=total, batch=1))
    # a window wider than every document changes nothing but takes the padded way
    packed = attend(q, k, v, Mask(causal, None if how == "by document" else 1000, LENGTHS))
    alone = torch.cat([attend(*three, Mask(causal)) for three in zip(*(x.split(LENGTHS, 2) for x in (q, k, v)), strict=True)], 2)
    torch.testing.assert_close(packed, alone, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(packed)
    for got, want in zip(*(torch.autograd.grad((y * weight).sum(), (q, k, v)) for y in (packed, alone)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_packed_gradients_pass_the_numerical_check():
    q, k, v = (x[0].requires_grad_() for x in tensors(queries=9, keys=9, batch=1))
    assert torch.autograd.gradcheck(lambda q, k, v: packed_attention(q, k, v, Documents((4, 5), True), 0.3), (q, k, v))


@pytest.mark.parametrize("causal", [True, False])
def test_packed_documents_take_a_bias_and_its_gradient(causal):
    total, longest = sum(LENGTHS), max(LENGTHS)
    q, k, v = (x.requires_grad_() for x in tensors(queries=total, keys=total, batch=1))
    bias = torch.randn(1, 4, longest, longest, **F64, requires_grad=True)
    packed = attend(q, k, v, Mask(causal, lengths=LENGTHS), bias)
    each = zip(*(x.split(LENGTHS, 2) for x in (q, k, v)), strict=True)
    alone = torch.cat([attend(*three, Mask(causal), bias[..., : three[0].shape[2], : three[0].shape[2]]) for three in each], 2)
    torch.testing.assert_close(packed, alone, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(packed)
    for got, want in zip(*(torch.autograd.grad((y * weight).sum(), (q, k, v, bias)) for y in (packed, alone)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_packed_queries_look_at_documents_of_other_lengths():
    lengths, others = (5, 140, 1), (9, 2, 131)
    q, _, _ = tensors(queries=sum(lengths), keys=1, batch=1)
    _, k, v = tensors(queries=1, keys=sum(others), batch=1)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    packed = attend(q, k, v, Mask(lengths=lengths, key_lengths=others))
    each = zip(q.split(lengths, 2), k.split(others, 2), v.split(others, 2), strict=True)
    alone = torch.cat([attend(*three, Mask()) for three in each], 2)
    torch.testing.assert_close(packed, alone, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(packed)
    for got, want in zip(*(torch.autograd.grad((y * weight).sum(), (q, k, v)) for y in (packed, alone)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_a_bidirectional_prompt_is_seen_whole_and_nothing_else_leaks():
    q, k, v = tensors(queries=12, keys=12, batch=1)
    got = attend(q, k, v, Mask(True, lengths=(7, 5), prompts=(3, 2)))
    for (start, stop), prompt in zip(((0, 7), (7, 12)), (3, 2), strict=True):
        allow = lower(stop - start)
        allow[:, :prompt] = True
        want = written_out(*(x[:, :, start:stop] for x in (q, k, v)), allow)
        torch.testing.assert_close(got[:, :, start:stop], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pre", [True, False])
def test_a_decoder_block_with_cross_attention_is_torchs(pre):
    torch.manual_seed(0)
    theirs = nn.TransformerDecoderLayer(16, 4, 24, dropout=0.0, batch_first=True, norm_first=pre, **F64).eval()
    attn, cross, ffn = Attention(16, 4), Attention(16, 4), FeedForward(16, 24, "relu")
    block = (PreNorm if pre else PostNorm)(attn, ffn, lambda: nn.LayerNorm(16), cross).double()
    for ours, other in ((attn, theirs.self_attn), (cross, theirs.multihead_attn)):
        for part, weight, bias in zip((ours.q, ours.k, ours.v), other.in_proj_weight.chunk(3), other.in_proj_bias.chunk(3), strict=True):
            part.weight.data, part.bias.data = weight.data.clone(), torch.randn_like(bias)
            bias.data.copy_(part.bias.data)
        ours.o.load_state_dict(other.out_proj.state_dict())
    ffn.up.load_state_dict(theirs.linear1.state_dict())
    ffn.down.load_state_dict(theirs.linear2.state_dict())
    for ours, other in ((block.attn_norm, theirs.norm1), (block.cross_norm, theirs.norm2), (block.ffn_norm, theirs.norm3)):
        ours.load_state_dict(other.state_dict())  # type: ignore[union-attr]
    x, memory = torch.randn(2, 6, 16, **F64), torch.randn(2, 9, 16, **F64)
    real = torch.ones(2, 9, dtype=torch.bool)
    real[1, 5:] = False
    got = block(x, Context(Mask(causal=True), memory_BSD=memory, memory_mask=Mask(keys=real)), 0)
    want = theirs(x, memory, nn.Transformer.generate_square_subsequent_mask(6, **F64), memory_key_padding_mask=~real)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
