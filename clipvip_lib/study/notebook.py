"""What a notebook calls: start, has, results, folder, table, figure, players, picker, attention, record, footer.

A notebook never computes what a stage computes and never retypes a number. ``results`` reads stages, and runs missing
ones on workers, so a notebook works alone from a cold cache. Every table registers its numbers. ``record`` stores them
with the headline as one JSON output, which the pipeline copies to results/*.json. Outputs that differ from run to run
(header, footer, progress) belong in cells tagged ``nbval-ignore-output``; everything else is the same in every run.
What is shown of the embedded world calls its sets by their own names (words.py).
"""

from __future__ import annotations

import fnmatch
import functools
import html
import os
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipvip_lib import files
from clipvip_lib.errors import ClipVipError, unknown
from clipvip_lib.precision import in_words
from clipvip_lib.say import with_minus
from clipvip_lib.study.injected import check_injected, executed_cells
from clipvip_lib.study.outline import Outline, check_seeds, study_outline
from clipvip_lib.study.words import miniatures, named_frame, number, seeds_in_words
from clipvip_lib.workshop.lab import live, style
from clipvip_lib.workshop.machine import product_rates
from clipvip_lib.workshop.page_stage import RESULTS_MIME
from clipvip_lib.workshop.provenance import provenance, provenance_lines
from clipvip_lib.workshop.stages import Stage, closure, plain

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from clipvip_lib.study.players import Player


def start(
    name: str,
    *,
    profile: str,
    seeds: list[int],
    at_hand: Mapping[str, object] | None = None,
    precision: str = "auto",
    outline: Outline | None = None,
    home: Path | None = None,
) -> Study:
    """Check the parameters, seed the random generators, show the provenance header.

    at_hand: for the profile ``paper``, where data and weights are: {"data_root": .., "weights": .., "ofa": ..}. The
    notebook shows what it lacks of them. precision: that of all models, "float32", "bfloat16" or "auto"; "auto" takes
    the one that this machine is fast in.

    Raises ClipVipError for an unknown notebook, profile or precision, for seeds that are not distinct whole numbers,
    and as ``check_injected`` for what papermill was given.
    """
    check_injected(executed_cells())
    outline = outline or study_outline()
    given = {"at_hand": at_hand} if at_hand else {}
    sized = outline.profile(profile, **given, **({} if precision == "auto" else {"precision": precision}))
    return Study(name, profile, sized, seeds, outline, home or files.home())


class Interrupted(KeyboardInterrupt):
    """Stages were interrupted in a cell, which says so in a sentence instead of a traceback."""

    def _render_traceback_(self) -> list[str]:  # what IPython asks for
        return [str(self)]


