"""What equals what, within which tolerance: the table of notebook 00, as the tests measured it.

``make equality`` runs the tests that compare our models with the authors' and our fast paths with slow ones, and
writes what they found; none of it is typed. A test checks that it was measured on the models' present code.
"""

from __future__ import annotations

from pathlib import Path

from clipvip_lib import files

FILE = files.shipped("reports", "reference", "equality.json")
PACKAGE = Path(__file__).parent.parent


def read(path: Path = FILE) -> dict | None:
    """The document that the tests wrote, None if there is none (outside a checkout)."""
    return files.read_json(path) if path.is_file() else None


def rows(document: dict) -> list[dict[str, object]]:
    """One row per reference and tolerance: how many quantities, and the one farthest off; the authors' first."""
    groups: dict[tuple[str, float], list[dict]] = {}
    for row in document["rows"]:
        groups.setdefault((row["against"], row["tolerance"]), []).append(row)
    found = []
    for (against, tolerance), group in groups.items():
        farthest = max(group, key=lambda row: row["difference"])
        found.append(
            {
                "ours equals": against,
                "quantities": len(group),
                "farthest off": farthest["quantity"],
                "by": _number(farthest["difference"]),
                "tolerated": _number(tolerance),
            }
        )
    found.sort(key=lambda row: (not str(row["ours equals"]).startswith("the authors'"), row["ours equals"]))
    return found


def basis(document: dict) -> str:
    """Where and on which code the table was measured, and whether the code has changed since."""
    libraries = ", ".join(f"{name} {document['libraries'][name]}" for name in ("torch", "transformers"))
    measured = f"Measured by the tests (`make equality`) on {document['machine']}; {libraries}."
    if document["code"] == files.digest(PACKAGE, [PACKAGE / name for name in document["files"]]):
        return f"{measured} The models' code is the same today."
    return f"{measured} The models' code has changed since: run `make equality` again."


def _number(value: float) -> str:
    """Two figures, for numbers over twelve orders of magnitude."""
    return f"{value:.1e}" if value else "0"
