"""What the pipeline and the notebooks ask of a study: its notebooks, their stages, its profiles.

The study itself is clipvip_lib/study/experiments.py; tests bring a small one of their own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipvip_lib import files
from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.precision import choose
from clipvip_lib.profiles import get_profile, in_precision
from clipvip_lib.study.words import number
from clipvip_lib.workshop.machine import gpus, product_rates
from clipvip_lib.workshop.page_stage import page_stage
from clipvip_lib.workshop.stages import Stage


@dataclass(frozen=True)
class Outline:
    """A study, as seen by the code that runs it.

    notebooks: their names in order. stages_for(notebook, profile, seeds): the stages that a notebook reads.
    profile(name, at_hand=, precision=): the profile of that name, in a precision, and with the data and weights at
    hand if it needs them; raises ClipVipError for an unknown one. beside: files that pages read besides their stages.
    """

    notebooks: Sequence[str]
    stages_for: Callable[[str, object, list[int]], list[Stage]]
    profile: Callable[..., object]
    beside: Sequence[Path] = ()

    def page(
        self, notebook: str, folder: Path, parameters: dict, profile: object, stages: Sequence[Stage]
    ) -> Stage:
        """The stage that makes the page of a notebook in ``folder`` from its stages."""
        source = (folder / f"{notebook}.ipynb").read_text(encoding="utf-8")
        return page_stage(notebook, source, parameters, profile, stages, self.beside)

    def draft(self, name: str, **given: object) -> object:
        """The profile in a precision that needs no timing of this machine, so that a wrong name is told at once."""
        return self.profile(name, **{"precision": "float32", **given})

    def find(self, name: str) -> str:
        """The notebook that a full name or its number (``04`` or ``4``) means. Raises ClipVipError for another."""
        name = name.removesuffix(".ipynb")
        zfilled = name.zfill(2)
        for notebook in self.notebooks:
            if name == notebook or zfilled == number(notebook) or name == notebook.partition("_")[2]:
                return notebook
        raise unknown("notebook", name, self.notebooks)


def study_outline() -> Outline:
    """The CLIP-ViP study's own outline."""
    from clipvip_lib.study import equality, experiments

    return Outline(experiments.NOTEBOOKS, experiments.stages_for, runnable_profile, (equality.FILE,))


def runnable_profile(
    name: str, at_hand: Mapping[str, object] | None = None, precision: str = "auto", **changes: object
) -> object:
    """A profile of the embedded world (with single fields changed), or `RealProfile` for ``paper``. With the precision
    "auto" it takes one that this machine is fast in. Raises ClipVipError for a wrong setting."""
    profile = _profile(name, at_hand, changes)
    return in_precision(
        profile, choose(precision, profile.device, functools.partial(product_rates, files.home()))
    )


def _profile(name: str, at_hand: Mapping[str, object] | None, changes: Mapping[str, object]) -> object:
    if name == "paper":
        from clipvip_lib.study.real.profile import RealProfile

        profile = RealProfile.of(at_hand or {})
        return dataclasses.replace(profile, device="cuda" if gpus() else "cpu")
    if at_hand:
        raise ClipVipError(
            f"profile {name!r} makes its own data: expected no {', '.join(at_hand)}; leave it out, or take 'paper'"
        )
    profile = get_profile(name, **changes)
    if profile.device != "cpu" and not gpus():
        raise ClipVipError(
            f"profile {name!r} trains on a GPU: expected one that PyTorch can use, found none; take 'mini', the same "
            "study on the CPU"
        )
    return profile


def check_seeds(seeds: object) -> list[int]:
    """The seeds as a list of ints. Raises ClipVipError unless they are a list of distinct whole numbers from 0 to
    2**32 - 1, which is what numpy and scikit-learn take."""
    given = list(seeds) if isinstance(seeds, list | tuple | range) else []
    good = all(isinstance(s, int) and not isinstance(s, bool) and 0 <= s < 2**32 for s in given)
    if not given or not good or len(set(given)) != len(given):
        raise ClipVipError(
            f"seeds are {seeds!r}: expected a list of distinct whole numbers from 0 to {2**32 - 1}, such as "
            "[0, 1, 2]; choose others"
        )
    return given
