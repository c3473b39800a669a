"""Show what a model is made of: parts by role, parameters, memory."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def inspect(
    source: Annotated[str, typer.Argument(help="a folder, .gguf, pkg://..., hub://..., a run, or a preset (luthier list models)")],
    as_json: Annotated[bool, typer.Option("--json", help="everything, for programs")] = False,
    svg: Annotated[Path | None, typer.Option(help="also draw it into this file", show_default=False)] = None,
) -> None:
    """Show the anatomy of a model: its parts by role with shapes and counts, and the memory it takes. No weights are read."""
    from luthier.sources.describe import describe

    if svg is not None and svg.suffix != ".svg":
        raise ValueError(f"--svg {svg}: the drawing is an SVG file; name it {svg.with_suffix('.svg')}")
    found = describe(source)
    if svg is not None:
        from luthier.drawing import draw

        svg.write_text(draw(found), encoding="utf-8")
    typer.echo(json.dumps(found, ensure_ascii=False, indent=1) if as_json else "\n".join(lines(found)))


def lines(found: dict[str, Any]) -> list[str]:
    """The tree as text."""
    total = found["parameters"]
    out = [f"{found['source']}: {found['architecture']}, {total:,} parameters"]
    for name, part in found["around"].items():
        shape = " x ".join(map(str, part["shape"])) if "shape" in part else f"{part['labels']:,} outputs" if "labels" in part else ""
        out.append(row(name, shape, part["parameters"], total, " (tied to embed)" if part.get("tied") else ""))
    for name, stack in found["stacks"].items():
        out.append(row(name, f"{stack['blocks']} blocks", stack["parameters"], total))
        for role, part in stack["roles"].items():
            shape = " x ".join(map(str, part["shape"])) + (" + bias" if part["bias"] else "")
            out.append(row(f"  {role}", shape, part["parameters"], total))
    out.append("weights in memory: " + ", ".join(f"{dtype} {size / 1e9:.2f} GB" for dtype, size in found["memory_bytes"].items()))
    if "stored_bytes" in found:
        out.append("stored as: " + ", ".join(f"{kind} {size / 1e6:,.0f} MB" for kind, size in found["stored_bytes"].items()))
        tokenizer = found["tokenizer"]
        out.append(f"tokenizer: {tokenizer['vocab']:,} entries" if tokenizer else "tokenizer: none")
        out.append("chat template: " + ("yes" if found["chat_template"] else "none; name a plain one in the run, such as human_assistant"))
    if found.get("adapter"):
        out.append(f"adapter: {found['adapter']}")
    return out


def row(name: str, shape: str, count: int, total: int, note: str = "") -> str:
    return f"  {name:<22}{shape:<22}{count:>15,}{count / total:>8.1%}{note}"
