"""Anatomy: sites by role, addresses, and what it refuses."""

import pytest
import torch
from torch import nn
from transformers import AlbertConfig, AlbertModel, BertConfig, BertForSequenceClassification

from kinds import build
from luthier.anatomy.anatomy import anatomy, pick
from luthier.sources.foreign import wrap


def places(kind: str, *roles: str, **options) -> list[str]:
    return [f"{site.stack}.{site.layer}.{site.role}" for site in anatomy(build(kind)).find(*roles, **options)]


def test_a_bare_role_means_every_attention_of_every_stack():
    assert places("t5", "q") == ["encoder.0.q", "encoder.1.q", "decoder.0.q", "decoder.0.cross.q", "decoder.1.q", "decoder.1.cross.q"]


@pytest.mark.parametrize(
    "role, found",
    [
        ("cross.q", ["decoder.0.cross.q", "decoder.1.cross.q"]),
        ("self.q", ["encoder.0.q", "encoder.1.q", "decoder.0.q", "decoder.1.q"]),
        ("encoder.q", ["encoder.0.q", "encoder.1.q"]),
        ("decoder.self.q", ["decoder.0.q", "decoder.1.q"]),
    ],
)
def test_an_address_narrows_it(role: str, found: list[str]):
    assert places("t5", role) == found
    assert places("bart", role) == found


def test_ours_have_the_same_addresses_as_theirs():
    for ours, theirs in {"our llama": "llama", "our gpt2": "gpt2", "our bert": "bert"}.items():
        roles = ("q", "k", "v", "o", "up", "down", "attn_norm", "ffn_norm")
        assert [*places(ours, *roles)] == [*places(theirs, *roles)]


def test_last_blocks():
    assert places("gpt2", "q", layers="last 1") == ["decoder.1.q"]
    assert pick("last 2", 5) == [3, 4] and pick([0, -1], 5) == [0, 4] and pick("first 2", 5) == [0, 1] and pick(None, 2) == [0, 1]


@pytest.mark.parametrize("layers", ["last two", "last 9", "final 2", [7], "last 0"])
def test_blocks_that_are_not_there_are_refused(layers):
    with pytest.raises(ValueError, match="blocks"):
        pick(layers, 4)


@pytest.mark.parametrize(
    "role, meant", [("querry", None), ("dwon", "down"), ("cros.q", "cross.q"), ("decodr.q", "decoder.q"), ("embd", "embed")]
)
def test_a_misspelt_role_is_refused_with_a_suggestion(role: str, meant: str | None):
    with pytest.raises(ValueError, match=f"no role called '{role}'" + (f"; did you mean '{meant}'" if meant else "")):
        anatomy(build("t5")).find(role)


def test_a_role_that_no_block_has_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"no block of MixtralForCausalLM has the role 'gate' \(roles here: q, k, v, o"):
        anatomy(build("mixtral")).find("gate")
    with pytest.raises(ValueError, match="no norm"):
        anatomy(build("bert")).find("norm")


def test_a_model_of_unknown_layout_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="add a row to ATTENTION"):
        anatomy(nn.Sequential(nn.Linear(2, 2)))


def test_the_places_around_the_blocks():
    for kind in ("llama", "our llama"):
        body = anatomy(build(kind))
        assert body.embed.weight.shape == body.head.weight.shape == (99, 32) and body.norm.weight.shape == (32,)
        assert not body.tied
    assert anatomy(build("gpt2")).tied and anatomy(build("our gpt2")).tied and anatomy(build("bert")).tied


def test_a_weight_is_out_by_in_also_where_it_is_stored_the_other_way():
    theirs, ours = anatomy(build("gpt2")), anatomy(build("our gpt2"))
    for role, shape in {"q": (32, 32), "up": (48, 32), "down": (32, 48)}.items():
        assert theirs.find(role)[0].weight.shape == ours.find(role)[0].weight.shape == shape


def test_a_block_that_layers_share_is_one_site():
    body = anatomy(
        AlbertModel(
            AlbertConfig(vocab_size=50, embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=16, num_hidden_layers=4)
        )
    )
    assert len(body.find("q")) == 1


def test_a_foreign_net_goes_by_the_paths_of_its_model():
    model = wrap(build("llama"))
    assert model.anatomy.find("q")[0].path == "model.layers.0.self_attn.q_proj"
    model.net.add_head("classify", 3)
    assert set(model.anatomy.task_heads()) == {"classify"}


def test_a_task_head_is_known():
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, num_labels=3)
    with torch.device("meta"):
        body = anatomy(BertForSequenceClassification(config))
    assert set(body.task_heads()) == {"classifier"}
