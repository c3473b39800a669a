"""The page that page.py fills: one HTML file with its style and drawings inside, for light and dark, wide and narrow screens and print."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }} · Luthier</title>
<style>
:root {
  color-scheme: light dark;
  --paper: #fbfaf8; --card: #ffffff; --ink: #23201c; --soft: #6f675d; --line: #e8e3db; --axis: #b9b0a4;
  --wood: #a5561f; --sea: #1f6f78; --good: #24703a; --bad: #a83228; --tint: #f6f1ea;
  --c0: #2148dd; --c1: #f06400; --c2: #00a468; --c3: #8f2302; --c4: #b184b8; --c5: #7f8aff; --c6: #4f2630; --c7: #1a2c66;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #171513; --card: #201d1a; --ink: #ece6dd; --soft: #a89e91; --line: #37322c; --axis: #6b6257;
    --wood: #e39a5d; --sea: #6cc3cc; --good: #7fc98f; --bad: #f08a80; --tint: #2a2520;
    --c0: #7d7aff; --c1: #ee8324; --c2: #0c9c8a; --c3: #a87c48; --c4: #c3b1fc; --c5: #79ece8; --c6: #e8e450; --c7: #a6e682;
  }
}
{% for i in range(8) %}.k{{ i }} { --k: var(--c{{ i }}); } {% endfor %}

* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", "PingFang SC", "Noto Sans CJK SC", "Microsoft YaHei", sans-serif;
}
main { max-width: 1240px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 10px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 44px 0 4px; letter-spacing: -0.005em; }
h2 + p { color: var(--soft); font-size: 14px; margin: 0 0 14px; max-width: 76ch; }
h3 { font-size: 14px; font-weight: 600; margin: 0 0 8px; } h3 small { color: var(--soft); font-weight: 400; margin-left: 6px; }
.recipe { display: flex; flex-wrap: wrap; gap: 4px 20px; color: var(--soft); }
.recipe b { color: var(--ink); font-weight: 600; overflow-wrap: anywhere; }
.verdict { font-size: 17px; line-height: 1.5; max-width: 70ch; margin: 22px 0 0; }
.notes { margin: 18px 0 0; padding: 12px 16px; background: var(--tint); border-radius: 10px; border-left: 3px solid var(--wood); }
.notes p { margin: 0; } .notes p + p { margin-top: 6px; }
.panel { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px; min-width: 0; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 16px; }
svg { display: block; } svg.chart { width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--soft); font-size: 11.5px; font-variant-numeric: tabular-nums; }
svg .name { fill: color-mix(in srgb, var(--k) 75%, var(--ink)); font-size: 12px; font-weight: 500; }
svg .name { paint-order: stroke; stroke: var(--card); stroke-width: 3.5px; stroke-linejoin: round; } svg .front .name { font-weight: 700; }
.grid { stroke: var(--line); } .base { stroke: var(--axis); }
.mark { fill: var(--k); stroke: var(--card); stroke-width: 1.2; }
.ring { fill: none; stroke: var(--k); stroke-width: 1.5; }
.bar { stroke: var(--k); stroke-width: 1.5; }
.thin { fill: none; stroke: var(--k); stroke-width: 1; opacity: .38; } .thick { fill: none; stroke: var(--k); stroke-width: 2.2; }
.pareto { fill: none; stroke: var(--ink); stroke-width: 1.2; stroke-dasharray: 5 4; opacity: .55; }
.key { display: inline-block; width: 14px; height: 14px; vertical-align: -2px; margin-right: 8px; flex: none; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 14px 0 0; font-size: 13px; color: var(--soft); }
.legend span { white-space: nowrap; } .legend .key { margin-right: 6px; }
.hue { transition: opacity .12s; }
{% for each in keys %}
main:has(.on{{ loop.index0 }}:hover) .hue:not(.of{{ loop.index0 }}) { opacity: .12; }
{% endfor %}
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 8px 10px; border-bottom: 1px solid var(--line); vertical-align: middle; }
th { color: var(--soft); font-weight: 500; font-size: 13px; white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
.n { text-align: right; white-space: nowrap; }
.main { padding: 4px 6px; overflow-x: auto; }
.main tbody tr:hover { background: var(--tint); }
.main th, .main td { padding: 8px 7px; }
.main thead th:first-child, .main tbody th { position: sticky; left: 0; background: var(--card); }
.main tbody th { font-size: 14px; font-weight: 600; color: var(--ink); white-space: normal; min-width: 148px; max-width: 260px; }
.main tbody th div { display: flex; align-items: center; overflow-wrap: anywhere; } .main tbody th div > span { min-width: 110px; }
.main tbody tr:hover th { background: var(--tint); }
.main td { font-size: 13.5px; } .main .best { font-weight: 700; } .main small { color: var(--soft); }
.tag { font-size: 11px; font-weight: 500; color: var(--soft); border: 1px solid var(--line); border-radius: 20px; padding: 0 7px; }
.tag { margin-left: 8px; white-space: nowrap; }
.forest { width: 84px; height: 14px; overflow: visible; display: inline-block; vertical-align: -2px; margin-right: 10px; }
.forest line { stroke: currentColor; stroke-width: 2; } .forest .zero { stroke: var(--axis); stroke-width: 1; stroke-dasharray: 2 2; }
.forest circle { fill: currentColor; }
.better { color: var(--good); } .worse { color: var(--bad); } .even { color: var(--soft); }
.heat { overflow-x: auto; }
.heat td.c { text-align: right; white-space: nowrap; background: color-mix(in srgb, var(--sea) var(--v), transparent); }
.heat td.c { border-left: 2px solid var(--card); border-bottom: 2px solid var(--card); }
.heat thead th { text-align: right; } .heat thead th:first-child { text-align: left; } .heat thead small { display: block; font-weight: 400; }
.heat th:first-child { position: sticky; left: 0; background: var(--card); }
.heat tbody th { font-weight: 500; font-size: 14px; color: var(--ink); white-space: nowrap; }
.heat td.right { outline: 1.5px solid var(--sea); outline-offset: -3px; border-radius: 4px; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 10px; margin-top: 12px; padding: 0 16px; }
summary { cursor: pointer; padding: 12px 0; font-weight: 600; }
.matrices { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); gap: 24px; padding-bottom: 16px; }
.matrices table { font-size: 13px; width: 100%; min-width: 0; } .matrices th, .matrices td { padding: 5px 6px; font-size: 12.5px; }
.matrices div { overflow-x: auto; }
.failed { border-left: 3px solid var(--bad); } .failed p { margin: 0; overflow-wrap: anywhere; } .failed p + p { margin-top: 10px; }
.failed b { color: var(--bad); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 18px; margin: 0; font-size: 14px; }
dt { font-weight: 600; } dd { margin: 0; color: var(--soft); }
footer { color: var(--soft); font-size: 13px; margin-top: 40px; }
@media (max-width: 760px) {
  main { padding: 24px 14px 48px; }
  svg text { font-size: 15px; } svg .name { font-size: 15px; } svg .lines .name, svg .lead { display: none; } .chart .far { display: none; }
  .panel { padding: 12px; }
  .main { padding: 0; background: none; border: 0; } .main table, .main tbody { display: block; } .main thead { display: none; }
  .main tr { display: grid; grid-template-columns: minmax(0, 11fr) minmax(0, 10fr); grid-auto-flow: dense; gap: 2px 14px; padding: 10px 14px; margin-bottom: 10px; }
  .main tr { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
  .main tbody th { grid-column: 1 / -1; padding: 0 0 6px; margin-bottom: 4px; position: static; max-width: none; background: none; }
  .main tbody tr:last-child > th { border-bottom: 1px solid var(--line); }
  .main td { display: flex; justify-content: space-between; gap: 10px; border: 0; padding: 1px 0; text-align: right; }
  .main td::before { content: attr(data-label); color: var(--soft); text-align: left; }
  .main td.wide { grid-column: 1 / -1; } .main td.none { display: none; }
  .forest { width: 44px; margin-right: 5px; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 8px; }
}
@media print { body { background: none; } .panel, tr { break-inside: avoid; } }
</style>
</head>
<body>
<main>
{% macro key(each) %}<svg class="key {{ each.hue }}" viewBox="-7 -7 14 14" aria-hidden="true"><path class="mark" d="{{ each.shape }}"/></svg>{% endmacro %}
{% macro axes(chart, x) %}
{% for at, label in chart.up %}
<line class="grid" x1="50" x2="{{ width - 8 }}" y1="{{ at }}" y2="{{ at }}"/><text x="43" y="{{ at + 4 }}" text-anchor="end">{{ label }}</text>
{% endfor %}
<line class="base" x1="50" x2="{{ width - 8 }}" y1="286" y2="286"/>
{% for at, label in chart.across %}
<line class="base" x1="{{ at }}" x2="{{ at }}" y1="286" y2="290"/><text x="{{ at }}" y="304" text-anchor="middle">{{ label }}</text>
{% endfor %}
<text x="{{ width - 8 }}" y="322" text-anchor="end">{{ x }}</text>
{% endmacro %}
{% macro scatter(chart, title, x) %}
<div class="panel">
<h3>{{ title }} <small>{{ direction }}</small></h3>
<svg class="chart" viewBox="0 0 520 330" role="img" aria-label="{{ title }}">
{{ axes(chart, x) }}
<path class="pareto" d="{{ chart.front }}"/>
{% for point in chart.points %}
{% set each = of[point.name] %}
<g class="hue {{ each.hue }} {{ each.of }} {{ each.on }} {{ 'front' if point.front else 'behind' }}"><title>{{ point.told }}</title>
{% if point.bar %}<line class="bar" x1="{{ point.x }}" x2="{{ point.x }}" y1="{{ point.bar[0] }}" y2="{{ point.bar[1] }}"/>{% endif %}

{% if point.front %}<circle class="ring" cx="{{ point.x }}" cy="{{ point.y }}" r="9"/>{% endif %}

<path class="mark" d="{{ each.shape }}" transform="translate({{ point.x }} {{ point.y }})"/>
{% set text, x, y, anchor = point.label %}
<text class="name{{ '' if point.front else ' far' }}" x="{{ x }}" y="{{ y }}" text-anchor="{{ anchor }}">{{ text }}</text></g>
{% endfor %}
</svg>
</div>
{% endmacro %}
{% macro lines(chart, title, id) %}
<div class="panel">
<h3>{{ title }}</h3>
<svg class="chart" viewBox="0 0 520 330" role="img" aria-label="{{ title }}">
<defs><clipPath id="{{ id }}"><rect x="50" y="8" width="470" height="280"/></clipPath></defs>
{{ axes(chart, "optimizer step") }}
{% for line in chart.lines %}
{% set each = of[line.name] %}
<g class="hue lines {{ each.hue }} {{ each.of }} {{ each.on }}"><title>{{ line.told }}</title>
<g clip-path="url(#{{ id }})" stroke-linejoin="round">
{% for seed in line.seeds %}<polyline class="thin" points="{{ seed }}"/>{% endfor %}

<polyline class="thick" points="{{ line.mean }}"/>
{% for x, y in line.marks %}<path class="mark" d="{{ each.shape }}" transform="translate({{ x }} {{ y }}) scale(.8)"/>{% endfor %}
</g>
<path class="mark" d="{{ each.shape }}" transform="translate({{ line.end[0] }} {{ line.end[1] }})"/>
<line class="thin lead" x1="{{ line.end[0] + 5 }}" y1="{{ line.end[1] }}" x2="{{ line.label[1] - 2 }}" y2="{{ line.label[3] }}"/>
<text class="name" x="{{ line.label[1] }}" y="{{ line.label[2] }}">{{ line.label[0] }}</text></g>
{% endfor %}
</svg>
</div>
{% endmacro %}
{% macro legend() %}
<div class="legend">{% for each in keys %}<span class="{{ each.on }}">{{ key(each) }}{{ each.name }}</span>{% endfor %}</div>
{% endmacro %}
<h1>{{ name }}</h1>
<div class="recipe">{% for word, words in recipe %}<span>{{ word }} <b>{{ words }}</b></span>{% endfor %}</div>
{% if verdict[0] %}<p class="verdict"><b>{{ verdict[0] }}</b> {{ verdict[1] }}</p>{% endif %}

{% if notes %}<div class="notes">{% for note in notes %}<p>{{ note }}</p>{% endfor %}</div>{% endif %}

{% if rows %}
<h2>Methods</h2>
<p>{{ about }}</p>
<div class="panel main">
<table>
<thead><tr><th>method</th>{% for column in columns %}<th class="n" title="{{ column.long }}">{{ column.short }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr class="{{ row.key.on }}"><th scope="row"><div>{{ key(row.key) }}<span>{{ row.name }}{% if row.first %}<span class="tag">first</span>{% endif %}</span></div></th>
{% for cell in row.cells %}
<td class="n {{ cell.mark }}{{ ' wide' if cell.interval or loop.first else '' }}{{ '' if cell.told else ' none' }}" data-label="{{ cell.label }}">
<span>{% if cell.interval %}
{% set at = cell.interval %}
<svg class="forest" viewBox="0 0 100 14" aria-hidden="true"><line class="zero" x1="{{ at.zero }}" x2="{{ at.zero }}" y1="0" y2="14"/>
<line x1="{{ at.low }}" x2="{{ at.high }}" y1="7" y2="7"/><circle cx="{{ at.at }}" cy="7" r="3.4"/></svg>
{% endif %}{{ cell.sign }}{{ cell.text }}{% if cell.small %} <small>{{ cell.small }}</small>{% endif %}</span></td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
{% if by_size or by_memory %}
<h2>What it reaches, and what it costs</h2>
<p>The dashed line is the Pareto front: ringed methods are beaten by none that is as cheap. Bars are standard errors over seeds.</p>
<div class="two">
{% if by_size %}{{ scatter(by_size, metric|capitalize ~ " by trained parameters", "trained parameters (logarithmic)") }}{% endif %}
{% if by_memory %}{{ scatter(by_memory, metric|capitalize ~ " by peak memory", "peak memory") }}{% endif %}
</div>
{{ legend() }}
{% endif %}
{% if training or held_out %}
<h2>Learning curves</h2>
<p>Thick lines are means over seeds, thin ones the seeds; the training loss is smoothed. Losses are in nats per label.</p>
<div class="two">
{% if training %}{{ lines(training, "Training loss", "box1") }}{% endif %}
{% if held_out %}{{ lines(held_out, "Held-out loss", "box2") }}{% endif %}
</div>
{{ legend() }}
{% endif %}
{% if classes %}
<h2>Errors by class</h2>
<p>The share of each class's held-out rows that is right, over all seeds; the most frequent classes first, darker where more is
right.{% if classes.left_out %} {{ classes.left_out }} rarer ones are left out.{% endif %}</p>
<div class="panel heat">
<table>
<thead><tr><th></th>{% for label, rows in classes.heads %}<th>{{ label }}<small>{{ rows }} rows</small></th>{% endfor %}</tr></thead>
<tbody>
{% for row in classes.rows %}
<tr><th scope="row">{{ key(row.key) }}{{ row.name }}</th>{% for value, shade in row.cells %}<td class="c" style="--v: {{ shade }}%">{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% if classes.matrices %}
<details><summary>What is taken for what, in percent of the rows of a class</summary>
<div class="matrices">
{% for matrix in classes.matrices %}
<div class="heat"><h3>{{ key(matrix.key) }}{{ matrix.name }}</h3>
<table><thead><tr><th>right ↓ said →</th>{% for label in matrix.labels %}<th>{{ label }}</th>{% endfor %}</tr></thead>
<tbody>
{% for label, cells in matrix.rows %}
<tr><th scope="row">{{ label }}</th>
{% for value, shade, right in cells %}<td class="c{{ ' right' if right else '' }}" style="--v: {{ shade }}%">{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endfor %}
</div></details>
{% elif classes.swaps %}
<details><summary>What is taken for what</summary>
<div class="matrices">
{% for swap in classes.swaps %}
<div><h3>{{ key(swap.key) }}{{ swap.name }}</h3>
<table><tbody>{% for right, said, times in swap.rows %}<tr><td>{{ right }} → {{ said }}</td><td class="n">{{ times }} ×</td></tr>{% endfor %}</tbody></table></div>
{% endfor %}
</div></details>
{% endif %}
{% endif %}
{% if searches %}
<h2>Search</h2>
<p>What each method tried, with the loss on validation rows; ★ was chosen. {{ budget }}</p>
<div class="panel heat">
<table><tbody>
{% for search in searches %}
<tr><th scope="row">{{ key(search.key) }}{{ search.name }}</th>
{% for trial in search.trials %}
<td class="{{ 'better' if trial.chosen else '' }}">{{ '★ ' if trial.chosen else '' }}{{ trial.point }}: {{ trial.loss }}</td>
{% endfor %}</tr>
{% endfor %}
</tbody></table>
</div>
{% endif %}
{% if failures or waiting %}
<h2>What did not finish</h2>
<p>These cells are not in the figures above.</p>
<div class="panel failed">
{% for names, error in failures %}<p><b>✕ {{ names }}</b><br>{{ error }}</p>{% endfor %}
{% if waiting %}<p>Not run yet: {{ waiting }}</p>{% endif %}

</div>
{% endif %}
<h2>How to read this</h2>
<p>Each column of the table.</p>
<div class="panel"><dl>{% for column in columns %}<dt>{{ column.short }}</dt><dd>{{ column.long }}</dd>{% endfor %}</dl></div>
<footer>Written by Luthier.</footer>
</main>
</body>
</html>
"""
