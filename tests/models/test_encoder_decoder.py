"""Encoder-decoders give transformers' numbers in float64 at 200 tokens, both ways; packing, padding and caching change nothing."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch import nn
from transformers.models.t5.modeling_t5 import T5LayerNorm

sys.path.insert(0, str(Path(__file__).parent))
from mutations import each, same, swap_norms
from oracles import FLOOR, gap, sample

from luthier.core.attention import Attention
from luthier.core.block import Block
from luthier.core.cache import Cache
from luthier.core.names import export_state, import_state
from luthier.core.position import RelativeBias, Sinusoid, sinusoids
from luthier.models.t5 import T5
from luthier.models.transformer import Vaswani

MARIAN = dict(
    vocab_size=60, d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=220, activation_function="relu", scale_embedding=True,
    pad_token_id=0, eos_token_id=1, forced_eos_token_id=None, decoder_start_token_id=0,
)  # fmt: skip
SMALL_T5 = dict(vocab_size=60, d_model=32, d_kv=6, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=4, decoder_start_token_id=0)
GATED = dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
KINDS = {
    "marian": (Vaswani, hf.MarianConfig, MARIAN, hf.MarianMTModel),
    "marian_swish": (Vaswani, hf.MarianConfig, MARIAN | {"activation_function": "swish", "scale_embedding": False}, hf.MarianMTModel),
    "t5": (T5, hf.T5Config, SMALL_T5, hf.T5ForConditionalGeneration),
    "t5_gated": (T5, hf.T5Config, SMALL_T5 | GATED, hf.T5ForConditionalGeneration),
    "t5_untied": (T5, hf.T5Config, SMALL_T5 | GATED, hf.T5ForConditionalGeneration),
}
kinds = pytest.mark.parametrize("kind", KINDS)
SOURCES, TARGETS = (30, 1, 57, 112), (20, 40, 1, 139)
FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(autouse=True)
def float64_norm(monkeypatch):
    """T5's own takes the variance in float32."""

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    monkeypatch.setattr(T5LayerNorm, "forward", forward)


def reference(kind: str, **changes):
    _, config, sizes, cls = KINDS[kind]
    model = cls(config(**sizes, **changes))
    if kind == "t5_untied":  # 5.23 ties whatever config.json says, but uses the matrix that a checkpoint brings
        model.lm_head.weight = nn.Parameter(torch.empty(60, 32))
    model.config._attn_implementation = "sdpa"
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "embed_positions" not in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.2 + (1.0 if p.dim() == 1 and "weight" in name else 0.0))
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.copy_(torch.randn(1, 60, generator=generator))
        for p in ("encoder", "decoder"):
            if "marian" in kind:  # theirs is a float32 table whatever the dtype
                table = getattr(model.model, p).embed_positions.weight
                table.copy_(sinusoids(*table.shape, "halves"))
    return model.eval()


def ours(kind: str, model, **changes):
    cls = KINDS[kind][0]
    arch = cls.from_config(model.config.to_dict())
    stored = {arch.aliases(name): tensor for name, tensor in model.state_dict().items() if arch.aliases(name)}
    if kind != "t5_untied":
        stored.pop("lm_head.weight", None)
    arch = replace(arch.fit(set(stored)), **changes)
    net = arch.build()
    net.load_state_dict(import_state(arch.names({"lm": 60}), stored), strict=False)
    return net.eval()


def pair(batch: int = 2, source: int = 200, target: int = 200):
    return sample(batch, source), sample(batch, target, seed=3)


def theirs_of(model, ids, decoder_ids, mask=None):
    return model(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids).logits


@kinds
@torch.no_grad()
def test_logits_equal_transformers(kind):
    model = reference(kind)
    ids, decoder_ids = pair()
    net = ours(kind, model)
    assert gap(net(ids, decoder_ids=decoder_ids), theirs_of(model, ids, decoder_ids)) < FLOOR
    mask = torch.ones(2, 200, dtype=torch.bool)
    mask[1, 150:] = False
    assert gap(net(ids, mask, decoder_ids=decoder_ids[:, :70]), theirs_of(model, ids, decoder_ids[:, :70], mask.long())) < FLOOR


