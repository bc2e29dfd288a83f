"""The stylesheet of the report: readable on screen in light and dark, and on paper. No fonts or files from outside.

Values are coloured by eight steps of viridis (c0..c7) and, for token counts, of plasma (p0..p7), as in the figures:
without their palest end on white and without their darkest on black.
"""

LIGHT = {
    "c": ("#440154", "#472c7a", "#3c508b", "#2d708e", "#228d8d", "#24aa83", "#52c569", "#9bd93c"),
    "p": ("#0d0887", "#48039f", "#7701a8", "#a11b9b", "#c33d80", "#de5f65", "#f2844b", "#fdae32"),
}
DARK = {
    "c": ("#4c7fb8", "#2a8fa8", "#21a0a0", "#22a884", "#44bf70", "#7ad151", "#bddf26", "#fde725"),
    "p": ("#a63fc0", "#b8469e", "#c8537b", "#de6164", "#f1814d", "#fca537", "#fccd25", "#f0f921"),
}


def _levels(palettes):
    return " ".join(f"--{name}{i}: {c};" for name, colours in palettes.items() for i, c in enumerate(colours))


_SHEET = """
:root { color-scheme: light dark; --ink: #1c1e21; --quiet: #656b73; --line: #d9dce0; --paper: #ffffff;
  --tint: #f5f6f8; --good: #1b7f4b; --warn: #9a6200; --bad: #b00020; --held: #c04f00; --focus: #1d5fd1; LIGHTS }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --quiet: #9aa1a9; --line: #3a3f45; --paper: #16181b;
  --tint: #1f2226; --good: #5fd09a; --warn: #e9b04d; --bad: #ff7b89; --held: #ff9d5c; --focus: #86b4ff; DARKS } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 "Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", Georgia, serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2.5rem 1.5rem 5rem; }
h1, h2, h3, table, .kind, .status, figcaption, summary, .small, .audit b
  { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1rem; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 0.7rem; padding-bottom: 0.3rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 0.92rem; margin: 1.5rem 0 0.4rem; }
.kind { color: var(--quiet); font-size: 0.78rem; letter-spacing: 0.08em; text-transform: uppercase; margin: 0 0
0.3rem; }
.headline { font-size: 1.16rem; max-width: 54em; }
.small, figcaption { color: var(--quiet); font-size: 0.82rem; }
.formula { font-size: 1.35rem; margin: 0.6rem 0 0; }
.formula + .small { margin-top: 0; }
header li { color: var(--warn); font-size: 0.9rem; }
.status { font-size: 0.78rem; font-weight: 600; padding: 0.15rem 0.6rem; border-radius: 1rem; border: 1px solid; }
.status.ok { color: var(--good); } .status.warning { color: var(--warn); } .status.refused { color: var(--bad); }
.wide { overflow-x: auto; margin: 0.5rem 0; }
table { border-collapse: collapse; font-size: 0.82rem; font-variant-numeric: tabular-nums; line-height: 1.35; }
thead th { white-space: normal; border-top: 1.5px solid var(--ink); border-bottom: 1px solid var(--ink);
  font-weight: 600; vertical-align: bottom; }
tbody tr:last-child td { border-bottom: 1.5px solid var(--ink); }
th, td { padding: 0.28rem 0.75rem 0.28rem 0; text-align: right; white-space: nowrap; }
th.text, td.text { text-align: left; }
td.long { text-align: left; white-space: normal; min-width: 16em; overflow-wrap: anywhere; }
tbody tr:hover { background: var(--tint); }
tr.outside td { color: var(--bad); } tr.held td:first-child { color: var(--held); }
.pair { display: grid; grid-template-columns: auto minmax(22rem, 1fr); gap: 0 3.5rem; align-items: start; }
.pair > div { min-width: 0; }
@media (max-width: 860px) { .pair { grid-template-columns: minmax(0, 1fr); } }
.plain thead { display: none; } .plain td { text-align: left; white-space: normal; vertical-align: top; }
.plain td:first-child { color: var(--quiet); } .plain tbody tr:last-child td { border-bottom: 0; }
figure { margin: 1.4rem 0; }
figure img { width: 100%; height: auto; display: block; background: #fff;
  border: 1px solid var(--line); border-radius: 4px; padding: 0.5rem; }
.plates { display: grid; grid-template-columns: 1fr 1fr; gap: 1.4rem; align-items: start; }
.plates figure { margin: 0; }
.plates .full { grid-column: 1 / -1; max-width: 860px; }
figcaption { margin-top: 0.4rem; }
ul { padding-left: 1.2rem; } li { margin: 0.2rem 0; }
.audit { list-style: none; padding: 0; font-size: 0.95rem; }
.audit li { display: grid; grid-template-columns: 5.5rem 1fr; align-items: baseline; }
.audit b { font-size: 0.74rem; text-transform: uppercase; letter-spacing: 0.05em; }
.audit .ok b { color: var(--good); } .audit .warning b { color: var(--warn); } .audit .refused b { color: var(--bad); }
summary { cursor: pointer; font-size: 0.92rem; font-weight: 600; margin-top: 1rem; }
pre { background: var(--tint); padding: 0.7rem 1rem; overflow-x: auto; border-radius: 4px; font-size: 0.85rem; }
[hidden] { display: none !important; }
button { font: 600 0.78rem system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  color: var(--ink); cursor: pointer; }
button.download { background: none; border: 1px solid var(--line); border-radius: 4px; padding: 0.25rem 0.6rem;
  margin: 0 0 0.6rem; }
button.download:hover { background: var(--tint); }
button.sort { all: unset; cursor: pointer; } button.sort::after { content: "\\2195"; color: var(--quiet);
  font-weight: 400; padding-left: 0.25em; font-size: 0.8em; }
th[aria-sort=ascending] button.sort::after { content: "\\2191"; color: var(--ink); }
th[aria-sort=descending] button.sort::after { content: "\\2193"; color: var(--ink); }
:focus-visible { outline: 2px solid var(--focus); outline-offset: 2px; }
#explore { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
fieldset { border: 0; min-width: 0; margin: 0 0 0.8rem; padding: 0; font-size: 0.85rem; }
fieldset legend { float: left; padding: 0 0.7rem 0 0; color: var(--quiet); }
fieldset label { display: inline-block; margin-right: 0.9rem; cursor: pointer; }
input[type=radio] { margin: 0 0.3rem 0 0; accent-color: var(--focus); vertical-align: -0.1em; }
.stage { display: grid; grid-template-columns: minmax(0, 1.75fr) minmax(17rem, 1fr); gap: 1rem 2.2rem;
  align-items: start; }
.stage > div { min-width: 0; } .stage h3:first-child { margin-top: 0; } .stage th[scope=row] { text-align: left;
  font-weight: 400; } .stage table { width: 100%; } .stage tbody tr:last-child th { border-bottom: 1.5px solid
  var(--ink); } .stage .small { margin: 0.3rem 0 0.6rem; } #budget td { white-space: normal; }
  .stage th:last-child, .stage td:last-child
  { padding-right: 0; }
#plot { position: relative; } #plot svg { display: block; width: 100%; height: auto; font-size: 12px; }
.axes line { stroke: var(--line); stroke-width: 1; opacity: 0.7; } .axes .frame { fill: none; stroke: var(--quiet); }
#plot text { fill: var(--quiet); font-family: inherit; } #plot .title { fill: var(--ink); } .power { font-size: 9px; }
#plot .none { text-anchor: middle; fill: var(--bad); }
.curve { fill: none; stroke: var(--level); stroke-width: 1.6; } .dashed { stroke-dasharray: 5 4; }
.band { fill: var(--level); opacity: 0.16; }
#plot .end { font-size: 11px; fill: color-mix(in srgb, var(--level) 55%, var(--ink)); }
.frontier { fill: none; stroke: var(--ink); stroke-width: 1.6; stroke-dasharray: 1.5 4; stroke-linecap: round; }
.optimum path { stroke: var(--ink); stroke-width: 1.2; fill: none; opacity: 0.75; }
.optimum circle { fill: var(--paper); stroke: var(--ink); stroke-width: 2; }
.point { cursor: pointer; outline: none; } .point path { fill: var(--level, var(--quiet)); stroke: var(--paper);
  stroke-width: 0.8; } .point .target { fill: transparent; }
.point.held-out path { stroke: var(--held); stroke-width: 2.4; }
.point.excluded path { fill: var(--paper); stroke: var(--quiet); stroke-width: 1.5; }
.point.no-result path { fill: none; stroke: var(--bad); stroke-width: 2; }
.point:hover .target, .point:focus .target { stroke: var(--ink); stroke-width: 1.5; }
#tip { position: absolute; z-index: 2; margin: 0; padding: 0.5rem 0.7rem; max-width: 19rem; pointer-events: none;
  background: var(--paper); border: 1px solid var(--quiet); border-radius: 5px; font-size: 0.78rem; line-height: 1.35;
  display: grid; grid-template-columns: auto 1fr; gap: 0.05rem 0.7rem; font-variant-numeric: tabular-nums;
  box-shadow: 0 3px 14px #0003; }
#tip dt { color: var(--quiet); } #tip dd { margin: 0; overflow-wrap: anywhere; }
input[type=range] { width: 100%; accent-color: var(--focus); margin: 0.2rem 0; }
.typed { margin: 0.2rem 0; font-size: 0.85rem; }
#typed, #chosen { font: inherit; padding: 0.15rem 0.4rem; color: inherit;
  background: var(--tint); border: 1px solid var(--line); border-radius: 4px; width: 7.5em; }
#chosen { width: 4.6em; } #cost th { white-space: normal; }
.wrong { color: var(--bad); font-size: 0.82rem; margin: 0.2rem 0; min-height: 1.2em; }
@media (max-width: 860px) { .stage { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 500px) { main { padding: 1.2rem 0.9rem 3rem; } h1 { font-size: 1.5rem; }
  .headline { font-size: 1.02rem; } .audit li { grid-template-columns: 1fr; } button.download, fieldset label,
  #typed, #chosen { min-height: 2rem; } }
@media (max-width: 720px) { .plates { grid-template-columns: minmax(0, 1fr); } }
@media print { .download, #axis label:has(input:not(:checked)), #slider, #fit-json, .sort::after
  { display: none !important; }
  :root { --ink: #000; --quiet: #444; --line: #bbb; --paper: #fff; --tint: #fff; LIGHTS }
  main { max-width: none; padding: 0; } body { font-size: 10pt; } h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; } .wide { overflow: visible; } table { font-size: 7.5pt; }
  th, td { padding-right: 0.5em; } }
"""
_CLASSES = " ".join(f".{name}{i} {{ --level: var(--{name}{i}); }}" for name in LIGHT for i in range(8))
STYLE = _SHEET.replace("LIGHTS", _levels(LIGHT)).replace("DARKS", _levels(DARK)) + _CLASSES + "\n"
