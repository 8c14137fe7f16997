"""Which kind a file is: by its extension, or without one by its first bytes; and what to do with one that is not read.

An extension of letters is believed. `notes`, `README` and `chapter.12` have none, and a text may be an exported chat:
of these the first bytes decide.
"""

import re

from tpullm.corpus.files import encodings

EXTENSIONS = {
    "text": (".txt", ".text", ".rst"),
    "markdown": (".md", ".markdown"),
    "html": (".html", ".htm", ".xhtml"),
    "jsonl": (".jsonl", ".ndjson"),
    "parquet": (".parquet",),
    "warc": (".warc", ".wet"),
    "code": (
        ".py .pyi .js .mjs .jsx .ts .tsx .java .kt .scala .c .h .cc .cpp .cxx .hpp .cu .cs .go .rs .rb .php .swift .sh "
        ".bash .sql .r .jl .lua .pl .pm .hs .ml .ex .exs .erl .clj .dart .zig .vim .el .lisp .scm .css .scss .proto"
    ).split(),
}
# What `files` reads beside these, and no source of one kind. `zip` is a folder.
DESKTOP = {
    "text": (".log", ".tex", ".org", ".adoc"),
    "docx": (".docx", ".docm"),
    "odt": (".odt", ".odp", ".ott"),
    "pptx": (".pptx", ".pptm"),
    "epub": (".epub",),
    "pdf": (".pdf",),
    "rtf": (".rtf",),
    "csv": (".csv", ".tsv"),
    "sheet": (".xlsx", ".xlsm", ".xls", ".xlsb", ".ods"),
    "eml": (".eml",),
    "mbox": (".mbox",),
    "ipynb": (".ipynb",),
    "subtitles": (".srt", ".vtt"),
    "json": (".json",),
    "zip": (".zip",),
}
KINDS = {one: kind for table in (EXTENSIONS, DESKTOP) for kind, extensions in table.items() for one in extensions}
# What else a source of one kind reads: Dolma and C4 have JSON Lines in `.json.gz`. A law says itself what it is.
ALSO = {"jsonl": (".json",), "law": (".xml", ".json", ".txt")}
# How many bytes of a file there are for a byte of its text, about: the rest is pictures, fonts and marks.
BYTES_PER_TEXT = {"pdf": 16, "docx": 8, "pptx": 32, "odt": 8, "epub": 2, "ipynb": 2, "eml": 2, "mbox": 2}
COMPRESSED = (".gz", ".bz2", ".zst", ".xz")
HEAD_BYTES = 4096

_IMAGE = "a picture has no text; tesseract IMAGE TEXT reads one"
_SOUND = "a recording has no text; whisper RECORDING writes subtitles"
_ARCHIVE = "unpack it, and name the folder"
_DATABASE = "export it as .csv or .jsonl"
WAYS_OUT = {
    ".doc": "save it as .docx: soffice --headless --convert-to docx FILE",
    ".ppt": "save it as .pptx: soffice --headless --convert-to pptx FILE",
    **dict.fromkeys(".pages .numbers .key .wpd .hwp .jtd .vsd .one".split(), "export it as .docx or .pdf"),
    **dict.fromkeys((".mobi", ".azw", ".azw3", ".fb2", ".lit"), "convert it with Calibre: ebook-convert IN OUT.epub"),
    **dict.fromkeys((".djvu", ".djv"), "djvutxt IN OUT.txt takes its text out"),
    **dict.fromkeys((".ps", ".eps"), "ps2pdf IN OUT.pdf makes a PDF of it"),
    ".msg": "save it as .eml",
    ".pst": "readpst IN makes mailboxes of it",
    **dict.fromkeys(".tar .tgz .tbz .txz .7z .rar .lzh .lha .cab .iso .dmg".split(), _ARCHIVE),
    **dict.fromkeys(".db .sqlite .sqlite3 .mdb .accdb .dbf".split(), _DATABASE),
    **dict.fromkeys(".png .jpg .jpeg .gif .bmp .tif .tiff .webp .heic .svg .ico .psd .ai".split(), _IMAGE),
    **dict.fromkeys(".mp3 .m4a .wav .flac .ogg .mp4 .mov .avi .mkv .webm .wma .wmv".split(), _SOUND),
}
SAVE_AS = "save its text as .txt"