@kinds
@torch.no_grad()
def test_what_we_save_gives_transformers_our_logits(kind):
    model = reference(kind)
    net = ours(kind, model)
    for p in net.parameters():
        p.mul_(1.01)
    saved = net.config.saved()
    written = export_state(saved.names({"lm": 60}), dict(net.state_dict()))
    fresh = type(model)(KINDS[kind][1](**saved.to_config()))
    if "lm_head.weight" in written:
        fresh.lm_head.weight = nn.Parameter(written["lm_head.weight"].clone())
    missing, unexpected = fresh.load_state_dict(written, strict=False)
    for part in (fresh.get_encoder(), fresh.get_decoder()):
        part.set_input_embeddings(fresh.get_input_embeddings())
        if "marian" in kind:
            part.embed_positions.weight.copy_(sinusoids(220, 32, "halves"))
    if "lm_head.weight" not in written:
        fresh.lm_head.weight = fresh.get_input_embeddings().weight
    assert not unexpected and all("embed_" in name or name == "lm_head.weight" for name in missing)
    ids, decoder_ids = pair()
    assert gap(theirs_of(fresh.eval(), ids, decoder_ids), net(ids, decoder_ids=decoder_ids)) < FLOOR


@kinds
def test_gradients_equal_transformers_in_every_element(kind):
    model = reference(kind)
    net = ours(kind, model)
    ids, decoder_ids = pair(1, 50, 40)
    sign = torch.randn(60, generator=torch.Generator().manual_seed(1))
    (net(ids, decoder_ids=decoder_ids) * sign).sum().backward()
    (theirs_of(model, ids, decoder_ids) * sign).sum().backward()
    stored = {net.config.aliases(name): p for name, p in model.named_parameters()}
    names = net.config.names({"lm": 60})
    for name, p in net.named_parameters():
        if names[name].path != "final_logits_bias":  # a buffer there
            want = stored[names[name].path].grad
            torch.testing.assert_close(p.grad, want, rtol=1e-9, atol=1e-9 * float(want.abs().max() + 1e-3), msg=name)