class Study:
    """One notebook's view of the study. Fields: name, profile (the profile itself), seeds, home, outline."""

    def __init__(
        self, name: str, profile_name: str, profile: object, seeds: list[int], outline: Outline, home: Path
    ):
        self.name = outline.find(name)
        self.seeds = check_seeds(seeds)
        self.profile_name, self.profile = profile_name, profile
        self.outline, self.home = outline, home
        self._stages: list[Stage] | None = None
        self._tables: dict[str, object] = {}
        self._figures: list[dict] = []
        self._recorded = False
        seed_everything(self.seeds[0])
        quiet_libraries()
        if self.of_the_world:
            name_miniatures()
        self._show_run()
        self._show_lacks()

    # --- reading stages ---------------------------------------------------------------------------------

    @property
    def stages(self) -> list[Stage]:
        """This notebook's stages with everything that they need, inputs first."""
        if self._stages is None:
            self._stages = closure(self.outline.stages_for(self.name, self.profile, self.seeds))
        return self._stages

    def results(self, pattern: str = "*") -> list[tuple[Stage, dict]]:
        """(stage, its result) for every stage whose name fits the pattern, in the order of the study.

        Missing stages of the whole notebook run first, side by side.
        Raises ClipVipError if nothing fits, and if a stage fails.
        """
        found = [stage for stage in self.stages if fnmatch.fnmatchcase(stage.name, pattern)]
        if not found:
            raise unknown(f"stage of {self.name}", pattern, [stage.name for stage in self.stages])
        self._run_missing(found)
        return [(stage, stage.result(self.home)) for stage in found]

    def result(self, name: str) -> dict:
        """The result of the one stage of this name."""
        return self.results(self.stage(name).name)[0][1]

    def stage(self, name: str) -> Stage:
        """The stage of this name. Raises ClipVipError for an unknown one."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise unknown(f"stage of {self.name}", name, [stage.name for stage in self.stages])

    def folder(self, stage: Stage | str) -> Path:
        """Where a stage's files are; it runs first if it has not."""
        stage = self.stage(stage) if isinstance(stage, str) else stage
        self._run_missing([stage])
        return stage.folder(self.home)

    def facts(self, stage: Stage | str) -> dict:
        """How a stage ran: seconds, peak_memory_mib, machine, ... These differ from run to run."""
        stage = self.stage(stage) if isinstance(stage, str) else stage
        self._run_missing([stage])
        return stage.facts(self.home)

    def _run_missing(self, wanted: list[Stage]) -> None:
        if all(stage.done(self.home) for stage in wanted):
            return
        from clipvip_lib.workshop.workers import raise_failures, run_stages

        own = self.outline.stages_for(self.name, self.profile, self.seeds)
        try:
            # On real corpora a training takes all GPUs, so only one runs at a time.
            outcomes = run_stages([*own, *wanted], self.home, workers=None if self.of_the_world else 1)
        except KeyboardInterrupt:
            done = sum(stage.done(self.home) for stage in self.stages)
            raise Interrupted(
                f"Stopped: {done} of {len(self.stages)} stages are done. Run the cell again to continue."
            ) from None
        if not all(stage.done(self.home) for stage in wanted):
            raise_failures(outcomes)

    @property
    def of_the_world(self) -> bool:
        """Whether the data are the embedded world, whose true scenes are known."""
        return not hasattr(self.profile, "at_hand")

    # --- showing ----------------------------------------------------------------------------------------

    def table(self, frame: pd.DataFrame, caption: str, digits: int | None = None) -> None:
        """Show a table and register its numbers.

        digits: decimals of its floats; by default, column by column, as many as show three figures.
        A missing number is shown as a dash. Raises ClipVipError for a caption used twice or after ``record``.
        """
        caption, frame = self._named(caption), self._named_frame(frame)
        self._before_record("table", caption)
        if caption in self._tables:
            raise ClipVipError(f"two tables are captioned {caption!r}: expected one each; reword one")
        from clipvip_lib.workshop.tables import table_html, table_json, table_text

        self._tables[caption] = table_json(frame, caption)
        _display({"text/html": table_html(frame, caption, digits), "text/plain": table_text(frame, digits)})

    def figure(self, fig: Figure, title: str, caption: str = "", *, alt: str) -> None:
        """Show a matplotlib figure as SVG, with its finding as title, and close it.

        alt: what the figure shows, in words, for those who do not see it; must not be empty.
        """
        from clipvip_lib.study.figures import figure_html, renamed

        title, caption, alt = map(self._named, (title, caption, alt))
        self._keep_figure(title, caption, alt)
        drawn = figure_html(renamed(fig, self._named), title, caption, alt)
        _display({"text/html": drawn, "text/plain": f"{title}. {alt}"})

    def players(self, groups: Mapping[str, Sequence[Player]], title: str, caption: str = "") -> None:
        """Show small videos that play, each group under what was asked for.

        Raises ClipVipError after ``record``.
        """
        from clipvip_lib.study.players import players_html

        title, caption = map(self._named, (title, caption))
        shows = {
            asked: [f"{player.mark} {player.text}".strip() for player in players]
            for asked, players in groups.items()
        }
        self._keep_figure(title, caption, title, shows)
        said = "\n".join(f"{asked} {'; '.join(found)}".strip() for asked, found in shows.items())
        _display({"text/html": players_html(groups, title, caption), "text/plain": f"{title}\n{said}"})

    def picker(self, data: Mapping, title: str, caption: str = "") -> None:
        """Let a page's reader pick a query by typing. data: of ``players.picker_data``; show a table of it, too.

        Raises ClipVipError after ``record``.
        """
        from clipvip_lib.study.players import picker_html

        title, caption = map(self._named, (title, caption))
        self._keep_figure(
            title, caption, title, {name: data[name] for name in ("models", "queries", "texts")}
        )
        _display({"text/html": picker_html(data, title, caption), "text/plain": title})

    def attention(
        self,
        clips: Mapping[str, tuple[np.ndarray, np.ndarray]],
        still: Figure,
        title: str,
        caption: str = "",
        *,
        alt: str,
    ) -> None:
        """Let a page's reader choose clip, layer, head, proxy and frame of the proxies' attention.

        clips: as ``players.attention_html``. still: what stands there without a script; alt: that in words.
        Raises ClipVipError after ``record`` and without alt text.
        """
        from clipvip_lib.study.figures import figure_image
        from clipvip_lib.study.players import attention_html

        title, caption, alt = map(self._named, (title, caption, alt))
        self._keep_figure(title, caption, alt)
        made = attention_html(clips, title, caption, figure_image(still, alt))
        _display({"text/html": made, "text/plain": f"{title}. {alt}"})

    def _keep_figure(self, title: str, caption: str, alt: str, shows: Mapping | None = None) -> None:
        self._before_record("figure", title)
        if not alt.strip():
            raise ClipVipError(f"figure {title!r} has no alt text: expected its content in words; write some")
        kept = {"title": title, "caption": caption, "alt": alt}
        self._figures.append(kept | ({"shows": plain(shows, f"figure {title!r}")} if shows else {}))

    def _named(self, text: str) -> str:
        """A text as the page says it: the embedded sets by their own names, one minus sign."""
        return with_minus(miniatures(text) if self.of_the_world else text)

    def _named_frame(self, frame: pd.DataFrame) -> pd.DataFrame:
        return named_frame(frame) if self.of_the_world else frame

    def _before_record(self, what: str, title: str) -> None:
        if self._recorded:
            raise ClipVipError(
                f"{what} {title!r} comes after study.record: expected record last, so that results hold "
                "everything that the page shows; move it up"
            )

    def record(self, *, headline: str, **numbers: object) -> None:
        """Store the notebook's results: the verdict in one line, its numbers, and every table shown.

        Raises ClipVipError for an empty headline, NaN or infinity, and a second call.
        """
        headline = self._named(headline)
        self._before_record("record", headline)
        if not headline.strip():
            raise ClipVipError(f"{self.name} records an empty headline: expected its verdict in a line")
        results = {
            "notebook": self.name,
            "profile": self.profile_name,
            "seeds": self.seeds,
            "headline": headline,
            "numbers": plain(numbers, "numbers"),
            "tables": self._tables,
            "figures": self._figures,
        }
        self._recorded = True
        counts = {"numbers": numbers, "tables": self._tables, "figures": self._figures}
        what = "Recorded: " + ", ".join(f"{len(kept)} {kind}" for kind, kept in counts.items())
        _display(
            {
                RESULTS_MIME: results,
                "text/html": f'<p class="recorded"><strong>{html.escape(headline)}</strong><br><span>{what}</span></p>',
                "text/plain": f"{headline}\n{what}",
            }
        )

    def record_not_run(self) -> None:
        """Store that the notebook did not run, and why, with the verdicts "not run" on its claims.

        Raises ClipVipError as ``record`` does.
        """
        from clipvip_lib.study import evidence

        judged = evidence.verdicts(self.profile, self.seeds, self.name, self.home)
        why = f"Not run, not at hand: {', '.join(self.lacks) or 'its stages'}"
        self.record(headline=why, claims=[verdict.row() for verdict in judged])

    # --- what real corpora lack -------------------------------------------------------------------------

    def has(self, *needed: str) -> bool:
        """Whether the study has what a part of the notebook needs; if not, the page says that it is left out, and why.

        needed: patterns of stages, such as "finetune/msrvtt/*" (of real corpora the study has the stages whose data are
        at hand), or "world": the embedded one, whose true scenes are known.
        """
        names = [stage.name for stage in self.stages]
        missing = [
            need
            for need in needed
            if not (self.of_the_world if need == "world" else fnmatch.filter(names, need))
        ]
        if not missing:
            return True
        if missing == ["world"]:
            why = "it looks into the embedded world"
        else:
            why = f"not at hand: {', '.join(self.lacks) or ', '.join(missing)}"
        _display({"text/markdown": f"*Left out: {why}.*", "text/plain": f"Left out: {why}."})
        return False

    @functools.cached_property
    def lacks(self) -> list[str]:
        """Data and weights that this notebook could use and that are not at hand."""
        if self.of_the_world:
            return []
        from clipvip_lib.profiles import get_profile
        from clipvip_lib.study import paper_plan
        from clipvip_lib.study.real import data_at_hand

        rows = paper_plan.works(get_profile(self.profile_name), self.seeds, self.profile.settings)
        own = number(self.name)
        numbers = (own,) if own in paper_plan.READERS else paper_plan.READERS
        found = [data_at_hand.missing_of(each, rows, self.profile.at_hand) for each in numbers]
        return [name for name in self.profile.at_hand if any(name in names for names in found)]

    def _show_lacks(self) -> None:
        if self.of_the_world:
            return
        import pandas as pd

        rows = [
            {"what": need.name, "where": need.where, "at hand": need.state}
            for name, need in self.profile.at_hand.items()
            if name in self.lacks
        ]
        if rows:
            self.table(pd.DataFrame(rows), "This notebook lacks these and continues without them")

    def footer(self) -> None:
        """Show where the page's numbers come from."""
        lines = provenance_lines(provenance(self.profile_name, self.seeds, self.precision))
        items = "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in lines)
        text = "\n".join(f"{label}: {text}" for label, text in lines)
        _display({"text/html": f'<dl class="provenance">{items}</dl>', "text/plain": text})

    def _show_run(self) -> None:
        """One line: what a reader must know before any number. The rest is in the footer."""
        said = f"Profile {self.profile_name}, {self.which_seeds}."
        if self.profile_name == "smoke":
            said += " Smoke only tests the machinery: its numbers mean nothing."
        looks = style() if live() else ""
        _display({"text/html": f'{looks}<p class="run">{html.escape(said)}</p>', "text/plain": said})

    @property
    def which_seeds(self) -> str:
        """Its seeds in words: "seed 3", "seeds 0–4"."""
        return seeds_in_words(self.seeds)

    @property
    def precision(self) -> str:
        """In which precision its models compute, and why; empty for a study without models."""
        name = getattr(self.profile, "precision", "")
        rates = functools.partial(product_rates, self.home)
        return name and in_words(name, self.profile.device, rates)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and, where it is imported already, torch."""
    import numpy as np

    random.seed(seed)
    np.random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def quiet_libraries() -> None:
    """No progress bars of transformers: their rates differ in every run, and nbval would compare them."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    if "transformers" in sys.modules:
        sys.modules["transformers"].utils.logging.disable_progress_bar()


def name_miniatures() -> None:
    """Have Markdown that a cell displays call the embedded sets by their own names."""
    from IPython import get_ipython
    from IPython.display import Markdown

    if shell := get_ipython():
        formatter = shell.display_formatter.formatters["text/markdown"]
        formatter.for_type(Markdown, lambda shown: miniatures(shown.data))


def _display(bundle: dict[str, object]) -> None:
    from IPython.display import display

    display(bundle, raw=True)
