"""ERNIE of Tsinghua against what its reference implementation says (fixtures/ernie_thu.py), packed, padded, saved, and each mutant caught."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from fixtures.ernie_thu import CONFIG, VOCAB, inputs, weights
from oracles import gap

from kinds import shake
from luthier.anatomy.merge import merge
from luthier.core.names import import_state
from luthier.models.ernie_thu import EntityBlock, ErnieTHU
from luthier.sources._match import stored_shapes
from luthier.sources.load import load_model
from luthier.sources.model import Model
from luthier.tuning._tune import attach, made

ARCH = ErnieTHU.from_config(CONFIG | {"vocab_size": VOCAB})
CLEAN = 1e-12
X = inputs()
GIVEN = {"types": X["segments"], "entities": X["vectors"], "entity_mask": X["named"]}
REAL = X["mask"]


def net(arch: ErnieTHU = ARCH):
    built = arch.build().eval()
    names = arch.names(dict.fromkeys(built.heads, 0))
    built.load_state_dict(import_state(names, weights(stored_shapes(built, names))), strict=False)
    return built


def differences(built) -> dict[str, float]:
    """By output, on real tokens: relative distance from the reference implementation's."""
    want = load_file(Path(__file__).parent / "fixtures" / "ernie_thu.safetensors")
    states = built.states(X["ids"], REAL, **GIVEN)
    hidden, heads = states[-1], built.heads
    pairs = {f"layer {i}": (state[:, ::4], layer, 4) for i, (state, layer) in enumerate(zip(states[1:], want["layers"], strict=True))}
    pairs["tokens"] = (heads["lm"](hidden[:, ::8]), want["tokens"], 8)
    pairs["entities"] = (heads["entities"](hidden[:, ::4], X["candidates"]), want["entities"], 4)
    found = {name: gap(mine[REAL[:, ::step]], other[REAL[:, ::step]]) for name, (mine, other, step) in pairs.items()}
    return found | {"sentence": gap(heads["next_sentence"](hidden[:, 0]), want["sentence"])}


@torch.no_grad()
def test_every_layer_and_head_equals_the_reference_implementation():
    assert ARCH.kinds == ("sim", "mix", "norm", "mix", "norm", "sim")
    assert max(differences(net()).values()) < CLEAN


def entity_blocks(built) -> list[EntityBlock]:
    return [block for block in built.blocks if isinstance(block, EntityBlock)]


def unmasked(built) -> None:
    for block in entity_blocks(built):
        plain = block.forward
        block.forward = lambda x, context, layer, plain=plain: plain(x, replace(context, extra={"entity_mask": REAL}), layer)


def swapped(built) -> None:
    """mix and norm change places: the entities' attention is one layer earlier."""
    first, second = entity_blocks(built)[2:]
    first.entity_attn, first.entity_attn_norm = second.entity_attn, second.entity_attn_norm
    second.entity_attn = second.entity_attn_norm = None


MUTANTS = {
    "eps ten times larger": lambda arch: replace(arch, eps=1e-11),
    "another activation": lambda arch: replace(arch, act="gelu_tanh"),
    "other heads": lambda arch: replace(arch, heads=8),
    "other entity heads": lambda arch: replace(arch, entity_heads=2),
    "every token has an entity": unmasked,
    "mix and norm swapped": swapped,
    "no entities in the tokens": lambda built: [nn.init.zeros_(block.ffn.entity_up.weight) for block in entity_blocks(built)],
    "no entity bias in the tokens": lambda built: [nn.init.zeros_(block.ffn.entity_up.bias) for block in entity_blocks(built)],
    "entities pass the fusion by": lambda built: [nn.init.zeros_(block.ffn.entity_down.weight) for block in entity_blocks(built)[:3]],
    "no entity norm": lambda built: [setattr(block, "entity_norm", nn.Identity()) for block in entity_blocks(built)[:3]],
    "entity attention's scale": lambda built: [
        setattr(b.entity_attn, "scale", 0.3) for b in entity_blocks(built) if b.entity_attn is not None
    ],
    "entity head without its norm": lambda built: setattr(built.heads["entities"], "norm", nn.Identity()),
    "entity head without its activation": lambda built: setattr(built.heads["entities"], "act", nn.Identity()),
    "sentence head without its pooler": lambda built: setattr(built.heads["next_sentence"], "pooler", nn.Identity()),
}


