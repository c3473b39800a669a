"""Picture models from trained parts: each part does what it did alone; the runs of both stages train the projection and nothing else."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import luthier
from luthier.run import Run, run
from luthier.sources.load import load_model
from shown import ASKS, SEES, captioned, conversations, tiny_eyes, tiny_seer, write
from tiny import minilm_path, tiny_chat

VISION = {key: value for key, value in SEES.items() if key not in ("kind", "eps", "pooler")}


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, str]:
    voice = tiny_chat()
    voice.save(tmp_path / "voice")
    tiny_eyes(voice.tokenizer).save(tmp_path / "eyes")
    return {"eyes": str(tmp_path / "eyes"), "voice": str(tmp_path / "voice")}


def settings(folder: Path, model: object, rows: list[dict], objective: object, **changes: object) -> Run:
    data = {"path": str(write(folder / "rows.jsonl", rows)), "length": 64, "held_out": 2}
    training = {"steps": 6, "rows": 4, "rate": 0.01, "save_every": 2, "keep": 9}
    named = {"data": data, "objective": objective, "training": training, "output": str(folder / "out"), "model": model, "tuning": "full"}
    path = folder / "run.yaml"
    path.write_text(__import__("yaml").safe_dump({**named, **changes}))
    return Run.from_yaml(path)


@torch.no_grad()
def test_a_q_former_that_starts_from_a_bert_reads_texts_as_it_does():
    """All of MiniLM's layers: its states are BERT's, transformers' by tests/models."""
    bert = load_model(str(minilm_path()))
    model = load_model(
        {"arch": "blip2", "start": str(minilm_path()), "vision": VISION, "q_former": {"queries": 3, "dropout": 0.0}, "text": "mean"}
    )
    assert model.net.config.q_former["layers"] == 6 and model.net.vocab == bert.net.vocab
    ids = torch.tensor([[101, *bert.tokenizer.encode("a red square"), 102]])
    want = bert.net.hidden(ids)
    torch.testing.assert_close(model.net.q_former.hidden(ids), want)
    torch.testing.assert_close(model.net.texts(ids), torch.nn.functional.normalize(model.net.text_out(want.mean(1)), dim=-1))
    block, begun = model.net.q_former.blocks[3], bert.net.blocks[3]
    assert torch.equal(block.ffn.up.weight, begun.ffn.up.weight)  # the queries' feed-forwards begin there too
    two = load_model({"arch": "blip2", "start": str(minilm_path()), "vision": VISION, "q_former": {"layers": 2}})
    torch.testing.assert_close(two.net.eval().q_former.hidden(ids), bert.net.states(ids)[2])


@torch.no_grad()
def test_a_joined_minigpt4_sees_as_its_eyes_and_speaks_as_its_voice(parts):
    eyes, voice, model = load_model(parts["eyes"]), load_model(parts["voice"]), load_model({"arch": "minigpt4", **parts})
    pixels = torch.randn(2, 3, 16, 16)
    assert torch.equal(model.net.look(pixels), model.net.project(eyes.net.hidden(pixels)))
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(model.net(ids), voice.net(ids))
    assert model.tokenizer.id("<image>") == 258 and model.template is not None
    states = voice.net.embed.token.weight.std()
    assert 0.3 < float(model.net.project(torch.randn(500, 32)).std() / states) < 3  # as large as tokens' vectors


