"""What the owner of a page says about its use: reservations in HTTP headers and in the page itself."""

from collections.abc import Sequence


def reserved(page: str, headers: Sequence[tuple[str, str]] = ()) -> str:
    """Why a page may not be trained on; "" if nothing says so.

    Args:
        page: its HTML.
        headers: of the answer of its server: names and values.
    """
    return ""
