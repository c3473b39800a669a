"""GPT-1 with its two heads and input forms, GPT-3's published sizes; what is said of GPT-Neo's form stands in families/."""

import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers as hf
from tokenizers import models, pre_tokenizers, processors

sys.path.insert(0, str(Path(__file__).parent))
from oracles import FLOOR, gap, ours, reference, sample

from luthier.data.stream import Sample
from luthier.data.tokenizer import Tokenizer
from luthier.models.gpt import GPT
from luthier.models.gpt3 import GPT3
from luthier.objectives._batch import collate, encode
from luthier.objectives.choose import Choose
from luthier.objectives.classify import Classify
from luthier.sources.load import load_model
from luthier.sources.model import Model

WORDS = ["[UNK]", "_start_", "_delimiter_", "_classify_", *"abcdefgh"]
NO_DROP = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "summary_first_dropout": 0.0}


def count(arch, preset: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in arch(**arch.presets[preset]).build().parameters())


@pytest.mark.parametrize(
    ("arch", "preset", "parameters"),
    [
        (GPT, "openai-gpt", 116_534_784),
        (GPT3, "gpt3-small", 125_226_240),
        (GPT3, "gpt3-175b", 174_604_259_328),
        (GPT3, "gpt-neo-125m", 125_198_592),
    ],
)
def test_presets_have_the_published_number_of_parameters(arch, preset, parameters):
    assert count(arch, preset) == parameters


@pytest.mark.parametrize(
    ("preset", "billions"),
    [("small", 0.125), ("medium", 0.350), ("large", 0.760), ("xl", 1.3), ("2.7b", 2.7), ("6.7b", 6.7), ("13b", 13.0), ("175b", 175.0)],
)
def test_the_eight_sizes_of_gpt3_are_those_of_its_table(preset, billions):
    assert count(GPT3, f"gpt3-{preset}") / 1e9 == pytest.approx(billions, rel=0.1)


def test_layers_of_gpt3_are_dense_and_banded_in_turn():
    with torch.device("meta"):
        net = GPT3(layers=5, width=16, heads=2, vocab=11).build()
    assert [block.attn.window for block in net.blocks] == [None, 256, None, 256, None]
    assert [block.attn.scale for block in net.blocks] == [None] * 5


@torch.no_grad()
def test_gpt3_is_gpt_neo_once_queries_are_scaled():
    """Scores by head_width^-0.5 are what sqrt(head_width) larger query weights give without that scale."""
    neo = ours("gpt_neo", reference("gpt_neo"))
    scaled = ours("gpt_neo", reference("gpt_neo"), scaled=True)
    for block in scaled.blocks:
        block.attn.q.weight.mul_(8**0.5)
    assert gap(scaled(sample()), neo(sample())) < FLOOR


@torch.no_grad()
def test_gpt3s_own_form_survives_a_folder(tmp_path):
    net = GPT3(vocab=60, width=32, layers=4, heads=4, head_width=12, positions=220, windows=(0, 7)).build().eval()
    Model(net).save(tmp_path / "gpt3")
    again = load_model(str(tmp_path / "gpt3"))
    assert again.net.config.to_config() == net.config.to_config()
    assert torch.equal(again.net(sample()), net(sample()))


def test_one_file_holds_one_width_of_band():
    with pytest.raises(ValueError, match="one width of band, and there are .8, 16."):
        GPT3(layers=2, windows=(8, 16)).to_config()


@pytest.mark.parametrize("kind", ["gpt", "gpt2"])
@torch.no_grad()
def test_both_heads_of_the_double_heads_model_are_read_and_written(kind, tmp_path):
    cls = {"gpt": hf.OpenAIGPTDoubleHeadsModel, "gpt2": hf.GPT2DoubleHeadsModel}[kind]
    model = reference(kind, cls, num_labels=1)
    model.save_pretrained(tmp_path / "theirs")
    read = load_model(str(tmp_path / "theirs"))
    ids = sample(3, 60)
    want = model(ids[None], mc_token_ids=torch.tensor([[59, 20, 31]]))
    hidden = read.net.hidden(ids)
    assert gap(read.net.logits(hidden), want.logits[0]) < FLOOR
    got = read.net.heads["choose"](hidden[torch.arange(3), [59, 20, 31]])
    assert gap(got[:, 0], want.mc_logits[0]) < FLOOR
    read.save(tmp_path / "ours")
    again = cls.from_pretrained(tmp_path / "ours", dtype=torch.float64).eval()
    assert gap(again(ids[None]).mc_logits, model(ids[None]).mc_logits) < FLOOR


@pytest.fixture
def words() -> Tokenizer:
    """Words, and the paper's input forms: start, delimiter between two texts, classify."""
    inner = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="_start_ $A _classify_",
        pair="_start_ $A _delimiter_ $B _classify_",
        special_tokens=[(word, WORDS.index(word)) for word in WORDS[1:4]],
    )
    return Tokenizer(inner, cls=1, sep=3, pad=0)


def read_as(objective, row: dict, model: Model):
    (example,) = encode(objective, [Sample(row, 0, 0, 0)], model, 32)[0]
    return example


