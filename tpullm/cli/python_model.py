"""A trained model from Python: `tpullm.load(MODEL)`, in this process. The command line uses the same functions."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tpullm.cli.python_results import Attention, Blank, Split
from tpullm.engine.generation import ANSWER_TOKENS, answer_questions, stream_tokens
from tpullm.engine.request import whole_characters
from tpullm.engine.session import Session, check_context, load_session, with_adapter
from tpullm.evaluation import scoring
from tpullm.evaluation.blank import fill_blank
from tpullm.recipe.sampling import GREEDY, Sampling, check
from tpullm.recipe.schema import ModelConfig
from tpullm.system.errors import UserError


class LanguageModel:
    """A trained model.

    Args:
        model: a run directory, one of its stages, one checkpoint, a directory in the format of Hugging Face, or a
            GGUF file.

    Attributes:
        tokenizer: has `encode(text)` and `decode(ids)`. A published folder can lack it: `logits` works without it, and
            every function that reads or writes text then raises a `UserError`.

    Raises:
        UserError: `model` names no model, or one that is not supported.
    """

    def __init__(self, model: str | Path):
        self._use(load_session(model, text=False))

    def _use(self, session: Session) -> None:
        self._session, self.tokenizer = session, session.tokenizer

    def with_adapter(self, adapter: str | Path) -> "LanguageModel":
        """This model with an adapter beside it. However many adapters there are, the model is in memory once.

        Args:
            adapter: a stage or a checkpoint that was tuned with an adapter, or a folder in the format of PEFT.

        Raises:
            UserError: it is no adapter, or it is one of another model.
        """
        other = LanguageModel.__new__(LanguageModel)
        other._use(with_adapter(self._session, adapter))
        return other

    @property
    def config(self) -> ModelConfig:
        """The sizes and the kinds of the model's layers."""
        return self._session.architecture.config

    def logits(self, token_ids: np.ndarray) -> np.ndarray:
        """The logits of every next token: `[B, T]` int to `[B, T, V]` float32.

        Raises:
            UserError: the ids are not `[B, T]`, not in the vocabulary, or longer than the context.
        """
        ids = np.asarray(token_ids)
        if ids.ndim != 2 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
            raise UserError(f"logits: token ids are {ids.dtype} {list(ids.shape)}; give integers [B, T]")
        most = self.config.vocabulary_size - 1
        if ids.min() < 0 or ids.max() > most:
            raise UserError(f"logits: token ids run from {ids.min()} to {ids.max()}; use 0 to {most}")
        return scoring.logits(self._session, ids.astype(np.int32))

    def generate(self, text: str, tokens: int = 200, sampling: Sampling = GREEDY, seed: int = 0) -> str:
        """A continuation of the text, without the text itself.

        Args:
            tokens: at most this many new tokens.
            sampling: how to choose; default: always the likeliest token.

        Raises:
            UserError: the text is longer than the context, or empty and the tokenizer has no start token.
        """
        prompt = [*self.tokenizer.begin, *self.tokenizer.encode(text)]
        check_context(self._session, prompt, "text")
        new = stream_tokens(self._session, prompt, tokens, check(sampling), seed)
        return "".join(whole_characters(self.tokenizer, new))

    def answer(self, question: str, tokens: int = ANSWER_TOKENS) -> str:
        """The likeliest answer of a model that was tuned on conversations.

        Raises:
            UserError: the question is longer than the context, or the model has no chat template.
        """
        return answer_questions(self._session, [question], tokens=tokens)[0]

    def blank(self, text: str, truth: Mapping[str, float] | None = None) -> Blank:
        """The words that fit 【?】, with their probabilities. A notebook shows bars.

        Tuning on conversations changes what is likely in plain text, so use the pretrained model.

        Args:
            text: the beginning of a document, with one 【?】.
            truth: probabilities to compare with, such as `tpullm.truth(text)`.

        Raises:
            UserError: there is not exactly one blank, no word was found, or the text is longer than the context.
        """
        return Blank(text, tuple(fill_blank(self._session, text)), truth)

    def attention(self, text: str) -> Attention:
        """How much each token attends to each earlier one. A notebook shows the picture.

        Raises:
            UserError: the text is longer than the context.
        """
        tokens, weights = scoring.attention_weights(self._session, text)
        return Attention(tuple(tokens), weights)

    def split(self, text: str) -> Split:
        """The tokens of a text. A notebook shows them in colours."""
        return Split(tuple(self.tokenizer.pieces(text)))
