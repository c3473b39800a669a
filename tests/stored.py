"""Tiny transformers models on disk, in Hugging Face's form and as GGUF files written with the gguf package."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from tokenizers import decoders, models, pre_tokenizers, trainers

SIZES: dict[str, Any] = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 256}
TEXT = [
    "The quick brown fox doesn't jump over 12 lazy dogs, it's 2024.",
    "def f(x):\n    return x ** 2  # 3.14\n\n",
    "café naïve 中文分词 测试 🙂 Ελλάδα",
    "We'll see THEY'RE 1,000,000 and 3rd.",
] * 20


def disturbed(model: Any, seed: int = 0) -> Any:
    """Random values in every parameter, so that no norm is 1 and no bias 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def tiny(kind: str, **changes: Any) -> Any:
    """A tiny transformers model of a kind that Luthier has its own architecture for."""
    build: dict[str, Callable[[], Any]] = {
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED | changes)),
        "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**GROUPED | {"sliding_window": 7} | changes)),
        "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**GROUPED | {"tie_word_embeddings": True} | changes)),
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=320, n_embd=64, n_layer=2, n_head=4, n_positions=256, **changes)
        ),
        "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, max_position_embeddings=256, **changes)),
    }
    torch.manual_seed(0)
    return disturbed(build[kind]())


def saved(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def byte_bpe(cut: Any, size: int = 320) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer trained on TEXT; the first three entries are special."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer, trained.decoder = cut, decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(TEXT, trainer)
    return trained


def add_byte_bpe(writer: gguf.GGUFWriter, trained: tokenizers.Tokenizer, pre: str) -> None:
    """The tokenizer as llama.cpp's conversion writes it."""
    import json

    model = json.loads(trained.to_str())["model"]
    vocab = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocab)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in vocab])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")


def pairs_apart(rows: np.ndarray, heads: int) -> np.ndarray:
    """The order of rows in llama files: Hugging Face's two halves of each head, interleaved (convert_hf_to_gguf's permute)."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(
    path: Path,
    model: Any,
    arch: str,
    kind: Kind = Kind.F32,
    tokenizer: Callable[[gguf.GGUFWriter], None] | None = None,
    factors: np.ndarray | None = None,
) -> Path:
    """A transformers llama or qwen2 model as a GGUF file, matrices in `kind`; factors: divisors of the rotary pairs' rates."""
    config = model.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    if tokenizer:
        tokenizer(writer)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    top = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = value.float().numpy()
        if name in top:
            name = top[name]
        else:
            _, _, layer, rest = name.split(".", 3)
            part, ending = rest.rsplit(".", 1)
            if arch == "llama" and part.endswith(("q_proj", "k_proj")):
                array = pairs_apart(array, config.num_attention_heads if part.endswith("q_proj") else config.num_key_value_heads)
            name = f"blk.{layer}.{NAMES[part]}.{ending}"
        quantised = kind if array.ndim == 2 else Kind.F32
        data = array if quantised == Kind.F32 else gguf.quants.quantize(np.ascontiguousarray(array), quantised)
        writer.add_tensor(name, data, raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