@pytest.mark.parametrize("mutant", MUTANTS)
@torch.no_grad()
def test_the_fixture_catches(mutant):
    change = MUTANTS[mutant]
    if mutant in list(MUTANTS)[:4]:
        built = net(change(ARCH))
    else:
        built = net()
        change(built)
    assert max(differences(built).values()) > 10 * CLEAN


@torch.no_grad()
def test_packed_documents_equal_the_same_alone():
    built = net()
    alone = built.hidden(X["ids"], REAL, **GIVEN)[REAL]
    lengths = tuple(REAL.sum(1).tolist())
    packed = built.hidden(X["ids"][REAL][None], lengths=lengths, **{name: value[REAL][None] for name, value in GIVEN.items()})
    assert gap(packed[0], alone) < CLEAN


@torch.no_grad()
def test_an_entity_reaches_the_other_documents_of_a_row_in_no_way():
    built, lengths = net(), (28, 52)
    row = {name: value.reshape(1, 80, *value.shape[2:]) for name, value in GIVEN.items()}
    before = built.hidden(X["ids"].view(1, 80), lengths=lengths, **row)
    row["entities"] = torch.cat([row["entities"][:, :28] + row["entity_mask"][:, :28, None], row["entities"][:, 28:]], 1)
    after = built.hidden(X["ids"].view(1, 80), lengths=lengths, **row)
    assert torch.equal(before[:, 28:], after[:, 28:]) and not torch.equal(before[:, :28], after[:, :28])


@torch.no_grad()
def test_without_entities_a_text_reads_as_with_none_named():
    built = net()
    none = {"entities": torch.zeros(2, 40, 100), "entity_mask": torch.zeros(2, 40).bool()}
    assert torch.equal(built.hidden(X["ids"], REAL), built.hidden(X["ids"], REAL, **none))
    with pytest.raises(ValueError, match="entities go with an entity_mask"):
        built.hidden(X["ids"], REAL, entities=X["vectors"])


def test_all_but_the_last_entity_outputs_learn():
    built = net(replace(ARCH, kinds=ARCH.kinds[:5], layers=5))
    hidden = built.hidden(X["ids"], REAL, **GIVEN)
    heads = built.heads
    loss = heads["lm"](hidden).square().sum() + heads["entities"](hidden, X["candidates"]).square().sum()
    (loss + heads["next_sentence"](hidden[:, 0]).square().sum()).backward()
    still = {name for name, p in built.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == {
        "blocks.4.entity_norm.weight",
        "blocks.4.entity_norm.bias",
        "blocks.4.ffn.entity_down.weight",
        "blocks.4.ffn.entity_down.bias",
    }


@torch.no_grad()
def test_a_folder_keeps_streams_and_heads(tmp_path):
    model = Model(net())
    model.save(tmp_path)
    again = load_model(tmp_path)
    assert again.net.config == ARCH and max(differences(again.net).values()) < CLEAN
    assert len(model.anatomy.find("q")) == len(model.anatomy.find("up")) == 6


@torch.no_grad()
@pytest.mark.parametrize("method", ["lora", "bitfit", "freeze"])
def test_a_tuning_method_reaches_the_tokens_stream_and_merges(method):
    model = Model(net())
    before = model.hidden(X["ids"], REAL, **GIVEN)
    attached = attach(model.anatomy, made(method, {}))
    shake(attached.parameters)
    tuned = model.hidden(X["ids"], REAL, **GIVEN)
    assert not torch.equal(before, tuned)
    merge(model.anatomy)
    assert gap(model.hidden(X["ids"], REAL, **GIVEN), tuned) < CLEAN


def test_the_released_size():
    for heads, parameters in ((True, 114_751_532), (False, 114_050_244)):
        with torch.device("meta"):
            built = ErnieTHU(lm=heads, next_sentence=heads, entities=heads).build()
        assert sum(p.numel() for p in built.parameters()) == parameters


def test_kinds_of_layers_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="layers=2 need as many kinds, each of sim, mix, norm; there are sim, max"):
        ErnieTHU(layers=2, kinds=("sim", "max"))
