"""report.html of a comparison: the table, what each method reaches and costs, learning curves, errors by class, failures; nothing from outside."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.comparing import charts, table
from luthier.comparing.classes import MATRIX, Errors, errors
from luthier.comparing.page_html import PAGE
from luthier.comparing.read import word
from luthier.comparing.summary import Comparison, Method
from luthier.report import FALLS, brief, count
from luthier.training.folder import write_text

SHOWN = 16  # classes side by side


def write(folder: str | Path, found: Comparison) -> list[Path]:
    """table.json, table.csv, table.tex and report.html of a comparison in a folder, or the page alone in a file, each whole or not at all."""
    folder = Path(folder)
    if folder.suffix == ".html" and not folder.is_dir():
        write_text(folder, page(found, folder.stem))
        return [folder]
    texts = {
        "table.json": table.as_json(found),
        "table.csv": table.as_csv(found),
        "table.tex": table.as_latex(found),
        "report.html": page(found, folder.resolve().name),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def page(found: Comparison, name: str) -> str:
    """The HTML; name: its title."""
    from jinja2 import Environment, StrictUndefined

    style = charts.looks(found.methods, found.first)
    keys = {
        each.name: {
            "name": each.name,
            "hue": f"k{style[each.name].colour}",
            "shape": style[each.name].shape,
            "of": f"of{i}",
            "on": f"on{i}",
        }
        for i, each in enumerate(found.methods)
    }
    sheet = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(PAGE)
    return sheet.render(
        name=name,
        width=charts.WIDTH,
        of=keys,
        keys=list(keys.values()),
        recipe=recipe(found),
        verdict=verdict(found),
        notes=found.notes,
        about=about(found),
        metric=table.words(found.metric or ""),
        direction="higher is better" if found.rises else "lower is better",
        columns=columns(found),
        rows=rows(found, keys),
        by_size=charts.scatter(found, lambda each: each.trained, count, log=True),
        by_memory=by_memory(found),
        training=charts.curves(found, "loss", style),
        held_out=charts.curves(found, "held_out", style),
        budget=spent(found.budget),
        classes=by_class(found, keys),
        searches=searches(found, keys),
        failures=table.failures(found),
        waiting=", ".join(found.waiting),
    )


def by_memory(found: Comparison) -> dict[str, Any] | None:
    most = max((each.memory_bytes or 0 for each in found.methods), default=0)
    size, unit = (2**30, "GB") if most >= 3 * 2**30 else (2**20, "MB")
    return charts.scatter(
        found, lambda each: each.memory_bytes and each.memory_bytes / size, lambda value: f"{value:,.4g} {unit}", log=False
    )


def recipe(found: Comparison) -> list[tuple[str, str]]:
    """What the runs are made of, where they agree."""
    cells = [cell for each in found.methods for cell in each.cells]
    made = []
    for key in ("model", "data", "objective"):
        values = {brief(cell.settings[key]) for cell in cells if cell.settings.get(key)}
        if len(values) == 1:
            made.append((key, values.pop()))
        elif values:
            made.append((key, f"{len(values)} different ones"))
    return [*made, ("runs", str(len(cells)))]


def verdict(found: Comparison) -> tuple[str, str]:
    """The first thing a reader wants to know: the best method's name (of several alike, all of them), and what is to be said of it."""
    ranked = [each for each in found.methods if found.metric in each.figures]
    if len(ranked) < 2 or not found.metric or not found.first:
        return "", ""
    best, which = ranked[0], f"the {'highest' if found.rises else 'lowest'} {table.words(found.metric)}"
    mean = best.figures[found.metric].mean
    tied = [each for each in ranked if math.isclose(each.figures[found.metric].mean, mean, rel_tol=1e-9, abs_tol=1e-12)]
    if len(tied) > 1:
        names = [each.name for each in tied]
        sizes = [f"{each.name} with {count(each.trained)}" for each in tied if each.trained is not None]
        told = f"have {which} together, {table.spread_text(best.figures[found.metric], error=False)}"
        return f"{', '.join(names[:-1])} and {names[-1]}", told + (f"; trained parameters: {', '.join(sizes)}." if sizes else ".")
    told = f"has {which}, {table.spread_text(best.figures[found.metric])}"
    told += f", with {count(best.trained)} trained parameters." if best.trained is not None else "."
    if best.against is not None:
        sure = best.against.low > 0 or best.against.high < 0
        told += f" Against {found.first} that is {table.against_text(best.against)}" + ("." if sure else ", which may be chance.")
    return best.name, told


