"""CLIP's loss and BLIP-2's three: values and gradients of transformers' models, the draws' distribution, a step that stays whole."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch.nn import functional as F
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from luthier.core.contrast import hard_negatives
from luthier.core.names import export_state
from luthier.data.settings import Data
from luthier.data.stream import Sample, open_stream
from luthier.objectives._batch import Batch, Size, collate, encode, once
from luthier.objectives.contrastive import Contrastive
from luthier.sources.model import Model
from luthier.training import lanes
from luthier.training.loop import accumulate
from shown import ASKS, captioned, tiny_eyes, write
from tiny import tiny_chat

ALL = ("contrast", "match", "write")


SAID = ["the cat", "a dog sat on a mat", "he", "she ran over the town", "the dog", "who is he ?"]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """transformers' model makes some of its tensors in the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def rows(tmp_path: Path) -> list[dict]:
    shown = [{**row, "caption": f"{SAID[i % 6]} {'.' * (i // 6)}"} for i, row in enumerate(captioned(tmp_path))]
    data = Data(str(write(tmp_path / "captions.jsonl", shown)), held_out=0, shuffle=False)
    stream = open_stream(data, 0)
    return [next(stream).row for _ in range(12)]


def batch(objective: Contrastive, model: Model, rows: list[dict]) -> Batch:
    samples = [Sample(row, 0, i, 0) for i, row in enumerate(rows)]
    return collate([example for found in encode(objective, samples, model, 16) for example in found])


def theirs(model: Model) -> hf.Blip2ForImageTextRetrieval:
    """transformers' model with our weights, in float64."""
    eyes = model.net.config.vision
    vision = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    assert (eyes["width"], eyes["hidden"], eyes["layers"], eyes["image"]) == (24, 32, 2, 16)
    querying = {
        "vocab_size": model.net.vocab, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 50, "encoder_hidden_size": 24, "use_qformer_text_input": True, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    made = hf.Blip2ForImageTextRetrieval(
        hf.Blip2Config(vision_config=vision, qformer_config=querying, num_query_tokens=ASKS["queries"], image_text_hidden_size=16)
    )
    made.config.image_token_index = None
    table = {ours: name for ours, name in model.net.config.names({}).items() if ours != "logit_scale"}
    made.load_state_dict(export_state(table, dict(model.net.named_parameters())), strict=False)
    return made.double().eval()


def gradients_match(ours: Model, reference: torch.nn.Module) -> None:
    """Element by element, all parameters that transformers' model has."""
    table = {mine: name for mine, name in ours.net.config.names({}).items() if mine != "logit_scale"}
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in ours.net.named_parameters()}
    mine = export_state(table, {name: grads[name] for name in table})
    named = dict(reference.named_parameters())
    assert mine.keys() <= named.keys()
    reached = 0
    for name, gradient in mine.items():
        want = named[name].grad
        torch.testing.assert_close(gradient, torch.zeros_like(gradient) if want is None else want, rtol=1e-9, atol=1e-12, msg=name)
        reached += want is not None and bool(want.abs().max() > 1e-9)
    assert reached > 20


def losses(objective: Contrastive, model: Model, made: Batch) -> dict[str, torch.Tensor]:
    terms = objective.loss(objective.forward(model.net, made), model.net.heads, made)
    assert {name: term.count for name, term in terms.items()} == made.counts()
    return {name: term.sum / term.count for name, term in terms.items()}


def padded(made: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(made.lengths)
    ids = torch.stack([F.pad(row, (0, longest - len(row))) for row in made.ids[0].split(list(made.lengths))])
    return ids, torch.tensor([[1] * n + [0] * (longest - n) for n in made.lengths])


def double(model: Model, made: Batch) -> Batch:
    model.net.double()
    made.extra["images"] = made.extra["images"].double()
    return made


def test_contrast_is_clips_loss_of_transformers_scores_in_value_and_every_gradient(wordpiece, rows):
    model = tiny_eyes(wordpiece)
    made = double(model, batch(Contrastive(), model, rows[:5]))
    reference = theirs(model)
    ids, mask = padded(made)
    assert not mask.all()
    scale = model.net.scale.item()
    assert scale == pytest.approx(1 / 0.07)  # where CLIP begins
    want = image_text_contrastive_loss((scale * reference(made.extra["images"], ids, mask).logits_per_image).mT)
    got = losses(Contrastive(), model, made)["contrast"]
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)
    want.backward()
    got.backward()
    gradients_match(model, reference)
    step, gradient = 1e-5, float(model.net.logit_scale.grad)
    with torch.no_grad():
        either = [float(losses(Contrastive(), shifted(model, by), made)["contrast"]) for by in (step, -2 * step)]
    assert gradient == pytest.approx((either[0] - either[1]) / (2 * step), rel=1e-6)