def late(net):
    class Late(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.num_embeddings = inner, inner.num_embeddings

        def forward(self, position):
            return self.inner(position + 1)

    net.embed.position = Late(net.embed.position)


MUTANTS = {
    "eps ten times larger": (lambda a: {"eps": a.eps * 10}, None, list(KINDS)),
    "another activation": (lambda a: {"act": "gelu"}, None, list(KINDS)),
    "attention scale": (same, each(Attention, lambda m: setattr(m, "scale", 0.36)), list(KINDS)),
    "norm place": (same, each(Block, swap_norms), list(KINDS)),
    "crossing before attention": (
        same,
        lambda net: [block.cross.load_state_dict(block.attn.state_dict()) for block in net.blocks],
        list(KINDS),
    ),
    "decoder sees ahead": (same, lambda net: setattr(net, "causal", False), list(KINDS)),
    "encoder is causal": (same, lambda net: setattr(net.encoder, "causal", True), list(KINDS)),
    "positions one late": (same, late, ["marian"]),
    "interleaved sinusoids": (lambda a: {"layout": "interleaved"}, None, ["marian"]),
    "fairseq's sinusoids": (lambda a: {"layout": "tensor2tensor"}, None, ["marian"]),
    "embeddings not scaled": (lambda a: {"scaled": not a.scaled}, None, ["marian", "marian_swish", "t5", "t5_gated"]),
    "no head bias": (lambda a: {"head_bias": False}, None, ["marian"]),
    "reach": (lambda a: {"reach": 127}, None, ["t5", "t5_untied"]),
    "buckets both ways in the decoder": (same, lambda net: setattr(net.relative, "bidirectional", True), ["t5"]),
    "one table for both stacks": (
        same,
        lambda net: net.relative.bias.weight.copy_(net.encoder.relative.bias.weight),
        ["t5", "t5_gated"],
    ),
    "no final norm": (same, lambda net: setattr(net, "norm", nn.Identity()), ["t5"]),
    "no final norm in the encoder": (same, lambda net: setattr(net.encoder, "norm", nn.Identity()), ["t5"]),
    "tied": (lambda a: {"tied": True}, None, ["t5_untied"]),
}


@pytest.mark.parametrize(("mutant", "kind"), [(mutant, kind) for mutant, (_, _, where) in MUTANTS.items() for kind in where])
@torch.no_grad()
def test_the_parity_test_catches(mutant, kind):
    change, alter, _ = MUTANTS[mutant]
    model = reference(kind)
    net = ours(kind, model, **change(ours(kind, model).config))
    if alter is not None:
        alter(net)
    ids, decoder_ids = pair()
    assert gap(net(ids, decoder_ids=decoder_ids), theirs_of(model, ids, decoder_ids)) > 10 * FLOOR


@kinds
@torch.no_grad()
def test_packed_equals_alone_and_does_not_leak(kind):
    net = ours(kind, reference(kind))
    ids, decoder_ids = pair(1)
    packed = net(ids, lengths=SOURCES, decoder_ids=decoder_ids, decoder_lengths=TARGETS)
    parts = zip(ids.split(SOURCES, 1), decoder_ids.split(TARGETS, 1), strict=True)
    assert gap(packed, torch.cat([net(source, decoder_ids=target) for source, target in parts], 1)) < FLOOR
    changed = ids.clone()
    changed[0, :30] = sample(1, 30, seed=5)[0]
    again = net(changed, lengths=SOURCES, decoder_ids=decoder_ids, decoder_lengths=TARGETS)
    assert torch.equal(packed[:, 20:], again[:, 20:]) and not torch.equal(packed[:, :20], again[:, :20])


@kinds
@torch.no_grad()
def test_padding_on_either_side_changes_nothing(kind):
    net = ours(kind, reference(kind))
    ids, decoder_ids = pair(1, 40, 30)
    want = net(ids, decoder_ids=decoder_ids)
    for left in (0, 9):
        rows, masks = [], []
        for part, size in ((ids, 40), (decoder_ids, 30)):
            row, mask = torch.zeros(1, size + 9, dtype=torch.long), torch.zeros(1, size + 9, dtype=torch.bool)
            row[:, left : left + size], mask[:, left : left + size] = part, True
            rows.append(torch.cat([row, sample(1, size + 9)]))
            masks.append(torch.cat([mask, torch.ones_like(mask)]))
        got = net(rows[0], masks[0], decoder_ids=rows[1], decoder_mask=masks[1])
        assert gap(got[:1][masks[1][:1]], want[0]) < FLOOR


@kinds
@torch.no_grad()
def test_cached_steps_equal_one_pass_and_rows_may_change(kind):
    net = ours(kind, reference(kind))
    ids, decoder_ids = pair(2, 50, 60)
    mask = torch.ones(2, 50, dtype=torch.bool)
    mask[0, :9] = False
    want = net(ids, mask, decoder_ids=decoder_ids)
    cache = Cache(3)
    steps = [net(ids, mask, decoder_ids=part, cache=cache) for part in decoder_ids.split((20, 1, 1, 30, 8), 1)]
    assert gap(torch.cat(steps, 1), want) < FLOOR
    cache = Cache(3)
    net(ids, mask, decoder_ids=decoder_ids[:, :30], cache=cache)
    cache.rows(torch.tensor([1, 0, 1]))
    rest = net(ids, decoder_ids=decoder_ids[[1, 0, 1], 30:], cache=cache)
    assert gap(rest, want[[1, 0, 1], 30:]) < FLOOR


@kinds
def test_recomputation_and_fusing_change_nothing(kind):
    net = ours(kind, reference(kind))
    ids, decoder_ids = pair(1, 60, 40)
    inputs = {"lengths": (20, 40), "decoder_ids": decoder_ids, "decoder_lengths": (30, 10)}
    grads = []
    for recompute in (False, True):
        net.recompute = recompute
        net.zero_grad()
        net(ids, **inputs).square().sum().backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    with torch.no_grad():
        want = net(ids, **inputs)
        net.requires_grad_(False).fuse()
        assert gap(net(ids, **inputs), want) < FLOOR


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["marian", pytest.param("t5_gated", marks=pytest.mark.slow)])
def test_a_net_is_one_graph_with_equal_logits_and_gradients(kind):
    net = ours(kind, reference(kind))
    ids, decoder_ids = pair(2, 30, 20)
    mask = torch.ones(2, 30, dtype=torch.bool)
    mask[0, 22:] = False
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    gradients = []
    for called in (compiled, net):
        net.zero_grad()
        logits = called(ids, mask, decoder_ids=decoder_ids)
        logits.sin().sum().backward()
        gradients.append([logits.detach(), *(p.grad for p in net.parameters())])
    for ours_, theirs_ in zip(*gradients, strict=True):
        torch.testing.assert_close(ours_, theirs_, rtol=1e-9, atol=1e-9)


