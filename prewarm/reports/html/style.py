"""The style sheet of the page: one column, light and dark as the reader wishes, on paper."""

from __future__ import annotations

from typing import Final

# Each text has a contrast of 4.5 or more on each ground that it stands on; a test computes that.
STYLE: Final = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --soft: #f3f5f8; --edge: #d5dae2; --text: #1a1d23; --dim: #565e6c;
  --accent: #0a5fb4; --area: #0a5fb42b; --alarm: #b3140f; --alarm-soft: #fdf0ef;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ground: #13161b; --soft: #1c2027; --edge: #39404c; --text: #e9ebef; --dim: #a4acb9;
    --accent: #74b3f7; --area: #74b3f733; --alarm: #ff928b; --alarm-soft: #2b1b1c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 62rem;
  background: var(--ground); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  -webkit-text-size-adjust: 100%; text-size-adjust: 100%; overflow-wrap: anywhere;
}
h1 { font-size: clamp(1.3rem, 1rem + 1.8vw, 1.9rem); line-height: 1.2; margin: .25rem 0 .75rem; }
h1, p { text-wrap: pretty; }
h1 data { display: block; font-size: clamp(3rem, 2rem + 6vw, 5rem); letter-spacing: -.03em;
  line-height: 1.05; color: var(--accent); font-variant-numeric: tabular-nums; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3.5rem 0 .35rem; }
h3 { font-size: 1rem; margin: 1.75rem 0 .15rem; }
p { margin: .35rem 0 1rem; max-width: 46rem; }
a { color: inherit; }
code, td, th { unicode-bidi: isolate; }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.dim, .eyebrow, footer, caption, summary { color: var(--dim); }
.eyebrow { margin: 0; font-size: .9rem; }
.lead { font-size: 1.05rem; }
.nowrap, time { white-space: nowrap; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(9.75rem, 100%), 1fr));
  gap: .75rem; margin: 2rem 0 0; padding: 0; list-style: none; }
.tiles a { display: block; height: 100%; padding: .9rem 1rem 1rem; border-radius: .6rem;
  background: var(--soft); text-decoration: none; }
.tiles a:hover, .tiles a:focus-visible { outline: 2px solid var(--accent); }
.tiles strong { display: block; font-size: 1.6rem; line-height: 1.3; font-weight: 650;
  font-variant-numeric: tabular-nums; }
.tiles strong time { white-space: normal; }
.tiles small { display: block; font-size: .875rem; line-height: 1.45; color: var(--dim); }
.tiles .alarm { background: var(--alarm-soft); }
.tiles .alarm strong { color: var(--alarm); }
.problems { margin: 1rem 0; padding: 0; list-style: none; }
.problems li { margin: 0 0 .75rem; padding: .7rem 1rem .8rem; border-radius: .6rem;
  background: var(--soft); border-inline-start: 4px solid var(--edge); }
.problems .error { background: var(--alarm-soft); border-color: var(--alarm); }
.problems p { margin: 0; max-width: none; }
.problems .error strong { color: var(--alarm); }
.problems .cure::before { content: "\\2192\\00a0"; }
svg { display: block; overflow: visible; }
.chart { margin: .75rem 0 .5rem; padding-inline-start: 2.75rem; }
.chart text { fill: var(--dim); font-size: 12px; font-variant-numeric: tabular-nums; }
.grid, .base { stroke: var(--edge); }
.limit { stroke: var(--text); stroke-dasharray: 5 4; }
.area { fill: var(--area); }
.line { fill: none; stroke: var(--accent); stroke-width: 2px; vector-effect: non-scaling-stroke;
  stroke-linejoin: round; }
.dot, .bar { fill: var(--accent); }
.track { fill: var(--edge); }
.hatch { stroke: var(--dim); stroke-width: 1px; opacity: .7; }
.meter { width: 100%; height: 8px; margin: .35rem 0 .45rem; border-radius: 4px; overflow: hidden; }
.spark { width: 7rem; height: 28px; }
.key { display: inline-block; width: 1.6em; height: .9em; margin-inline-end: .4em;
  vertical-align: -.08em; border: 1px solid var(--edge); }
/* A shadow at the side where more of the table is. */
.scroll { overflow-x: auto; margin: .5rem 0 1rem; border-block: 1px solid var(--edge);
  background:
    linear-gradient(90deg, var(--ground) 40%, transparent) left / 2rem 100% no-repeat local,
    linear-gradient(270deg, var(--ground) 40%, transparent) right / 2rem 100% no-repeat local,
    linear-gradient(90deg, var(--edge), transparent) left / .6rem 100% no-repeat,
    linear-gradient(270deg, var(--edge), transparent) right / .6rem 100% no-repeat; }
.scroll:focus-visible { outline: 2px solid var(--accent); }
table { width: 100%; border-collapse: collapse; font-size: .925rem; line-height: 1.4;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { padding: .5rem 0; text-align: start; max-width: calc(100vw - 2.5rem); }
th, td { padding: .4rem .9rem .4rem 0; text-align: start; vertical-align: top;
  border-top: 1px solid var(--edge); }
th { font-weight: 600; }
thead th { white-space: nowrap; border-top: 0; }
tbody th { font-weight: 500; min-width: 9rem; max-width: 26rem; overflow-wrap: anywhere; }
.num { text-align: end; white-space: nowrap; }
.state { white-space: nowrap; }
.why { min-width: 14rem; color: var(--dim); overflow-wrap: anywhere; }
.mark { display: inline-block; width: .72em; height: .72em; margin-inline-end: .45em;
  border: 2px solid var(--accent); border-radius: 50%; print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
.fresh { background: var(--accent); }
.stale { background: linear-gradient(90deg, var(--accent) 50%, transparent 50%); }
.missing, .unknown { border-color: var(--alarm); }
.unknown { border-style: dotted; }
details { margin: .25rem 0 1rem; }
summary { cursor: pointer; width: fit-content; padding: .3rem 0; }
footer { margin-top: 4rem; padding-top: 1rem; border-top: 1px solid var(--edge);
  font-size: .9rem; }
@media (max-width: 36rem) {
  body { padding: 1.5rem 1rem 3rem; }
  .minor { display: none; }
  .tiles strong { font-size: 1.35rem; }
  tbody th { min-width: 7.5rem; }
  .tiles li:first-child:nth-last-child(odd) { grid-column: 1 / -1; }
  h2 { margin-top: 2.75rem; }
}
@media print {
  @page { margin: 15mm; }
  body { padding: 0; max-width: none; font-size: 10pt; }
  .tiles a, .problems li { border: 1px solid var(--edge); break-inside: avoid; }
  .scroll { overflow: visible; }
  table { font-size: 8.5pt; }
  tr, .chart { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  summary { display: none; }
  details::details-content { content-visibility: visible; block-size: auto; display: block; }
}
"""
