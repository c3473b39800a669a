"""report.html: what a run was, how it went, what it cost, and what came of it, on one page without anything from outside.

Reads from the run's folder, each where it is there:

- `metrics.jsonl`: one object a line: step, loss, tokens_per_s, memory_bytes, and after an evaluation held_out, held_out_FIGURE;
- `result.json`: {steps, tokens, time_s, memory_bytes (peak), trainable, parameters, before: {loss, ...}, after: {...}, best: {step, ...}};
- `samples.json`: a list of {prompt: str or messages, before: str, after: str, reference: str or missing};
- `config.yaml` and `manifest.json`: as they stand.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import yaml

from luthier.report_page import PAGE
from luthier.training.log import read

FALLS = ("loss", "perplexity", "bits_per_byte")  # lower is better; of all other figures higher is
SAMPLES = 20


def write(folder: str | Path) -> Path:
    """Writes folder/report.html, there whole or not at all, and returns its path. FileNotFoundError where there is nothing to report."""
    folder = Path(folder)
    if not (folder / "metrics.jsonl").exists() and not (folder / "result.json").exists():
        raise FileNotFoundError(f"{folder}: no metrics.jsonl and no result.json there, so there is no run to report")
    path, partial = folder / "report.html", folder / ".report.html.partial"
    partial.write_text(page(folder), encoding="utf-8")
    os.replace(partial, path)
    return path


def page(folder: Path) -> str:
    result, manifest = read_json(folder / "result.json", {}), read_json(folder / "manifest.json", {})
    config = (folder / "config.yaml").read_text(encoding="utf-8") if (folder / "config.yaml").exists() else ""
    lines = read(folder / "metrics.jsonl")
    return render(
        name=folder.resolve().name,
        recipe=recipe(config),
        cards=cards(result, lines),
        curve=curve(lines),
        figures=figures(result.get("before") or {}, result.get("after") or {}),
        samples=[shown(sample) for sample in read_json(folder / "samples.json", [])[:SAMPLES]],
        config=config,
        manifest=flat(manifest),
    )


def render(name: str, **parts: Any) -> str:
    """The page with these parts of it; the others are left out."""
    from jinja2 import Environment, StrictUndefined  # here: comparing borrows the words for numbers, and has no time for it

    empty = {"recipe": [], "cards": [], "curve": None, "figures": [], "samples": [], "config": "", "manifest": []}
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(PAGE)
    return page.render(name=name, **{**empty, **parts})


def read_json(path: Path, missing: Any) -> Any:
    if not path.exists():
        return missing
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from None


def recipe(config: str) -> list[tuple[str, str]]:
    """The four things a run is made of, in a few words each."""
    values = yaml.safe_load(config) or {}
    found = [(key, brief(values[key])) for key in ("model", "data", "objective", "tuning") if values.get(key)]
    return [(key, words) for key, words in found if words]


def brief(value: Any) -> str:
    if isinstance(value, list):
        return " + ".join(brief(item) for item in value)
    if isinstance(value, dict):
        value = value.get("kind") or value.get("arch") or value.get("path") or ", ".join(value)
        return brief(value)
    parts = str(value).rstrip("/").split("/")
    return "/".join(parts[-2:] if parts[-1] in ("model", "adapter") else parts[-1:])


def cards(result: dict, lines: list[dict]) -> list[dict[str, str]]:
    """The figures a reader looks for first."""
    made = []
    before, after = (number((result.get(when) or {}).get("loss")) for when in ("before", "after"))
    if after is not None:
        change = f"{signed(after - before, '.3f')}, from {before:.3f}" if before is not None else ""
        made.append({"title": "Held-out loss", "value": f"{after:.3f}", "note": change})
    steps = [line for line in lines if line.get("step") and "loss" in line]
    if not result and steps:
        made.append({"title": "Training loss", "value": f"{steps[-1]['loss']:.3f}", "note": f"step {steps[-1]['step']}, not finished"})
    tokens, time_s = number(result.get("tokens")), number(result.get("time_s"))
    if tokens is not None:
        made.append({"title": "Tokens", "value": count(tokens), "note": f"in {result['steps']:,} steps" if "steps" in result else ""})
    if time_s is not None:
        note = f"{count(tokens / time_s)} tokens/s" if tokens and time_s else ""
        made.append({"title": "Time", "value": duration(time_s), "note": note})
    memory = number(result.get("memory_bytes")) or max((line.get("memory_bytes") or 0 for line in lines), default=0)
    if memory:
        made.append({"title": "Peak memory", "value": f"{memory / 2**30:.2f} GB", "note": ""})
    trainable, whole = number(result.get("trainable")), number(result.get("parameters"))
    if trainable is not None:
        note = f"{100 * trainable / whole:.2g}% of {count(whole)}" if whole else ""
        made.append({"title": "Trained parameters", "value": count(trainable), "note": note})
    return made


def figures(before: dict, after: dict) -> list[dict[str, str]]:
    """Every held-out figure before and after training, and whether it became better."""
    rows = []
    for name in dict.fromkeys([*before, *after]):
        then, now = number(before.get(name)), number(after.get(name))
        if name == "step" or (then is None and now is None):
            continue
        change = None if then is None or now is None else now - then
        good = bool(change) and (change < 0) == (name in FALLS)  # type: ignore[operator]
        rows.append(
            {
                "name": name.replace("_", " "),
                "before": short(then),
                "after": short(now),
                "change": "" if change is None else signed(change, ".3g"),
                "mark": "" if not change else "better" if good else "worse",
            }
        )
    return rows


def shown(sample: dict) -> dict[str, Any]:
    prompt = sample.get("prompt", "")
    turns = [{"role": "", "content": prompt}] if isinstance(prompt, str) else prompt
    return {"turns": turns, **{key: sample.get(key) for key in ("before", "after", "reference")}}


def flat(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested JSON as (a.b.c, value) rows."""
    if isinstance(values, dict):
        return [row for key, value in values.items() for row in flat(value, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(values, list) and any(isinstance(value, dict | list) for value in values):
        return [row for i, value in enumerate(values) for row in flat(value, f"{prefix}.{i}")]
    return [(prefix, ", ".join(map(str, values)) if isinstance(values, list) else str(values))]


# The loss curve, in a box of 720 x 284


def curve(lines: list[dict]) -> dict[str, Any] | None:
    """Points and ticks of the chart; None where fewer than two steps were logged."""
    train = points(lines, "loss")
    held_out = points(lines, "held_out")
    if len(train) + len(held_out) < 2:
        return None
    smooth = smoothed(train)
    # single noisy steps may leave the box; the smoothed curve and the held-out losses may not
    values = sorted(loss for _, loss in train)
    inner = values[len(values) // 50 : len(values) - len(values) // 50] if len(values) > 50 else values
    seen = [*inner, *(loss for _, loss in smooth + held_out)]
    low, high = min(seen), max(seen)
    margin = 0.06 * (high - low) or 0.5
    across, up = ticks(0, max(step for step, _ in train + held_out)), ticks(low - margin, high + margin)
    scale = Scale(max(step for step, _ in train + held_out), low - margin, high + margin)
    return {
        "train": scale.path(train),
        "smooth": scale.path(smooth) if len(train) > 20 else "",
        "held_out": scale.path(held_out),
        "dots": [(*scale.place(step, loss), f"step {step}: held-out loss {loss:.4f}") for step, loss in held_out],
        "across": [(scale.place(step, low)[0], f"{step:,.0f}") for step in across],
        "up": [(scale.place(0, loss)[1], f"{loss:g}") for loss in up],
    }


class Scale:
    """From steps and losses to places in the drawing."""

    left, top, right, bottom = 48.0, 10.0, 708.0, 246.0

    def __init__(self, steps: float, low: float, high: float):
        self.steps, self.low, self.high = max(steps, 1), low, high

    def place(self, step: float, loss: float) -> tuple[float, float]:
        x = self.left + (self.right - self.left) * step / self.steps
        y = self.bottom - (self.bottom - self.top) * (loss - self.low) / (self.high - self.low)
        return round(x, 1), round(y, 1)

    def path(self, points: list[tuple[float, float]]) -> str:
        return " ".join(f"{x},{y}" for x, y in (self.place(*point) for point in points))


def points(lines: list[dict], key: str, most: int = 1500) -> list[tuple[float, float]]:
    found = [(line["step"], value) for line in lines if (value := number(line.get(key))) is not None]
    every = math.ceil(len(found) / most) or 1
    return [point for i, point in enumerate(found) if i % every == 0 or i == len(found) - 1]


def smoothed(train: list[tuple[float, float]], share: float = 0.04) -> list[tuple[float, float]]:
    """Mean over the steps around each; near the first step, where the loss falls fast, over fewer."""
    reach = max(1, round(share * len(train)))
    made = []
    for i, (step, _) in enumerate(train):
        near = min(reach, i)
        window = [loss for _, loss in train[i - near : i + near + 1]]
        made.append((step, sum(window) / len(window)))
    return made


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers between low and high: 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / about or 1
    power = 10 ** math.floor(math.log10(rough))
    gap = next(power * step for step in (1, 2, 5, 10) if power * step >= rough)
    return [round(i * gap, 10) for i in range(math.ceil(low / gap), math.floor(high / gap) + 1)]


# Numbers as people read them


def number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def short(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def signed(value: float, form: str) -> str:
    return f"{value:+{form}}".replace("-", "−")


def count(value: float | None) -> str:
    if value is None:
        return ""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g} {letter}"
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
