"""A model as EleutherAI's lm-evaluation-harness asks one (Gao et al. 2021): text in, the harness's three requests.

Text becomes tokens as the harness's own `hf` model makes them of an exported model, so the numbers of both are equal.
Only imported where the package `lm_eval` is needed.
"""

import functools
from collections import Counter
from collections.abc import Sequence

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from tpullm.evaluation.likelihoods import Continuation
from tpullm.evaluation.measured_model import MeasuredModel, Writing
from tpullm.recipe.sampling import GREEDY, Sampling
from tpullm.system.errors import UserError

KEPT_TEXTS = 4096  # whose ids are kept: the choices of a question, and questions with the same examples, follow closely


class HarnessModel(TemplateLM):
    """Answers the harness by a `MeasuredModel`.

    Args:
        model: the model.
        name: what it is called in results.
        seed: of sampling, for tasks that ask for it.
    """

    def __init__(self, model: MeasuredModel, name: str, seed: int = 0):
        super().__init__()
        self._model, self._name, self._seed = model, name, seed
        tokenizer = self._texts = model.session.tokenizer
        named = getattr(tokenizer, "named_end", None)  # of a published model, the files may name several
        self._end = tokenizer.eos_id if named is None else named
        self.tok_encode = functools.lru_cache(KEPT_TEXTS)(self._ids)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._end

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that stands alone."""
        return self._end if self._texts.bos_id is None else self._texts.bos_id

    @property
    def max_length(self) -> int:
        """The tokens that the model reads at once."""
        return self._model.session.context_length

    @property
    def tokenizer_name(self) -> str:
        """What results are told apart by."""
        return self._name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """The ids of a text, after the token that begins one unless the text has it or `add_special_tokens` is False.

        The names of special tokens in it are these tokens: that is how chat templates arrive here.
        """
        raise NotImplementedError  # the one of each object keeps what it encoded

    def _ids(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        ids = self._texts.encode_marked(string)
        begins = ids[:1] == [self.prefix_token_id] and add_special_tokens is None
        return ids if begins or add_special_tokens is False else [*self._texts.begin, *ids]

    def _loglikelihood_tokens(self, requests, **_) -> list[tuple[float, bool]]:
        for texts, _, continuation in requests:
            if not continuation:
                raise UserError(
                    f"{texts[0][-40:]!r} and {texts[1][:40]!r}: the tokenizer joins them, so the second has no token "
                    "of its own; in the task's YAML, end the first with a space or a line"
                )
        asked = [Continuation(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        return [tuple(found) for found in self._model.likelihoods(asked)]

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, in windows of the context that do not overlap."""
        asked, owners = [], []
        for number, request in enumerate(requests):
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            for context, continuation in map(make_disjoint_window, windows):
                asked.append(Continuation(tuple(context), tuple(continuation)))
                owners.append(number)
        sums = [0.0] * len(requests)
        for number, found in zip(owners, self._model.likelihoods(asked), strict=True):
            sums[number] += found.log_probability
        return sums

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to the texts that the task names."""
        times: Counter = Counter()
        asked = []
        for request in requests:
            context, settings = request.args
            settings = normalize_gen_kwargs(settings)
            sampling = _sampling(settings)
            stops = handle_stop_sequences(settings["until"], self._texts.piece(self._end))
            # One that is asked several times is answered by several seeds.
            seed = self._seed + times[context] if sampling.temperature else 0
            times[context] += 1
            ids = tuple(self.tok_encode(context))
            asked.append(Writing(ids, settings["max_gen_toks"], tuple(stops), sampling, seed))
        return self._model.written(asked)

    def apply_chat_template(self, chat_history: Sequence[dict], add_generation_prompt: bool = True) -> str:
        """A conversation as text: up to where the model answers, or to the end of what it began to say."""
        if add_generation_prompt:
            return self._texts.prompt_text(chat_history)
        return self._texts.prompt_text(chat_history[:-1]) + chat_history[-1]["content"]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template, for the results."""
        return getattr(self._texts, "template", None) or self._name


def _sampling(settings: dict) -> Sampling:
    """How a task wants tokens to be chosen."""
    if not settings["do_sample"] or not settings.get("temperature"):
        return GREEDY
    return Sampling(
        float(settings["temperature"]),
        int(settings.get("top_k") or 0),
        float(settings.get("top_p") or 1.0),
        float(settings.get("min_p") or 0.0),
    )