@pytest.mark.parametrize(
    "model, sentence",
    [
        ({"arch": "minigpt4", "eyes": "EYES"}, "takes eyes, a blip2 .*, and voice, a language model"),
        ({"arch": "minigpt4", "eyes": "VOICE", "voice": "VOICE"}, "takes eyes, a blip2"),
        (
            {"arch": "minigpt4", "eyes": "EYES", "voice": "VOICE", "language": {"width": 8}},
            "language come with eyes and voice; leave them out",
        ),
        ({"arch": "llama", "voice": "VOICE"}, "voice is for minigpt4, and this is llama"),
        ({"arch": "blip2", "start": "VOICE", "vision": VISION}, "is no BERT, which the Q-Former could start from"),
        (
            {"arch": "blip2", "vision": {"kind": "vit"}, "q_former": {"vocab": 9}},
            "the ViT of a model for pictures and texts has EVA's form",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(model, sentence, parts):
    named = {"EYES": parts["eyes"], "VOICE": parts["voice"]}
    with pytest.raises(ValueError, match=sentence):
        load_model({key: named.get(value, value) if isinstance(value, str) else value for key, value in model.items()})


def test_a_bert_of_other_sizes_is_refused():
    with pytest.raises(ValueError, match="width=32 is not its 384; heads=4 is not its 12; leave these out of q_former"):
        load_model({"arch": "blip2", "start": str(minilm_path()), "vision": VISION, "q_former": {"width": 32, "heads": 4}})


def test_both_stages_train_the_projection_alone_and_the_second_starts_from_the_first(parts, tmp_path):
    only = {"kind": "freeze", "blocks": [], "also_train": ["project"]}
    model, first, second = {"arch": "minigpt4", **parts}, tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    result = run(settings(first, model, captioned(first), "causal", tuning=only, evaluation=["perplexity"]))
    assert result.trainable == 32 * 16 + 16
    assert result.history.after["loss"] < result.history.before["loss"]
    trained = luthier.load(first / "out")
    projection = load_file(first / "out" / "adapter" / "adapter_model.safetensors")
    assert [tuple(value.shape) for value in projection.values()] == [(16,), (16, 32)] or len(projection) == 2
    result = run(settings(second, str(first / "out"), conversations(second), "chat", tuning=only, samples=2))
    assert result.trainable == 32 * 16 + 16
    again, pixels = luthier.load(second / "out"), torch.randn(2, 3, 16, 16)
    plain = load_model(model)
    with torch.no_grad():
        ids = torch.tensor([[1, 2, 3]])
        assert torch.equal(again.net(ids), plain.net(ids))  # the voice is as it was
        assert torch.equal(again.net.vision.hidden(pixels), plain.net.vision.hidden(pixels))
        assert not torch.equal(again.net.look(pixels), trained.net.look(pixels))  # the projection has moved in both stages
    (answer, _) = __import__("json").loads((second / "out" / "samples.json").read_text())
    assert answer["reference"] and "after" in answer


def test_a_contrastive_run_is_resumed_to_the_bit(tmp_path):
    """Varied pictures and drawn negatives come from the general generator, which checkpoints keep."""
    eyes = {"arch": "blip2", "vision": VISION, "q_former": {**ASKS, "dropout": 0.1}, "shared": 8}
    eyes["tokenizer"] = str(tmp_path / "letters")
    tiny_chat().tokenizer.save(tmp_path / "letters")
    objective = {"kind": "contrastive", "losses": ["contrast", "match", "write"], "vary": 0.2}
    config = settings(tmp_path, eyes, captioned(tmp_path), objective, evaluation=["accuracy"])
    result = run(config)
    whole = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert result.history.after["accuracy"] >= 0
    run(config, resume=tmp_path / "out" / "checkpoints" / "step-4")
    again = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert whole.keys() == again.keys() and "cls.predictions.bias" in whole and "logit_scale" in whole
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_what_full_tuning_keeps_stays_as_it_was_and_the_rest_moves(tmp_path):
    model = tiny_eyes(tiny_chat().tokenizer)
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    attached = luthier.tune(model, "full", keep=("q_former.embed.token", "q_former.blocks.*.attn", "logit_scale"))
    trained = attached.parameters.keys()
    assert not [name for name in trained if ".attn." in name and name.startswith("q_former")] and "vision.blocks.0.attn.q.weight" in trained
    assert "q_former.blocks.0.attn_norm.weight" in trained and "logit_scale" not in trained and "q_former.embed.query" in trained
    assert {name for name, p in model.net.named_parameters() if p.requires_grad} == set(trained)
    assert all(torch.equal(before[name], value) for name, value in model.net.state_dict().items())
    with pytest.raises(ValueError, match="full.keep names 'q_formr', and no parameter's name begins so"):
        luthier.tune(tiny_seer(), "full", keep=("q_formr",))
