"""Texts about pictures: what stands in an example, the loss by hand, runs of both stages, answers."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import luthier
from luthier.data.settings import Data
from luthier.data.stream import Sample, open_stream
from luthier.objectives._batch import collate, encode
from luthier.objectives.causal import Causal
from luthier.objectives.chat import Chat
from luthier.objectives.masked import Masked
from luthier.sources.generate import generate_texts
from luthier.sources.load import load_model
from shown import captioned, conversations, tiny_seer, write
from tiny import tiny_chat

PLACES = 5  # tokens that a picture is


def samples(folder: Path, rows: list[dict]) -> list[Sample]:
    stream = open_stream(Data(str(write(folder / "rows.jsonl", rows)), held_out=0, shuffle=False), 0)
    return [next(stream) for _ in rows]


def by_hand(model, example) -> float:
    """The cross-entropy of the labels, one row alone, from plain logits."""
    logits = model.net(torch.tensor([example.ids]), images=torch.stack(example.pictures))[0]
    return F.cross_entropy(logits[example.at["lm"]], torch.tensor(example.labels["lm"]), reduction="sum").item()


def test_a_caption_is_learnt_behind_its_picture(tmp_path):
    model, drawn = tiny_seer(), samples(tmp_path, captioned(tmp_path, 3))
    (example,) = encode(Causal(), drawn[:1], model, 64)[0]
    text = model.tokenizer.encode("red square")
    assert example.ids == [258] * PLACES + text + [257]
    assert example.labels["lm"] == [*text, 257] and example.at["lm"] == list(range(PLACES - 1, PLACES + len(text)))
    assert example.pictures[0].shape == (3, 16, 16)
    assert encode(Causal(), drawn[:1], model, PLACES)[0] == []  # nothing behind the picture is left
    (cut,) = encode(Causal(), drawn[:1], model, PLACES + 2)[0]
    assert cut.labels["lm"] == text[:2]


def test_an_answer_is_learnt_with_the_picture_in_the_question(tmp_path):
    model, drawn = tiny_seer(), samples(tmp_path, conversations(tmp_path, 3))
    (example,) = encode(Chat(), drawn[:1], model, 128)[0]
    assert example.ids.count(258) == PLACES
    at = example.ids.index(258)
    assert example.ids[at : at + PLACES] == [258] * PLACES
    told = model.tokenizer.decode([id for id in example.ids if id != 258], specials=True)
    assert told.startswith("<|im_start|>user\n\nWhat?<|im_end|>\n<|im_start|>assistant\nred square<|im_end|>")
    assert [example.ids[i + 1] for i in example.at["lm"]] == example.labels["lm"]
    assert model.tokenizer.decode(example.labels["lm"], specials=True) == "red square<|im_end|>"
    assert encode(Chat(), drawn[:1], model, at + 2)[0] == []  # cut in the picture


@pytest.mark.parametrize("objective", [Causal(), Chat()], ids=["causal", "chat"])
def test_the_loss_of_packed_rows_is_that_of_each_alone(objective, tmp_path):
    model = tiny_seer()
    model.net.double()
    rows = (captioned if isinstance(objective, Causal) else conversations)(tmp_path, 5)
    examples = [found[0] for found in encode(objective, samples(tmp_path, rows), model, 128)]
    for example in examples:
        example.pictures = tuple(pixels.double() for pixels in example.pictures)
    batch = collate(examples)
    assert batch.extra["images"].shape == (5, 3, 16, 16)
    with torch.no_grad():
        (term,) = objective.loss(objective.forward(model.net, batch), model.net.heads, batch).values()
        alone = sum(by_hand(model, example) for example in examples)
        assert term.sum.item() == pytest.approx(alone, rel=1e-12)
        examples[0].pictures, examples[1].pictures = examples[1].pictures, examples[0].pictures
        other = collate(examples)
        (swapped,) = objective.loss(objective.forward(model.net, other), model.net.heads, other).values()
        assert abs(swapped.sum.item() - alone) > 1e-6


def test_rows_without_a_picture_stand_beside_rows_with_one(tmp_path):
    model = tiny_seer()
    plain = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}]
    found = encode(Chat(), samples(tmp_path, conversations(tmp_path, 1) + plain), model, 128)
    batch = collate([example for examples in found for example in examples])
    assert batch.extra["images"].shape[0] == 1 and batch.rows == 2
    assert torch.isfinite(Chat().forward(model.net, batch)).all()


def test_pictures_that_nobody_looks_at_are_refused(tmp_path, wordpiece):
    drawn = samples(tmp_path, captioned(tmp_path, 1))
    with pytest.raises(ValueError, match="a tiny llama sees no pictures, and this row has some: .*; take minigpt4 or blip2"):
        encode(Causal(), drawn, tiny_chat(), 64)
    with pytest.raises(ValueError, match="objective masked reads no pictures"):
        encode(Masked(), drawn, tiny_seer(), 64)
    said = Sample({"messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "a"}]}, 0, 0, 0)
    with pytest.raises(ValueError, match="0 pictures and 1 places for them"):
        encode(Chat(), [said], tiny_seer(), 64)


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_see_the_pictures_with_and_without_the_fast_decoder(tmp_path, beams):
    """Greedy by whole passes without a cache is the oracle; two pictures at once, questions of different lengths."""
    model, drawn = tiny_seer(), samples(tmp_path, conversations(tmp_path, 4))
    asked = [drawn[0].row["messages"][:1], [{**drawn[3].row["messages"][0], "content": "And this <image> here?"}]]
    told = generate_texts(model, asked, max_tokens=6, temperature=0, beams=beams)
    assert generate_texts(model, asked[1:], max_tokens=6, temperature=0, beams=beams) == told[1:]
    if beams == 1:
        for question, text in zip(asked, told, strict=True):
            ids = model.tokenizer.encode(model.template.render(question, generation=True))
            at = ids.index(model.tokenizer.id("<image>"))
            ids = [*ids[:at], *[258] * PLACES, *ids[at + 1 :]]
            pixels = torch.stack(luthier.sources.sight.pixels_of(question[0]["images"], model))
            new: list[int] = []
            with torch.no_grad():
                while len(new) < 6 and 257 not in new:
                    new.append(int(model.net(torch.tensor([ids + new]), images=pixels)[0, -1].argmax()))
            assert text == model.tokenizer.decode([id for id in new if id != 257])
    plain = generate_texts(model, ["<image>"], max_tokens=4, temperature=0, images=[[asked[0][0]["images"][0]]])
    assert plain == generate_texts(model, "<image>", max_tokens=4, temperature=0, images=[asked[0][0]["images"]])
    with pytest.raises(ValueError, match="1 pictures and 0 places"):
        generate_texts(model, ["what?"], images=[asked[0][0]["images"]])
    with pytest.raises(ValueError, match="a tiny llama sees no pictures"):
        generate_texts(tiny_chat(), asked[:1])


def test_a_model_that_writes_about_pictures_survives_a_folder(tmp_path):
    model = tiny_seer()
    model.save(tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"))
    asked = samples(tmp_path, conversations(tmp_path, 1))[0].row["messages"][:1]
    assert generate_texts(again, [asked], max_tokens=5, temperature=0) == generate_texts(model, [asked], max_tokens=5, temperature=0)
