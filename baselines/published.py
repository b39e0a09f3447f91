"""Tables published with DiffServe (Ahmad et al., MLSys 2025, and its artifact): latency and quality of three cascades.

Cascade 1 is SD-Turbo → SD 1.5, 2 is SDXS → SD 1.5 and 3 is SDXL-Lightning (2 steps) → SDXL, on an A100-80G. The
artifact gives cascade 3 the deferral table of cascade 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from weir.core import DeferralCurve, LatencyProfile
from weir.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Cascade:
    """One published cascade.

    Attributes:
        light, heavy: seconds per batch, without the discriminator. Batch sizes that ran out of memory are left out.
        discriminator_s: seconds that the discriminator adds to a light batch; the artifact's simulation sleeps 20 ms.
        deferral: F(t) on the grid t = 0, 0.005, …, 1, of the mean confidence of four images per prompt.
        fid: FID at light shares 0, 0.1, …, 1; smaller is better.
        slo_s: deadline of the experiments, seconds.
        models: names of the light and of the heavy variant.
        static: (threshold, light GPUs, heavy GPUs, light batch, heavy batch) of DiffServe-Static on 16 GPUs.
    """

    name: str
    light: LatencyProfile
    heavy: LatencyProfile
    deferral: DeferralCurve
    fid: tuple[float, ...]
    slo_s: float
    static: tuple[float, int, int, int, int]
    models: tuple[str, str] = ("light", "heavy")
    discriminator_s: float = 0.02


def _deferral(thousandths: tuple[int, ...]) -> DeferralCurve:
    """Builds the curve on 201 points from its first entries; every later entry is 1."""
    shares = (*(n / 1000 for n in thousandths), *([1.0] * (201 - len(thousandths))))
    return DeferralCurve(tuple(k / 200 for k in range(201)), shares)


# fmt: off
_SD_TURBO_DEFERRAL = _deferral((
    0, 143, 200, 233, 260, 287, 306, 321, 333, 348, 360, 371, 384, 392, 403, 409, 416, 425, 433, 441,
    449, 455, 462, 469, 477, 483, 489, 497, 503, 509, 514, 519, 524, 533, 539, 545, 552, 561, 567, 573,
    582, 589, 596, 602, 608, 618, 630, 640, 652, 665, 690, 711, 722, 734, 745, 755, 764, 771, 779, 784,
    788, 793, 799, 804, 810, 816, 821, 825, 828, 833, 837, 842, 847, 850, 855, 859, 862, 866, 870, 874,
    878, 882, 888, 892, 898, 901, 906, 909, 913, 918, 922, 926, 930, 939, 944, 952, 957, 964, 972, 983,
    993, 996, 997, 998, 999, 999, 999, 999, 999, 999, 999, 999,
))
_SDXS_DEFERRAL = _deferral((
    0, 37, 68, 93, 115, 134, 152, 169, 189, 202, 215, 226, 239, 250, 261, 272, 282, 291, 300, 309,
    321, 329, 337, 346, 355, 365, 374, 386, 396, 405, 413, 422, 428, 437, 444, 452, 461, 469, 476, 487,
    497, 505, 516, 525, 535, 547, 559, 572, 584, 601, 616, 631, 644, 656, 666, 672, 680, 691, 699, 706,
    715, 724, 732, 740, 747, 753, 760, 764, 771, 779, 784, 790, 794, 801, 810, 815, 821, 826, 834, 840,
    846, 850, 856, 862, 868, 875, 883, 889, 896, 902, 908, 914, 922, 930, 937, 946, 956, 967, 977, 987,
    999, 1000,
))
# fmt: on

_SIZES = (1, 2, 4, 8, 16, 32)
_SD15 = LatencyProfile(_SIZES, (1.780, 2.160, 3.680, 6.790, 12.880, 25.350))

CASCADES = {
    "diffserve-1": Cascade(
        "diffserve-1",
        models=("sd-turbo", "sd-1.5"),
        light=LatencyProfile(_SIZES, (0.100, 0.150, 0.220, 0.410, 0.770, 1.560)),
        heavy=_SD15,
        deferral=_SD_TURBO_DEFERRAL,
        fid=(18.55, 17.85, 17.33, 16.98, 16.79, 16.95, 17.26, 17.95, 18.86, 20.17, 22.77),
        slo_s=5.0,
        static=(0.02, 4, 12, 16, 4),
    ),
    "diffserve-2": Cascade(
        "diffserve-2",
        models=("sdxs", "sd-1.5"),
        light=LatencyProfile(_SIZES, (0.050, 0.060, 0.080, 0.130, 0.240, 0.480)),
        heavy=_SD15,
        deferral=_SDXS_DEFERRAL,
        fid=(18.55, 17.68, 17.08, 16.97, 17.13, 17.58, 18.21, 19.23, 20.54, 22.34, 24.86),
        slo_s=5.0,
        static=(0.12, 2, 14, 32, 4),
    ),
    "diffserve-3": Cascade(
        "diffserve-3",
        models=("sdxl-lightning", "sdxl"),
        light=LatencyProfile(_SIZES[:5], (0.550, 0.980, 1.850, 3.580, 7.100)),
        heavy=LatencyProfile(_SIZES[:5], (6.100, 10.650, 20.920, 40.230, 79.110)),
        deferral=_SDXS_DEFERRAL,
        fid=(23.31, 23.14, 23.27, 23.67, 24.42, 25.33, 26.34, 27.53, 29.27, 31.01, 33.27),
        slo_s=15.0,
        static=(0.02, 9, 7, 4, 2),
    ),
}


def cascade(name: str) -> Cascade:
    """Returns a published cascade by name.

    Raises:
        ConfigError: the name is unknown; the message lists the known ones.
    """
    try:
        return CASCADES[name]
    except KeyError:
        raise ConfigError(f"family is {name!r}; published ones: {', '.join(CASCADES)}") from None