_MAGIC = {
    b"%PDF-": "pdf",
    b"{\\rtf": "rtf",
    b"PK\3\4": "zip",
    b"PAR1": "parquet",
    b"WARC/": "warc",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "sheet",  # OLE: an old workbook, or an old document, which it refuses
}
# In the first bytes of a zip file: the names of its first parts, and the type that OpenDocument and EPUB begin with.
_IN_ZIP = {
    b"mimetypeapplication/epub": "epub",
    b"opendocument.spreadsheet": "sheet",
    b"mimetypeapplication/vnd.oasis.opendocument": "odt",
    b"word/": "docx",
    b"xl/": "sheet",
    b"ppt/": "pptx",
}
_CONTROL = re.compile(b"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_HEADER = rb"(?:Return-Path|Received|Delivered-To|From|To|Subject|Date|Message-ID|MIME-Version|X-[\w-]+):[ \t].*\n"
_FIRST_LINES = {
    "mbox": re.compile(rb"From \S+ .*\d{4}\s*\n"),
    "eml": re.compile(rb"(?i)(?:" + _HEADER + rb"(?:[ \t].*\n)*){2}"),
    "html": re.compile(rb"(?i)\s*(?:<!--.{0,500}?-->\s*)?(?:<!doctype html|<html)", re.DOTALL),
    "ipynb": re.compile(rb"\s*\{\s*\"cells\":"),
    "json": re.compile(rb"\s*(?:\[\s*)?\{\s*\"(?:.|\n)*"),
    "subtitles": re.compile(rb"(?:\xef\xbb\xbf)?(?:WEBVTT\b|\s*1\r?\n(?:\d\d:)?\d\d:\d\d[,.]\d+ -->)"),
}
LINE = re.compile(r"\ufeff?\[LINE\] ")
# A message of WhatsApp: `[01/05/2024, 12:30:15] name: text` of iOS, `01/05/2024, 12:30 - name: text` of Android, with
# the date of any country.
_DATE = r"(?:\d{4}[/.]\d{1,2}[/.]\d{1,2}|\d{1,2}[/.-]\d{1,2}[/.-]\d{2,4})"
_CLOCK = r"\d{1,2}[:.]\d{2}(?:[:.]\d{2})?(?:[ \u202f\u00a0]?[AaPp]\.?[ \u00a0]?[Mm]\.?)?"
WHATSAPP = re.compile(rf"\u200e?(?:\[({_DATE}),? {_CLOCK}\]|({_DATE}),? {_CLOCK} [-–]) (.*)", re.DOTALL)


def of_content(head: bytes) -> str:
    """The kind of a file without an extension, by its first bytes; "" if it is no text that is read."""
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")
    if kind == "zip":
        return next((kind for name, kind in _IN_ZIP.items() if name in head), "zip")
    if kind:
        return kind
    if head[:2] in encodings.BYTE_ORDER_MARKS:
        return "text"
    if len(_CONTROL.findall(head)) > len(head) / 1000:
        return ""
    kind = next((kind for kind, pattern in _FIRST_LINES.items() if pattern.match(head)), "")
    return kind or of_text(head)


def of_text(head: bytes) -> str:
    """The kind of a text: an exported chat of LINE or WhatsApp, or plain text."""
    text = head.decode("utf-16" if head[:2] in encodings.BYTE_ORDER_MARKS else "utf-8", "replace")
    first = text.lstrip("\ufeff \r\n").partition("\n")[0].rstrip("\r")
    return "line" if LINE.match(text) else "whatsapp" if WHATSAPP.fullmatch(first) else "text"


def is_believed(extension: str) -> bool:
    """Whether an extension says what a file is: it has letters, and is not a part of a sentence."""
    return bool(re.fullmatch(r"\.[a-z][a-z0-9_+-]{0,11}", extension))


def way_out(extension: str) -> str:
    """What to do with a file that is not read."""
    return WAYS_OUT.get(extension, SAVE_AS)


def known_extensions(kind: str) -> list[str]:
    """The extensions of a kind, those of text first."""
    return [*KINDS] if kind == "files" else [*EXTENSIONS.get(kind, ()), *ALSO.get(kind, ())]


def of_extension(extension: str, source_kind: str) -> str:
    """The kind that a source reads a file as; "" if it does not read it."""
    if extension in ALSO.get(source_kind, ()):
        return source_kind
    kind = KINDS.get(extension, "")
    in_one_kind = EXTENSIONS.get(source_kind, ())
    return kind if source_kind == "files" or extension in in_one_kind else ""
