"""Whether the rights in a document allow its use: what its owner reserves, licences, and what was opted out."""

from tpullm.corpus.document import Raw
from tpullm.corpus.files.reservations import NOAI, NOIMAGEAI, TDM
from tpullm.corpus.filters import licences, opt_outs
from tpullm.corpus.text_hashes import text_hash
from tpullm.recipe.schema import CorpusConfig, Source


def left_out(raw: Raw, text: str, source: Source, config: CorpusConfig) -> str:
    """Why the rights in a document keep it out, as a reason of the data card; "" if the recipe may use it.

    Args:
        raw: the document as a reader found it.
        text: what would be trained on, if cleaning changed it: its hash may be listed too.
        source: its source, whose licence stands where the document has none.
        config: the lists of what is opted out, and of the licences that are allowed.
    """
    if raw.reserved:
        return f"reserved ({raw.reserved})" if raw.reserved in (NOAI, NOIMAGEAI, TDM) else "reserved"
    if config.licences and not licences.is_allowed(raw.licence or source.licence, config.licences):
        return "licence not allowed"
    if not config.opted_out:
        return ""
    listed = opt_outs.load(tuple(config.opted_out))
    return listed.address(raw.url) or (listed.texts(text_hash(found) for found in {raw.text, text}))
