"""ELMo's pre-training: both directions' cross-entropies by torch, the mirror of one in the other, and a run of two stages from files."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import yaml
from torch.nn import functional as F

import luthier
from luthier.core.sampled import sampled_cross_entropy
from luthier.models.elmo import ELMo
from luthier.objectives._batch import once
from luthier.objectives.bilm import BiLM
from luthier.objectives.causal import Causal
from luthier.objectives.masked import Masked
from luthier.sources.load import load_model, spelled
from luthier.sources.model import Model

TINY = {"width": 8, "hidden": 12, "vectors": 4, "filters": [[1, 4], [2, 4]], "highways": 1, "letters": 12}
TEXT = "the cat sat on a mat over the town"


@pytest.fixture
def model(wordpiece) -> Model:
    torch.manual_seed(0)
    net = ELMo(**{**TINY, "filters": ((1, 4), (2, 4))}, vocab=wordpiece.vocab).build().double()  # type: ignore[arg-type]
    return spelled(Model(net, wordpiece, source="a tiny elmo"))


def terms_of(model: Model, text: str) -> dict:
    (batch,) = once(BiLM(), [{"text": text}], model, 64)
    return BiLM().loss(model.net.hidden(**BiLM().inputs(batch)), model.net.heads, batch)


def test_each_half_of_the_states_predicts_in_its_direction(model):
    ids = torch.tensor([[model.tokenizer.cls, *model.tokenizer.encode(TEXT), model.tokenizer.sep]])
    forward, backward = model.net.hidden(ids)[0].chunk(2, -1)
    out, terms = model.net.heads["lm"].out, terms_of(model, TEXT)
    want = F.cross_entropy(out(forward[:-1]), ids[0, 1:], reduction="sum"), F.cross_entropy(out(backward[1:]), ids[0, :-1], reduction="sum")
    torch.testing.assert_close((terms["forward"].sum, terms["backward"].sum), want)
    assert {(term.count, term.weight) for term in terms.values()} == {(ids.shape[1] - 1, 0.5)}


def test_sampling_is_for_training_and_measuring_takes_every_word(model):
    (batch,) = once(BiLM(), [{"text": TEXT}], model, 64)
    hidden, out = model.net.hidden(**BiLM().inputs(batch)), model.net.heads["lm"].out

    def losses(sampled: int) -> list[float]:
        return [term.sum.item() for term in BiLM(sampled=sampled).loss(hidden, model.net.heads, batch).values()]

    model.net.eval()
    assert losses(4) == losses(0)
    model.net.train()
    torch.manual_seed(3)
    found = losses(4)
    torch.manual_seed(3)
    for half, way, got in zip(hidden.chunk(2, -1), ("forward", "backward"), found, strict=True):
        state, label = half[0, batch.at[way]], batch.labels[way]
        assert got == pytest.approx(sampled_cross_entropy(state, out.weight, out.bias, label, 4).item())
    for wrong, sentence in ((-1, "at least 0"), (model.tokenizer.vocab, "at most half of the")):
        with pytest.raises(ValueError, match=sentence):
            BiLM(sampled=wrong).check(model)


def test_no_word_is_seen_before_it_is_predicted(model):
    ids = torch.tensor([model.tokenizer.encode(TEXT)])
    changed = ids.clone()
    changed[0, 4] = 20
    before, after = model.net.hidden(ids)[0].chunk(2, -1), model.net.hidden(changed)[0].chunk(2, -1)
    assert torch.equal(before[0][:4], after[0][:4]) and torch.equal(before[1][5:], after[1][5:])
    assert not torch.allclose(before[0][4:], after[0][4:]) and not torch.allclose(before[1][:5], after[1][:5])


def test_the_backward_model_is_the_forward_one_on_reversed_texts(model):
    """With the directions' weights exchanged, and the marks of beginning and end."""
    words = ["the", "cat", "sat", "on", "a", "mat"]
    mirror = ELMo(**{**TINY, "filters": ((1, 4), (2, 4))}, vocab=model.tokenizer.vocab).build().double()  # type: ignore[arg-type]
    state = {name: value for name, value in model.net.state_dict().items() if name != "spelling"}
    swapped = {
        f"blocks.{i}.{1 - d}.{rest}": f"blocks.{i}.{d}.{rest}"
        for i in range(2)
        for d in range(2)
        for rest in ("gates.weight", "gates.bias", "project.weight")
    }
    mirror.load_state_dict({name: state[swapped.get(name, name)] for name in state}, strict=False)
    other = spelled(Model(mirror, model.tokenizer))
    ids = torch.tensor([model.tokenizer.encode(" ".join(words))])
    net = model.net
    for each in (net, mirror):  # the marks are told apart, and a mirror exchanges them: make them one
        each.embed.characters.weight.data[256] = each.embed.characters.weight.data[257]  # type: ignore[union-attr]
    forward, backward = net.hidden(ids)[0].chunk(2, -1)
    theirs = other.net.hidden(ids.flip(1))[0].flip(0).chunk(2, -1)
    torch.testing.assert_close((forward, backward), (theirs[1], theirs[0]))


