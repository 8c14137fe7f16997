"""Pages by the jinja2 templates in `templates/` of a package; a page is one document that loads nothing else.

A template gets `text`, the language of the page, and `_NAMES`. Its sentences are `text("...", name=value)` as in
Python, and `tests/report/test_language.py` reads them from the templates too. What is not markup is escaped.
"""

import base64
import functools
import hashlib
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tpullm import __version__
from tpullm.report import charts, html
from tpullm.report.language import Language
from tpullm.system import words

_NAMES = {
    "BLANK": "【?】",
    "version": __version__,
    "clip": lambda text, most: text[:most] + "…" if len(text) > most else text,
    **{name: getattr(html, name) for name in ("phrase", "mixed")},
    **{name: getattr(words, name) for name in ("count", "percent", "probability", "relative", "three_decimals")},
    **{name: getattr(charts, name) for name in ("Line", "line_chart", "heat_map", "likeliest")},
}


def page_style() -> Markup:
    """The style sheet of a page."""
    return Markup("".join(map(source, ("colours.css", "style.css", "attention.css"))))


def page_script(live: bool = False) -> Markup:
    """The script of a page with charts; `live`: of one that grows."""
    attention = f'document.querySelectorAll(".attention").forEach({source("attention.js").rstrip()});\n'
    return Markup(source("charts.js") + attention + source("live.js") * live)


def policy_hash(content: str) -> str:
    """A script or a style sheet as a content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


@functools.cache
def environment(package: str = "tpullm.report") -> Environment:
    """The templates of a package, with what each of them may call."""
    made = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.do"],
    )
    made.globals |= _NAMES | {"page_style": page_style, "page_script": page_script}
    return made


def render(template: str, text: Language, package: str = "tpullm.report", **values: Any) -> Markup:
    """What a template makes of some values; the same values give the same text."""
    return Markup(environment(package).get_template(template).render(text=text, **values))


def source(name: str, package: str = "tpullm.report") -> str:
    """A file beside the templates as it stands, such as `colours.css`: the colours of all pages, light and dark."""
    return environment(package).loader.get_source(environment(package), name)[0]