def shifted(model: Model, by: float) -> Model:
    model.net.logit_scale.data += by
    return model


def test_matching_is_transformers_score_of_right_pairs_and_of_the_hardest_wrong_ones(wordpiece, rows):
    model, objective = tiny_eyes(wordpiece), Contrastive(("contrast", "match"))
    made = double(model, batch(objective, model, rows[:5]))
    reference = theirs(model)
    pixels, (ids, mask) = made.extra["images"], padded(made)
    with torch.no_grad():
        scores = reference(pixels, ids, mask).logits_per_image
        got = losses(objective, model, made)["match"]  # without gradients: the highest scores
    other = scores.clone().fill_diagonal_(-torch.inf)
    pairs = (
        [(i, i, 1) for i in range(5)]
        + [(i, int(other[i].argmax()), 0) for i in range(5)]
        + [(int(other[:, i].argmax()), i, 0) for i in range(5)]
    )
    picture, text, label = (torch.tensor(column) for column in zip(*pairs, strict=True))
    told = reference(pixels[picture], ids[text], mask[text], use_image_text_matching_head=True).logits_per_image
    want = F.cross_entropy(told, label)
    torch.testing.assert_close(got, want.detach(), rtol=1e-9, atol=0)


def test_gradients_of_matching_are_transformers(wordpiece, rows, monkeypatch):
    model, objective = tiny_eyes(wordpiece), Contrastive(("contrast", "match"))
    made = double(model, batch(objective, model, rows[:5]))
    reference = theirs(model)
    pixels, (ids, mask) = made.extra["images"], padded(made)
    drawn = iter([torch.tensor([1, 2, 3, 4, 0]), torch.tensor([2, 3, 4, 0, 1])])
    monkeypatch.setattr("luthier.objectives.contrastive.hard_negatives", lambda *_: next(drawn))
    losses(objective, model, made)["match"].backward()
    own, text, picture = torch.arange(5), torch.tensor([1, 2, 3, 4, 0]), torch.tensor([2, 3, 4, 0, 1])
    pictures, texts = torch.cat([own, own, picture]), torch.cat([own, text, own])
    told = reference(pixels[pictures], ids[texts], mask[texts], use_image_text_matching_head=True).logits_per_image
    F.cross_entropy(told, torch.tensor([1] * 5 + [0] * 10)).backward()
    gradients_match(model, reference)


def test_writing_sees_the_queries_and_what_stands_before_as_transformers_q_former_does(wordpiece, rows):
    """With their mask of three dimensions: queries see queries, a token the queries and the tokens up to itself."""
    model, objective = tiny_eyes(wordpiece), Contrastive(ALL)
    model.net.add_head("lm", 0)
    model.net.heads["lm"].transform[0].weight.data.normal_(std=0.3)
    made = double(model, batch(objective, model, rows[:5]))
    reference = theirs(model)
    (ids, mask), queries = padded(made), ASKS["queries"]
    got = losses(objective, model, made)["write"]
    seen = reference.vision_model(made.extra["images"])[0]
    text = reference.embeddings(input_ids=ids, query_embeds=reference.query_tokens.expand(5, -1, -1))
    length = queries + ids.shape[1]
    allow = torch.ones(length, length).tril()
    allow[:queries, :queries] = 1
    both = allow * torch.cat([torch.ones(5, queries), mask], 1)[:, None]
    both = (1 - both[:, None]) * torch.finfo(torch.float64).min  # added to scores: the form they pass on as it is
    states = reference.qformer(query_embeds=text, query_length=queries, attention_mask=both, encoder_hidden_states=seen)[0][:, queries:]
    head = model.net.heads["lm"]
    logits = F.linear(head.transform(states), reference.embeddings.word_embeddings.weight, head.out.bias)
    want = F.cross_entropy(logits[:, :-1][mask[:, 1:].bool()], ids[:, 1:][mask[:, 1:].bool()])
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)
    got.backward()
    want.backward()
    gradients_match(model, reference)


def test_the_head_that_writes_is_saved_and_read_again(wordpiece, tmp_path):
    from luthier.sources.load import load_model

    model = tiny_eyes(wordpiece)
    model.net.add_head("lm", 0)
    model.save(tmp_path)
    again = load_model(str(tmp_path))
    assert again.net.config.lm and again.net.config.temperature
    assert again.net.heads["lm"].out.weight is again.net.q_former.embed.token.weight
    for name, value in model.net.state_dict().items():
        assert torch.equal(value, again.net.state_dict()[name]), name


