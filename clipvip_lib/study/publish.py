"""Copies pages, results and the index out of the cache, each one whole. Files that have not changed are not written."""

from __future__ import annotations

import json
from pathlib import Path

from clipvip_lib import files
from clipvip_lib.progress import duration
from clipvip_lib.statistics.claims import STATEMENTS
from clipvip_lib.study import answer, robustness
from clipvip_lib.study import reference as reference_run
from clipvip_lib.study.outline import Outline
from clipvip_lib.study.words import MEANINGS, number, seeds_in_words
from clipvip_lib.workshop import pages as html_pages
from clipvip_lib.workshop.provenance import provenance, provenance_lines
from clipvip_lib.workshop.stages import Stage
from clipvip_lib.workshop.terms import with_glossary
from clipvip_lib.workshop.workers import Outcome


def publish(
    outline: Outline,
    notebooks: Path,
    pages: dict[str, Stage],
    outcomes: dict[str, Outcome],
    home: Path,
    out: Path,
    seconds: float,
    reference: Path,
) -> Path:
    """Write this run's pages and results into ``out`` beside those of earlier runs, and the index of all.

    reference: the folder of the reference run, whose verdicts lead this run's pages and the index. This run's own are
    also written alone, as results/claims.json. Returns the path of index.html.
    """
    first = next(iter(pages.values())).config["parameters"]
    answered = reference_run.read(reference)
    there = reference_run.of_the_same_study(answered, first["profile"])
    sections, precision = {}, ""
    made = {name for name, page in pages.items() if page.done(home)}
    for name in made:
        results = files.read_json(pages[name].folder(home) / "results.json")
        results["run"]["seconds"] = pages[name].facts(home)["last_attempt_seconds"]
        precision = precision or results["run"].get("precision", "")
        claims = results["numbers"].get("claims", [])
        results["beside"] = reference_run.beside(claims, there)
        sections[name] = ""
        if beside := results["beside"]:
            sections[name] = reference_run.section(beside, there, results["seeds"])
            sections[name] += robustness.on_page(there, beside["statements"])
        if len(claims) == len(STATEMENTS):
            _write(out / "results" / "claims.json", json.dumps(claims, indent=2, ensure_ascii=False) + "\n")
        _write(out / "results" / f"{name}.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    available = made | {name for name in outline.notebooks if (out / f"{name}.html").is_file()}
    for name in available:
        where = pages[name].folder(home) / "page.html" if name in made else out / f"{name}.html"
        page = where.read_text(encoding="utf-8")
        if name in made:
            page = html_pages.with_reference(with_glossary(page, MEANINGS), sections[name])
        page = html_pages.with_outline(page)
        page = html_pages.with_navigation(page, outline.notebooks, available, current=name)
        _write(out / f"{name}.html", page)
    _write(
        out / "results" / "run.json", json.dumps(run_record(outcomes, home, first, seconds), indent=2) + "\n"
    )
    cards = [_card(name, notebooks, pages, outcomes, out) for name in outline.notebooks]
    computed = duration(_computed(outcomes, home))
    facts = [
        *provenance_lines(provenance(first["profile"], first["seeds"], precision)),
        ("this run took", duration(seconds)),
        ("all stages took", f"{computed} of computing, in this run and in earlier ones"),
    ]
    _write(out / "index.html", html_pages.index_html(cards, facts, first["profile"], answer.lead(answered)))
    return out / "index.html"


def run_record(outcomes: dict[str, Outcome], home: Path, parameters: dict, seconds: float) -> dict:
    """Every stage of the run with its cost: the material for the stage table of a closing note."""
    stages = []
    for name, outcome in outcomes.items():
        row = {"stage": name, "status": outcome.status}
        if outcome.stage.done(home):
            facts = outcome.stage.facts(home)
            row |= {k: facts[k] for k in ("seconds", "peak_memory_mib", "attempts", "finished", "key")}
        else:
            row["error"] = outcome.error
        stages.append(row)
    return {
        "profile": parameters["profile"],
        "seeds": parameters["seeds"],
        "seconds": round(seconds, 1),
        "stages": stages,
    }


def _computed(outcomes: dict[str, Outcome], home: Path) -> float:
    done = [outcome.stage for outcome in outcomes.values() if outcome.stage.done(home)]
    return sum(stage.facts(home)["seconds"] for stage in done)


def _card(
    name: str, notebooks: Path, pages: dict[str, Stage], outcomes: dict[str, Outcome], out: Path
) -> dict:
    results = out / "results" / f"{name}.json"
    there = results.is_file() and (out / f"{name}.html").is_file()
    card = {
        "number": number(name),
        "question": html_pages.notebook_question(notebooks / f"{name}.ipynb"),
        "page": f"{name}.html" if there else None,
        "verdicts": [],
        "headline": "not run",
        "facts": "",
        "status": "missing",
    }
    if there:
        recorded = files.read_json(results)
        seeds = seeds_in_words(recorded["seeds"])
        led = reference_run.sums(recorded.get("beside") or {})
        card |= {
            "verdicts": led,
            "headline": f"This run{_of_one_seed(recorded)}: {recorded['headline']}"
            if led
            else recorded["headline"],
            "facts": f"profile {recorded['profile']}, {seeds}, {recorded['run']['seconds']:.0f} s",
            "status": "done",
        }
    outcome = outcomes[pages[name].name] if name in pages else None
    if outcome and outcome.status in ("failed", "skipped"):
        older = "; the page is of an earlier run" if there else ""
        card |= {"headline": f"{outcome.status}: {outcome.error}{older}", "status": "failed"}
    return card


def _of_one_seed(recorded: dict) -> str:
    """That the interval of one seed leaves the spread between seeds out."""
    return " (one seed; its intervals count queries, not seeds)" if len(recorded["seeds"]) == 1 else ""


def _write(path: Path, text: str) -> None:
    content = text.encode()
    if not path.is_file() or path.read_bytes() != content:
        files.write_bytes(path, content)
