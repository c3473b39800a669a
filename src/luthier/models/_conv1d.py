"""What GPT-1 and GPT-2 store alike: matrices (d_in, d_out), one c_attn for query, key and value."""

from luthier.core.names import Name, linear

HEADS = {"classify": "score", "regress": "score", "tag": "classifier", "spans": "qa_outputs", "choose": "multiple_choice_head.summary"}
TOPS = ("transformer.", "lm_head.", *(f"{path}." for path in dict.fromkeys(HEADS.values())))


def conv1d_blocks(layers: int, width: int) -> dict[str, Name]:
    """The rows of the table of names for all blocks."""
    table: dict[str, Name] = {}
    for i in range(layers):
        ours, theirs = f"blocks.{i}.", f"transformer.h.{i}."
        for j, role in enumerate("qkv"):  # one Conv1D holds all three
            table |= linear(f"{ours}attn.{role}", f"{theirs}attn.c_attn", True, True, (j * width, (j + 1) * width))
        for role, path in {"attn.o": "attn.c_proj", "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj"}.items():
            table |= linear(ours + role, theirs + path, True, True)
        for role, path in {"attn_norm": "ln_1", "ffn_norm": "ln_2"}.items():
            table |= linear(ours + role, theirs + path, True)
    return table


def head_names(heads: dict[str, int]) -> dict[str, Name]:
    """The rows of the task heads that are there."""
    table: dict[str, Name] = {}
    for kind in heads.keys() & HEADS.keys():
        table |= linear(f"heads.{kind}.out", HEADS[kind], kind in ("tag", "spans", "choose"))
    return table
