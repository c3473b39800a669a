"""A fresh model takes from the tokenizer what it must know, and sizes that fit no model are refused before one is built."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers

import luthier
from luthier.objectives.chat import Chat
from luthier.run import Run, prepare, run
from luthier.sources.load import load_model
from tinyrun import write_run, write_tokenizer

SIZES = {"width": 16, "layers": 1, "heads": 2, "hidden": 24}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer whose padding and mask tokens come late."""
    place = write_tokenizer(tmp_path / "tokenizer")
    inner = tokenizers.Tokenizer.from_file(str(place / "tokenizer.json"))
    inner.add_special_tokens(["[PAD]", "[MASK]"])
    inner.save(str(place / "tokenizer.json"))
    settings = json.loads((place / "tokenizer_config.json").read_text()) | {"pad_token": "[PAD]", "mask_token": "[MASK]"}
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    return place


@pytest.mark.parametrize("pad", [None, 1])
def test_a_fresh_roberta_counts_positions_alike_when_it_is_read_again(pad: int | None, folder: Path, tmp_path: Path):
    fields = {"pad": pad} if pad is not None else {}
    model = load_model({"arch": "roberta", **SIZES, "positions": 20, "tokenizer": str(folder), **fields})
    assert model.net.config.pad == (258 if pad is None else pad)
    model.save(tmp_path / "saved")
    ids, theirs = torch.arange(5, 25)[None], transformers.RobertaForMaskedLM.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        torch.testing.assert_close(load_model(str(tmp_path / "saved")).logits(ids), model.logits(ids))
        torch.testing.assert_close(theirs(ids).logits, model.logits(ids))


def test_a_fresh_diffusion_model_fills_in_the_tokenizers_mask(folder: Path):
    assert load_model({"arch": "diffusion_lm", **SIZES, "kv_heads": 2, "tokenizer": str(folder)}).net.config.mask == 259


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"heads": 0}, "heads=0 must be at least 1"),
        ({"layers": -1}, "layers=-1 must be at least 1"),
        ({"kv_heads": -2}, "kv_heads=-2 must be at least 0"),
        ({"dropout": 1.5}, "dropout=1.5 must be at least 0 and below 1"),
        ({"eps": -1.0}, "eps=-1.0 must be above 0"),
        ({"act": "snake"}, "act='snake' is not here; there are gelu"),
        ({"kind": "mixtral"}, "kind='mixtral' is not here; there are llama"),
        ({"hidden": 10**15}, "fresh llama: a model of these sizes cannot be built"),
        ({"arch": "t5", "head_width": 0}, "head_width=0 must be at least 1"),
        ({"arch": "transformer_xl", "vocab": 300}, "vocabulary of 300; give others, or none: cuts: \\[\\], divide: 1"),
        ({"arch": "glm", "head_width": 8, "turned": 16}, "turned=16 must be even, and at most head_width=8"),
        ({"arch": "xlnet", "width": 33, "heads": 3}, "width=33 is odd"),
        ({"arch": "t5", "buckets": 3}, "buckets=3 must be a multiple of 4"),
    ],
)
def test_what_fits_no_model_is_refused(fields: dict[str, Any], sentence: str):
    settings = {"arch": "llama", **SIZES, "vocab": 99, **({"kv_heads": 2} if fields.get("arch", "glm") == "glm" else {}), **fields}
    with pytest.raises(ValueError, match=sentence):
        load_model(settings)


def test_a_model_without_a_vocabulary_takes_no_tokenizer(folder: Path):
    with pytest.raises(ValueError, match="vit: no run file trains it alone: it reads pictures"):
        load_model({"arch": "vit", **SIZES, "tokenizer": str(folder)})


def test_an_encoder_decoder_takes_translate_alone(folder: Path):
    model = load_model({"arch": "t5", **SIZES, "head_width": 8, "tokenizer": str(folder)})
    with pytest.raises(ValueError, match="fresh t5 is an encoder-decoder, which takes translate"):
        Chat().check(model)


def test_spans_of_xlnet_are_saved_as_the_class_that_has_such_a_head(tmp_path: Path):
    model = load_model({"arch": "xlnet", **SIZES, "vocab": 99})
    model.net.add_head("spans", 2)
    model.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["XLNetForQuestionAnsweringSimple"]
    assert "spans" in load_model(str(tmp_path)).net.heads


def test_a_run_over_fresh_weights_is_loaded_with_the_weights_it_ran_over(tmp_path: Path):
    path, ids = write_run(tmp_path, seed=5, training={"steps": 1}), torch.arange(8)[None]
    result = run(Run.from_yaml(path))
    assert result.path is not None
    ready = prepare(Run.from_yaml(path))
    ready.attached.load(result.path)
    torch.manual_seed(9)
    want = ready.model.net.eval().logits(ready.model.hidden(ids))
    torch.manual_seed(9)
    after = torch.rand(1)
    torch.manual_seed(9)
    torch.testing.assert_close(luthier.load(tmp_path / "out").logits(ids), want, rtol=0, atol=0)
    assert torch.equal(torch.rand(1), after)  # whoever loads it draws on as before
    with pytest.raises(ValueError, match="is for the fresh llama of one run.*name the run's folder"):
        luthier.load(result.path)
