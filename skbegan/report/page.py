"""The page: its style and the pieces that it is put together from. All text is escaped here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from string import Template
from typing import Any

from skbegan.plotting._common import DARK, LIGHT

_STYLE = f"""
:root {{ color-scheme: light dark; --paper: {LIGHT}; --ink: #1b1f24; --faint: #5a636e; --line: #d0d7de;
  --shade: #f4f6f8; --link: #0550ae; }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: {DARK}; --ink: #e6e9ed; --faint: #9aa4b0; --line: #343b44;
  --shade: #1d2229; --link: #79b8ff; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 1rem 1.25rem 4rem; max-width: 74rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: break-word; }}
h1 {{ font-size: 1.7rem; line-height: 1.25; margin: 1rem 0 .25rem; }}
h2 {{ font-size: 1.3rem; margin: 2.5rem 0 .5rem; padding-top: .5rem; border-top: 1px solid var(--line); }}
h3 {{ font-size: 1.05rem; margin: 1.5rem 0 .5rem; }}
p, ul, dl {{ max-width: 46rem; margin: .5rem 0; }}
a {{ color: var(--link); }}
nav {{ margin: 1rem 0; }} nav a {{ display: inline-block; margin-right: 1rem; }}
.faint, figcaption {{ color: var(--faint); font-size: .9rem; }}
.verdict {{ background: var(--shade); border-left: 4px solid var(--link); padding: .5rem 1rem; max-width: 48rem; }}
ul.verdict {{ padding-left: 2.25rem; }}
.scroll {{ overflow-x: auto; margin: .75rem 0; }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line);
  overflow-wrap: normal; }}
th:first-child, td:first-child, td.words, th.words {{ text-align: left; }}
td:first-child {{ min-width: 8rem; }} td.words {{ min-width: 13rem; }}
tr.heading th {{ padding-top: .9rem; font-weight: 600; background: none; }}
thead th {{ background: var(--shade); font-weight: 600; vertical-align: bottom; }}
td.none {{ color: var(--faint); }} td.few {{ font-style: italic; }}
figure {{ margin: 1rem 0; }}
figure svg {{ display: block; height: auto; max-width: 100%; fill: currentColor; }}
figure svg * {{ stroke-linejoin: round; stroke-linecap: butt; }}
figure .pan {{ overflow-x: auto; }}
figure .pan svg {{ min-width: calc(var(--natural) * .8); }}
.cells {{ display: flex; flex-wrap: wrap; gap: 0 2rem; }}
.cells figure {{ flex: 0 1 30rem; max-width: 100%; min-width: 0; }}
dt {{ font-weight: 600; margin-top: .6rem; }} dd {{ margin: 0 0 0 1rem; }}
.open {{ color: var(--faint); font-style: italic; }}
details {{ margin: .75rem 0; }} summary {{ cursor: pointer; }}
code {{ font-size: .9em; overflow-wrap: anywhere; }}
@media print {{ body {{ max-width: none; }} figure, table {{ break-inside: avoid; }} }}
"""

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<h1>$title</h1>
<p class="faint">$subtitle</p>
<nav aria-label="Contents">$contents</nav>
<main>
$sections
</main>
</body>
</html>
""")


def esc(text: Any) -> str:
    """Return anything as text that no browser takes for markup."""
    return html.escape(str(text), quote=True)


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """Return the whole page from (anchor, heading, HTML) of its sections."""
    return _PAGE.substitute(
        title=esc(title),
        subtitle=esc(subtitle),
        style=_STYLE,
        contents=" ".join(f'<a href="#{anchor}">{esc(heading)}</a>' for anchor, heading, _ in sections),
        sections="\n".join(
            f'<section id="{anchor}">\n<h2>{esc(heading)}</h2>\n{body}\n</section>'
            for anchor, heading, body in sections
        ),
    )


def paragraph(text: str, css: str = "") -> str:
    return f'<p class="{css}">{esc(text)}</p>' if css else f"<p>{esc(text)}</p>"


def bullets(items: Iterable[str], css: str = "") -> str:
    return f'<ul class="{css}">' + "".join(f"<li>{esc(item)}</li>" for item in items) + "</ul>"


def definitions(items: Iterable[tuple[str, str, bool]]) -> str:
    """Return a list of (term, text, whether somebody has filled it in)."""
    return (
        "<dl>"
        + "".join(
            f"<dt>{esc(term)}</dt><dd{'' if known else ' class=open'}>{esc(text)}</dd>" for term, text, known in items
        )
        + "</dl>"
    )


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", *, words: Sequence[int] = (), css: Any = None
) -> str:
    """Return a table that scrolls by itself where the page is narrow.

    Parameters
    ----------
    head : sequence of str
    rows : iterable of sequence of str
        A row of one entry is a heading.
    caption : str, default=""
    words : sequence of int, default=()
        Columns that hold text.
    css : callable, default=None
        Class of a cell by its text.
    """

    def of(k: int, text: str) -> str:
        name = "words" if k in words else css(text) if css is not None and k else ""
        return f' class="{name}"' if name else ""

    body = "".join(
        f'<tr class="heading"><th colspan="{len(head)}" scope="rowgroup">{esc(row[0])}</th></tr>'
        if len(row) == 1
        else "<tr>" + "".join(f"<td{of(k, text)}>{esc(text)}</td>" for k, text in enumerate(row)) + "</tr>"
        for row in rows
    )
    columns = "".join(
        f'<th scope="col"{" class=words" if k in words else ""}>{esc(name)}</th>' for k, name in enumerate(head)
    )
    # Not a caption element, which would be as narrow as the table.
    named = paragraph(caption, "faint") if caption else ""
    label = esc(caption or "table")
    inner = f"<thead><tr>{columns}</tr></thead><tbody>{body}</tbody>"
    return f'{named}<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>{inner}</table></div>'


def figure(svg: str, caption: str = "", *, wide: bool = True) -> str:
    """Return a figure; a wide one scrolls where the page is narrow, so that its text stays readable."""
    inner = f'<div class="pan" tabindex="0">{svg}</div>' if wide else svg
    return f"<figure>{inner}<figcaption>{esc(caption)}</figcaption></figure>"


def folded(summary: str, body: str) -> str:
    return f"<details><summary>{esc(summary)}</summary>{body}</details>"
