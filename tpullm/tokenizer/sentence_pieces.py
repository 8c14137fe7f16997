"""How a SentencePiece model splits a text. A piece that no text has is a special token."""

from tpullm.system.errors import UserError

SPACE = "\u2581"  # SentencePiece writes a space as this character, so the character itself is written as bytes


class SentencePieces:
    """Splits text by a serialized SentencePiece model.

    Attributes:
        bytes: the UTF-8 bytes of each token; none for a special token.
        names: how each token is shown: its text, `<0x..>` for a byte token, or the name of a special token.
    """

    def __init__(self, model: bytes, name: str):
        """Load the model.

        Args:
            model: the file of the model.
            name: what an error calls it.

        Raises:
            UserError: it is no model of SentencePiece, or it has no tokens for single bytes, or none for a space.
        """
        import sentencepiece

        try:
            if not model:
                raise RuntimeError("empty")
            self._processor = processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise UserError(f"{name}: not a SentencePiece model; remove it and run `tpullm tokenize` again") from None
        missing = [] if processor.is_byte(self._byte_id(0)) else ["bytes"]
        missing += ["space"] if processor.is_unknown(processor.piece_to_id(SPACE)) else []
        if missing:
            raise UserError(f"{name}: not a tokenizer of tpullm (it has no {' '.join(missing)}); make it again")
        self.bytes = list(map(self._bytes_of, range(len(processor))))
        is_text = [held and not processor.is_byte(token) for token, held in enumerate(self.bytes)]
        self.names = [self.bytes[n].decode() if text else processor.id_to_piece(n) for n, text in enumerate(is_text)]
        self._newline = processor.piece_to_id("\n")
        self._space_bytes = [self._byte_id(byte) for byte in SPACE.encode()]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. The ids of a line depend on that line alone: no piece spans its end."""
        ids = []
        for line in text.split("\n"):
            for number, part in enumerate(line.split(SPACE)):
                ids += self._space_bytes if number else []
                ids += self._processor.encode(part)
            ids.append(self._newline)
        return ids[:-1]

    def serialized(self) -> bytes:
        """The SentencePiece model."""
        return self._processor.serialized_model_proto()

    def _byte_id(self, byte: int) -> int:
        return self._processor.piece_to_id(f"<0x{byte:02X}>")

    def _bytes_of(self, token: int) -> bytes:
        if self._processor.is_byte(token):
            return bytes([int(self._processor.id_to_piece(token)[3:5], 16)])
        if self._processor.is_control(token) or self._processor.is_unknown(token):
            return b""
        return self._processor.id_to_piece(token).replace(SPACE, " ").encode()
