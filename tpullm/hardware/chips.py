"""What a chip can do: one table of constants, each with its source.

`fitted` constants are those with which `benchmarks/fit.py` comes nearest to the published runs that are marked `fit` in
`benchmarks/published.yaml`; the errors on the others are in docs/en/planning.md.
"""

from dataclasses import dataclass

from tpullm.hardware.slices import Topology

PAGE = "Google Cloud's page of the generation (docs.cloud.google.com/tpu/docs/v5e, v6e, v5p)"


@dataclass(frozen=True)
class Chip:
    """One device. Bandwidths in bytes a second, efficiencies as shares.

    Args:
        peak_flops: in bfloat16.
        hbm_bytes: what a program may use of its memory.
        hbm_bandwidth: of its memory.
        link_bandwidth: of one link to a neighbour, one way.
        dcn_bandwidth: its share of what a host has to the data center's network, one way.
        host_bandwidth: its share of the way to its host's memory, one way.
        products: what large products reach of the peak.
        grouped: what products with one expert each reach of that.
        kernel: what attention's kernel reaches of the compiler's own schedule of it, or without one, of the peak.
        memory: what element-wise work reaches of the memory's bandwidth.
        links: what collectives reach of the links' bandwidth.
        beside: share of an asynchronous collective's time that is lost all the same.
        crossing: what sums between slices reach of their network's bandwidth.
        latency_seconds: of one hop of a collective.
    """

    peak_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    dcn_bandwidth: float
    host_bandwidth: float
    products: float
    grouped: float
    kernel: float
    memory: float
    links: float
    beside: float
    crossing: float
    latency_seconds: float


# Of each constant: the values of v5e, v6e and v5p, and where they are from.
CONSTANTS = {
    "peak_flops": ((197e12, 918e12, 459e12), PAGE),
    "hbm_bytes": ((15.75 * 2**30, 31.25 * 2**30, 95.74 * 2**30), "the TPU compiler's refusals (libtpu 0.0.50)"),
    "hbm_bandwidth": ((819e9, 1638e9, 2765e9), PAGE),
    "link_bandwidth": ((50e9, 100e9, 100e9), PAGE + ": of a chip, by its ports and both ways"),
    "dcn_bandwidth": ((3.1e9, 6.25e9, 6.25e9), PAGE + ": of a pod or chip"),
    "host_bandwidth": (
        (8e9, 16e9, 16e9),
        "guess; a published run of Llama 3.1 8B on v6e moves 13 GB/s, and nothing waits for it",
    ),
    "products": ((0.95, 0.72, 0.95), "fitted"),
    "grouped": ((0.72, 0.72, 0.72), "fitted"),
    "kernel": ((0.50, 1.0, 0.50), "fitted"),
    "memory": ((0.82, 0.82, 0.82), "fitted"),
    "links": ((0.63, 0.63, 0.63), "fitted"),
    "beside": ((0.41, 0.41, 0.41), "fitted"),
    "crossing": ((0.47, 1.0, 1.0), "fitted"),
    "latency_seconds": ((1e-6, 1e-6, 1e-6), "guess, of the order that is told of TPUs (a microsecond a hop)"),
}
GENERATIONS = ("v5e", "v6e", "v5p")
CHIPS = {
    generation: Chip(**{name: values[n] for name, (values, _) in CONSTANTS.items()})
    for n, generation in enumerate(GENERATIONS)
}


def chip(topology: Topology) -> Chip:
    """The chip of a topology."""
    return CHIPS[topology.generation]
