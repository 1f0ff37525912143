"""Several runs of ``clipvip train``, one after the other, in each of the real processes that torchrun started.

``rank_runs.py FOLDER RUNS.json``: RUNS is {name: [options]}; every rank writes FOLDER/NAME.RANK.json, how it ended.
One start of the interpreter for all of them: importing takes longer than training these models.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from clipvip_lib import cli
from clipvip_lib.commands.train import check
from clipvip_lib.training import ranks as distributed
from clipvip_lib.training.run import Options, train_as_told


def main(folder: Path, runs: dict[str, list[str]]) -> None:
    ranks = distributed.start(3600)
    for name, options in runs.items():
        ended = {"error": "", "message": ""}
        try:
            arguments = cli.parser().parse_args(["train", *options])
            recipe = check(arguments)
            train_as_told(Options.of(arguments), recipe, ranks)
        except Exception as error:
            ended = {"error": type(error).__name__, "message": str(error)}
        (folder / f"{name}.{ranks.rank}.json").write_text(json.dumps(ended))
    distributed.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