@kinds
@torch.no_grad()
def test_bfloat16_stays_as_near_as_transformers(kind):
    model = reference(kind)
    net = ours(kind, model)
    ids, decoder_ids = pair(2, 60, 40)
    want = net(ids, decoder_ids=decoder_ids)
    got, other = net.bfloat16()(ids, decoder_ids=decoder_ids), theirs_of(model.bfloat16(), ids, decoder_ids)
    assert got.dtype == torch.bfloat16
    far = [((logits.double() - want).abs().mean() / want.abs().mean()).item() for logits in (got, other)]
    assert far[0] < 1.2 * far[1] and far[0] < 0.1


@kinds
def test_a_configuration_survives_being_written(kind):
    arch = ours(kind, reference(kind)).config.saved()
    assert type(arch).from_config(arch.to_config()).fit({"lm_head.weight", "final_logits_bias"}) == arch
    if kind == "marian":
        paper = replace(arch, layout="interleaved")
        assert Vaswani.from_config(paper.to_config()) == paper


@pytest.mark.parametrize(("kind", "rate"), [("marian", {"attention_dropout": 0.2, "activation_dropout": 0.3}), ("t5_gated", {})])
def test_dropout_falls_where_transformers_lets_it_fall(kind, rate, monkeypatch):
    seen: list[tuple[float, tuple[int, ...]]] = []
    drop, attend = nn.functional.dropout, nn.functional.scaled_dot_product_attention

    def record(x, p=0.5, training=True, inplace=False):
        seen.extend([(p, tuple(x.shape))] if training and p else [])
        return drop(x, p, training, inplace)

    def record_attention(q, k, v, mask=None, p=0.0, causal=False, dropout_p=0.0, is_causal=False, **rest):
        seen.append((p or dropout_p, ("attention",)))
        return attend(q, k, v, rest.pop("attn_mask", mask), 0.0, causal or is_causal, **rest)

    monkeypatch.setattr(nn.functional, "dropout", record)
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", record_attention)
    model = reference(kind, **rate)
    ids, decoder_ids = pair(1, 20, 10)
    net = ours(kind, model).train()
    theirs_of(model.train(), ids, decoder_ids)
    want, seen[:] = list(seen), []
    net(ids, decoder_ids=decoder_ids)
    assert seen == want and len(want) > 20


