"""HTML and Markdown → plain text."""

import logging
import re

FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
HTML_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


def html_to_text(page: str) -> str:
    """The main text of an HTML page without menus (trafilatura, Barbaresi 2021), or all its text if that is empty."""
    # Only the extractor of datatrove is called: its sandbox would start one more process per worker.
    from datatrove.pipeline.extractors import Trafilatura
    from trafilatura import html2txt

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it logs an error for each page without a main text
    if "<body" not in page.lower():  # a fragment: trafilatura reads whole pages only
        page = f"<html><body>{page}</body></html>"
    text = Trafilatura(favour_precision=False, deduplicate=False).extract(page)
    return text or html2txt(page) or ""


def markdown_to_text(source: str) -> str:
    """Markdown without front matter and comments. The rest stays, since people write text so."""
    return HTML_COMMENT.sub("", FRONT_MATTER.sub("", source))
