"""Files of desktops with the structure that their programs write, for tests; and how a source reads them."""

import zipfile

from tpullm.corpus.files import readers, source_files
from tpullm.recipe.schema import Source

WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile full-path="O/book.opf"/>'
    "</rootfiles></container>"
)


def package(path, parts, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, text in parts.items():
            file.writestr(name, text)
    return path


def docx(path, body, head="", **parts):
    text = f"{head}<w:document {WORD}><w:body>{body}</w:body></w:document>"
    return package(path, {"word/document.xml": text, **parts})


def paragraph(text):
    return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"


def pdf(path, pages):
    """A PDF (ISO 32000-1, 7.5) whose pages have these lines of ASCII."""
    objects = ["<</Type/Catalog/Pages 2 0 R>>", "", "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    for lines in pages:
        shown = " ".join(f"({line}) Tj T*" for line in lines)
        content = f"BT /F 10 Tf 14 TL 50 750 Td {shown} ET"
        has = f"/Resources<</Font<</F 3 0 R>>>>/Contents {len(objects) + 2} 0 R"
        page = f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]{has}>>"
        objects += [page, f"<</Length {len(content)}>>stream\n{content}\nendstream"]
    kids = " ".join(f"{number} 0 R" for number in range(4, len(objects) + 1, 2))
    objects[1] = f"<</Type/Pages/Count {len(pages)}/Kids[{kids}]>>"
    data, places = "%PDF-1.4\n", []
    for number, text in enumerate(objects, 1):
        places.append(len(data))
        data += f"{number} 0 obj\n{text}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    data += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer<</Size {len(objects) + 1}/Root 1 0 R>>\n"
    path.write_bytes(f"{data}startxref\n{data.index('xref')}\n%%EOF\n".encode("latin-1"))
    return path


def read(path, **settings):
    """All documents of a file or a folder, as a source of kind `files` reads them."""
    source = Source("s", "files", str(path), **settings)
    return [raw for file in source_files.find(source, path.parent).files for raw in readers.read(file, source)]