@pytest.fixture
def tiny(words) -> tuple[Model, Any]:
    model = reference("gpt", hf.OpenAIGPTDoubleHeadsModel, num_labels=1, **NO_DROP)
    return Model(ours("gpt", model, {"choose": 1}), words, source="a tiny gpt"), model


def test_input_forms_are_the_papers(tiny):
    """Section 3.3 and figure 1: start, text, classify; a delimiter between two; both orders; a context once per choice."""
    model, _ = tiny
    net_of = lambda example: [[WORDS[i] for i in part.tolist()] for part in torch.tensor(example.ids).split(list(example.documents))]  # noqa: E731
    one = read_as(Classify(("x", "y")), {"text": "a b", "label": "y"}, model)
    assert net_of(one) == [["_start_", "a", "b", "_classify_"]] and one.at == {"classify": [3]}
    pair = {"text": "a b", "pair": "c", "label": "x"}
    assert net_of(read_as(Classify(("x", "y")), pair, model)) == [["_start_", "a", "b", "_delimiter_", "c", "_classify_"]]
    both = read_as(Classify(("x", "y"), both_orders=True), pair, model)
    assert net_of(both) == [["_start_", *"ab", "_delimiter_", "c", "_classify_"], ["_start_", "c", "_delimiter_", *"ab", "_classify_"]]
    assert both.at == {"classify": [5, 11]} and both.labels == {"classify": [0]}
    chosen = read_as(Choose(), {"question": "a", "choices": ["b", "c d"], "answer": 1}, model)
    assert net_of(chosen) == [["_start_", "a", "_delimiter_", "b", "_classify_"], ["_start_", "a", "_delimiter_", *"cd", "_classify_"]]


@torch.no_grad()
def test_the_auxiliary_loss_is_the_double_heads_models(tiny):
    model, theirs = tiny
    objective = Choose(lm_weight=0.5)
    objective.check(model)
    rows = [{"question": "a b", "choices": ["c d", "e f", "g h"], "answer": 2}, {"question": "h", "choices": ["a", "b", "c"], "answer": 0}]
    batch = collate([read_as(objective, row, model) for row in rows])
    terms = objective.loss(model.net.hidden(**objective.inputs(batch)), model.net.heads, batch)
    choice, token, tokens = 0.0, 0.0, 0
    for example in batch.examples:
        ids = torch.tensor(example.ids).view(1, 3, -1)
        out = theirs(ids, labels=ids, mc_labels=torch.tensor(example.labels["choose"]))
        choice, tokens = choice + out.mc_loss, tokens + ids.numel() - 3
        token = token + out.loss * (ids.numel() - 3)
    torch.testing.assert_close(terms["choose"].sum, choice)
    torch.testing.assert_close(terms["lm"].sum, token)
    assert {name: (term.count, term.weight) for name, term in terms.items()} == {"choose": (2, 1.0), "lm": (tokens, 0.5)}


@torch.no_grad()
def test_a_pair_in_both_orders_is_one_score_of_the_summed_states(tiny):
    model, _ = tiny
    model.net.add_head("classify", 2)
    objective = Classify(("x", "y"), both_orders=True, lm_weight=0.5)
    rows = [{"text": "a b", "pair": "c", "label": "x"}, {"text": "d", "label": "y"}]
    batch = collate([read_as(objective, row, model) for row in rows])
    hidden = model.net.hidden(**objective.inputs(batch))
    first, second = (model.net.hidden(torch.tensor([ids]))[0, -1] for ids in ([1, 4, 5, 2, 6, 3], [1, 6, 2, 4, 5, 3]))
    alone = model.net.hidden(torch.tensor([[1, 7, 3]]))[0, -1]
    scores = model.net.heads["classify"](torch.stack([first + second, alone]))
    torch.testing.assert_close(
        objective.loss(hidden, model.net.heads, batch)["classify"].sum,
        torch.nn.functional.cross_entropy(scores, torch.tensor([0, 1]), reduction="sum"),
    )
    assert objective.predict(hidden, model.net.heads, batch) == [objective.labels[i] for i in scores.argmax(-1)]
    assert batch.counts() == {"classify": 2, "lm": 12}


def test_an_encoder_has_no_auxiliary_loss_and_a_negative_weight_is_refused(tiny, words):
    model, _ = tiny
    with pytest.raises(ValueError, match="lm_weight=-1 is negative"):
        Classify(("x", "y"), lm_weight=-1).check(model)
    with pytest.raises(ValueError, match="classify with lm_weight=0.5 needs a decoder"):
        Classify(("x", "y"), lm_weight=0.5).check(Model(ours("bert", reference("bert")), words))


def test_what_openai_gpts_file_asks_for_and_we_lack_is_refused_by_name():
    base = reference("gpt").config.to_dict()
    with pytest.raises(ValueError, match="afn='mish'"):
        GPT.from_config(base | {"afn": "mish"})
    with pytest.raises(ValueError, match="no name for the activation 'gelu'"):
        GPT(act="gelu").to_config()
    with pytest.raises(ValueError, match="attention_types name 4 layers"):
        GPT3.from_config(reference("gpt_neo").config.to_dict() | {"attention_types": [[["global", "local"], 2]]})
