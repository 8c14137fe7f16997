"""Settings of step 5: the stages of tuning, each from the model of the one before."""

from dataclasses import dataclass, field

from tpullm.recipe.schema.training_settings import TrainConfig


@dataclass(frozen=True)
class AdapterConfig:
    """A low-rank adapter: small matrices beside those of the model, which alone are trained (LoRA, Hu et al. 2021).

    Args:
        rank: width of the adapter (R). 0 is no adapter: all parameters are trained.
        alpha: its scale is alpha / rank. 0 is twice the rank.
        root_scale: scale by alpha / sqrt(rank) instead. So ranks of any size learn alike (rsLoRA, Kalajdzievski 2023).
        magnitude: learn the length of each output apart from its direction. DoRA (Liu et al. 2024). Of experts it is
            not learned.
        targets: matrices that get an adapter. Of attention: query, key, value, out; of an MLP or its experts: gate, up,
            down; and router.
        b_learning_rate: learning rate of the second matrix, as a multiple of that of the first. LoRA+ (Hayou et al.
            2024) has 16.
        start: an adapter to go on with: a folder in the format of PEFT. Its rank, scale, kind and targets are used.
    """

    rank: int = 0
    alpha: float = 0.0
    root_scale: bool = False
    magnitude: bool = False
    targets: tuple[str, ...] = ("query", "key", "value", "out", "gate", "up", "down")
    b_learning_rate: float = 1.0
    start: str = ""

    @property
    def scale(self) -> float:
        """The factor on what the adapter adds."""
        return (self.alpha or 2 * self.rank) / (self.rank**0.5 if self.root_scale else self.rank)


@dataclass(frozen=True)
class TuningConfig:
    """A stage of step 5: it learns from conversations, from documents, or from both mixed.

    Args:
        conversations: files of conversations, JSON Lines. A line is `{"messages": [{"role", "content"}]}`. `tenki`
            stands for the built-in questions, and `law`, `medicine` and `programming` for those of the domains.
        documents: sources of `corpus`, and their shares of the tokens. Such as {law: 0.8, general: 0.2}. Beside
            conversations, which take the rest, a little old text keeps a model from forgetting.
        chat_template: a Jinja file that formats conversations. For a `base` that has no chat template.
        held_out_fraction: share of the conversations kept for evaluation. They are chosen by hash.
        adapter: train a low-rank adapter, and leave the parameters of the model as they are.
        train: the training.
    """

    conversations: list[str] = field(default_factory=list)
    documents: dict[str, float] = field(default_factory=dict)
    chat_template: str = ""
    held_out_fraction: float = 0.2
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
