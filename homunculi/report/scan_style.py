"""How the page of a scan looks."""

from __future__ import annotations

from homunculi.runs.shades import colours


def _rules(dark: bool) -> str:
    return " ".join(f".tracks .{name} {{ fill: {colour}; }}" for name, colour in colours(dark).items())


SCAN_STYLE = (
    """
:root { --heat: #e0741f; --cold: #2b6cb8; }
.scan main { max-width: 96rem; }
.scan h2 { margin: 2rem 0 .5rem; }
.chip { display: inline-block; background: var(--tint); border-radius: 1rem; padding: .1rem .7rem; }
.chip { margin: .1rem .3rem; }
.chip { font-size: .875rem; font-family: ui-monospace, Menlo, Consolas, monospace; }
.read-text { font-size: 1.12rem; line-height: 1.9; max-width: 60rem; background: var(--card); border-radius: .5rem; }
.read-text { padding: .7rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.read-text span { border-radius: .2rem; padding: .12em 0; }
.tracks { overflow: auto; max-height: 94vh; border: 1px solid var(--line); border-radius: .5rem; }
.tracks > div { display: grid; grid-template-columns: max-content max-content; width: max-content; }
.tracks svg { display: block; }
.tracks .names { position: sticky; left: 0; z-index: 1; background: var(--ground); }
.tracks .names { border-right: 1px solid var(--line); }
.tracks .top { position: sticky; top: 0; z-index: 2; background: var(--ground); border-bottom: 1px solid var(--line); }
.tracks .names.top { z-index: 3; }
.tracks text { fill: var(--ink); font-size: 11.5px; }
.tracks .soft { fill: var(--soft); font-size: 10.5px; }
.tracks .title { font-weight: 600; font-size: 12.5px; }
.tracks .word { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 11px; }
.tracks .bar { fill: var(--heat); }
.tracks .rule { stroke: var(--line); stroke-width: 1; }
.tracks .low { stroke: var(--ink); stroke-width: 1; opacity: .55; }
.tracks .none { fill: none; stroke: var(--line); opacity: .55; }
.tracks rect:hover { stroke: var(--ink); stroke-width: 1.5; }
.heads { display: flex; flex-wrap: wrap; gap: .6rem 1rem; margin: .3rem 0 1.2rem; }
.heads figure { margin: 0; }
.heads img { display: block; image-rendering: pixelated; background: var(--card); border: 1px solid var(--line); }
.heads figcaption { font-size: .8rem; color: var(--soft); min-height: 0; }
.tall { max-height: 70vh; overflow: auto; margin: .6rem 0; border: 1px solid var(--line); border-radius: .4rem; }
.tall table { font-size: .86rem; }
.tall th, .tall td { padding: .18rem .8rem .18rem .5rem; white-space: nowrap; }
.tall thead th { position: sticky; top: 0; background: var(--ground); z-index: 1; }
.tall tbody th { font-family: ui-monospace, Menlo, Consolas, monospace; }
.hit { font-weight: 700; background: var(--tint); }
.moves { max-height: 80vh; overflow: auto; border: 1px solid var(--line); border-radius: .4rem; padding: .2rem .8rem; }
.moves { max-width: 72rem; }
.moves details { margin: 0; border-bottom: 1px solid var(--line); }
.moves details[open] { padding-bottom: .6rem; }
.moves details[open] > summary { background: var(--tint); border-radius: .3rem; }
.moves small { color: var(--soft); font-size: .8rem; }
.moves td small { margin-left: .6rem; }
.moves summary > span, .moves summary > small { display: inline-block; min-width: 9rem; margin-right: .8rem; }
.moves summary > small { min-width: 12rem; }
.moves table { font-size: .86rem; }
.moves td, .moves th { padding: .2rem 1rem .2rem 0; }
.moves bdi { font-family: ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; }
.up, .down { min-width: 15rem; padding: 0 .4rem; margin: 0 0 2px; border-left: 3px solid var(--hue); }
.up { --hue: var(--heat); } .down { --hue: var(--cold); }
.up, .down { --shade: color-mix(in srgb, var(--hue) 32%, transparent); }
.up, .down { background: linear-gradient(90deg, var(--shade) var(--part), transparent var(--part)); }
.came { font-weight: 700; }
.came::after { content: " ✓ came"; font-weight: 400; color: var(--soft); font-size: .8rem; }
td small { color: var(--soft); margin-left: .35rem; }
"""
    + _rules(False)
    + "\n@media (prefers-color-scheme: dark) { :root { --heat: #ff9d4d; --cold: #7ab4f5; } "
    + _rules(True)
    + " }\n"
)
