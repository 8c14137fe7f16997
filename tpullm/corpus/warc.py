"""The pages in a WARC file of a web crawl, compressed or not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tpullm.corpus import encodings, markup
from tpullm.corpus.document import NOT_UTF8, Raw
from tpullm.errors import UserError

MOST_PAGE_BYTES = 1 << 26  # Common Crawl cuts pages at 5 MiB; compressed ones can be a thousand times as large


def read(path: Path) -> Iterator[Raw]:
    """The pages of a file in their order; `UserError` if it is broken or cut off."""
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    found = False
    with open(path, "rb") as file:
        records = iter(ArchiveIterator(file))
        while True:
            try:
                record = next(records, None)
            except (ArchiveLoadFailed, AttributeError):  # AttributeError: a header is cut off before its address
                raise _broken_warc(path) from None
            if record is None:
                break
            found = True
            data = record.content_stream().read(MOST_PAGE_BYTES + 1)
            if len(data) > MOST_PAGE_BYTES:
                yield Raw(dropped="a page of more than 64 MiB")
                continue
            if not _is_complete(record):
                raise _broken_warc(path)
            if record.rec_type in ("response", "conversion"):
                yield _record(record, data)
    if not found:
        raise _broken_warc(path)


def _is_complete(record: Any) -> bool:
    """Whether a record is complete: warcio stops silently where the bytes or the header are cut off."""
    announced = record.format == "warc" and record.rec_headers.get_header("Content-Length")
    return bool(announced) and getattr(record.raw_stream, "limit", 0) <= 0


def _broken_warc(path: Path) -> UserError:
    return UserError(f"{path}: is not WARC or is cut off; copy or download it again")


def _record(record: Any, data: bytes) -> Raw:
    """One page of a crawl: a `response` is as the server sent it, a `conversion` is plain text (WET)."""
    if record.rec_type == "conversion":
        text = encodings.decode(data)
        return NOT_UTF8 if text is None else Raw(text)
    content_type = record.http_headers.get_header("Content-Type", "") if record.http_headers else ""
    mime, _, parameters = content_type.partition(";")
    if mime.strip().lower() not in ("text/html", "application/xhtml+xml", ""):
        return Raw(dropped="not a page")
    _, _, charset = parameters.partition("charset=")
    page = encodings.decode_html(data, charset.strip(" \"'"))
    return NOT_UTF8 if page is None else Raw(markup.html_to_text(page))
