"""What a stage of tuning reads: conversations, preferences, judged answers, prompts, or documents of the corpus."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tpullm.data import answer_rows, conversations, examples, prompts
from tpullm.data.answer_rows import BAD, GOOD, Pairs
from tpullm.data.batch import Documents
from tpullm.data.conversations import Conversations
from tpullm.data.prompts import Prompts
from tpullm.data.token_store import TokenStore
from tpullm.recipe.schema import PreferenceConfig, Recipe
from tpullm.run import stages
from tpullm.system.errors import UserError
from tpullm.tokenizer import Tokenizer

CONVERSATIONS, PREFERENCES, JUDGED = "conversations", "preferences", "judged"  # beside the names of the sources


@dataclass(frozen=True)
class TuningData:
    """What a stage reads.

    Args:
        read: by source, what is learned.
        weights: by source, its share of the tokens.
        held_out: by source, the examples for evaluation.
    """

    read: dict[str, Documents]
    weights: dict[str, float]
    held_out: dict[str, Documents]

    @property
    def pairs(self) -> list[Pairs]:
        """The preferences or judged answers, learned ones and held-out ones."""
        return [part[kind] for part in (self.read, self.held_out) for kind in (PREFERENCES, JUDGED) if kind in part]

    @property
    def learned(self) -> Conversations | None:
        """The conversations that are learned."""
        return self.read.get(CONVERSATIONS)

    @property
    def largest_token(self) -> int:
        """The largest id in what is learned from a chat template."""
        found = [self.learned.tokens] if self.learned else []
        found += [array for part in self.pairs for array in (part.inputs, part.targets)]
        return max((int(array.max()) for array in found), default=0)

    @property
    def ends(self) -> list[int]:
        """The tokens that an answer ends with."""
        if self.learned is not None:
            tokens, weights = self.learned.tokens, np.append(self.learned.token_weights, 0)
            return np.unique(tokens[(weights[:-1] > 0) & (weights[1:] == 0)]).tolist()
        if not self.pairs:
            return []
        # Answers stand side by side in the targets. Of mismatched ones the end may be cut off.
        part = self.pairs[0]
        last = np.append(part.branches[1:], 0) != part.branches
        return np.unique(part.targets[last & np.isin(part.branches, (GOOD, BAD))]).tolist()


def tuning_data(recipe: Recipe, run: Path, name: str, tokenizer: Tokenizer) -> TuningData:
    """What the stage `name` reads.

    Raises:
        UserError: a file is missing or broken, nothing fits a row, or there is nothing to learn from.
    """
    settings = recipe.finetune[name]
    where, length = f"finetune.{name}", settings.train.sequence_length
    weights = {} if settings.beside else dict(settings.documents)
    read, held_out = documents_of(weights, run, where), {}
    for kind, names, example, tokenize in (
        (CONVERSATIONS, settings.conversations, examples.Conversation, conversations.tokenize),
        (PREFERENCES, settings.preferences, examples.Preference, partial(_preferences, settings.preference)),
        (JUDGED, settings.judged, examples.Judged, partial(_judged, settings.preference)),
    ):
        if kind == CONVERSATIONS and (own := stages.found_conversations(recipe, run, name)):
            names = [*names, str(own)]
        if names:
            weights[kind] = 1 - sum(weights.values()) if kind == CONVERSATIONS else 1.0
            fraction = settings.held_out_fraction
            parts = examples.read(names, example, settings.columns, fraction, recipe.seed, recipe.laws)
            for part, into in zip(parts, (read, held_out), strict=True):
                if part:
                    into[kind] = tokenize(part, tokenizer, length, where)
    if JUDGED in read:
        sorts = {GOOD, BAD} & set(np.unique(read[JUDGED].branches).tolist())
        if len(sorts) == 1:
            raise UserError(
                f"{where}.judged: all answers to learn from are judged {'good' if GOOD in sorts else 'bad'}, and kto "
                "needs both sorts; add the other one"
            )
    if not read:
        raise UserError(
            f"{where}: nothing to learn from; name files of conversations, of preferences, of judged answers or of "
            "prompts, tenki, or sources in `documents`"
        )
    return TuningData(read, {source: weights[source] for source in read}, held_out)


def _preferences(settings: PreferenceConfig, found: list, tokenizer: Tokenizer, length: int, where: str) -> Pairs:
    ids = [(one.group, conversations.preference_ids(one, tokenizer, where)) for one in found]
    return answer_rows.tokenized(ids, settings, length, where)


def _judged(settings: PreferenceConfig, found: list, tokenizer: Tokenizer, length: int, where: str) -> Pairs:
    ids = [(one.group, *conversations.answer_ids(one, one.answer, tokenizer, where), one.good) for one in found]
    return answer_rows.judged(ids, settings, length, where)


def documents_of(sources: Iterable[str], run: Path, where: str) -> dict[str, Documents]:
    """The documents that the stage `where` learns from, by source; `UserError` if there are none of a source."""
    stores: dict[str, Documents] = {}
    for source in sources:
        path = run / "tokens" / source / "train"
        if not path.exists():
            raise UserError(f"{where}.documents: {source} has no documents to learn from; see {run / 'tokens'}")
        stores[source] = TokenStore(path)
    return stores


def prompts_of(recipe: Recipe, name: str, tokenizer: Tokenizer, context: int) -> tuple[Prompts, Prompts | None]:
    """The prompts that the stage `name` answers, to learn from and held out; it raises what `tuning_data` raises.

    Args:
        context: the most tokens that the model reads at once.
    """
    settings = recipe.finetune[name]
    most = min(settings.train.sequence_length, context) - settings.policy.tokens
    fraction = settings.held_out_fraction
    parts = examples.read(settings.prompts, examples.Prompt, settings.columns, fraction, recipe.seed, recipe.laws)
    where = f"finetune.{name}"
    learned, held_out = (prompts.tokenized(part, tokenizer, most, where) if part else None for part in parts)
    if learned is None:
        raise UserError(f"{where}.held_out_fraction: holds out all prompts, so none is left; give less")
    return learned, held_out
