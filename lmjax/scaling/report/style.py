"""The stylesheet of the report: readable on screen in light and dark, and on paper. No fonts or files from outside."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --quiet: #656b73; --line: #d9dce0; --paper: #ffffff;
  --tint: #f5f6f8; --good: #1b7f4b; --warn: #9a6200; --bad: #b00020; --held: #c04f00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --quiet: #9aa1a9; --line: #3a3f45; --paper: #16181b;
  --tint: #1f2226; --good: #5fd09a; --warn: #e9b04d; --bad: #ff7b89; --held: #ff9d5c; } }
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
.status { font-size: 0.78rem; font-weight: 600; padding: 0.15rem 0.6rem; border-radius: 1rem; border: 1px solid; }
.status.ok { color: var(--good); } .status.warning { color: var(--warn); } .status.refused { color: var(--bad); }
.wide { overflow-x: auto; margin: 0.5rem 0; }
table { border-collapse: collapse; font-size: 0.82rem; font-variant-numeric: tabular-nums; line-height: 1.35; }
thead th { border-top: 1.5px solid var(--ink); border-bottom: 1px solid var(--ink); font-weight: 600;
  vertical-align: bottom; }
tbody tr:last-child td { border-bottom: 1.5px solid var(--ink); }
th, td { padding: 0.28rem 0.75rem 0.28rem 0; text-align: right; white-space: nowrap; }
th.text, td.text { text-align: left; }
td.long { text-align: left; white-space: normal; min-width: 16em; overflow-wrap: anywhere; }
tbody tr:hover { background: var(--tint); }
tr.outside td { color: var(--bad); } tr.held td:first-child { color: var(--held); }
.pair { display: grid; grid-template-columns: auto minmax(22rem, 1fr); gap: 0 3.5rem; align-items: start; }
@media (max-width: 860px) { .pair { grid-template-columns: 1fr; } }
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
.audit .fine b { color: var(--good); } .audit .beware b { color: var(--warn); } .audit .refused b { color: var(--bad); }
summary { cursor: pointer; font-size: 0.92rem; font-weight: 600; margin-top: 1rem; }
pre { background: var(--tint); padding: 0.7rem 1rem; overflow-x: auto; border-radius: 4px; font-size: 0.85rem; }
@media (max-width: 720px) { .plates { grid-template-columns: 1fr; } }
@media print { :root { --ink: #000; --quiet: #444; --line: #bbb; --paper: #fff; --tint: #fff; }
  main { max-width: none; padding: 0; } body { font-size: 10pt; } h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; } .wide { overflow: visible; } table { font-size: 7.5pt; }
  th, td { padding-right: 0.5em; } }
"""
