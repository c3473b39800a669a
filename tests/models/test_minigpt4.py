"""Pictures and texts together: BLIP-2's retrieval and writing models against transformers', MiniGPT-4's form without a Q-Former by hand."""

import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from oracles import FLOOR, gap

from luthier.core.cache import Cache
from luthier.models.blip2 import BLIP2
from luthier.models.minigpt4 import MiniGPT4
from luthier.sources.load import load_model

VISION = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4)
QUERYING = dict(
    vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, max_position_embeddings=50,
    encoder_hidden_size=24, use_qformer_text_input=True,
)  # fmt: skip
LLAMA = dict(
    model_type="llama", vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=48, max_position_embeddings=200, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
SEES = {"width": 24, "layers": 2, "heads": 2, "hidden": 32, "image": 16, "patch": 4, "pooler": False, "kind": "blip_2_vision_model"}
WRITES = {"vocab": 60, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 48}
PICTURE = 60


def reference(cls, **config):
    """Their model with weights that reach every parameter."""
    torch.manual_seed(0)
    model = cls(hf.Blip2Config(vision_config=VISION, qformer_config=QUERYING, num_query_tokens=5, **config)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * 0.2 + (1.0 if p.dim() == 1 else 0.0))
    return model


def ours(model, folder: Path):
    model.save_pretrained(folder)
    return load_model(str(folder))


def pictures(count: int = 3):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_both_scores_of_retrieval_equal_transformers_both_ways(tmp_path):
    model = reference(hf.Blip2ForImageTextRetrieval, text_config=LLAMA, image_text_hidden_size=16)
    model.config.image_token_index = None
    read = ours(model, tmp_path / "theirs")
    ids = torch.randint(3, 60, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    want = model(pictures(), ids, mask).logits_per_image
    assert gap(read.net.scores(pictures(), ids, mask), want) < FLOOR
    matching = model(pictures(), ids, mask, use_image_text_matching_head=True).logits_per_image
    assert gap(read.net.matching(pictures(), ids, mask), matching) < FLOOR
    read.save(tmp_path / "ours")
    again = hf.Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "ours", dtype=torch.float64).eval()
    again.config.image_token_index = None
    assert gap(again(pictures(), ids, mask).logits_per_image, want) < FLOOR


def writing(tmp_path, **changes):
    model = reference(hf.Blip2ForConditionalGeneration, text_config=LLAMA | {"vocab_size": 61} | changes, image_token_index=PICTURE)
    return model, ours(model, tmp_path / "theirs")


def told(count: int = 2):
    """(2, 14) ids with a picture of five tokens in each."""
    ids = torch.randint(3, 60, (count, 14), generator=torch.Generator().manual_seed(2))
    ids[0, 2:7] = ids[1, 5:10] = PICTURE
    return ids


@torch.no_grad()
def test_writing_about_pictures_equals_transformers_both_ways(tmp_path):
    model, read = writing(tmp_path)
    assert isinstance(read.net.config, MiniGPT4)
    want = model(pictures(2), input_ids=told()).logits
    read.net.language.embed.token.weight.data[PICTURE] = 7.0  # never looked at
    with_table = lambda **inputs: read.net.logits(read.net.hidden(told() + (told() == PICTURE), **inputs))  # noqa: E731  (vocab is 61 here)
    assert gap(with_table(images=pictures(2)), want) < FLOOR
    read.save(tmp_path / "ours")
    again = hf.Blip2ForConditionalGeneration.from_pretrained(tmp_path / "ours", dtype=torch.float64).eval()
    again.config.image_token_index = PICTURE
    assert gap(again(pictures(2), input_ids=told()).logits, want) < FLOOR


MUTANTS = {
    "no projection": lambda net: setattr(net, "project", nn.Identity()),
    "pictures in another order": lambda net: setattr(net, "look", lambda pixels, look=net.look: look(pixels).flip(0)),
    "queries in another order": lambda net: setattr(net, "look", lambda pixels, look=net.look: look(pixels).flip(1)),
    "class token left out": lambda net: setattr(net.vision, "norm", nn.Sequential(net.vision.norm, Without())),
}


class Without(nn.Module):
    def forward(self, x):
        return x[:, 1:]


@pytest.mark.parametrize("mutant", MUTANTS)
@torch.no_grad()
def test_parity_catches(mutant, tmp_path):
    model, read = writing(tmp_path)
    MUTANTS[mutant](read.net)
    want = model(pictures(2), input_ids=told()).logits
    assert gap(read.net.logits(read.net.hidden(told() + (told() == PICTURE), images=pictures(2))), want) > 10 * FLOOR


def without_q_former():
    torch.manual_seed(0)
    net = MiniGPT4(vision=SEES, q_former=None, language=WRITES, join=4).build().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


@torch.no_grad()
def test_without_a_q_former_four_patches_are_one_token():
    net = without_q_former()
    assert net.config.states == 4 and net.project.weight.shape == (32, 96)
    states = net.vision.hidden(pictures(1))[0]  # the class token and 16 patches
    want = [torch.cat([states[1 + 4 * i + j] for j in range(4)]) @ net.project.weight.T + net.project.bias for i in range(4)]
    assert gap(net.look(pictures(1))[0], torch.stack(want)) < FLOOR


@torch.no_grad()
def test_pictures_in_packed_padded_and_cached_rows_equal_each_alone():
    net, seen = without_q_former(), pictures(2)
    a = torch.tensor([[1, *[PICTURE] * 4, 5, 6, 7]])
    b = torch.tensor([[1, 9, *[PICTURE] * 4, 8]])
    alone = [net.hidden(ids, images=seen[i : i + 1]) for i, ids in enumerate((a, b))]
    assert gap(net.hidden(torch.cat([a, b], 1), lengths=(8, 7), images=seen), torch.cat(alone, 1)) < FLOOR
    rows, mask = torch.cat([a, nn.functional.pad(b, (1, 0))]), torch.ones(2, 8, dtype=torch.bool)
    mask[1, 0] = False
    got = net.hidden(rows, mask, images=seen)
    assert gap(got[0], alone[0][0]) < FLOOR and gap(got[1, 1:], alone[1][0]) < FLOOR
    cache = Cache(2)
    steps = [net.hidden(a[:, :6], images=seen[:1], cache=cache), net.hidden(a[:, 6:], cache=cache)]
    assert gap(torch.cat(steps, 1), alone[0]) < FLOOR


@torch.no_grad()
def test_the_form_without_a_q_former_survives_a_folder(tmp_path):
    from luthier.sources.model import Model

    net = without_q_former()
    Model(net).save(tmp_path)
    again = load_model(str(tmp_path)).net
    ids = torch.tensor([[1, *[PICTURE] * 4, 5]])
    assert torch.equal(again(ids, images=pictures(1)), net(ids, images=pictures(1)))


def test_only_the_projection_is_trained():
    """Section 3: everything else stays frozen, and gradients reach the projection through the language model."""
    net = without_q_former().requires_grad_(False)
    net.project.requires_grad_(True)
    net(torch.tensor([[1, *[PICTURE] * 4, 5]]), images=pictures(1)).square().sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is not None} == {"project.weight", "project.bias"}
    assert net.project.weight.grad.abs().sum() > 0


