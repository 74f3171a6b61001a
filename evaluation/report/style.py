"""The style of all pages: for light and dark, for a screen and for a phone. Nothing is loaded."""

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1a1d21; --paper: #fff; --faint: #5b6170; --line: #ccd2da; --accent: #1f5fbf; --warn: #8a5a00; --warn-paper: #fff7e6;
  --card: #f4f6f9; --good: #1b7a3d; --bad: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e8eb; --paper: #15181c; --faint: #9aa1ad; --line: #3c4350; --accent: #7db2ff; --warn: #ffcf7a;
    --warn-paper: #33290f; --card: #1e2329; --good: #7fd99a; --bad: #ff9d94;
  }
}
* { box-sizing: border-box; }
body {
  font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 80rem; margin: 1.2rem auto 2rem; padding: 0 1rem;
}
h1 { font-size: 1.45rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
.name { margin: .1rem 0 .8rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; } h3 { font-size: 1rem; margin: 1.2rem 0 .2rem; }
table { border-collapse: collapse; width: 100%; }
th, td {
  text-align: left; vertical-align: baseline; overflow-wrap: anywhere;
  padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line);
}
thead th, footer, .name { color: var(--faint); font-weight: normal; font-size: .85rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font-size: .8rem; }
small { font-size: .75rem; color: var(--faint); }
a { color: var(--accent); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.2rem, 1fr)); gap: .6rem; margin: 0; }
.tile { background: var(--card); border-radius: .4rem; padding: .5rem .7rem; font-variant-numeric: tabular-nums; }
.tile b { display: block; font-size: 1.35rem; line-height: 1.25; } .tile small, .tile span { display: block; }
.tile span { font-size: .8rem; } .tile:first-child { grid-column: span 2; border-left: 4px solid var(--accent); }
.tile:first-child b { font-size: 2.1rem; }
.key { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: .3rem 1.4rem; margin: .9rem 0; }
.key div { border-top: 1px solid var(--line); padding-top: .15rem; } .key dt { color: var(--faint); font-size: .75rem; }
.key dd { margin: 0; font-size: .9rem; overflow-wrap: anywhere; }
.command { background: var(--card); border-radius: .4rem; padding: .35rem .7rem; margin: .4rem 0; }
.command span { color: var(--faint); font-size: .75rem; }
.answer { font-size: 1.05rem; margin: .3rem 0; }
.numbers { table-layout: fixed; } .numbers th:nth-child(1) { width: 11rem; } .numbers th:nth-child(2) { width: 9rem; }
.numbers th:nth-child(3) { width: 10rem; } .numbers th:nth-child(4), .numbers th:nth-child(5) { width: 5.5rem; }
.interval, .count, .value { font-variant-numeric: tabular-nums; }
.value { font-size: 1.2rem; line-height: 1.2; } .interval, .count { font-size: .9rem; }
.definition { font-size: .85rem; } .definition em { color: var(--faint); font-style: normal; }
.remarks, figcaption { color: var(--faint); font-size: .85rem; overflow-wrap: anywhere; }
.warning {
  color: var(--warn); background: var(--warn-paper); padding: .6rem .8rem .6rem 1.8rem; border-radius: .3rem;
  overflow-wrap: anywhere;
}
.plots {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: 1.2rem 2rem;
  align-items: start; margin-top: 1rem;
}
figure { margin: 0; min-width: 0; }
.plot { display: block; width: 100%; max-width: 38rem; height: auto; overflow: visible; stroke-linejoin: round; }
.plot text { fill: currentColor; }
figcaption { margin-top: .4rem; }
.strips { display: grid; grid-template-columns: repeat(10, 1fr); gap: .8rem .5rem; }
.strips img { display: block; width: 100%; max-width: 96px; margin-bottom: 2px; }
.strips figcaption { line-height: 1.25; font-variant-numeric: tabular-nums; } .strips small { display: block; }
.grid { table-layout: fixed; }
.grid th { vertical-align: middle; font-weight: normal; color: var(--faint); width: 8rem; font-size: .9rem; }
.grid thead th { vertical-align: baseline; font-size: .85rem; width: auto; }
.grid thead th:first-child { width: 8rem; }
.grid td { padding: 2px 1rem 2px 0; } .grid td, .grid th { border: 0; } .grid td div { display: flex; flex-wrap: wrap; gap: 4px; }
.grid img { display: block; width: 100%; max-width: 31rem; height: auto; min-width: 0; flex: 1 1 18rem; }
.grid th bdi { color: var(--ink); display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; }
.same th { width: 11rem; font-weight: normal; } .same td div { display: flex; flex-wrap: wrap; gap: 4px; }
.same th, .same td { border: 0; padding: 2px 1rem 2px 0; vertical-align: middle; } .same img { display: block; max-width: 96px; }
.cells { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: .8rem; margin: .6rem 0; }
.cells figure { background: var(--card); border-radius: .4rem; padding: .4rem; } .cells img { display: block; max-width: 100%; }
.cells img + img { margin-top: 4px; } :target { outline: 2px solid var(--accent); }
.triples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1rem; margin: .6rem 0; }
.three { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 4px; } .three img { width: 100%; height: auto; }
footer { margin-top: 2rem; overflow-wrap: anywhere; }
details { margin-top: .6rem; } summary { cursor: pointer; color: var(--accent); overflow-wrap: anywhere; }
summary, details ol { font-size: .9rem; }
details ol { columns: 11rem; column-gap: 3.5rem; padding-left: 3rem; color: var(--faint); } details li { break-inside: avoid; }
.facts, .sessions { font-size: .85rem; } .facts tbody th { font-weight: normal; color: var(--faint); width: 14rem; }
.sessions { width: auto; } .sessions th, .sessions td { font-variant-numeric: tabular-nums; border: 0; padding-block: .1rem; }
.runs { table-layout: fixed; } .runs thead th:first-child { width: 13rem; }
.runs td small, .runs th small { display: block; font-weight: normal; }
.runs td { font-variant-numeric: tabular-nums; } .better { color: var(--good); } .worse { color: var(--bad); }
.better, .worse, .best { font-weight: 600; } .undecided, .without-interval { color: var(--faint); }
@media (max-width: 40rem) {
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); } .key { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .numbers thead, .runs thead, .grid thead { display: none; }
  .numbers tr, .runs tr { padding: .5rem 0; border-bottom: 1px solid var(--line); align-items: baseline; }
  .numbers th, .numbers td, .runs th, .runs td { border: 0; padding: 0; }
  .numbers, .numbers tbody { display: block; }
  .numbers tr { display: grid; grid-template-columns: auto 1fr auto auto; column-gap: .6rem; }
  .numbers th { grid-column: 1; white-space: normal; width: auto !important; } .value { grid-column: 2 / 5; text-align: right; }
  .numbers .definition { grid-column: 1 / 5; }
  .interval, .count { grid-row: 2; font-size: .85rem; } .interval { grid-column: 1; white-space: normal; }
  .count { grid-column: 3; color: var(--faint); } .count + .count { grid-column: 4; }
  .count:has(+ .count:empty) { grid-column: 3 / 5; justify-self: end; }
  .sessions tr { display: flex; flex-wrap: wrap; padding-bottom: .4rem; }
  .count:empty { display: none; } .count::before { content: "N "; } .count + .count::before { content: "reference "; }
  .runs, .runs tbody { display: block; }
  .runs tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .4rem .8rem; }
  .runs th { grid-column: 1 / -1; } .runs td:empty { display: none; }
  .runs td[data-name]::before { content: attr(data-name); color: var(--faint); font-size: .75rem; display: block; }
  .strips { grid-template-columns: repeat(5, 1fr); } .facts th { width: 8rem !important; }
  .facts thead { display: none; } .facts tr { display: flex; flex-wrap: wrap; border-bottom: 1px solid var(--line); }
  .facts th, .facts td { border: 0; padding-block: .1rem; } .facts td { flex: 1 1 8rem; min-width: 0; }
  .same, .same tbody, .same tr, .same th, .same td { display: block; width: auto; padding-right: 0; }
  .same img { width: calc(20% - 4px); height: auto; }
  .grid, .grid tbody, .grid tr, .grid tbody th, .grid td { display: block; width: auto; } .grid td { padding-right: 0; }
  .grid td[data-name]::before { content: attr(data-name); color: var(--faint); font-size: .75rem; display: block; }
}
"""
