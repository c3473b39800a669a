"""The table of a comparison: for a terminal of any width, and as JSON, CSV and LaTeX."""

import csv
import io
import json
import math
import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from luthier.comparing.read import word
from luthier.comparing.statistics import Against, Spread
from luthier.comparing.summary import Comparison, Method, median
from luthier.report import count, signed

NONE = "–"
GAP = "  "
PEAK = (
    "the highest peak of memory among the runs; of a grid's cell an estimate of what it would take alone: the base, what the run keeps and the "
    "most that one of its steps took"
)


@dataclass(frozen=True)
class Column:
    """One column in words. short: its head on a terminal; long: what it means; costs: whether it is about the price, not the result."""

    short: str
    long: str
    text: Callable[[Method], str]
    costs: bool = True


def columns(found: Comparison) -> list[Column]:
    """Those that at least one method fills."""
    made = []
    if found.metric:
        name, first = found.metric, found.first or "first"
        whom = found.first or "the first one with the same held-out data"
        over = f"how far above {whom}{'' if found.rises else ' (below zero is better)'}: the 95 % interval of a paired bootstrap over the held-out rows"
        chance = "two-sided p of that bootstrap, not corrected for the number of methods"
        made.append(
            Column(words(name), f"{words(name)}, mean ± standard error over seeds", lambda m: spread_text(m.figures.get(name)), False)
        )
        made.append(Column(f"vs {first}", over, lambda m: against_text(m.against), False))
        made.append(Column("p", chance, lambda m: p_text(m.against), False))
    if found.metric != "loss":
        made.append(Column("loss", "held-out loss, nats per label", lambda m: spread_text(m.figures.get("loss"), error=False), False))
    made += [
        Column("seeds", "finished runs", lambda m: str(len(m.cells)), False),
        Column("trained", "trained parameters, and their share of all", lambda m: count(m.trained) or NONE),
        Column("share", "trained parameters of all parameters", lambda m: share_text(m.share)),
        Column("memory", PEAK, lambda m: bytes_text(m.memory_bytes)),
        Column("tokens/s", "tokens trained on in a second", lambda m: count(m.tokens_per_s) or NONE),
        Column("on disk", "size of the adapter or model", lambda m: bytes_text(m.artefact_bytes)),
        Column("added", "time that a token takes longer than with the base alone", lambda m: time_text(m.added("unmerged"))),
        Column("merged", "the same after merging", lambda m: time_text(m.added("merged"))),
        Column("chosen", "found by the search, on validation rows", chosen_text),
    ]  # fmt: skip
    same = len({len(each.cells) for each in found.methods}) == 1
    made = [column for column in made if column.short != "seeds" or not same]
    return [column for column in made if any(column.text(each) not in (NONE, "") for each in found.methods)]


# Figures in words


def words(name: str) -> str:
    return name.replace("_", " ")


def spread_text(value: Spread | None, error: bool = True) -> str:
    if value is None:
        return NONE
    form = ".3f" if abs(value.mean) < 10 else ".2f"
    return f"{value.mean:{form}} ± {value.error:{form}}" if error and value.error is not None else f"{value.mean:{form}}"


def against_text(value: Against | None) -> str:
    if value is None:
        return NONE
    form = ".3f" if max(abs(value.low), abs(value.high)) < 10 else ".2f"
    return f"{signed(value.difference, form)} [{signed(value.low, form)}, {signed(value.high, form)}]"


def p_text(value: Against | None) -> str:
    return NONE if value is None else "<0.001" if value.p < 0.001 else f"{value.p:.3f}"


def share_text(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:{'.0f' if value >= 0.1 else '.2g'}} %"


def bytes_text(value: float | None) -> str:
    if value is None:
        return NONE
    if value >= 1000 * 2**20:
        return f"{value / 2**30:{'.2f' if value < 10 * 2**30 else '.1f'}} GB"
    size, unit = next(((size, unit) for size, unit in ((2**20, "MB"), (2**10, "kB")) if value >= size), (1, "B"))
    return f"{value / size:.3g} {unit}"


