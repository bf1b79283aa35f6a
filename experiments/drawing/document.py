"""A report as one HTML file that needs no network: inline CSS and figures as base64."""

import base64
from html import escape
from pathlib import Path

from experiments.drawing.canvas import RESOLUTION, Picture


def document(title: str, body: str) -> str:
    """The whole page around its body (HTML)."""
    css = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def table(names: list[str], rows: list[str], kind: str = "") -> str:
    """A table that scrolls sideways where the page is narrow; names and rows are HTML already."""
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def figure(picture: Picture) -> str:
    """A picture with its caption; the caption alone where there is nothing to draw."""
    caption = f"<figcaption><b>{escape(picture.title)}.</b> {escape(picture.caption)}</figcaption>"
    kind = "wide" if picture.wide else ""
    if picture.png is None:
        return f'<figure class="{kind}">{caption}</figure>\n'
    data = base64.b64encode(picture.png).decode("ascii")
    # Bytes 16 to 24 of a PNG are its width and height; the CSS width keeps wide figures legible on a phone.
    width = int.from_bytes(picture.png[16:20], "big") * 96 // RESOLUTION
    # A curve carries its title itself.
    shown = (
        caption if picture.wide else f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    )
    return (
        f'<figure class="{kind}" style="--natural:{width}px"><div class="plate">'
        f'<img alt="{escape(picture.title)}" loading="lazy" src="data:image/png;base64,{data}"></div>{shown}</figure>\n'
    )
