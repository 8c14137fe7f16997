"""The settings of sampling, and their command line options. Without JAX, so that `--help` is quick."""

from dataclasses import dataclass

from tpullm.system.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The numbers are traced, so one compiled program serves all settings.

    Args:
        temperature: divides the logits; 0 always takes the likeliest token.
        top_k: keep only the k likeliest tokens; 0 keeps all.
        top_p: keep only the likeliest tokens that together have this probability (Holtzman et al. 2020).
        min_p: keep only tokens with at least this share of the likeliest token's probability (Nguyen et al. 2024).
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.05


GREEDY = Sampling(temperature=0.0)


def check(sampling: Sampling) -> Sampling:
    """Refuse values out of range; `UserError` names the option."""
    if sampling.temperature < 0:
        raise UserError(f"--temperature: {sampling.temperature} is below 0; use 0 for the likeliest token, or more")
    if sampling.top_k < 0:
        raise UserError(f"--top-k: {sampling.top_k} is below 0; use 0 for all tokens")
    if not 0 < sampling.top_p <= 1:
        raise UserError(f"--top-p: {sampling.top_p} is not a share above 0 and up to 1; use 1 for all tokens")
    if not 0 <= sampling.min_p <= 1:
        raise UserError(f"--min-p: {sampling.min_p} is not a share from 0 to 1; use 0 for all tokens")
    return sampling


HELP = {
    "temperature": "randomness; 0 always takes the likeliest token",
    "top_k": "choose among the k likeliest tokens; 0: among all",
    "top_p": "choose among the likeliest tokens that together have this probability",
    "min_p": "choose among tokens with at least this share of the likeliest token's probability",
}


def add_options(parser, defaults: Sampling) -> None:
    """The options of a verb that generates: --temperature, --top-k, --top-p, --min-p."""
    for name, words in HELP.items():
        default = getattr(defaults, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=words)


def from_options(arguments) -> Sampling:
    """The checked values of the options of `add_options`. It also checks `--seed`."""
    if not 0 <= arguments.seed < 2**31:
        raise UserError(f"--seed: {arguments.seed} is not from 0 to 2147483647; use such a number")
    return check(Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.min_p))
