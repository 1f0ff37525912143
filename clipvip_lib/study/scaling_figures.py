"""The figure of scaling on paper: which resource is the bottleneck at how many GPUs, and when a data loader starves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from clipvip_lib.errors import ClipVipError
from clipvip_lib.scaling import StepTime
from clipvip_lib.study.figures import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# resource: (colour, line, how it is called)
LOOKS = {
    "decode": ("orange", "-", "decode the clips"),
    "packed": ("ochre", "--", "decode packed clips"),
    "read": ("purple", ":", "read the clips"),
    "all_reduce": ("green", "-.", "all-reduce gradients"),
    "computing": ("blue", "-", "compute"),
}
SERIES = (("blue", "o"), ("orange", "s"), ("green", "^"), ("purple", "D"))


def walls_and_waits(
    steps: Mapping[int, StepTime],
    packed: Mapping[int, StepTime],
    steps_an_epoch: float,
    ratios: Sequence[float],
    fluid: Sequence[float],
    waits: Mapping[str, Sequence[float]],
) -> Figure:
    """Two panels: hours of an epoch if one resource were all, by GPUs; share of time that a GPU waits for data.

    steps, packed: by number of GPUs, the step as it is and with packed clips. ratios: decoded over consumed clips per
    second; fluid: the formula's waiting at these; waits: the simulation's, by the name of the series, at most four.
    Raises ClipVipError if series and ratios are not of one length, or there are more series than marks.
    """
    import matplotlib.pyplot as plt

    if any(len(series) != len(ratios) for series in (fluid, *waits.values())) or len(waits) > len(SERIES):
        raise ClipVipError(
            f"expected at most {len(SERIES)} series of {len(ratios)} values as there are ratios, got "
            f"{ {name: len(series) for name, series in waits.items()} } and {len(fluid)}"
        )
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.9))
    gpus = list(steps)
    for name, (colour, line, label) in LOOKS.items():
        source, field = (packed, "decode") if name == "packed" else (steps, name)
        hours = [getattr(source[count], field) * steps_an_epoch / 3600 for count in gpus]
        left.loglog(gpus, hours, line, color=PALETTE[colour][0], label=label, marker=".")
    left.set(xlabel="GPUs", title="hours of an epoch, each alone")
    left.set_xticks(gpus, [str(count) for count in gpus])
    left.yaxis.set_major_formatter(lambda y, _: f"{y:,.6g}")
    left.minorticks_off()
    left.set_ylim(top=left.get_ylim()[1] * 12)  # room for the legend above the lines
    left.legend(fontsize=8, loc="upper right", ncols=2, columnspacing=1.0, handlelength=2.2)
    right.plot(ratios, [100 * w for w in fluid], "--", color=PALETTE["grey"][0], label="formula, no chance")
    for (name, series), (colour, mark) in zip(waits.items(), SERIES, strict=False):
        right.plot(
            ratios,
            [100 * w for w in series],
            mark,
            ls="-",
            lw=1.0,
            ms=4.5,
            color=PALETTE[colour][0],
            label=name,
        )
    right.set(xlabel="clips decoded / clips consumed", title="time that a GPU waits, %")
    right.set_yticks(range(0, 101, 20))
    right.set_ylim(-3, 135)
    right.legend(fontsize=8, loc="upper left")
    return fig
