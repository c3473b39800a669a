"""What the assistant said, and nothing else, is learnt; a bidirectional prompt leaks nothing of the answer."""

from typing import Any, Literal

import pytest
import torch
from tokenizers import Tokenizer as Inner
from tokenizers import models, pre_tokenizers

from luthier.data.template import Template, choose
from luthier.data.tokenizer import Tokenizer
from luthier.objectives._batch import Size, collate, once
from luthier.objectives.chat import Chat
from luthier.sources.model import Model

TALK = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "say <|im_start|>assistant 你好"},
    {"role": "assistant", "content": "你好 ✓"},
    {"role": "user", "content": "again"},
    {"role": "assistant", "content": "no"},
]
EXCHANGE = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


def example(model: Any, messages: list[dict], length: int = 400, prompt: Literal["causal", "bidirectional"] = "causal"):
    (batch,) = once(Chat(prompt), [{"messages": messages}], model, length)
    return batch.examples[0]


def spelt(model: Any, ids: list[int]) -> str:
    return model.tokenizer.decode(ids, specials=True)


def test_the_answers_and_their_ends_are_learnt(decoder):
    model, _ = decoder()
    found = example(model, TALK)
    assert spelt(model, found.labels["lm"]) == "你好 ✓<|im_end|>no<|im_end|>"
    assert [found.ids[at + 1] for at in found.at["lm"]] == found.labels["lm"]
    assert found.labels["lm"].count(model.tokenizer.eos) == 2


def test_the_rest_of_the_text_is_the_templates(decoder):
    model, _ = decoder()
    assert spelt(model, example(model, TALK).ids) == model.template.render(TALK)


def test_the_loss_is_transformers_with_the_prompt_at_minus_100(decoder, run):
    ours, theirs = decoder()
    (batch,) = once(Chat(), [{"messages": TALK}], ours, 400)
    labels = torch.full_like(batch.ids, -100)
    text = ours.template.render(TALK)
    encoded = ours.tokenizer.inner.encode(text, add_special_tokens=False)
    place = 0
    for message in TALK:  # by hand: the header, the content, the end
        header = f"<|im_start|>{message['role']}\n"
        begin, end = place + len(header), place + len(header) + len(message["content"]) + len("<|im_end|>")
        if message["role"] == "assistant":
            for i, (start, stop) in enumerate(encoded.offsets):
                if start >= begin and stop <= end:
                    labels[0, i] = encoded.ids[i]
        place = end + 1
    torch.testing.assert_close(run(Chat(), ours, batch)["lm"], theirs(input_ids=batch.ids, labels=labels).loss, check_dtype=False)


def test_a_token_over_the_edge_of_an_answer_is_learnt(decoder):
    """A plain template's space before the answer belongs to the answer's first token, which the model has to write."""
    inner = Inner(models.WordLevel({"Q:": 0, "▁hi": 1, "▁A:": 2, "▁yes": 3, "▁no": 4, "?": 5}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")  # type: ignore[assignment]
    template = Template("plain", "Q: {{ messages[0]['content'] }} A: {{ messages[1]['content'] }}")
    found = example(Model(decoder()[0].net, Tokenizer(inner), template), EXCHANGE)
    assert (found.ids, found.at["lm"], found.labels["lm"]) == ([0, 1, 2, 3], [2], [3])


def test_a_long_conversation_is_cut_and_a_longer_prompt_skipped(decoder):
    model, _ = decoder()
    whole = example(model, TALK)
    begin = whole.at["lm"][0] + 1
    cut = example(model, TALK, begin + 3)
    assert (cut.ids, cut.labels["lm"]) == (whole.ids[: begin + 3], whole.ids[begin : begin + 3])
    with pytest.raises(ValueError, match="none of the 1 rows has an answer that begins"):
        list(once(Chat(), [{"messages": TALK}], model, begin))


def test_without_an_assistant_turn_the_row_is_named(decoder):
    model, _ = decoder()
    with pytest.raises(ValueError, match=r"no assistant turn.*'?\"?hello"):
        list(once(Chat(), [{"messages": [{"role": "user", "content": "hello"}]}], model, 64))


def test_a_model_without_a_template_is_refused_in_words(decoder, stream):
    model, _ = decoder()
    with pytest.raises(ValueError, match="a tiny llama has no chat template; name one: data.template"):
        Chat().batches(stream([{"messages": EXCHANGE}]), Model(model.net, model.tokenizer, source=model.source), Size(rows=1), 64)


def seen(model: Any, prompt: Literal["causal", "bidirectional"], messages: list[list[dict]]) -> tuple[torch.Tensor, list]:
    """(N, N) whether the hidden state at i depends on token j, and the examples, packed."""
    batch = collate([example(model, talk, 400, prompt) for talk in messages])
    inputs = Chat().inputs(batch)
    vectors = model.net.embed.token(batch.ids).detach().requires_grad_()
    handle = model.net.embed.token.register_forward_hook(lambda *_: vectors)
    hidden = model.net.hidden(**inputs)[0]
    handle.remove()
    rows = [torch.autograd.grad(state.square().sum(), vectors, retain_graph=True)[0][0].abs().sum(-1) > 0 for state in hidden]
    return torch.stack(rows), list(batch.examples)


@pytest.mark.parametrize("prompt", ["causal", "bidirectional"])
def test_who_sees_whom(prompt, decoder):
    model, _ = decoder()
    talks = [EXCHANGE, [*EXCHANGE, {"role": "user", "content": "so"}, {"role": "assistant", "content": "ok"}]]
    matrix, examples = seen(model, prompt, talks)
    allowed = torch.zeros_like(matrix)
    start = 0
    for found in examples:
        stop, answer = start + len(found.ids), start + found.at["lm"][0] + 1
        allowed[start:stop, start:stop] = torch.ones(len(found.ids), len(found.ids)).tril().bool()
        if prompt == "bidirectional":
            allowed[start:answer, start:answer] = True
        start = stop
    assert torch.equal(matrix, allowed)


def test_no_label_is_visible_where_it_is_predicted(decoder):
    model, _ = decoder()
    matrix, (found,) = seen(model, "bidirectional", [TALK])
    assert not any(matrix[at, at + 1] for at in found.at["lm"])


def test_a_prompt_that_sees_itself_changes_the_loss(decoder, run):
    model, _ = decoder()
    losses = []
    for objective in (Chat(), Chat(prompt="bidirectional")):
        (batch,) = once(objective, [{"messages": TALK}], model, 400)
        losses.append(run(objective, model, batch)["lm"].item())
    assert abs(losses[0] - losses[1]) > 1e-6


@pytest.mark.parametrize("name", ["human_assistant", "alpaca", "vicuna", "baichuan", "chatglm"])
def test_the_end_token_is_learnt_with_every_plain_template(name, decoder):
    model, _ = decoder()
    found = example(Model(model.net, model.tokenizer, choose(name, model.tokenizer)), EXCHANGE)
    assert spelt(model, found.labels["lm"]).strip() == "yes<|im_end|>"