def write_words(folder: Path, words: list[str]) -> Path:
    """A tokenizer of whole words, with marks for the beginning and end."""
    entries = ["[UNK]", "<s>", "</s>", *words]
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(entries)}, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()  # type: ignore[assignment]
    inner.add_special_tokens(["[UNK]", "<s>", "</s>"])
    folder.mkdir()
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"unk_token": "[UNK]", "bos_token": "<s>", "eos_token": "</s>"}))
    return folder


def run(folder: Path, name: str, **sections: Any) -> dict[str, float]:
    """Figures on the held-out rows before and after."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**sections, "output": str(folder / name)}))
    luthier.train(path)
    return json.loads((folder / name / "result.json").read_text())["after"]


def test_a_model_is_pre_trained_then_its_frozen_states_and_word_vectors_teach_a_tagger(tmp_path: Path):
    rng = random.Random(0)
    stems, ends = ["run", "walk", "sing", "jump", "play", "read"], {"ed": "PAST", "ing": "NOW", "er": "WHO"}
    words = [stem + end for stem in stems for end in ends]

    def sentence() -> list[str]:  # the next word goes on with the ending
        first = rng.randrange(6)
        return [stems[(first + i) % 6] + end for i in range(6) for end in [rng.choice(list(ends))]]

    texts = [sentence() for _ in range(80)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": " ".join(text)}) + "\n" for text in texts))
    rows = [{"tokens": text, "tags": [next(tag for end, tag in ends.items() if word.endswith(end)) for word in text]} for text in texts]
    (tmp_path / "tags.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = write_words(tmp_path / "words", words)
    result = run(
        tmp_path, "pretrained", model={"arch": "elmo", **TINY, "tokenizer": str(folder)}, objective={"kind": "bilm"},
        data={"path": str(tmp_path / "text.jsonl"), "length": 32, "held_out": 10}, evaluation=["perplexity"],
        training={"steps": 60, "rows": 16, "rate": 0.03},
    )  # fmt: skip
    assert result["perplexity"] < 10 < len(words)  # 3 endings of the next stem; 18 words if the order were not learnt
    saved = load_model(str(tmp_path / "pretrained"))
    assert saved.net.config.vocab == len(words) + 3 and len(saved.net.spelling) == len(words) + 3
    tagged = run(
        tmp_path, "tagged", model=str(tmp_path / "pretrained"), objective={"kind": "tag"},
        tuning={"kind": "features", "vectors": 4, "cache": str(tmp_path / "cache")},
        data={"path": str(tmp_path / "tags.jsonl"), "length": 32, "held_out": 10}, training={"steps": 40, "rows": 16, "rate": 0.05},
    )  # fmt: skip
    assert tagged["loss"] < 0.2


def test_other_models_and_other_objectives_are_refused_in_words(model, decoder):
    with pytest.raises(ValueError, match="objective bilm is for elmo with a softmax .* reads in one direction"):
        BiLM().check(decoder()[0])
    del model.net.heads["lm"]
    with pytest.raises(ValueError, match=r"has no softmax over words \(vocab: 0\)"):
        BiLM().check(model)
    with pytest.raises(ValueError, match="has one for each direction; take bilm"):
        Masked().check(model)
    with pytest.raises(ValueError, match="objective causal needs a decoder"):
        Causal().check(model)
