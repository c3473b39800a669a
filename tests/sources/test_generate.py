import pytest
import torch

from luthier.core.reader import Memory, Sampling
from luthier.data.template import named
from luthier.sources.generate import Asked, generate_texts, stream_text
from luthier.sources.writer import Writer
from tiny import smollm2_path, tiny_chat

ASK = [{"role": "user", "content": "Hello"}]


def written(writer: Writer, ids: list[int]) -> list[str]:
    return [*(writer.feed(token) for token in ids), writer.flush()]


def test_a_stream_never_breaks_a_character():
    tokenizer = tiny_chat().tokenizer  # a token for each byte
    assert tokenizer is not None
    text = "naïve 小提琴 🎻 ok"
    pieces = written(Writer(tokenizer), tokenizer.encode(text))
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) == len(text)


def test_bytes_that_never_become_a_character_are_written_all_the_same():
    tokenizer = tiny_chat().tokenizer
    assert tokenizer is not None
    half = tokenizer.encode("琴")[:1]
    assert "".join(written(Writer(tokenizer), [*half, *tokenizer.encode("abcdefghijkl")])).endswith("abcdefghijkl")
    assert written(Writer(tokenizer), half) == ["", "\ufffd"]


def test_a_stop_string_ends_the_text_also_when_it_straddles_tokens():
    tokenizer = tiny_chat().tokenizer
    assert tokenizer is not None
    writer = Writer(tokenizer, ["\nHuman:", "END"])
    pieces = written(writer, tokenizer.encode("one\nHumbug E\nHuman: two"))
    assert "".join(pieces) == "one\nHumbug E" and writer.ended
    assert "".join(written(Writer(tokenizer, ["END"]), tokenizer.encode("the EN"))) == "the EN"


def test_only_the_new_text_comes_back_and_the_seed_decides_it():
    model = tiny_chat()
    model.net.eval()
    texts = generate_texts(model, ["abc", ASK], max_tokens=6, seed=1)
    assert texts == generate_texts(model, ["abc", ASK], max_tokens=6, seed=1) != generate_texts(model, ["abc", ASK], max_tokens=6, seed=2)
    assert len(texts) == 2 and not texts[0].startswith("abc")
    assert len(generate_texts(model, ASK, max_tokens=3, samples=2)) == 2  # one conversation is one prompt
    assert generate_texts(model, [], max_tokens=3) == []


def test_a_batch_of_texts_is_what_its_texts_are_alone():
    model = tiny_chat()
    model.net.eval()
    prompts = ["abc", ASK, "a much longer prompt than the others"]
    for options in ({}, {"beams": 3}, {"stop": ["e", "t"]}):
        together = generate_texts(model, prompts, max_tokens=8, temperature=0, **options)
        assert together == [generate_texts(model, [prompt], max_tokens=8, temperature=0, **options)[0] for prompt in prompts]


def test_streamed_pieces_make_the_text_and_a_memory_changes_nothing():
    model = tiny_chat()
    model.net.eval()
    sampling, memory = Sampling(max_tokens=10, temperature=0), Memory()
    for question in ("one", "one and two", "other"):
        pieces = list(stream_text(model, question, sampling, memory=memory))
        assert "".join(pieces) == generate_texts(model, question, max_tokens=10, temperature=0)[0]


def test_what_does_not_fit_is_refused_in_a_sentence():
    model = tiny_chat()
    with pytest.raises(ValueError, match="knows no 'topp'"):
        generate_texts(model, ["a"], topp=0.9)
    with pytest.raises(ValueError, match="prompt 2 has 600 tokens .* 512 positions"):
        generate_texts(model, ["a", "b" * 600])
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        generate_texts(model, [""])
    model.template = None
    with pytest.raises(ValueError, match="no chat template"):
        generate_texts(model, ASK)
    assert len(generate_texts(model, ASK, max_tokens=2, template=named("alpaca"))) == 1


@pytest.mark.slow
def test_the_real_model_writes_what_transformers_writes():
    import transformers

    from luthier.core.generate import generate_ids
    from luthier.core.names import export_state
    from luthier.core.reader import left_padded
    from luthier.sources.load import load_model

    model = load_model(str(smollm2_path()))
    assert model.tokenizer is not None
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**model.net.config.to_config()))
    theirs.load_state_dict(export_state(model.net.config.names({"lm": 0}), model.net.state_dict()), strict=False)
    prompts = [model.tokenizer.encode(text) for text in ("The violin was made in", "小提琴", "def sort(items):\n    ")]
    ids, mask = left_padded(prompts)
    assert mask is not None
    for beams in (1, 3):
        settings = transformers.GenerationConfig(max_new_tokens=24, do_sample=False, num_beams=beams, eos_token_id=[2], pad_token_id=2)
        with torch.inference_mode():
            rows = theirs.eval().generate(ids, attention_mask=mask.long(), generation_config=settings)[:, ids.shape[1] :].tolist()
        wanted = [row[: row.index(2) + 1] if 2 in row else row for row in rows]
        assert generate_ids(model.net, prompts, Sampling(max_tokens=24, temperature=0, beams=beams), eos=[2]) == wanted


def test_a_prompt_begins_as_texts_did_in_training():
    """With [CLS] where the tokenizer has one, else with bos where the tokenizer adds it; the conversation's template says it all."""
    model = tiny_chat()
    assert model.tokenizer is not None
    for cls in (None, 256):
        model.tokenizer.cls, model.tokenizer.sep = cls, cls and 257
        start, end = model.tokenizer.frame()
        asked = Asked(model, "abc", (), None)
        assert asked.ids == [*start, *model.tokenizer.encode("abc")] and set(end) <= asked.eos
        assert (asked.ids[0] == 256) == (cls is not None)
        assert Asked(model, ASK, (), None).ids == model.tokenizer.encode(model.template.render(ASK, generation=True))  # type: ignore[union-attr]
