"""The anatomy of a model as an SVG drawing: what flows through what, from the bottom up, and which share of the parameters lies where.

Drawn from what sources/describe.py says of a model. One column for each stack of blocks; a box for each role, with the shape of its
weight, as dark as its share of the parameters is large.
"""

from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, StrictUndefined

WIDTH, ROW, GAP, MARGIN, TOP = 400, 40, 14, 28, 84  # of a column, a row, the space between rows, around all, above all
COLOURS = {"embed": "#a5561f", "attention": "#1f6f78", "feed-forward": "#4d7a2c", "norm": "#8a8178", "head": "#a5561f"}

PAGE = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{ width }} {{ height }}" width="{{ width }}" height="{{ height }}"
 role="img" aria-label="{{ title }}">
<style>
text { font: 13px system-ui, "Segoe UI", "Noto Sans", "PingFang SC", sans-serif; fill: #23201c; }
.soft { fill: #6f675d; font-size: 11px; } .title { font-size: 18px; font-weight: 600; } .on { fill: #ffffff; }
.line { fill: none; stroke: #b9b0a4; stroke-width: 1.5; } .paper { fill: #fbfaf8; }
</style>
<rect class="paper" width="{{ width }}" height="{{ height }}"/>
<text class="title" x="{{ margin }}" y="36">{{ title }}</text>
<text class="soft" x="{{ margin }}" y="56">{{ subtitle }}</text>
{% for column in columns %}
<path class="line" d="M {{ column.middle }} {{ column.start }} V {{ column.y }}"/>
<rect class="line" x="{{ column.left }}" y="{{ column.frame[0] }}" width="{{ column.width }}" height="{{ column.frame[1] - column.frame[0] }}"
 rx="12" stroke-dasharray="5 4"/>
<text class="soft" x="{{ column.left + column.width - 12 }}" y="{{ column.frame[0] + 18 }}" text-anchor="end">{{ column.label }}</text>
{% for low, high in column.residuals %}
<path class="line" d="M {{ column.middle }} {{ low }} H {{ column.left + 14 }} V {{ high }} H {{ column.middle - 8 }}"/>
<circle class="line" cx="{{ column.middle }}" cy="{{ high }}" r="8" style="fill: #fbfaf8"/>
<path class="line" d="M {{ column.middle - 4 }} {{ high }} h 8 m -4 -4 v 8"/>
{% endfor %}
{% for box in column.boxes %}
<rect class="paper" x="{{ box.x }}" y="{{ box.y }}" width="{{ box.width }}" height="{{ box.height }}" rx="7"/>
<rect x="{{ box.x }}" y="{{ box.y }}" width="{{ box.width }}" height="{{ box.height }}" rx="7" fill="{{ box.colour }}"
 fill-opacity="{{ box.shade }}" stroke="{{ box.colour }}"/>
<text{% if box.shade > 0.7 %} class="on"{% endif %} x="{{ box.x + box.width / 2 }}" y="{{ box.y + box.height / 2 + 4.5 }}"
 text-anchor="middle">{{ box.label }}</text>
{% endfor %}
{% endfor %}
{% for bar in bars %}
<text x="{{ bar.x }}" y="{{ bar.y + 12 }}">{{ bar.label }}</text>
<rect x="{{ bar.x + 92 }}" y="{{ bar.y }}" width="{{ bar.length }}" height="16" rx="3" fill="{{ bar.colour }}"/>
<text class="soft" x="{{ bar.x + 98 + bar.length }}" y="{{ bar.y + 12 }}">{{ bar.share }}</text>
{% endfor %}
</svg>
"""

Part = tuple[str, str, int]  # what is written in a box, its kind, its parameters


@dataclass
class Column:
    """One stack, drawn from the bottom up; y is the top of what is there."""

    left: float
    y: float
    total: int
    label: str
    boxes: list[dict[str, Any]] = field(default_factory=list)
    residuals: list[tuple[float, float]] = field(default_factory=list)  # where one branches off, where it is added
    frame: tuple[float, float] = (0, 0)  # top and bottom of what repeats
    width: float = WIDTH

    def __post_init__(self) -> None:
        self.start = self.y

    @property
    def middle(self) -> float:
        return self.left + WIDTH / 2

    def row(self, parts: list[Part]) -> None:
        """Boxes side by side; norms are thin."""
        height = 22 if parts[0][1] == "norm" else ROW
        self.y -= height + GAP
        each = (WIDTH - 60 - 10 * (len(parts) - 1)) / len(parts)
        for i, (label, kind, count) in enumerate(parts):
            shade = 0.1 + 0.9 * min(1.0, 2 * count / self.total)
            place = {"x": self.left + 30 + i * (each + 10), "y": self.y, "width": each, "height": height}
            self.boxes.append(place | {"label": label, "colour": COLOURS[kind], "shade": round(shade, 2)})

    def sublayer(self, rows: list[list[Part]], norm: list[Part], after: bool) -> None:
        """Rows with a residual around them; the norm before them, inside the residual, or after the sum."""
        low = self.y - GAP / 2
        for row in [*([] if after else [norm]), *rows]:
            if row:
                self.row(row)
        self.y -= GAP + 4
        self.residuals.append((low, self.y))
        if after and norm:
            self.row(norm)


def draw(found: dict[str, Any]) -> str:
    """The SVG of a model that describe() found."""
    total, bars = found["parameters"], shares(found)
    columns = [column(found, name, 0, 0) for name in found["stacks"]]
    tallest = max([column.start - column.y for column in columns] + [26 * len(bars)])
    columns = [column(found, name, MARGIN + i * (WIDTH + 20), TOP + tallest) for i, name in enumerate(found["stacks"])]
    x = MARGIN + len(columns) * (WIDTH + 20) + 16
    most = max((count for _, _, count in bars), default=1)
    lengths = [
        {"x": x, "y": TOP + 26 * i, "label": label, "colour": COLOURS[kind], "length": round(200 * count / most, 1), "share": f"{count / total:.1%}"}
        for i, (label, kind, count) in enumerate(bars)
    ]  # fmt: skip
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(PAGE)
    subtitle = f"{found['architecture']} · {total:,} parameters · bfloat16 {found['memory_bytes']['bfloat16'] / 1e9:.2f} GB"
    size = {"width": x + 92 + 200 + 70, "height": TOP + tallest + MARGIN}
    return page.render(**size, margin=MARGIN, title=found["source"], subtitle=subtitle, columns=columns, bars=lengths)


def column(found: dict[str, Any], name: str, left: float, bottom: float) -> Column:
    stack, around = found["stacks"][name], found["around"]
    drawn = Column(left, bottom, found["parameters"], f"{stack['blocks']} blocks, {stack['order']}")
    drawn.row([(f"embed  {times(around['embed']['shape'])}", "embed", around["embed"]["parameters"])])
    foot = drawn.y - GAP / 2
    drawn.y -= GAP
    for prefix, names, norm, kind in (
        ("", (("q", "k", "v"), ("o",)), "attn_norm", "attention"),
        ("cross.", (("q", "k", "v"), ("o",)), "cross_norm", "attention"),
        ("", (("gate", "up"), ("down",)), "ffn_norm", "feed-forward"),
    ):
        rows = [[part for role in row for part in box(stack, prefix + role, kind)] for row in names]
        if any(rows):
            drawn.sublayer(rows, box(stack, norm, "norm"), after=stack["order"] == "post-norm")
    drawn.y -= 34
    drawn.frame = (drawn.y, foot)
    if name == list(found["stacks"])[-1]:
        for kind in ("norm", "head"):
            parts = [(key, part) for key, part in around.items() if key.startswith(kind)]
            if parts:
                drawn.row([(f"{key}  {part['labels']:,}" if kind == "head" else key, kind, part["parameters"]) for key, part in parts])
    return drawn


def box(stack: dict[str, Any], role: str, kind: str) -> list[Part]:
    """The box of a role, none where the blocks do not have it."""
    part = stack["roles"].get(role)
    return [] if part is None else [(f"{role}  {times(part['shape'])}", kind, part["parameters"])]


def shares(found: dict[str, Any]) -> list[tuple[str, str, int]]:
    """(role, kind, parameters), the parts of all blocks of a role together."""
    rows = []
    for name, part in found["around"].items():
        if part["parameters"]:
            rows.append((name.removesuffix(" and pooler"), name.split()[0], part["parameters"]))
    for name, stack in found["stacks"].items():
        for role, part in stack["roles"].items():
            kind = "norm" if role.endswith("norm") else "feed-forward" if role in ("up", "gate", "down") else "attention"
            rows.append((role if len(found["stacks"]) == 1 else f"{name[:3]} {role}", kind, part["parameters"]))
    return rows


def times(shape: list[int]) -> str:
    return " × ".join(map(str, shape))
