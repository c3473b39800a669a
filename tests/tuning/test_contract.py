"""What holds for every tuning method on every kind of model, line by line.

One test is one method on one kind: `Cell` makes the model and attaches the method, and each function of LINES is one line of the contract.
Models are in float64 (parts of transformers' compute in float32 all the same), so that equal means equal.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.models.t5.modeling_t5 import T5Attention

from kinds import ENCODERS, KINDS, NO_BIAS, build, logits, tokens, without_dropout
from luthier import lookup
from luthier.anatomy.anatomy import Anatomy, anatomy
from luthier.anatomy.merge import merge
from luthier.core.feedforward import ACTIVATIONS
from luthier.core.reader import Reader, Sampling, left_padded
from luthier.core.transformer import Transformer
from luthier.sources.foreign import wrap
from luthier.tuning._attached import Attached
from luthier.tuning._read import read
from luthier.tuning._tune import attach, made

PLAIN = {"kind": "adapter", "width": 4, "start": 0.3, "norms": False}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "lora": [{}, {"roles": ("q", "k", "v", "o"), "rank": 2, "ranks": {"k": 3}, "also_train": ("embed",)}, {"dora": True, "start": "pissa"}],
    "qlora": [{"rank": 4, "alpha": 4.0}, {"base": "int8", "roles": ("q", "v"), "rank": 2, "also_train": ("embed",)}],
    "adalora": [{"rank": 3, "target": 2}],
    "freeze": [{}, {"roles": ("q", "o")}],
    "adapter": [
        {"width": 4},
        {"after": ("ffn",), "reads": "sum", "reduction": 8, "norms": False},
        {"after": ("attn", "ffn"), "reads": "in", "width": 4, "scale": 4.0, "norms": False},
    ],
    "prefix": [{"length": 3, "hidden": 8}],
    "p_tuning_v2": [{"length": 3}],
    "prompt": [{"length": 3}],
    "p_tuning": [{"length": 12}, {"length": 12, "encoder": "mlp"}],  # so many that every unit of the MLP is on for one of them
    "compacter": [{"reduction": 8, "summands": 2}],
    "mad_x": [{"reduction": 4, "act": "gelu"}],
    "adapter_fusion": [{"adapters": dict.fromkeys(("a", "b"), PLAIN)}],
    "mam": [{"length": 3, "hidden": 8, "width": 4, "act": "gelu"}],
    "unipelt": [{"length": 3, "hidden": 8, "rank": 2, "reduction": 8, "act": "gelu"}],
    "ia3": [{}, {"roles": ("q", "o", "up"), "inner": (), "also_train": ("embed",)}],
}
BY_COLUMN = ("bart",)  # its positions are the columns, so that it takes padding on the right only
ANEW = ("prefix", "p_tuning_v2", "prompt", "p_tuning", "adapter_fusion", "mam", "unipelt")  # seen from the first step, as in their papers
SHELF = [name for name in lookup.names("tuning") if name != "features"]  # features reads frozen states and trains no part of the model
NOISE = {"p_tuning": 0.5}  # so much that every unit of the encoder says something

# What cannot be, and the sentence that says so.
ALONE = "not through transformers' attention registry"
REFUSED: dict[tuple[str, str], str] = (
    {("bitfit", kind): "has no bias: bitfit has nothing to train" for kind in NO_BIAS}
    | {(name, "bloom"): ALONE for name in ("prefix", "p_tuning_v2", "mam", "unipelt")}
    | {(name, "mixtral"): "leave ffn out of `after`" for name in ("adapter", "adapter_fusion", "compacter", "mad_x", "mam", "unipelt")}
    | {("ia3", "mixtral"): "has the role"}  # its experts are one fused tensor
    | {(name, "our chatglm"): "finds the places of its tokens by itself" for name in ("prompt", "p_tuning")}
    | {("mad_x", "our transformer-xl"): "has several tables of vectors: nothing invertible fits"}
)
# Lines that cannot hold, by the sentence with which they are refused.
UNMIXED: dict[tuple[str, int, str], str] = {
    ("freeze", 0, kind): "what one output gives to all rows"
    for kind in ("t5", "our transformer-xl", "our xlnet")  # scores and projections of distances
} | {("freeze", 0, "mixtral"): "gives several tensors at once"}  # its router

LATE = made("lora", {"also_train": ("nonsense",)})  # fails when its terms are attached


@cache
def method(name: str, variant: int) -> Any:
    return made(name, VARIANTS.get(name, [{}])[variant])


@cache
def untouched(kind: str) -> nn.Module:
    """One for all tests; nothing may change it."""
    dtype = torch.float32 if kind in ("bloom", "gemma2") else torch.float64  # their own attention has no numbers for padding in float64
    return without_dropout(build(kind, dtype)).requires_grad_(False)


@dataclass
class Cell:
    """One method on one kind of model. `net` has it attached, with noise on everything that trains."""

    kind: str
    name: str
    variant: int
    folder: Path

    def fresh(self, on: Callable[[nn.Module], None] = lambda net: None) -> tuple[nn.Module, Attached]:
        net = copy.deepcopy(untouched(self.kind))
        on(net)
        torch.manual_seed(0)  # two copies start alike
        return net, attach(anatomy(net), method(self.name, self.variant))

    @cached_property
    def base(self) -> nn.Module:
        """What the adapter stands on: the model, for qlora with its projections quantised."""
        if self.name != "qlora":
            return untouched(self.kind)
        net, attached = self.fresh()
        attached.anatomy.remove("default")
        return net

    @cached_property
    def said_by_base(self) -> Tensor:
        return logits(self.base).detach()

    @cached_property
    def start(self) -> tuple[nn.Module, Attached, Tensor]:
        net, attached = self.fresh()
        said = logits(net).detach()
        trainable = {id(p) for p in net.parameters() if p.requires_grad}
        assert trainable and trainable == {id(p) for p in attached.parameters.values()}
        shake(attached, NOISE.get(self.name, 0.1))
        return net, attached, said

    @property
    def net(self) -> Any:
        return self.start[0]

    @property
    def attached(self) -> Attached:
        return self.start[1]

    @property
    def body(self) -> Anatomy:
        return self.attached.anatomy

    @cached_property
    def said(self) -> Tensor:
        return logits(self.net).detach()

    @cached_property
    def saved(self) -> Path:
        self.attached.save(self.folder)
        return self.folder

    @cached_property
    def grads(self) -> dict[str, Tensor]:
        return grads(self.net, self.attached)

    @property
    def ours(self) -> bool:
        return self.kind.startswith("our")

    @property
    def no_rows(self) -> str:
        """The sentence that refuses it in mixed rows, where one does."""
        return UNMIXED.get((self.name, self.variant, self.kind), "")

    @property
    def pair(self) -> bool:
        return len(self.body.stacks) > 1


def shake(attached: Attached, size: float = 0.1) -> None:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in attached.parameters.values():
            parameter.add_(size * torch.randn_like(parameter))


def near(got: Tensor, want: Tensor, tolerance: float = 1e-5) -> None:
    """transformers' norms and softmaxes compute in float32."""
    assert got.shape == want.shape
    got, want = got.detach(), want.detach()
    off, size = float((got - want).abs().max()), max(1.0, float(want.abs().max()))
    assert off <= tolerance * size, f"{off:.1e} apart"


