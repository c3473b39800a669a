"""Texts of a model that fills in masks: what generate and chat make of the sampler's ids, and which settings belong to whom."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from luthier.cli import main
from luthier.cli._talk import open_talk
from luthier.core.transformer import Transformer
from luthier.core.unmask import Unmasking, unmask_ids
from luthier.models.diffusion_lm import DiffusionLM
from luthier.objectives.diffuse import Diffuse
from luthier.sources.generate import generate_texts, stream_text
from luthier.sources.model import Model
from tiny import tiny_chat

ASK = [{"role": "user", "content": "Hello"}]
MASK, END = 256, 257
runner = CliRunner()


def diffusing() -> Model:
    """A tiny LLaDA over bytes, with a mask token and random weights."""
    model = tiny_chat()
    assert model.tokenizer is not None
    model.tokenizer.mask = MASK
    torch.manual_seed(0)
    net = DiffusionLM(vocab=258, width=16, layers=2, heads=2, kv_heads=2, hidden=24, mask=MASK, positions=512).build()
    return Model(net.eval(), model.tokenizer, model.template, source="a tiny llada")


class Reciting(Transformer):
    """Says what it was told to, whatever it reads; `asked` counts the questions."""

    def recite(self, text: list[int], prompt: int) -> None:
        self.text, self.prompt, self.asked = text, prompt, 0

    def logits(self, hidden: Tensor) -> Tensor:
        self.asked += 1
        scores = torch.zeros(*hidden.shape[:2], 258)
        for place, token in enumerate(self.text[: hidden.shape[1] - self.prompt]):
            scores[:, self.prompt + place, token] = 9.0
        return scores


def reciting(model: Model, text: str, prompt: str) -> Reciting:
    assert model.tokenizer is not None
    model.net.__class__ = Reciting
    net = model.net
    assert isinstance(net, Reciting)
    net.recite([*model.tokenizer.encode(text), *[END] * 512], len(prompt))
    return net


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("llada")
    diffusing().save(place)
    return place


def test_the_texts_are_the_samplers_ids_up_to_the_end():
    model = diffusing()
    assert model.tokenizer is not None
    how = Unmasking(max_tokens=12, block=5, steps=7, remasking="random", temperature=0.7, guidance=0.5, samples=2)
    options = {"block": 5, "steps": 7, "remasking": "random", "guidance": 0.5, "samples": 2}
    prompts = ["abc", "a longer prompt"]
    texts = generate_texts(model, prompts, 12, 0.7, seed=3, **options)
    ids = unmask_ids(model.net, [model.tokenizer.encode(p) for p in prompts], MASK, how, torch.Generator().manual_seed(3))
    assert texts == [model.tokenizer.decode(row[: row.index(END)] if END in row else row) for row in ids]
    assert len(texts) == 4 and texts != generate_texts(model, prompts, 12, 0.7, seed=4, **options)


def test_a_text_ends_at_its_end_token_or_stop_string_and_what_is_behind_is_not_filled_in():
    model = diffusing()
    net = reciting(model, "yes, indeed", "abc")
    assert generate_texts(model, "abc", 64, 0, block=8) == ["yes, indeed"]
    assert net.asked == 16  # two blocks of eight, a token a step
    assert generate_texts(model, "abc", 64, 0, block=8, stop=", in") == ["yes"]
    assert generate_texts(model, "abc", 6, 0, block=8) == ["yes, i"]


def test_a_stream_gives_each_block_as_it_is_finished():
    model = diffusing()
    reciting(model, "yes, indeed", "abc")
    assert list(stream_text(model, "abc", Unmasking(max_tokens=40, block=4))) == ["yes,", " ind", "eed"]


def test_settings_of_the_other_way_of_writing_are_refused_by_name():
    model, causal = diffusing(), tiny_chat()
    for name, value in {"top_k": 5, "top_p": 0.5, "beams": 3, "repetition_penalty": 1.2, "min_tokens": 2, "length_penalty": 0.5}.items():
        with pytest.raises(ValueError, match=f"^{name}: not for a tiny llada, which fills in masks"):
            generate_texts(model, "abc", **{name: value})
    for name, value in {"steps": 5, "block": 3, "remasking": "random", "guidance": 1.0}.items():
        with pytest.raises(ValueError, match=f"^{name}: for models that fill in masks"):
            generate_texts(causal, "abc", **{name: value})
    assert generate_texts(causal, "abc", max_tokens=2, steps=0, block=32) is not None  # at their defaults they change nothing
    for wrong, sentence in (
        ({"int8": True}, "int8 weights are for models that write from left to right"),
        ({"remasking": "none"}, "remasking='none' is not here; there are low_confidence, random"),
        ({"steps": 2, "block": 8}, "max_tokens=64 in blocks of 8 need steps >= 8"),
        ({"max_tokens": 600}, "the model has 512 positions"),
        ({"topk": 3}, "generate knows no 'topk'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            generate_texts(model, "abc", **{"max_tokens": 64, **wrong})


def test_a_mask_that_is_no_token_or_not_the_tokenizers_is_refused():
    with pytest.raises(ValueError, match="mask=126336 is none of vocab=99 tokens"):
        DiffusionLM(vocab=99)
    model = diffusing()
    assert model.tokenizer is not None
    model.tokenizer.mask = 3
    with pytest.raises(ValueError, match="hides tokens behind id 3, .* fills in id 256"):
        Diffuse().check(model)


def test_generate_and_chat_write_with_it(folder: Path):
    command = ["generate", str(folder), "--prompt", "abc", "--max-tokens", "8", "--steps", "4", "--block", "4", "--seed", "1"]
    written = runner.invoke(main.app, [*command, "--remasking", "random", "--temperature", "0.5"])
    assert written.exit_code == 0
    model = diffusing()
    assert written.stdout == generate_texts(model, "abc", 8, 0.5, steps=4, block=4, seed=1, remasking="random")[0] + "\n"
    talk = open_talk(str(folder), None, "", "", {"max_tokens": 8, "temperature": 0, "steps": 4, "block": 4}, None, False, "")
    said = "".join(talk.answer("Hello"))
    assert said == generate_texts(model, [ASK], 8, 0, steps=4, block=4)[0]
    assert talk.turns[0] == ASK[0]
    refused = runner.invoke(main.app, ["chat", str(folder), "--top-p", "0.5"], input="Hello\n")
    assert refused.exit_code == 2 and "top_p: not for" in refused.stderr
