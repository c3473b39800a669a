"""transformers' side of the model benchmark: right-padded batches, labels -100 where nothing is learnt."""

import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks._rounds import serve

LENGTHS = (57, 68, 81, 134, 178, 256, 256, 256)  # eighths of alpaca_gpt4_en's first 400 rows, cut at 256

# name: (configuration, class); sizes are the published ones, dropout is off so that losses can be equal
MODELS: dict[str, tuple[Any, Any]] = {
    "bert-base": (transformers.BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), transformers.BertForMaskedLM),
    "gpt2": (transformers.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0), transformers.GPT2LMHeadModel),
    "t5-base": (
        transformers.T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, dropout_rate=0.0, decoder_start_token_id=0),
        transformers.T5ForConditionalGeneration,
    ),
    "qwen2-0.5b": (
        transformers.Qwen2Config(
            vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
            tie_word_embeddings=True, rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
        ),
        transformers.Qwen2ForCausalLM,
    ),
    "albert-base": (
        transformers.AlbertConfig(
            hidden_size=768, num_attention_heads=12, intermediate_size=3072, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        ),
        transformers.AlbertForMaskedLM,
    ),
}  # fmt: skip


def rows(name: str) -> list[dict[str, list[int]]]:
    """ids, and as labels the next token or 15% of the tokens, as the model's own task has it; the same rows for both sides."""
    config, cls = MODELS[name]
    generator = torch.Generator().manual_seed(0)
    made = []
    for length in LENGTHS:
        ids = torch.randint(5, config.vocab_size, (length,), generator=generator).tolist()
        chosen = torch.rand(length, generator=generator) < 0.15
        chosen[1] = True
        masked = "MaskedLM" in cls.__name__
        made.append({"ids": ids, "labels": [token if learnt or not masked else -100 for token, learnt in zip(ids, chosen, strict=True)]})
    return made


def main(folder: str, name: str, dtype: str, kind: str) -> None:
    config, cls = MODELS[name]
    if not (Path(folder) / "config.json").exists():
        torch.manual_seed(0)
        cls(config).save_pretrained(folder)
    model = cls.from_pretrained(folder, dtype=getattr(torch, dtype)).train(kind != "forward")
    longest = max(LENGTHS)
    ids, labels, mask = (torch.full((len(LENGTHS), longest), value) for value in (0, -100, 0))
    for i, row in enumerate(rows(name)):
        length = len(row["ids"])
        ids[i, :length], labels[i, :length], mask[i, :length] = torch.tensor(row["ids"]), torch.tensor(row["labels"]), 1
    inputs = {"input_ids": ids, "attention_mask": mask}

    def forward() -> float:
        with torch.no_grad():
            logits = model(**inputs, **({"decoder_input_ids": ids} if config.is_encoder_decoder else {})).logits
        return logits[mask.bool()].float().square().mean().item()

    def training() -> float:
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        model.zero_grad()
        return loss.item()

    run(forward if kind == "forward" else training)


def run(step: Any) -> None:
    """Serve `step` after one for warming up, whose figure is compared between the sides."""

    def work() -> dict:
        begun = time.process_time()
        step()
        return {"seconds": time.process_time() - begun, "tokens": sum(LENGTHS)}

    serve({"loss": step()}, work)


if __name__ == "__main__":
    main(*sys.argv[1:])
