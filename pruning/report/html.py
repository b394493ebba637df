"""Write a report as one HTML page that needs no other file."""

import base64
import html
import re
from collections.abc import Iterator, Mapping, Sequence

from pruning.report.worst import WorstUtterance

LONGEST_UNBROKEN = 30  # letters in a cell of a table

STYLE = """
body { margin: 0 auto; max-width: 75rem; padding: 1rem 2rem 4rem; color: #1b1b1b;
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; background: #fff; }
h1 { font-size: 1.7rem; } h2 { margin-top: 3rem; border-bottom: 2px solid #1b1b1b; }
h3 { margin: 2rem 0 .5rem; } p { max-width: 60rem; } a { color: #0b5394; }
nav { font-size: .9rem; columns: 3; } nav a { display: block; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem;
  font-variant-numeric: tabular-nums; }
th { text-align: left; border-top: 2px solid #1b1b1b; border-bottom: 1px solid #1b1b1b; }
th, td { padding: .25rem .7rem; vertical-align: top; } .n { white-space: nowrap; }
td:first-child { min-width: 11rem; }
tbody tr:hover { background: #f0f4f8; } tbody tr:last-child td { border-bottom: 2px solid #1b1b1b; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { font-size: .85rem; color: #555; }
.utterance { margin: 1rem 0 1.5rem; } .utterance dl { display: grid; margin: .3rem 0;
  grid-template-columns: max-content 1fr; gap: 0 1rem; font-size: .85rem; }
.utterance dd { margin: 0; font-family: "DejaVu Sans Mono", monospace; } audio { height: 2rem; }
"""


def html_page(
    markdown: str,
    images: Mapping[str, bytes],
    worst: Mapping[str, Sequence[WorstUtterance]],
) -> str:
    """Return results.md as a page with its pictures, and with recordings, in it.

    Args:
        markdown: The page, of headings, paragraphs, tables and pictures.
        images: PNG pictures by the names that the page links.
        worst: By title of a section the utterances that are recognised worst; they end it.
    """
    introduction, *sections = re.split(r"^(?=## )", markdown, flags=re.MULTILINE)
    titles = [section.split("\n")[0].removeprefix("## ") for section in sections]
    links = "".join(f'<a href="#{_anchor(title)}">{html.escape(title)}</a>' for title in titles)
    parts = [*_blocks(introduction, images), f"<nav>{links}</nav>"]
    for title, section in zip(titles, sections, strict=True):
        parts += [*_blocks(section, images), *_worst(worst.get(title, ()))]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape('; '.join(titles[:3]) or 'Results')}</title>\n"
        f"<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _blocks(markdown: str, images: Mapping[str, bytes]) -> Iterator[str]:
    """Yield the HTML of each block of Markdown; blank lines are between blocks."""
    for block in re.split(r"\n\s*\n", markdown.strip()):
        yield _block(block.strip(), images)


def _block(text: str, images: Mapping[str, bytes]) -> str:
    if heading := re.fullmatch(r"(#{1,3}) (.+)", text):
        level = len(heading[1])
        title = heading[2]
        return f'<h{level} id="{_anchor(title)}">{_inline(title)}</h{level}>'
    if picture := re.fullmatch(r"!\[(.*)\]\((.+)\)", text):
        content = images.get(picture[2])
        if content is None:
            return f"<p>{html.escape(picture[1])}: {html.escape(picture[2])}</p>"
        caption = html.escape(picture[1])
        image = f'<img src="{_data("image/png", content)}" alt="{caption}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    if text.startswith("| "):
        return _table(text.split("\n"))
    return f"<p>{_inline(text)}</p>"


def _table(lines: Sequence[str]) -> str:
    header, _, *rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]
    head = "".join(f"<th>{_inline(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>\n" for row in rows)
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"
    return f'<div class="table">{table}</div>'


def _cell(value: str) -> str:
    kind = ' class="n"' if len(value) < LONGEST_UNBROKEN else ""
    return f"<td{kind}>{_inline(value)}</td>"


def _inline(text: str) -> str:
    escaped = html.escape(text)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", r'<a href="\2">\1</a>', escaped)


def _worst(utterances: Sequence[WorstUtterance]) -> Iterator[str]:
    if not utterances:
        return
    yield "<h3>Worst utterances</h3>"
    note = (
        "Those of the pruned model with the lowest dev rate at the sparsity of the plots, at its "
        "first seed."
    )
    if any(each.audio for each in utterances):
        note += " The page holds their recordings: mind the licence of the corpus."
    yield f"<p>{note}</p>"
    for each in utterances:
        lines = "".join(
            f"<dt>{html.escape(who)}</dt><dd>{html.escape(text)}</dd>"
            for who, text in each.lines.items()
        )
        audio = ""
        if each.audio:
            source = _data("audio/wav", each.audio)
            audio = f'<audio controls preload="none" src="{source}"></audio>'
        title = f"<b>{html.escape(each.utt_id)}</b>: {each.errors} errors in {each.tokens} tokens"
        yield f'<div class="utterance">{title}<dl>{lines}</dl>{audio}</div>'


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
