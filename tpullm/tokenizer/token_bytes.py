"""The bytes that each token of a published tokenizer stands for, by the kind of its decoder."""

from tpullm.errors import UserError


def all_bytes(described: dict, ids: dict[str, int], special: set[int], added: set[int], where: str) -> list[bytes]:
    """The bytes of each token, by how the decoder of the tokenizer joins pieces; `UserError` if it is not known."""
    kinds = _decoders(described.get("decoder"))
    if "ByteLevel" in kinds:
        table = _byte_letters()
        of_piece = lambda piece: bytes(table[letter] for letter in piece)  # noqa: E731
    elif {"ByteFallback", "Metaspace"} & kinds:
        of_piece = _of_sentencepiece
    else:
        raise UserError(f"{where}: a decoder of {sorted(kinds)} is not known; known are ByteLevel and Metaspace")
    found = [b""] * (max(ids.values()) + 1)
    for piece, token in ids.items():
        if token not in special:
            try:
                found[token] = piece.encode() if token in added else of_piece(piece)
            except (KeyError, ValueError):  # not written in the letters for bytes, so it stands for itself
                found[token] = piece.encode()
    return found


def _decoders(decoder: dict | None) -> set[str]:
    if not decoder:
        return set()
    return {decoder["type"]}.union(*map(_decoders, decoder.get("decoders", [])))


def _of_sentencepiece(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("\u2581", " ").encode()


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable bytes are their own letters, and the others are U+0100 and onwards."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(rest)}
