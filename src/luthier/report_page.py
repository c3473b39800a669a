"""The page that report.py fills: one HTML file with its style and its drawing inside, for light and dark screens and for print."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }} · Luthier</title>
<style>
:root {
  color-scheme: light dark;
  --paper: #fbfaf8; --card: #ffffff; --ink: #23201c; --soft: #6f675d; --line: #e5e0d8;
  --wood: #a5561f; --wood-soft: #e3b994; --sea: #1f6f78; --good: #2c7a3f; --bad: #b3372f; --tint: #f6efe7;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #171513; --card: #201d1a; --ink: #ece6dd; --soft: #a2978a; --line: #37322c;
    --wood: #e39a5d; --wood-soft: #6b4a30; --sea: #6cc3cc; --good: #7fc98f; --bad: #f08a80; --tint: #2a2420;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", "PingFang SC", "Noto Sans CJK SC", "Microsoft YaHei", sans-serif;
}
main { max-width: 1000px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 10px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 40px 0 12px; }
.recipe { display: flex; flex-wrap: wrap; gap: 4px 20px; color: var(--soft); }
.recipe b { color: var(--ink); font-weight: 600; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 24px; }
.card, .panel, details { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.card { padding: 14px 16px; }
.card span, .card small { color: var(--soft); font-size: 13px; display: block; }
.card strong { display: block; font-size: 22px; font-weight: 600; line-height: 1.4; white-space: nowrap; }
.panel { padding: 16px; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums; }
.legend { display: flex; gap: 20px; color: var(--soft); font-size: 13px; margin: 0 0 6px 48px; }
.legend i { display: inline-block; width: 18px; height: 3px; border-radius: 2px; vertical-align: middle; margin-right: 7px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 12px; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; font-size: 13px; }
tr:last-child td { border-bottom: 0; }
td.n, th.n { text-align: right; white-space: nowrap; }
td.wide { overflow-wrap: anywhere; }
.better { color: var(--good); } .worse { color: var(--bad); }
.sample { background: var(--card); border: 1px solid var(--line); border-radius: 10px; margin-bottom: 16px; overflow: hidden; }
.prompt { background: var(--tint); padding: 12px 16px; }
.pair { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; }
.pair > div { padding: 12px 16px; min-width: 0; }
.pair > div + div { border-left: 1px solid var(--line); }
.reference { padding: 12px 16px; border-top: 1px solid var(--line); color: var(--soft); }
.who { font-size: 12px; color: var(--soft); margin: 0 0 2px; }
.after .who { color: var(--wood); font-weight: 600; }
.text + .who { margin-top: 10px; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
.none { color: var(--soft); font-style: italic; margin: 0; }
details { margin-top: 12px; padding: 0 16px; }
summary { cursor: pointer; padding: 12px 0; font-weight: 600; }
pre { margin: 0 0 16px; overflow-x: auto; font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
details table { margin-bottom: 12px; font-size: 13px; }
footer { color: var(--soft); font-size: 13px; margin-top: 40px; }
@media (max-width: 640px) {
  .pair { grid-auto-flow: row; }
  .pair > div + div { border-left: 0; border-top: 1px solid var(--line); }
  svg text { font-size: 17px; }
}
@media print { body { background: none; } .sample, .panel, .card { break-inside: avoid; } }
</style>
</head>
<body>
<main>
<h1>{{ name }}</h1>
<div class="recipe">{% for key, words in recipe %}<span>{{ key }} <b>{{ words }}</b></span>{% endfor %}</div>
{% if cards %}
<div class="cards">
{% for card in cards %}
<div class="card"><span>{{ card.title }}</span><strong>{{ card.value }}</strong><small>{{ card.note }}</small></div>
{% endfor %}
</div>
{% endif %}
{% if curve %}
<h2>Loss</h2>
<div class="panel">
<div class="legend">
{% if curve.train %}<span><i style="background: var(--wood)"></i>training</span>{% endif %}

{% if curve.held_out %}<span><i style="background: var(--sea)"></i>held out</span>{% endif %}

</div>
<svg viewBox="0 0 720 284" role="img" aria-label="Loss by optimizer step">
<defs><clipPath id="box"><rect x="48" y="6" width="666" height="244"/></clipPath></defs>
{% for y, label in curve.up %}
<line x1="48" x2="708" y1="{{ y }}" y2="{{ y }}" stroke="var(--line)"/><text x="40" y="{{ y + 4 }}" text-anchor="end">{{ label }}</text>
{% endfor %}
{% for x, label in curve.across %}
<text x="{{ x }}" y="264" text-anchor="middle">{{ label }}</text>
{% endfor %}
<text x="708" y="277" text-anchor="end">optimizer step</text>
<g clip-path="url(#box)" fill="none" stroke-linejoin="round" stroke-linecap="round">
{% if curve.smooth %}
<polyline points="{{ curve.train }}" stroke="var(--wood-soft)" stroke-width="1"/>
<polyline points="{{ curve.smooth }}" stroke="var(--wood)" stroke-width="2"/>
{% else %}
<polyline points="{{ curve.train }}" stroke="var(--wood)" stroke-width="2"/>
{% endif %}
<polyline points="{{ curve.held_out }}" stroke="var(--sea)" stroke-width="2"/>
</g>
{% for x, y, label in curve.dots %}
<circle cx="{{ x }}" cy="{{ y }}" r="4" fill="var(--sea)" stroke="var(--card)" stroke-width="1.5"><title>{{ label }}</title></circle>
{% endfor %}
</svg>
</div>
{% endif %}
{% if figures %}
<h2>On held-out rows</h2>
<div class="panel">
<table>
<tr><th>figure</th><th class="n">before</th><th class="n">after</th><th class="n">change</th></tr>
{% for row in figures %}
<tr><td>{{ row.name }}</td><td class="n">{{ row.before }}</td><td class="n">{{ row.after }}</td>
<td class="n {{ row.mark }}">{{ row.change }}</td></tr>
{% endfor %}
</table>
</div>
{% endif %}
{% if samples %}
<h2>Answers</h2>
{% for sample in samples %}
<section class="sample">
<div class="prompt">
{% for turn in sample.turns %}
{% if turn.role %}<p class="who">{{ turn.role }}</p>{% endif %}

<p class="text">{{ turn.content }}</p>
{% endfor %}
</div>
<div class="pair">
{% for when in ("before", "after") if sample[when] is not none %}
<div class="{{ when }}"><p class="who">{{ when }}</p>
{% if sample[when] %}<p class="text">{{ sample[when] }}</p>{% else %}<p class="none">(nothing)</p>{% endif %}

</div>
{% endfor %}
</div>
{% if sample.reference %}<div class="reference"><p class="who">reference</p><p class="text">{{ sample.reference }}</p></div>{% endif %}

</section>
{% endfor %}
{% endif %}
{% if config %}
<details{% if not samples %} open{% endif %}><summary>Configuration</summary><pre>{{ config }}</pre></details>
{% endif %}
{% if manifest %}
<details><summary>Manifest</summary>
<table>{% for key, value in manifest %}<tr><td>{{ key }}</td><td class="wide">{{ value }}</td></tr>{% endfor %}</table>
</details>
{% endif %}
<footer>Written by Luthier. Losses are in nats per label.</footer>
</main>
</body>
</html>
"""
