"""The settings of sampling: the least and the most of each is allowed, and nothing beyond."""

from types import SimpleNamespace

import pytest

from tpullm.recipe.sampling import Sampling, check, from_options
from tpullm.system.errors import UserError


@pytest.mark.parametrize(
    ("option", "allowed", "refused"),
    [
        ("temperature", (0.0, 9.0), (-0.1,)),
        ("top_k", (0, 9), (-1,)),
        ("top_p", (0.01, 1.0), (0.0, 1.01)),
        ("min_p", (0.0, 1.0), (-0.01, 1.01)),
    ],
)
def test_the_bounds_of_an_option(option, allowed, refused):
    for value in allowed:
        assert getattr(check(Sampling(**{option: value})), option) == value
    for value in refused:
        with pytest.raises(UserError, match=f"--{option.replace('_', '-')}: {value} is"):
            check(Sampling(**{option: value}))


def test_the_bounds_of_a_seed():
    options = SimpleNamespace(temperature=0.5, top_k=0, top_p=1.0, min_p=0.0)
    for options.seed in (0, 2**31 - 1):
        assert from_options(options).temperature == 0.5
    for options.seed in (-1, 2**31):
        with pytest.raises(UserError, match=f"--seed: {options.seed} is not from 0 to 2147483647"):
            from_options(options)
