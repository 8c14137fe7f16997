"""The known GPUs, one entry each, with the source of each figure.

Sources: `sheet` is NVIDIA's data sheet (dense products, one direction of NVLink). `spec` is what XLA's plugin for CUDA
13 has about the GPU to compile for it. `machine` is Google Cloud's page of machines with GPUs
(docs.cloud.google.com/compute/docs/accelerator-optimized-machines). `guess` was measured by nobody here. `fitted` is
explained in `chip.py`; all fitted runs are on A100 and H100, and what they give is taken for the other GPUs too.

Prices are of a whole machine, divided by its GPUs, on demand in US regions, as quoted publicly. Where none is quoted
there is none: give it with --price b200=6.
"""

from tpullm.hardware.chip import Chip, Gpu

# JAX takes this share of a GPU's memory (XLA_PYTHON_CLIENT_MEM_FRACTION). The rest is left for what no program's memory
# counts: CUDA's context, NCCL's buffers, the workspaces of products and of their tuning.
SHARE = 0.75

REACHES = {  # of all but the A100
    "matmul_efficiency": 0.55,  # fitted
    "grouped_efficiency": 0.7,  # guess
    "attention_efficiency": 0.50,  # fitted
    "hbm_efficiency": 0.80,  # fitted
    "link_efficiency": 0.70,  # fitted
    "dcn_efficiency": 0.64,  # fitted
    "overlap_loss": 0.05,  # guess: in compiled programs nearly nothing is waited for
    "latency_seconds": 12e-6,  # guess
    "host_bandwidth": 25e9,  # guess: half of PCI Express 5 with 16 lanes
}

GPUS = {
    "a100": Chip(
        device_kinds=("NVIDIA A100-SXM4-80GB",),
        peak_flops=312e12,  # sheet
        dollars_per_hour={"on_demand": 5.07, "spot": 2.54},  # a2-ultragpu-1g
        memory_gib=80,
        hbm_bytes=SHARE * 85100068864,
        hbm_bandwidth=2039e9,  # sheet
        link_bandwidth=300e9,  # sheet
        dcn_bandwidth=25e9,  # sheet of DGX A100: a card of 200 Gb/s for each GPU; an a2-ultragpu-8g has 12.5 for all
        clock=1.41e9,
        gpu=Gpu((8, 0), 108, 64, 2048, 85100068864, 41943040, 167936),  # spec
        **REACHES | {"matmul_efficiency": 0.67},  # fitted
    ),
    "h100": Chip(
        device_kinds=("NVIDIA H100 80GB HBM3",),
        fp8=True,
        peak_flops=989e12,  # sheet
        dollars_per_hour={"on_demand": 11.06, "spot": 5.53},  # a3-highgpu-8g
        memory_gib=80,
        hbm_bytes=SHARE * 84942979072,
        hbm_bandwidth=3352e9,  # spec
        link_bandwidth=450e9,  # sheet
        dcn_bandwidth=25e9,  # machine: a3-megagpu-8g, 1,600 Gb/s for eight; an a3-highgpu-8g has 800, a DGX H100 3,200
        clock=1.98e9,
        gpu=Gpu((9, 0), 132, 128, 2048, 84942979072, 52428800, 233472),  # spec
        **REACHES,
    ),
    "h200": Chip(
        device_kinds=("NVIDIA H200",),
        fp8=True,
        peak_flops=989e12,  # sheet
        dollars_per_hour={"on_demand": 10.60, "spot": 5.30},  # a3-ultragpu-8g
        memory_gib=141,
        hbm_bytes=SHARE * 151397597184,
        hbm_bandwidth=4800e9,  # spec
        link_bandwidth=450e9,  # sheet
        dcn_bandwidth=50e9,  # machine: a3-ultragpu-8g, 3,200 Gb/s for eight
        clock=1.98e9,
        gpu=Gpu((9, 0), 132, 128, 2048, 151397597184, 52428800, 233472),  # spec
        **REACHES,
    ),
    "b200": Chip(
        device_kinds=("NVIDIA B200",),
        fp8=True,
        peak_flops=2250e12,  # sheet
        memory_gib=180,
        hbm_bytes=SHARE * 191514411008,
        hbm_bandwidth=7672e9,  # spec
        link_bandwidth=900e9,  # sheet
        dcn_bandwidth=50e9,  # machine: a4-highgpu-8g, 3,200 Gb/s for eight
        clock=1.965e9,
        gpu=Gpu((10, 0), 148, 128, 2048, 191514411008, 132644864, 233472),  # spec
        **REACHES,
    ),
    "gb200": Chip(
        device_kinds=("NVIDIA GB200",),
        fp8=True,
        peak_flops=2500e12,  # sheet
        memory_gib=186,
        hbm_bytes=SHARE * 197897748480,
        hbm_bandwidth=7928e9,  # spec
        link_bandwidth=900e9,  # sheet
        dcn_bandwidth=50e9,  # machine: a4x-highgpu-4g, 1,600 Gb/s for four
        clock=2.062e9,
        gpu=Gpu((10, 0), 152, 128, 2048, 197897748480, 135528448, 233472, of_host=(1, 2, 4), domain=18),  # spec
        **REACHES,
    ),
    "l4": Chip(
        device_kinds=("NVIDIA L4",),
        fp8=True,
        peak_flops=121e12,  # sheet
        dollars_per_hour={"on_demand": 0.71, "spot": 0.36},  # g2-standard-4
        memory_gib=24,
        hbm_bytes=SHARE * 23580639232,
        hbm_bandwidth=300e9,  # sheet
        link_bandwidth=16e9,  # guess: PCI Express 4 with 16 lanes, half of it; there is no NVLink
        dcn_bandwidth=1.56e9,  # machine: g2-standard-96, 100 Gb/s for eight
        clock=2.04e9,
        gpu=Gpu((8, 9), 58, 128, 1536, 23580639232, 50331648, 102400),  # sheet: XLA has no spec of it
        ragged_exchange=False,  # see `exchange.has_ragged_all_to_all`
        **REACHES,
    ),
}
