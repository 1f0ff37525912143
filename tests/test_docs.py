"""What the documentation names exists, what it shows runs, and its site is whole."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import doc_pages
import pytest
from browser import browser, in_a_browser

from clipvip_lib.data import corpora, world
from clipvip_lib.files import CHECKOUT
from clipvip_lib.profiles import PROFILES
from clipvip_lib.workshop.pages import notebook_question

README = CHECKOUT / "README.md"
TABLE = (CHECKOUT / "docs/paper_to_code.md").read_text(encoding="utf-8")
ROWS = [line.split("|")[3:5] for line in TABLE.splitlines() if line.startswith("|")][2:]


def names_of(path) -> set[str]:
    """What a module defines at its top level."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("cells", ROWS, ids=[row[0].strip()[:40] for row in ROWS])
def test_the_paper_is_where_the_table_says(cells):
    for cell, folder in zip(cells, ("clipvip_lib", "tests"), strict=True):
        file = None
        for word in re.findall(r"`([^`]+)`", cell):
            if word.endswith(".py"):
                file = CHECKOUT / folder / word
                assert file.is_file(), word
            else:
                assert file is not None and word in names_of(file), f"{word} in {file}"
        assert file is not None
    for number in re.findall(r"notebook (\d\d)", cells[0]):
        assert [*(CHECKOUT / "notebooks").glob(f"{number}_*.ipynb")]


@pytest.mark.parametrize(
    "path",
    [*sorted(CHECKOUT.glob("docs/**/*.md")), CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md"],
    ids=lambda p: p.name,
)
def test_links_between_documents_lead_somewhere(path):
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_readmes_table_has_every_notebook_with_its_title():
    rows = re.findall(
        r"^\| \[(\w+)\]\(notebooks/(\w+)\.ipynb\) \| (.+) \|$", README.read_text("utf-8"), re.MULTILINE
    )
    assert rows == [
        (path.stem, path.stem, notebook_question(path))
        for path in sorted(README.parent.glob("notebooks/*.ipynb"))
    ]


@pytest.mark.parametrize("page", ["docs/extending.md", "docs/data_card.md", "docs/model_card.md"])
def test_files_that_a_page_names_are_there(page):
    text = (CHECKOUT / page).read_text(encoding="utf-8")
    for file in re.findall(r"`([\w/]+\.py)`", text):
        assert (CHECKOUT / "clipvip_lib" / file).is_file(), file


@pytest.mark.parametrize("page", sorted(CHECKOUT.glob("docs/api/*.md")), ids=lambda p: p.stem)
def test_the_reference_names_modules_that_are_there(page):
    found = re.findall(r"^::: clipvip_lib\.([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    for name in found:
        module, _, constant = name.rpartition(".") if name.rpartition(".")[2].isupper() else (name, "", "")
        path = (CHECKOUT / "clipvip_lib").joinpath(*module.split(".")).with_suffix(".py")
        assert path.is_file() and (not constant or constant in names_of(path)), name


# ------------------------------------------------------------------------------------------------------- the cards


def table_rows(page: str) -> dict[str, list[str]]:
    """The rows of a page's tables by their first cell."""
    lines = (CHECKOUT / page).read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0]: row[1:] for row in cells}


def test_the_data_cards_sizes_are_those_of_the_profiles():
    rows = table_rows("docs/data_card.md")
    largest = max(corpora.RELATIVE_SIZES.values())

    def clips(size) -> str:
        return " / ".join(f"{number:,}" for number in (size.train, size.val, size.test))

    expected = {
        "`image-text`, pictures with texts": lambda size: f"{size.image_text:,}",
        "`caption-pairs`, pictures with captions": lambda size: f"{size.caption_pairs:,}",
        "`msrvtt`, training / validation / test clips": clips,
        "`didemo`, the same": clips,
    }
    for name, share in corpora.RELATIVE_SIZES.items():
        [title] = [title for title in rows if title.startswith(f"`{name}`")]
        expected[title] = lambda size, share=share: f"{round(size.corpus_clips * share / largest):,}"
    for title, cell in expected.items():
        assert rows[title][1:] == [cell(PROFILES[name].world) for name in ("smoke", "mini")], title
    text = (CHECKOUT / "docs/data_card.md").read_text(encoding="utf-8")
    assert (
        f"{world.FRAMES} frames of {world.PIXELS} x {world.PIXELS} pixels at {world.FPS} frames a second"
        in text
    )
    assert " : ".join(map(str, corpora.RELATIVE_SIZES.values())) in text
    drawn = {
        "shapes": world.SHAPES,
        "colours": world.COLOURS,
        "motions": world.MOTIONS,
        "backgrounds": world.BACKGROUNDS,
    }
    assert (
        ", ".join(f"{ {6: 'six', 8: 'eight'}[len(all_of)] } {name}" for name, all_of in drawn.items()) in text
    )


