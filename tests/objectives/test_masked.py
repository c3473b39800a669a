"""BERT's rule of masking, property by property, and the loss against transformers'."""

from collections import Counter

import pytest
import torch

from luthier.data.stream import Sample
from luthier.models.electra import ELECTRA
from luthier.models.vit import ViT
from luthier.objectives._batch import Size, encode, once
from luthier.objectives.masked import Masked
from luthier.sources.model import Model

TEXT = "the cat sat on a mat over the town , what she ran is 我 爱 北 京 . unable dogs playing where he was in the town ?"


def masked(model, text: str, objective: Masked | None = None, length: int = 64, **draw: int) -> list:
    sample = Sample({"text": text}, **{"epoch": 0, "index": 0, "seed": 0, **draw})
    return encode(objective or Masked(), [sample], model, length)[0]


@pytest.fixture
def model(encoder):
    return encoder("BertForMaskedLM")[0]


def test_the_loss_is_transformers(encoder, run, stream):
    ours, theirs = encoder("BertForMaskedLM")
    (batch,) = next(Masked(rate=0.3).batches(stream([{"text": TEXT}]), ours, Size(rows=1), 64))
    labels = torch.full_like(batch.ids, -100)
    labels[0, batch.at["masked"]] = batch.labels["masked"]
    torch.testing.assert_close(run(Masked(), ours, batch)["masked"], theirs(input_ids=batch.ids, labels=labels).loss)


@pytest.mark.parametrize("rate", [0.15, 0.01, 0.5])
@pytest.mark.parametrize("words", [1, 2, 3, 9, 13, 26])
def test_the_count_is_exact(words, rate, model):
    text = " ".join(TEXT.split()[:words])
    original = [2, *model.tokenizer.encode(text), 3]
    for seed in range(20):
        (found,) = masked(model, text, Masked(rate, most=8), seed=seed)
        assert len(found.labels["masked"]) == min(8, max(1, round(rate * len(original))), len(original) - 2)


def test_only_chosen_tokens_change_and_labels_are_what_stood_there(model):
    original = [2, *model.tokenizer.encode(TEXT), 3]
    for seed in range(200):
        (found,) = masked(model, TEXT, seed=seed)
        at = found.at["masked"]
        assert found.labels["masked"] == [original[i] for i in at]
        assert len(set(at)) == len(at)
        assert 0 not in at
        assert len(original) - 1 not in at
        assert all(found.ids[i] == token for i, token in enumerate(original) if i not in at)


def test_a_written_out_special_token_is_never_hidden(model):
    for seed in range(50):
        (found,) = masked(model, "the [SEP] cat [CLS] sat", Masked(0.9), seed=seed)
        assert not {2, 3} & set(found.labels["masked"])
        assert len(found.at["masked"]) == 3


def test_eighty_ten_ten_over_the_whole_vocabulary(model):
    original = [2, *model.tokenizer.encode(TEXT), 3]
    kinds, tokens, places = Counter(), Counter(), Counter()
    for seed in range(3000):
        (found,) = masked(model, TEXT, seed=seed)
        for i in found.at["masked"]:
            places[i] += 1
            token = found.ids[i]
            kind = "mask" if token == 4 else "same" if token == original[i] else "random"
            kinds[kind] += 1
            if kind == "random":
                tokens[token] += 1
    total, vocab = sum(kinds.values()), model.tokenizer.vocab
    expected = {"mask": 0.8 + 0.1 / vocab, "same": 0.1 + 0.1 / vocab, "random": 0.1 * (1 - 2 / vocab)}
    for kind, share in expected.items():
        assert abs(kinds[kind] / total - share) < 4 * (share * (1 - share) / total) ** 0.5, kind
    assert set(tokens) == set(range(vocab)) - {4}  # special ones too
    assert min(places.values()) > 0.8 * max(places.values())  # every place alike


def test_the_choice_follows_from_seed_epoch_and_index(model):
    one = masked(model, TEXT, epoch=1, index=7, seed=3)
    assert masked(model, TEXT, epoch=1, index=7, seed=3) == one
    for other in ({"epoch": 2}, {"index": 8}, {"seed": 4}):
        assert masked(model, TEXT, None, 64, **{"epoch": 1, "index": 7, "seed": 3, **other})[0].at != one[0].at


def test_a_long_text_becomes_several_documents(model):
    found = masked(model, TEXT, length=10)
    ids = model.tokenizer.encode(TEXT)
    restored = []
    for example in found:
        assert len(example.ids) <= 10
        for at, label in zip(example.at["masked"], example.labels["masked"], strict=True):
            example.ids[at] = label
        assert (example.ids[0], example.ids[-1]) == (2, 3)
        restored += example.ids[1:-1]
    assert restored == ids


def test_predictions_stand_beside_what_was_hidden(model):
    (batch,) = once(Masked(), [{"text": TEXT}, {"text": "the cat"}], model, 64)
    predicted = Masked().predict(model.net.hidden(**Masked().inputs(batch)), model.net.heads, batch)
    assert [len(tokens) for tokens in predicted] == [len(tokens) for tokens in Masked().references(batch)]


def test_a_decoder_and_a_bad_rate_are_refused(decoder, stream):
    model, _ = decoder()
    with pytest.raises(ValueError, match="objective masked needs an encoder"):
        Masked().batches(stream([{"text": "a"}]), model, Size(rows=1), 64)
    with pytest.raises(ValueError, match="rate=0, most=76"):
        Masked(rate=0)


def test_a_model_without_a_vocabulary_head_is_refused_before_anything_starts(encoder):
    ours, _ = encoder("BertForSequenceClassification", classify=2)
    with pytest.raises(ValueError, match="needs a head that predicts tokens"):
        Masked().check(ours)


def test_a_fresh_discriminator_is_told_how_it_gets_the_head(wordpiece):
    net = ELECTRA(vocab=wordpiece.vocab, embed_width=8, width=16, layers=1, heads=2, hidden=24).build()
    with pytest.raises(ValueError, match="needs a head that predicts tokens, and fresh electra has none; set lm: true"):
        Masked().check(Model(net, wordpiece, source="fresh electra"))
    vit = ViT(image=8, patch=4, width=16, layers=1, heads=2, hidden=24).build()
    with pytest.raises(ValueError, match="fresh vit: no run file trains it alone"):
        Masked().check(Model(vit, None, source="fresh vit"))
