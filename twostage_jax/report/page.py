"""The report as one self-contained page: no request to anywhere, nothing but text.

Text is escaped by Jinja2. The page's own content security policy allows images in the
page, one style sheet and one script, by their hashes, and nothing else.
"""

import base64
import hashlib
import struct

import jinja2

from twostage_jax.report import figures, formats
from twostage_jax.report.content import Report
from twostage_jax.report.joining import Study
from twostage_jax.report.parts import Picture

# Larger than in print (96 a CSS inch), so that text of 7 pt can be read on a screen.
PIXELS_PER_INCH = 118


def html(report: Report, study: Study) -> str:
    """Returns the page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("twostage_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )

    def source(name: str) -> str:
        return environment.loader.get_source(environment, name)[0]

    colours = "".join(
        f".arm{number} {{ background: {figures.arm_style(arm)['color']}; }}\n"
        for number, arm in enumerate(study.arms)
    )
    style, script = source("page.css") + colours, source("page.js")
    return environment.get_template("page.html.jinja").render(
        report=report,
        arms={arm: number for number, arm in enumerate(study.arms)},
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        text_kinds=formats.TEXT_KINDS,
        show=formats.show,
        sort_key=formats.sort_key,
        kind_of=lambda part: type(part).__name__,
        svg_uri=lambda part: _uri(figures.svg(part.figure), "svg+xml"),
        png_uri=lambda data: _uri(data, "png"),
        width=_width,
        png_width=_png_width,
        narrow=lambda part: _inches(part) <= figures.COLUMN,
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _width(part: Picture) -> int:
    return round(_inches(part) * PIXELS_PER_INCH)


def _png_width(data: bytes) -> int:
    """Returns the width on the page of a PNG file made for print."""
    (pixels,) = struct.unpack(">I", data[16:20])
    return round(pixels / figures.STYLE["savefig.dpi"] * PIXELS_PER_INCH)


def _inches(part: Picture) -> float:
    return float(part.figure.get_size_inches()[0])