def test_the_model_cards_sizes_are_those_of_the_profiles():
    rows = table_rows("docs/model_card.md")

    def steps(recipe) -> str:
        return f"{recipe.steps} x {recipe.batch}"

    for column, name in enumerate(("smoke", "mini")):
        profile = PROFILES[name]
        model, captioner, side = profile.model, profile.captioner, profile.model.image_size
        expected = {
            "towers: layers x width, heads": f"{model.layers} x {model.width}, {model.heads}",
            "frames of a video, pixels, patch": f"{model.frames}, {side} x {side}, {model.patch_size}",
            "tokens of a text, at most": str(model.context_length),
            "width of the features": str(model.embed_dim),
            "steps x batch: image-text pre-training": steps(profile.pretrain),
            "steps x batch: post-pretraining": steps(profile.postpretrain),
            "steps x batch: fine-tuning": steps(profile.finetune),
            "captioner: layers x width, pixels": f"{captioner.layers} x {captioner.d_model}, {captioner.image_size}",
        }
        assert {title: rows[title][column] for title in expected} == expected


# ------------------------------------------------------------------------------------------------------- what is shown


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """A copy of the checkout with the folder ``trial/`` that the model card makes."""
    folder = doc_pages.copy_of_the_checkout(tmp_path_factory.mktemp("reader"))
    boxes = doc_pages.sections("docs/model_card.md")["Random weights for a trial"]
    doc_pages.follow(boxes[0], folder)
    return folder


@pytest.mark.slow
@pytest.mark.thorough
def test_random_weights_serve_every_command(trial, tmp_path):
    shutil.copytree(trial, tmp_path / "copy")
    [_, commands] = doc_pages.sections("docs/model_card.md")["Random weights for a trial"]
    assert "video" in doc_pages.run(commands, tmp_path / "copy")


@pytest.mark.slow
@pytest.mark.parametrize(
    "section", [title for title, boxes in doc_pages.sections("docs/extending.md").items() if boxes]
)
@pytest.mark.thorough
def test_an_extension_works_as_written(trial, tmp_path, section):
    shutil.copytree(trial, tmp_path / "copy")
    for box in doc_pages.sections("docs/extending.md")[section]:
        doc_pages.follow(box, tmp_path / "copy")


def test_the_data_cards_code_runs(tmp_path):
    [box] = [box for boxes in doc_pages.sections("docs/data_card.md").values() for box in boxes]
    doc_pages.follow(box, doc_pages.copy_of_the_checkout(tmp_path / "copy"))


def test_a_page_that_is_out_of_date_is_found(tmp_path):
    (tmp_path / "code.py").write_text("one = 1\nother = 1\n")
    doc_pages.follow(doc_pages.Box("diff", "code.py", "-one = 1\n+one = 2\n"), tmp_path)
    assert (tmp_path / "code.py").read_text() == "one = 2\nother = 1\n"
    with pytest.raises(AssertionError, match="has these lines 0 times"):
        doc_pages.follow(doc_pages.Box("diff", "code.py", "-one = 1\n"), tmp_path)
    with pytest.raises(AssertionError, match="assert False"):
        doc_pages.follow(doc_pages.Box("python", None, "assert False"), tmp_path)


# ------------------------------------------------------------------------------------------------------- the site

needs_mkdocs = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("mkdocs", "material", "mkdocstrings"))),
    reason="the extra docs is not installed: the site is not built",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built as `make docs` builds it, where no connection can be opened."""
    folder = tmp_path_factory.mktemp("site")
    code = (
        "import sys; sys.addaudithook(lambda event, _: event != 'socket.connect' or sys.exit('network'));"
        "from mkdocs.__main__ import cli; cli()"
    )
    line = [sys.executable, "-c", code, "build", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(line, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


def pages_of(site) -> list:
    """Those of documents; pages of notebooks have tests of their own, and 404.html is for a server."""
    return [
        path for path in site.rglob("*.html") if "reference" not in path.parts and path.name != "404.html"
    ]


@pytest.mark.slow
@needs_mkdocs
@pytest.mark.thorough
def test_the_site_has_every_page_and_the_reference_its_names(site):
    pages = {
        path.relative_to(CHECKOUT / "docs").with_suffix(".html") for path in CHECKOUT.glob("docs/**/*.md")
    }
    brought = {Path(name) for name in ("index.html", "CONTRIBUTING.html", "reports/index.html")}
    assert {path.relative_to(site) for path in pages_of(site)} == pages | brought
    text = (site / "api/losses.html").read_text(encoding="utf-8")
    assert 'id="clipvip_lib.losses.ocl_loss"' in text
    linked = (site / "paper_to_code.html").read_text(encoding="utf-8")
    assert 'href="api/models.html#clipvip_lib.models.proxy_attention.proxy_attention"' in linked


@pytest.mark.slow
@needs_mkdocs
@in_a_browser
@pytest.mark.thorough
def test_the_site_opens_from_the_disk_and_searches(site, tmp_path):
    with browser(tmp_path / "profile") as tab:
        for page in sorted(pages_of(site)):
            for look in ({}, {"dark": True}, {"width": 390}):
                tab.show(page, **look)
                assert not tab.complaints(), (page.name, look)
                assert tab.run("document.documentElement.scrollWidth") <= look.get("width", 1280), (
                    page.name,
                    look,
                )
        tab.show(site / "index.html")
        tab.run("document.querySelector('.md-search__input').focus()")
        tab.type("proxy attention")
        tab.wait("document.querySelectorAll('.md-search-result__item').length")
        found = tab.run("[...document.querySelectorAll('.md-search-result__item a')].map((a) => a.href)")
        assert any("api/models.html#clipvip_lib.models.proxy" in link for link in found), found
        assert not tab.complaints()