def test_hard_negatives_are_drawn_by_their_scores_and_never_the_own_one():
    scores = torch.tensor([[9.0, 1.0, 2.0, 0.0], [0.5, 9.0, 0.5, 0.5], [3.0, -1.0, 9.0, 1.0], [0.0, 0.0, 0.0, 9.0]])
    torch.manual_seed(0)
    drawn = [hard_negatives(scores).tolist() for _ in range(4000)]
    for i, row in enumerate(scores):
        counts, others = Counter(choice[i] for choice in drawn), [j for j in range(4) if j != i]
        assert counts[i] == 0
        share = row[others].softmax(0)
        chi = sum((counts[j] - 4000 * p) ** 2 / (4000 * p) for j, p in zip(others, share.tolist(), strict=True))
        assert chi < 13.8  # 2 degrees of freedom, p = 0.001
    assert hard_negatives(scores, draw=False).tolist() == [2, 0, 0, 0]
    with pytest.raises(ValueError, match="one pair alone has no negative"):
        hard_negatives(scores[:1, :1])


def test_a_step_is_one_batch_however_few_tokens_one_may_have_and_lanes_keep_off(wordpiece, rows, tmp_path, monkeypatch):
    model, objective = tiny_eyes(wordpiece), Contrastive()
    stream = open_stream(Data(str(tmp_path / "captions.jsonl"), held_out=0), 0)
    (made,) = next(objective.batches(stream, model, Size(rows=6, micro_tokens=1), 16))
    assert made.rows == 6
    halves = [losses(objective, model, batch(objective, model, part))["contrast"] for part in (rows[:3], rows[3:6])]
    whole = losses(objective, model, batch(objective, model, rows[:6]))["contrast"]
    assert abs(whole.item() - (halves[0] + halves[1]).item() / 2) > 0.1  # why it may not be cut
    monkeypatch.setattr(lanes, "_fitting", lambda *_: True)
    monkeypatch.setattr(lanes, "_halves", lambda *_: pytest.fail("a step was cut in two"))
    model.attached = __import__("luthier").tune(model, "full")
    accumulate(model.net, objective, [made], model.attached)


def test_held_out_rows_are_compared_in_equal_parts(wordpiece, rows):
    model, objective = tiny_eyes(wordpiece), Contrastive()
    sizes = [made.rows for made in once(objective, rows * 11, model, 16, micro_tokens=8)]
    assert sizes == [66, 66]


def test_a_picture_chooses_among_rows_spread_over_the_batch(wordpiece, rows):
    model, objective = tiny_eyes(wordpiece), Contrastive(among=3)
    made = batch(objective, model, rows[:6])
    with torch.no_grad():
        hidden = objective.forward(model.net, made)
    scores = torch.full((6, 6), 9.0)
    for row in range(6):  # of its own, the second and the fourth row behind it
        scores[row, row], scores[row, (row + 2) % 6], scores[row, (row + 4) % 6] = 1.0, float(row % 2), 2.0 * (row == 5)
    assert objective.predict(hidden._replace(scores_NN=scores), model.net.heads, made) == [0, 0, 0, 0, 0, 2]
    assert objective.references(made) == [0] * 6


def test_pictures_vary_when_learning_only_and_by_the_general_generator(wordpiece, rows):
    model, objective = tiny_eyes(wordpiece), Contrastive(vary=0.3)
    made = batch(objective, model, rows[:4])
    torch.manual_seed(3)
    first, second = (objective.forward(model.net, made).scores_NN for _ in range(2))
    torch.manual_seed(3)
    again = objective.forward(model.net, made).scores_NN
    assert torch.equal(first, again) and not torch.equal(first, second)
    with torch.no_grad():
        assert torch.equal(objective.forward(model.net, made).scores_NN, objective.forward(model.net, made).scores_NN)


def test_of_several_captions_each_epoch_draws_one(wordpiece, rows):
    model, row = tiny_eyes(wordpiece), {**rows[0], "text": ["the cat", "a dog", "he sat"]}
    read = [Contrastive().read(Sample(row, epoch, 0, 0), model).texts[0] for epoch in range(40)]
    assert set(read) == set(row["text"])
    assert read == [Contrastive().read(Sample(row, epoch, 0, 0), model).texts[0] for epoch in range(40)]


def test_what_does_not_fit_is_refused(wordpiece, rows):
    with pytest.raises(ValueError, match="losses with contrast among them"):
        Contrastive(("match",))
    with pytest.raises(ValueError, match="among >= 2, not vary=0.0, among=1"):
        Contrastive(among=1)
    model = tiny_eyes(wordpiece)
    with pytest.raises(ValueError, match="needs a model that compares pictures with texts"):
        Contrastive().check(tiny_chat())
    with pytest.raises(ValueError, match="needs rows with image, text, and these have text"):
        batch(Contrastive(), model, [{"text": "the cat"}])
    objective = Contrastive(("contrast", "match"))
    alone = batch(objective, model, rows[:1])
    with pytest.raises(ValueError, match="one pair alone has no negative"):
        objective.forward(model.net, alone)