def test_presets_project_what_the_paper_says():
    with torch.device("meta"):
        vicuna, llama2 = (MiniGPT4(**MiniGPT4.presets[name]).build() for name in MiniGPT4.presets)
    assert vicuna.project.weight.shape == (4096, 768) and vicuna.config.states == 32
    assert llama2.project.weight.shape == (4096, 5632) and llama2.config.states == 256


def test_what_does_not_fit_is_refused():
    net = without_q_former()
    with pytest.raises(ValueError, match="ids have 3 picture tokens, and the pictures have 4 states"):
        net.hidden(torch.tensor([[1, PICTURE, PICTURE, PICTURE]]), images=pictures(1))
    with pytest.raises(ValueError, match="ids have 1 picture tokens, and the pictures have 0"):
        net.hidden(torch.tensor([[1, PICTURE]]))
    with pytest.raises(ValueError, match="16 patches cannot be joined by 5"):
        MiniGPT4(vision=SEES, q_former=None, language=WRITES, join=5).build()
    with pytest.raises(ValueError, match="memory=1408 is not the ViT's width=24"):
        MiniGPT4(vision=SEES, language=WRITES).build()
    with pytest.raises(ValueError, match="memory=24"):
        BLIP2(SEES, {"memory": 9}).build()
    with pytest.raises(ValueError, match="language model is 'opt'"):
        MiniGPT4.from_config({"text_config": {"model_type": "opt"}})