def about(found: Comparison) -> str:
    tasks = "" if found.first else "task by task, "
    order = [f"{tasks}sorted by {table.words(found.metric)}, the {'highest' if found.rises else 'lowest'} first"] if found.metric else []
    return sentence("; ".join([*order, *table.legend(found)]))


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def columns(found: Comparison) -> list[table.Column]:
    """The table's, with the share of the parameters in the column of their number, and the search in a section of its own."""
    return [column for column in table.columns(found) if column.short not in ("share", "chosen")]


def rows(found: Comparison, keys: Mapping[str, Any]) -> list[dict[str, Any]]:
    kept, drawn = columns(found), charts.intervals(found)
    best = found.methods[0] if found.methods and found.metric and found.first else None
    made = []
    for each in found.methods:
        cells = []
        for column in kept:
            tested = column.short.startswith("vs ") and each.against is not None
            sign, mark = judged(each, found) if tested else ("", "best" if each is best and column is kept[0] else "")
            interval = drawn.get(each.name) if tested else None
            text = column.text(each)
            told, small = text not in (table.NONE, ""), table.share_text(each.share) if column.short == "trained" and each.share else ""
            cells.append(
                {"label": column.short, "text": text, "told": told, "small": small, "sign": sign, "mark": mark, "interval": interval}
            )
        made.append({"name": each.name, "key": keys[each.name], "first": each.name in found.firsts, "cells": cells})
    return made


def judged(method: Method, found: Comparison) -> tuple[str, str]:
    """A sign and a class: better or worse than the first method, or neither within the interval."""
    assert method.against is not None
    if method.against.low <= 0 <= method.against.high:
        return "≈ ", "even"
    return ("✓ ", "better") if (method.against.difference > 0) == (found.metric not in FALLS) else ("✗ ", "worse")


def by_class(found: Comparison, keys: Mapping[str, Any]) -> dict[str, Any] | None:
    known = errors(found)
    if known is None:
        return None
    labels = [label for label, times in known.classes.items() if times][:SHOWN]
    rest = sum(1 for times in known.classes.values() if times) - len(labels)
    return {
        "heads": [(label, known.classes[label]) for label in labels],
        "left_out": rest if rest > 0 else 0,
        "rows": [{"name": name, "key": keys[name], "cells": contrast(known, name, labels)} for name in known.counts],
        "matrices": [matrix(known, name, keys) for name in known.counts] if len(known.classes) <= MATRIX else [],
        "swaps": [{"name": name, "key": keys[name], "rows": known.swaps(name)} for name in known.counts],
    }


def matrix(known: Errors, name: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    lines = [(label, known.row(name, label)) for label, times in known.classes.items() if times]
    cells = [
        (label, [(f"{100 * share:.0f}", shaded(share)[1], label == other) for share, other in zip(row, known.classes, strict=True)])
        for label, row in lines
    ]
    return {"name": name, "key": keys[name], "labels": list(known.classes), "rows": cells}


def contrast(known: Errors, name: str, labels: Sequence[str]) -> list[tuple[str, int]]:
    """Accuracies, shaded from the lowest to the highest of all methods."""
    every = [value for each in known.counts for label in labels if (value := known.accuracy(each, label)) is not None]
    low, high = min(every), max(every)
    found = [known.accuracy(name, label) for label in labels]
    return [(shaded(value)[0], 0 if value is None else round(4 + 46 * (value - low) / (high - low or 1))) for value in found]


def shaded(share: float | None) -> tuple[str, int]:
    """A share as it is written, and how strong its ground is."""
    return ("–", 0) if share is None else (f"{100 * share:.0f} %", round(45 * share))


def searches(found: Comparison, keys: Mapping[str, Any]) -> list[dict[str, Any]]:
    made = []
    for each in found.methods:
        trials = next((cell.trials for cell in each.cells if cell.trials), ())
        if trials:
            told = [{"point": point(trial), "loss": loss(trial), "chosen": trial.get("point") == each.chosen} for trial in trials]
            made.append({"name": each.name, "key": keys[each.name], "trials": told})
    return made


def spent(budget: Any) -> str:
    """What grid.json says of a search, in words."""
    if not isinstance(budget, Mapping) or not isinstance(budget.get("trials"), Mapping):
        return ""
    counts = sorted(set(budget["trials"].values()))
    told = f"Trials of each method: {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))}" if counts else ""
    seeds = ", ".join(map(str, budget.get("seeds") or [budget.get("seed", 0)]))
    return sentence(f"{told}; on {table.share_text(budget.get('share'))} of the training rows, seed {seeds}") if told else ""


def point(trial: Mapping[str, Any]) -> str:
    seed = {"seed": trial["seed"]} if trial.get("seed") is not None else {}
    return ", ".join(f"{key.rpartition('.')[2]} {word(value)}" for key, value in ((trial.get("point") or {}) | seed).items())


def loss(trial: Mapping[str, Any]) -> str:
    value = trial.get("loss")
    return f"{value:.4g}" if isinstance(value, int | float) else "failed"