def same(got: Tensor, want: Tensor) -> None:
    near(got, want, 0.0)


def weighed(out: Tensor) -> Tensor:
    return (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=out.dtype)).sum()


def grads(net: nn.Module, attached: Attached, **inputs: Any) -> dict[str, Tensor]:
    return gradients(weighed(logits(net, **inputs)), attached.parameters)


def gradients(loss: Tensor, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Zero where a parameter is not in use."""
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if grad is None else grad for (name, p), grad in zip(parameters.items(), found, strict=True)}


# The lines


def step_0_is_the_base_where_the_paper_says_so(cell: Cell) -> None:
    said = cell.start[2]
    if cell.name in ANEW:
        assert (said - cell.said_by_base).abs().max() > 1e-3
    else:
        near(said, cell.said_by_base)


def it_does_something(cell: Cell) -> None:
    assert (cell.said - cell.said_by_base).abs().max() > 1e-3


def every_element_of_every_new_parameter_has_a_gradient(cell: Cell) -> None:
    """On a text with every token. Elements that have none by algebra are those of NONE, neither more nor fewer."""
    ids = torch.cat([torch.randperm(99, generator=torch.Generator().manual_seed(4)), torch.arange(13)]).view(4, 28)
    net, attached = cell.net, cell.attached  # bloom's softmax is float32 all the same
    if cell.said.dtype == torch.float32:
        net, attached = copy.deepcopy((net, attached))
        net.double()
    with smooth(net):
        found = grads(net, attached, ids=ids)
    most = max(float(grad.abs().max()) for grad in found.values())
    dead = {name: grad.abs() <= (1e-7 if cell.kind == "bloom" else 1e-13) * most for name, grad in found.items()}
    wrong = {name: int((mask != without_gradient(cell, name, mask)).sum()) for name, mask in dead.items()}
    assert not any(wrong.values()), {name: (n, int(dead[name].sum()), tuple(dead[name].shape)) for name, n in wrong.items() if n}


@contextmanager
def smooth(net: nn.Module) -> Iterator[None]:
    """Inside, ReLU is GELU: which units no token turns on is chance."""
    relu, mine = F.relu, [module for module in net.modules() if getattr(module, "act", None) is F.relu]

    def gelu(x: Tensor, inplace: bool = False) -> Tensor:
        return F.gelu(x)

    with patch.object(F, "relu", gelu), patch.dict(ACTIVATIONS, relu=gelu):
        for module in mine:
            module.act = gelu  # type: ignore[assignment]
        yield
        for module in mine:
            module.act = relu  # type: ignore[assignment]


# Of kinds whose keys have biases: how many of the 8 dimensions of a head are turned by its place.
TURNED = {"qwen2": 8, "glm4": 4, "gpt_neox": 2, "our qwen": 8, "our glm4": 4, "our chatglm": 8}
OFFSET = {"opt": 2, "bart": 2, "roberta": 2, "our roberta": 1}  # the first row that a token reads of a table of positions
POSITIONS = ("wpe.weight", "embed_positions.weight", "position_embeddings.weight", "embed.position.weight")
UNREAD = {
    "a text of one segment reads one row of its table": ("token_type_embeddings.weight", "embed.types.weight", "embed.tasks.weight"),
    "a text of one segment has no use for XLNet's vectors of segments": ("attn.segment", "attn.segments"),
    "the query stream is for texts with targets (XLNet)": ("mask_vector",),
    "the pooler is for heads of sentences": ("pooler.dense.weight", "pooler.dense.bias"),
}


def without_gradient(cell: Cell, name: str, like: Tensor) -> Tensor:
    """Which elements have none, whatever the values."""
    none = torch.zeros_like(like)
    for site in cell.body.find("k"):  # softmax is blind to what all keys share: a bias, where no rotation makes it another at each place
        if name in (f"{site.address}.bias", f"{site.path}.bias"):
            still = torch.arange(site.weight.shape[0]) % 8 >= TURNED.get(cell.kind, 0)
            rows = torch.arange(len(still)) if site.rows is None or name == f"{site.address}.bias" else site.rows
            none[rows[still]] = True
    if cell.name == "adapter_fusion" and name.endswith(".key.bias"):  # the same, among the adapters
        none[:] = True
    embed = cell.body.embed
    if name in ("embed.weight", f"{embed.path}.weight") and not cell.body.tied and getattr(embed.module, "padding_idx", None) is not None:
        none[embed.module.padding_idx] = True  # torch keeps the padding token's vector from training
    if name.endswith(POSITIONS):  # rows beyond the text
        none[:] = True
        none[OFFSET.get(cell.kind, 0) :][: 29 if cell.kind == "our roberta" else 28] = False
    for reason, names in UNREAD.items():
        if name.endswith(names):
            none["row" in reason :] = True
    if name.endswith(("relative_attention_bias.weight", "relative.bias.weight")):  # distances beyond the text
        far = torch.arange(28)[None] - torch.arange(28)[:, None]
        near = T5Attention._relative_position_bucket(far, bidirectional="encoder" in name, num_buckets=32, max_distance=128)
        seen = near if "encoder" in name else near[torch.ones(28, 28).tril().bool()]
        none[:] = True
        none[seen.unique()] = False
    return none


def disabled_it_is_the_base_bit_for_bit(cell: Cell) -> None:
    if cell.attached.whole:
        return
    with cell.body.using():
        same(logits(cell.net), cell.said_by_base)
    same(logits(cell.net), cell.said)


def padding_on_either_side_and_its_token_change_nothing(cell: Cell) -> None:
    ids = tokens()
    short, target = ids[:1, :5], ids[:, :6]
    alone = logits(cell.net, short, decoder_ids=target[:1]), logits(cell.net, ids[1:], decoder_ids=target[1:])
    for pad, left in ((0, True), (0, False), (7, cell.kind not in BY_COLUMN)):
        if left and cell.kind in BY_COLUMN:
            continue
        if cell.kind in ("roberta", "our roberta"):
            pad = 1  # its positions begin behind the padding token's
        filler = torch.full((1, 3), pad)
        rows = torch.cat([torch.cat([filler, short] if left else [short, filler], 1), ids[1:]])
        mask = torch.ones(2, 8, dtype=torch.bool)
        mask[0, slice(0, 3) if left else slice(5, 8)] = False
        got = logits(cell.net, rows, mask, target)
        near(got[0] if got.shape[1] == 6 else got[0, mask[0]], alone[0][0])
        near(got[1], alone[1][0])


def packed_it_is_the_same(cell: Cell) -> None:
    if not cell.ours:
        return
    ids = tokens()
    net: Any = cell.net
    want = [net.hidden(x, **({"decoder_ids": x} if cell.pair else {})) for x in (ids[:1, :5], ids[1:])]
    packed = torch.cat([ids[:1, :5], ids[1:]], 1)
    got = net.hidden(packed, lengths=(5, 8), **({"decoder_ids": packed, "decoder_lengths": (5, 8)} if cell.pair else {}))
    near(got, torch.cat(want, 1))


def written_with_a_cache_it_is_the_whole_pass(cell: Cell) -> None:
    if cell.kind in ENCODERS or (cell.ours and not cell.net.causal):
        return
    prompts = [tokens()[0].tolist(), tokens()[1, : 8 if cell.kind in BY_COLUMN else 4].tolist()]
    scores, new = (_ours if cell.ours else _theirs)(cell.net, prompts)
    for row, prompt in enumerate(prompts):
        text = [cell.net.start if cell.ours else 0] if cell.pair else prompt
        whole = torch.tensor([text + new[row]])
        want = logits(cell.net, torch.tensor([prompt]) if text is not prompt else whole, decoder_ids=whole)
        near(scores[row], want[0, -len(scores[row]) - 1 : -1], 1e-5)


def _ours(net: Any, prompts: list[list[int]]) -> tuple[Tensor, list[list[int]]]:
    new = tokens()[:, :3]
    with torch.inference_mode():
        reader = Reader(net, 2, Sampling(temperature=0.0, max_tokens=4))
        scores = [reader(*left_padded(prompts))] + [reader(new[:, i : i + 1]) for i in range(2)]
    return torch.stack(scores, 1), new.tolist()


def _theirs(net: Any, prompts: list[list[int]]) -> tuple[Tensor, list[list[int]]]:
    ids, mask = left_padded(prompts)
    mask = torch.ones_like(ids) if mask is None else mask
    net.generation_config.decoder_start_token_id = 0
    options = {"do_sample": False, "max_new_tokens": 3, "min_new_tokens": 3, "pad_token_id": 0, "output_logits": True}
    out = net.generate(ids, attention_mask=mask.long(), return_dict_in_generate=True, **options)
    return torch.stack(out.logits, 1).double(), out.sequences[:, -3:].tolist()


def plain_attention_is_sdpa(cell: Cell) -> None:
    if cell.ours:
        with patch.object(F, "scaled_dot_product_attention", _attention):
            near(logits(cell.net), cell.said)
        return
    net: Any = cell.net
    if net.config._attn_implementation.endswith("eager"):  # gemma2 has no other
        return
    net.set_attn_implementation("eager")
    got = logits(net)
    net.set_attn_implementation("sdpa")
    near(got, cell.said)
    same(logits(net), cell.said)


def _attention(q, k, v, mask=None, dropout=0.0, is_causal=False, scale=None, enable_gqa=False, *, attn_mask=None, dropout_p=0.0):
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    mask = attn_mask if mask is None else mask
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ v


def recomputed_the_gradients_are_equal_and_its_state_goes_on_another_copy(cell: Cell) -> None:
    net, attached = cell.fresh(recompute)
    attached.load_state(cell.attached.state())
    near(logits(net), cell.said, 1e-6)
    before = grads(net, attached)
    recompute(cell.net)
    after = grads(cell.net, cell.attached)
    recompute(cell.net, False)
    for name, grad in cell.grads.items():
        near(before[name], grad)
        near(after[name], grad)


def recompute(net: Any, on: bool = True) -> None:
    if isinstance(net, Transformer):
        net.recompute = on
    else:
        (net.activation_checkpointing_enable if on else net.activation_checkpointing_disable)()
        net.train(on)


def saved_it_is_loaded_and_goes_on_training(cell: Cell) -> None:
    if cell.attached.whole:
        with pytest.raises(ValueError, match="save the model"):
            cell.attached.save(cell.folder)
        return
    again = copy.deepcopy(cell.base)
    loaded = read(anatomy(again), cell.saved)
    near(logits(again), cell.said)
    assert not any(p.requires_grad for p in loaded.parameters.values())
    loaded.anatomy.remove("default")
    resumed = read(anatomy(again), cell.saved, trainable=True)
    twin, attached = copy.deepcopy((cell.net, cell.attached))
    same(logits(twin), cell.said)
    assert resumed.parameters.keys() == attached.parameters.keys()
    losses = []
    for net, each in ((twin, attached), (again, resumed)):
        found = gradients(logits(net).square().mean(), each.parameters)
        with torch.no_grad():
            for name, parameter in each.parameters.items():
                parameter -= 1e-2 * found[name]
            losses.append(logits(net).square().mean())
    near(losses[1], losses[0])
    same(logits(cell.net), cell.said)  # a deep copy is apart


def a_row_in_a_mixed_batch_is_the_row_alone(cell: Cell) -> None:
    """In training too: of two rows under two methods, each gets the gradients of its own row."""
    if cell.attached.whole:
        return
    net, body = cell.net, cell.body
    weights = torch.randn(cell.said.shape, generator=torch.Generator().manual_seed(3), dtype=cell.said.dtype)
    with second(cell) as other:
        if cell.no_rows:
            with pytest.raises(ValueError, match=cell.no_rows), body.using("default", "other", rows=torch.tensor([[0], [1]])):
                logits(net)
            return
        alone, wanted = [], dict[str, Tensor]()
        for i, (name, attached) in enumerate((("default", cell.attached), ("other", other))):
            with body.using(name):
                alone.append(logits(net, tokens()[i : i + 1])[0])
            found = gradients((alone[i] * weights[i]).sum(), attached.parameters)
            wanted |= {f"{name} {key}": grad for key, grad in found.items()}
        with body.using("default", "other", rows=torch.tensor([[0], [1]])):
            got = logits(net)
        near(got, torch.stack(alone))
        both = {f"default {key}": p for key, p in cell.attached.parameters.items()} | {
            f"other {key}": p for key, p in other.parameters.items()
        }
        for key, grad in gradients((got * weights).sum(), both).items():
            near(grad, wanted[key])
        with torch.no_grad(), body.using("other", "default", rows=torch.tensor([[-1], [1]])):
            near(logits(net), torch.stack([cell.said_by_base[0], cell.said[1]]))


@contextmanager
def second(cell: Cell) -> Iterator[Attached]:
    other = attach(cell.body, method("lora", 1), "other")
    shake(other)
    for parameter in cell.attached.parameters.values():
        parameter.requires_grad_(True)
    try:
        yield other
    finally:
        cell.body.remove("other")
        cell.body.activate("default")


def a_call_that_fails_leaves_the_model_usable(cell: Cell) -> None:
    net, body = cell.net, cell.body
    with Fails() as calls:
        logits(net)
    for part in (0.5, 0.9):
        with pytest.raises(RuntimeError, match="on purpose"), Fails(int(part * calls.made)):
            logits(net)
    with pytest.raises(ValueError, match="no role called"):
        attach(body, LATE, "second")
    if not cell.attached.whole:
        with pytest.raises(ValueError, match="rows of shape"), body.using("default", rows=torch.zeros(3, 5, dtype=torch.long)):
            logits(net)
    same(logits(net), cell.said)
    assert {id(p) for p in net.parameters() if p.requires_grad} == {id(p) for p in cell.attached.parameters.values()}


class Fails(TorchFunctionMode):
    """Inside, a call of torch fails: the one of this number."""

    def __init__(self, at: int = -1):
        super().__init__()
        self.at, self.made = at, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch._C._set_grad_enabled:  # it is how no_grad ends, which a failure must not prevent
            self.made += 1
            if self.made == self.at:
                raise RuntimeError("on purpose")
        return func(*args, **(kwargs or {}))


def merged_it_is_unmerged(cell: Cell) -> None:
    """The last line: it changes the model."""
    net, body = cell.net, cell.body
    if not all(adapter.mergeable for _, around in body.arounds() for adapter in around.adapters.values()):
        with pytest.raises(ValueError, match="cannot be merged"):
            merge(body)
        same(logits(net), cell.said)
        return
    assert merge(body) < 1e-5
    near(logits(net), cell.said)
    assert not body.adapters
    assert [name for name, _ in net.named_parameters()] == [name for name, _ in untouched(cell.kind).named_parameters()]


LINES = (
    step_0_is_the_base_where_the_paper_says_so,
    it_does_something,
    disabled_it_is_the_base_bit_for_bit,
    every_element_of_every_new_parameter_has_a_gradient,
    padding_on_either_side_and_its_token_change_nothing,
    packed_it_is_the_same,
    written_with_a_cache_it_is_the_whole_pass,
    plain_attention_is_sdpa,
    recomputed_the_gradients_are_equal_and_its_state_goes_on_another_copy,
    saved_it_is_loaded_and_goes_on_training,
    a_row_in_a_mixed_batch_is_the_row_alone,
    a_call_that_fails_leaves_the_model_usable,
    merged_it_is_unmerged,
)


def variant(kind: str, name: str) -> int:
    """Which of a method's variants a kind is tried with: in turn, so that each is tried with several."""
    return KINDS.index(kind) % len(VARIANTS.get(name, [{}]))


def short(kind: str) -> list[str]:
    """The methods that a kind has in the short run: four, in turn."""
    mine = [name for name in SHELF if (name, kind) not in REFUSED]
    return [mine[(KINDS.index(kind) + part * len(mine) // 4) % len(mine)] for part in range(4)]


CELLS = [(kind, name) for kind in KINDS for name in SHELF]


@pytest.mark.parametrize(
    "kind, name", [pytest.param(*cell, marks=() if cell[1] in short(cell[0]) else pytest.mark.slow, id="-".join(cell)) for cell in CELLS]
)
def test_every_line_of_the_contract_holds(kind: str, name: str, tmp_path: Path):
    cell = Cell(kind, name, variant(kind, name), tmp_path / "adapter")
    if (name, kind) in REFUSED:
        net = copy.deepcopy(untouched(kind))
        with pytest.raises(ValueError, match=REFUSED[name, kind]):
            attach(anatomy(net), method(name, cell.variant))
        same(logits(net), logits(untouched(kind)))
        return
    for line in LINES:
        line(cell)


def test_the_short_run_has_each_method_on_four_kinds_and_each_kind_with_four_methods():
    chosen = [(kind, name) for kind in KINDS for name in short(kind)]
    assert all(len({name for each, name in chosen if each == kind}) == 4 for kind in KINDS)
    assert all(len({kind for kind, each in chosen if each == name}) >= 4 for name in SHELF)
    tried = {(name, variant(kind, name)) for kind, name in CELLS if (name, kind) not in REFUSED}
    assert tried == {(name, i) for name in SHELF for i in range(len(VARIANTS.get(name, [{}])))}


@pytest.mark.parametrize("kind", ["llama", "bert", "t5", "opt"])
def test_a_wrapped_model_runs_its_blocks_again_under_the_adapters_of_their_batch(kind: str):
    """As a run's training.recompute asks: backward comes after the batch's set of adapters has gone."""
    net: Any = wrap(copy.deepcopy(untouched(kind))).net
    body = anatomy(net)
    first, other = (attach(body, method("lora", 1), name) for name in ("first", "other"))
    for attached in (first, other):
        shake(attached)
        for parameter in attached.parameters.values():
            parameter.requires_grad_(True)
    runs, calls = [], []
    body.find("attn_norm", layers=0)[0].module.register_forward_pre_hook(lambda *_: calls.append(None))
    both = first.parameters | {f"other.{name}": parameter for name, parameter in other.parameters.items()}
    for again in (False, True):
        net.train()
        net.recompute = again
        with body.using("first", "other", rows=torch.tensor([[1], [0]])):
            out = weighed(net(tokens(), **({"decoder_ids": tokens()} if kind == "t5" else {})))
        body.activate()
        runs.append(gradients(out, both))
    assert len(calls) == 1 + 2
    for name, grad in runs[0].items():
        near(runs[1][name], grad)
