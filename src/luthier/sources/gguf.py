"""GGUF files as checkpoints: llama.cpp's names and metadata under Hugging Face's, quantised blocks as plain numbers.

llama files store the rows of q and k so that rotary pairs lie side by side (Su et al. 2021's order); Hugging Face keeps the two halves of
a head apart. The rows are put back here, for llama alone: qwen2 files are in Hugging Face's order. A forgotten un-permutation still
gives a plausible loss, so tests compare tensors.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.sources._gguf_header import Header, read_header
from luthier.sources._gguf_rope import FACTORS, read_rope
from luthier.sources.checkpoint import Checkpoint, Spec, Tensors, some

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from luthier.data.tokenizer import Tokenizer

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def open_gguf(path: str | Path) -> Checkpoint:
    header = read_header(path)
    config = read_config(header)
    return Checkpoint(str(path), config, GGUF(header, config), lambda: read_tokenizer(header))


class GGUF(Tensors):
    """The tensors of a GGUF file under Hugging Face's names."""

    def __init__(self, header: Header, config: dict[str, Any]):
        self.header = header
        self.stored = {hugging_face_name(header, name): name for name in header.tensors if name != FACTORS}
        kept = {ours: header.tensors[name] for ours, name in self.stored.items()}
        self.specs = {ours: Spec(tensor.shape, tensor.kind, tensor.bytes) for ours, tensor in kept.items()}
        paired = config["model_type"] == "llama"
        self.heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]} if paired else {}

    def read(self, name: str, dtype: "torch.dtype | None" = None) -> "Tensor":
        import torch

        from luthier.sources._quants import dequantize

        stored = self.header.tensors[self.stored[name]]
        raw = torch.frombuffer(self.header.data, dtype=torch.uint8, count=stored.bytes, offset=stored.start)
        part = self.stored[name].split(".")[-2]
        if part in self.heads:
            raw = halves_apart(raw, stored.shape[0], self.heads[part], f"{self.header.path}: tensor {self.stored[name]!r}")
        plain = stored.kind in ("F32", "F16", "BF16")
        wanted = dtype or (
            getattr(torch, {"F16": "float16", "BF16": "bfloat16"}[stored.kind]) if plain and stored.kind != "F32" else torch.float32
        )
        return dequantize(raw, stored.kind, wanted, threads()).view(stored.shape)


@cache
def threads() -> ThreadPoolExecutor:
    import torch

    return ThreadPoolExecutor(torch.get_num_threads(), "luthier-gguf")


def halves_apart(raw: "Tensor", rows: int, heads: int, where: str) -> "Tensor":
    """Rows [a0 b0 a1 b1 ...] of every head to [a0 a1 ... b0 b1 ...], moved while they are still quantised bytes."""
    if rows % (2 * heads):
        raise ValueError(f"{where} has {rows} rows, which do not divide among {heads} heads; the file is damaged")
    return raw.view(heads, rows // heads // 2, 2, -1).swapaxes(1, 2).reshape(-1)


def hugging_face_name(header: Header, name: str) -> str:
    if name in TOP:
        return TOP[name]
    found = BLOCK.fullmatch(name)
    if not found or found[2] not in PARTS:
        known = some(sorted([*TOP, *(f"blk.N.{part}.weight" for part in PARTS)]), 20)
        raise ValueError(f"{header.path}: tensor {name!r} belongs to no part Luthier knows of this architecture; it knows {known}")
    return f"model.layers.{found[1]}.{PARTS[found[2]]}.{found[3]}"


def read_config(header: Header) -> dict[str, Any]:
    """The metadata as a config.json."""
    arch = header.metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise ValueError(f"{header.path}: GGUF files of the architecture {arch!r} are not read here; {', '.join(ARCHITECTURES)} are")

    def get(key: str, kind: type, default: Any = None) -> Any:
        value = header.metadata.get(f"{arch}.{key}", default)
        if value is None:
            raise ValueError(f"{header.path}: its metadata lacks {arch}.{key}; the file is damaged or incomplete")
        if not isinstance(value, kind) or value <= 0:
            raise ValueError(f"{header.path}: its metadata says {arch}.{key} = {value!r}; the file is damaged")
        return value

    if header.metadata.get(f"{arch}.expert_count", 0):
        raise ValueError(f"{header.path}: a mixture of experts, which Luthier does not read yet")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ValueError(f"{header.path}: tensor 'token_embd.weight' is missing; the file is damaged or incomplete")
    heads, theta = get("attention.head_count", int), get("rope.freq_base", float, 10_000.0)
    config = {
        "architectures": [ARCHITECTURES[arch]],
        "model_type": arch,
        "vocab_size": embedding.shape[0],
        "hidden_size": get("embedding_length", int),
        "intermediate_size": get("feed_forward_length", int),
        "num_hidden_layers": get("block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", int, heads),
        "max_position_embeddings": get("context_length", int),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon", float),
        "rope_theta": theta,
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }
    if f"{arch}.attention.key_length" in header.metadata:
        config["head_dim"] = get("attention.key_length", int)
    turned = config.get("head_dim", config["hidden_size"] // heads)
    config["rope_parameters"] = {"rope_theta": theta, **read_rope(header, arch, turned)}
    if arch == "llama" and "blk.0.attn_q.bias" in header.tensors:
        raise ValueError(f"{header.path}: a llama file with biases in its attention, which Luthier does not read yet")
    names = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
    return config | {ours: id for ours, theirs in names.items() if (id := header.metadata.get(f"tokenizer.ggml.{theirs}")) is not None}


def read_tokenizer(header: Header) -> "Tokenizer | None":
    """The tokenizer the metadata describes, or None where the file holds none."""
    if "tokenizer.ggml.model" not in header.metadata:
        return None
    from luthier.data.tokenizer import Tokenizer
    from luthier.sources._gguf_tokenizer import build_tokenizer, starts_with_bos

    inner = build_tokenizer(header.metadata, str(header.path))
    ids = {role: special_id(header, key) for role, key in {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}.items()}
    tokenizer = Tokenizer(inner, **ids, adds_bos=starts_with_bos(header.metadata) and ids["bos"] is not None)
    template = header.metadata.get("tokenizer.chat_template")
    tokenizer.chat_template = template if isinstance(template, str) else None
    return tokenizer


def special_id(header: Header, key: str) -> int | None:
    id, tokens = header.metadata.get(f"tokenizer.ggml.{key}_token_id"), header.metadata["tokenizer.ggml.tokens"]
    if id is None:
        return None
    if not isinstance(id, int) or not 0 <= id < len(tokens):
        raise ValueError(f"{header.path}: the {key} token is {id!r}, and there are {len(tokens)} tokens; the file is damaged")
    return id