def time_text(added_s: float | None) -> str:
    if added_s is None:
        return NONE
    if not added_s:
        return "0"
    scale, unit = next(((scale, unit) for scale, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")) if abs(added_s) * scale >= 1), (1e9, "ns"))
    return f"{signed(added_s * scale, '.2g' if abs(added_s) * scale < 100 else '.0f')} {unit}"


def chosen_text(method: Method) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {word(value)}" for key, value in (method.chosen or {}).items())


# A terminal


def terminal(found: Comparison, width: int = 80, bold: bool = False) -> str:
    """Aligned columns, in as many blocks below each other as the width asks for; then failures and notes."""
    parts = blocks(found, width, bold) if found.methods else []
    told = [f"{names} failed: {error}" for names, error in failures(found)]
    told += [f"Not run yet: {', '.join(found.waiting)}."] if found.waiting else []
    told += [*found.notes, *legend(found)]
    if told:
        parts.append("\n".join(textwrap.fill(line, max(width, 40), subsequent_indent="  ", break_on_hyphens=False) for line in told))
    return "\n\n".join(parts)


def failures(found: Comparison) -> list[tuple[str, str]]:
    """(methods with their seeds, the sentence); what failed alike stands together."""
    seeds: dict[tuple[str, str], list[str]] = {}
    for cell in found.failed:
        seeds.setdefault((cell.name, cell.error or ""), []).append(str(cell.seed))
    return [(f"{name}, seed{'s' if len(known) > 1 else ''} {', '.join(known)}", error) for (name, error), known in seeds.items()]


def legend(found: Comparison) -> list[str]:
    """What the columns mean, where they do not say it themselves."""
    rows = next((each.against.rows for each in found.methods if each.against), None)
    most = max((len(each.cells) for each in found.methods), default=0)
    parts = [f"± is the standard error over {most} seeds"] if most > 1 and found.metric else []
    against = found.first or "first, the first one with the same held-out data"
    parts += [f"vs {against}: [95 %] and p of a paired bootstrap over {rows:,} held-out rows"] if rows else []
    bases = [each.latency["base"] for each in found.methods if each.added("unmerged") is not None]
    parts += [f"added, merged: what a token takes longer than with the base ({time_text(median(bases)).lstrip('+')})"] if bases else []
    return ["; ".join(parts)] if parts else []


def blocks(found: Comparison, width: int, bold: bool) -> list[str]:
    heads, names = ["", *(method.name for method in found.methods)], []
    room = max(12, width // 3)
    names = [cut(name, room) for name in heads]
    first = max(map(size, names))
    laid: list[tuple[bool, list[list[str]]]] = []
    every = [(column.costs, [column.short, *(column.text(method) for method in found.methods)]) for column in columns(found)]
    total = first + sum(len(GAP) + max(map(size, texts)) for _, texts in every)
    for costs, texts in every:
        used = first + sum(len(GAP) + max(map(size, other)) for other in laid[-1][1]) if laid else 0
        if not laid or used + len(GAP) + max(map(size, texts)) > width or (total > width and laid[-1][0] != costs):
            laid.append((costs, []))
        laid[-1][1].append(texts)
    return ["\n".join(lines(names, first, group, bold)) for _, group in laid]


def lines(names: Sequence[str], first: int, group: Sequence[Sequence[str]], bold: bool) -> list[str]:
    wide = [max(map(size, texts)) for texts in group]
    made = [
        padded(name, first) + "".join(GAP + padded(texts[i], each, right=True) for texts, each in zip(group, wide, strict=True))
        for i, name in enumerate(names)
    ]
    made = [line.rstrip() for line in made]
    rule = "─" * (first + sum(len(GAP) + each for each in wide))
    return [f"\033[1m{made[0]}\033[0m" if bold else made[0], rule, *made[1:]]


def size(text: str) -> int:
    """Columns of a terminal that a text takes: Chinese characters take two, accents of their own none."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text)


def padded(text: str, width: int, right: bool = False) -> str:
    space = " " * (width - size(text))
    return space + text if right else text + space


def cut(text: str, width: int) -> str:
    """Printable, and no wider than this: from the middle, for names of one grid often differ at their end."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    if size(text) <= width:
        return text
    head = tail = ""
    while size(head) + size(tail) < width - 1:
        head, tail = (text[: len(head) + 1], tail) if size(head) <= size(tail) else (head, text[len(text) - len(tail) - 1 :])
    return (head if size(head) + size(tail) < width else head[:-1]) + "…" + tail


# Files


def as_json(found: Comparison) -> str:
    """Everything as numbers; what is not known is null."""
    methods = [
        {
            "method": each.name,
            "seeds": [cell.seed for cell in each.cells],
            "folders": [str(cell.folder) for cell in each.cells],
            "figures": {name: asdict(value) for name, value in each.figures.items()},
            "first": each.versus or each.name,
            "against_first": None if each.against is None else asdict(each.against),
            "why_not": each.reason or None,
            **costs(each),
            "chosen": each.chosen,
            "trials": next((list(cell.trials) for cell in each.cells if cell.trials), []),
        }
        for each in found.methods
    ]
    failed = [{"method": cell.name, "seed": cell.seed, "error": cell.error} for cell in found.failed]
    whole = {"metric": found.metric, "higher_is_better": found.rises, "first": found.first or None, "methods": methods, "failed": failed}
    return json.dumps(
        finite({**whole, "waiting": found.waiting, "notes": found.notes, "budget": found.budget}), ensure_ascii=False, indent=1
    )


def costs(method: Method) -> dict[str, Any]:
    return {
        "trained": method.trained,
        "parameters": method.parameters,
        "share": method.share,
        "memory_bytes": method.memory_bytes,
        "tokens_per_s": method.tokens_per_s,
        "artefact_bytes": method.artefact_bytes,
        "latency_s": dict(method.latency) or None,
    }


def finite(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value if isinstance(value, int | float | None) else str(value)


def as_csv(found: Comparison) -> str:
    """A line for each method, plain numbers; empty where unknown."""
    names = list(dict.fromkeys(name for each in found.methods for name in each.figures))
    rows = []
    for each in found.methods:
        row: dict[str, Any] = {"method": each.name, "seeds": len(each.cells)}
        for name in names:
            value = each.figures.get(name)
            row |= {name: value and value.mean, f"{name}_error": value and value.error}
        row |= {f"{found.metric}_vs_first": None, "low": None, "high": None, "p": None}
        if each.against is not None:
            row |= {
                f"{found.metric}_vs_first": each.against.difference,
                "low": each.against.low,
                "high": each.against.high,
                "p": each.against.p,
            }
        row |= {key: value for key, value in costs(each).items() if key != "latency_s"}
        row |= {f"latency_{how}_s": each.latency.get(how) for how in ("base", "unmerged", "merged")}
        rows.append(row)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else ["method"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_latex(found: Comparison) -> str:
    r"""A tabular for \usepackage{booktabs}; the best figure is bold."""
    kept = columns(found)
    best = found.methods[0].name if found.metric and found.first and found.methods and found.metric in found.methods[0].figures else None
    body = []
    for each in found.methods:
        texts = [latex(column.text(each)) for column in kept]
        if each.name == best:
            texts[0] = rf"\textbf{{{texts[0]}}}"
        body.append(" & ".join([latex(each.name), *texts]) + r" \\")
    head = " & ".join(["method", *(latex(column.short) for column in kept)]) + r" \\"
    notes = [f"% {cell.name}, seed {cell.seed}: failed" for cell in found.failed]
    table = [rf"\begin{{tabular}}{{l{'r' * len(kept)}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([r"% \usepackage{booktabs}", *("".join(note.split("\n")) for note in notes), *table]) + "\n"


LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "±": r"$\pm$", "−": "$-$", "–": "--", "µ": r"$\mu$", '"': "''", "\n": " ", "\r": " ",
}  # fmt: skip


def latex(text: str) -> str:
    return "".join(LATEX.get(c, c) for c in text)