@pytest.mark.parametrize("layout", ["interleaved", "halves", "tensor2tensor"])
def test_sinusoids_follow_their_formula(layout):
    net = Vaswani(vocab=9, width=8, layers=1, decoder_layers=1, heads=2, hidden=8, positions=50, layout=layout).build()
    table = net.embed.position.table
    assert isinstance(net.embed.position, Sinusoid) and net.embed.scale == 8**0.5
    for i in range(4):
        rate = 10_000 ** -(i / (3 if layout == "tensor2tensor" else 4))
        at = (2 * i, 2 * i + 1) if layout == "interleaved" else (i, 4 + i)
        angle = torch.arange(50) * rate
        torch.testing.assert_close(table[:, at[0]].double(), angle.sin().double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(table[:, at[1]].double(), angle.cos().double(), rtol=0, atol=1e-6)


@torch.no_grad()
def test_untied_t5_equals_a_model_of_transformers_4():
    """The version that does not tie; fixtures/t5_untied.py made the file."""
    stored = load_file(FIXTURES / "t5_untied.safetensors")
    logits, ids, decoder_ids = (stored.pop(name) for name in ("logits", "ids", "decoder_ids"))
    config = {"vocab_size": 40, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2}
    arch = T5.from_config(config | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}).fit(set(stored))
    assert not arch.tied and not arch.scaled
    net = arch.build().double()
    net.load_state_dict(import_state(arch.names({"lm": 40}), {name: tensor.double() for name, tensor in stored.items()}), strict=False)
    assert gap(net.eval()(ids, decoder_ids=decoder_ids), logits.double()) < 1e-4  # they cast to float32 inside
    net.heads["lm"].out.weight.copy_(net.embed.token.weight)
    assert gap(net(ids, decoder_ids=decoder_ids), logits.double()) > 0.1


COUNTS = {
    (T5, "t5-small"): 60_506_624,
    (T5, "t5-base"): 222_903_552,
    (T5, "t5-large"): 737_668_096,
    (T5, "t5-3b"): 2_851_598_336,
    (T5, "t5-11b"): 11_307_321_344,
    (T5, "t5-v1.1-base"): 247_577_856,
    (T5, "flan-t5-base"): 247_577_856,
    (Vaswani, "transformer-base"): 64_131_072 - 2 * 1024 * 512,
    (Vaswani, "transformer-big"): 216_342_528 - 2 * 1024 * 1024,
}


@pytest.mark.parametrize(("arch", "preset"), COUNTS)
def test_presets_have_the_published_number_of_parameters(arch, preset):
    with torch.device("meta"):
        net = arch(**arch.presets[preset]).build()
    assert sum(p.numel() for p in net.parameters()) == COUNTS[arch, preset]


def test_what_is_not_here_is_refused_by_name():
    with pytest.raises(ValueError, match="embedding of the decoder's own"):
        Vaswani.from_config(hf.MarianConfig(**MARIAN | {"share_encoder_decoder_embeddings": False}).to_dict())
    with pytest.raises(ValueError, match="norms in other places"):
        Vaswani.from_config({"model_type": "marian", **MARIAN, "normalize_before": True})
    with pytest.raises(ValueError, match="feed_forward_proj='mish'"):
        T5.from_config({"model_type": "t5", **SMALL_T5, "feed_forward_proj": "gated-mish"})
    net = T5(vocab=9, width=8, layers=1, heads=2, hidden=8).build()
    with pytest.raises(ValueError, match="give decoder_ids"):
        net(sample(1, 4) % 9)
    with pytest.raises(ValueError, match="takes no types"):
        net(sample(1, 4) % 9, decoder_ids=sample(1, 4) % 9, types=sample(1, 4))
    with pytest.raises(ValueError, match="as many packed targets"):
        net(sample(1, 4) % 9, lengths=(2, 2), decoder_ids=sample(1, 4) % 9)


def test_relative_tables_are_one_for_each_stack():
    net = T5(vocab=9, width=8, layers=3, heads=2, hidden=8).build()
    assert len([part for part in net.modules() if isinstance(part, RelativeBias)]) == 2
    assert net.encoder.relative.bidirectional and not net.relative.bidirectional
