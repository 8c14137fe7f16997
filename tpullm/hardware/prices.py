"""What TPU chips cost: the table in `prices.yaml`, which everything that names dollars reads."""

import functools
from importlib import resources
from typing import Any


@functools.cache
def price_list() -> dict[str, Any]:
    """The shipped price file: `date`, `source`, `dollars_per_chip_hour` by generation and kind of price."""
    import yaml

    return yaml.safe_load(resources.files("tpullm.hardware").joinpath("prices.yaml").read_text(encoding="utf-8"))


def chip_hour(generation: str) -> float:
    """Dollars of one chip for an hour, on demand."""
    return price_list()["dollars_per_chip_hour"][generation]["on_demand"]


def said() -> str:
    """What the prices are, for people."""
    return f"list prices on demand of {price_list()['date']}, cloud.google.com/tpu/pricing; spot costs less"
