"""An HTML page → a document: its encoding, the wish of its owner, and its main text, made in a child with limits."""

from collections.abc import Sequence

from tpullm.corpus.document import NOT_UTF8, TOO_LARGE, UNREADABLE, Raw
from tpullm.corpus.files import encodings, limited_reading

MOST_PAGE_BYTES = 1 << 26  # Common Crawl cuts pages at 5 MiB; compressed ones can be a thousand times as large
EXTRACT = f"{__name__}:extract"


def read(data: bytes, charset: str = "", headers: Sequence[tuple[str, str]] = ()) -> Raw:
    """The document of one page.

    Args:
        data: its HTML.
        charset: its encoding as the server says.
        headers: of the answer of the server: names and values.
    """
    if len(data) > MOST_PAGE_BYTES:
        return Raw(dropped=TOO_LARGE, problem=f"is a page of more than {MOST_PAGE_BYTES >> 20} MiB")
    page = encodings.decode_html(data, charset)
    if page is None:
        return NOT_UTF8
    try:
        text, reserved = limited_reading.call(EXTRACT, page, [list(header) for header in headers])
    except limited_reading.ReadingError as error:
        return Raw(dropped=UNREADABLE, problem=f"cannot be read ({error})")
    return Raw(encodings.unix_lines(text), reserved=reserved)


def extract(page: str, headers: list) -> list[str]:
    """In the child: the main text of a page, and why its owner does not want it to be trained on."""
    from tpullm.corpus.files import markup, reservations

    return [markup.html_to_text(page), reservations.reserved(page, [(name, value) for name, value in headers])]
