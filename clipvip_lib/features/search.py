"""The nearest rows of a folder of features: exact by default, with FAISS for millions.

Exact: features stay on the disk and are read chunk by chunk in float32; rows that come near a query's k-th best are
kept, and scored again in float64, each row by the same sum. So equal rows have equal scores, whatever chunk they
were in, and ties come in the order of the rows. FAISS (an inverted file, `pip install clipvip_lib[faiss]`) looks
into a few of many cells instead: some of the true nearest are missed, ``probes`` decides how many.

Shapes: Q queries, n rows, E embedding, k asked for.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipvip_lib.errors import ClipVipError
from clipvip_lib.features.embedding import encoder_of
from clipvip_lib.features.folder import Features
from clipvip_lib.files import atomic_path, read_json, write_json
from clipvip_lib.models.encoding import encode_videos
from clipvip_lib.retrieval import unit_rows
from clipvip_lib.say import is_unicode

CHUNK = 65536
#: How far a float32 product, or one of rows stored in float16, may be from the float64 cosine.
MARGIN = {"float32": 1e-5, "float16": 4e-3}
INDEX, INDEX_ABOUT = "features.faiss", "features.faiss.json"
PROBES = 32


class Searcher:
    """A folder of features and the model that made them, loaded once.

    Queries are encoded by the weights that made the features, in the same precision, videos with as many frames.
    Of windows of a video that overlap only the best is a result, so that one moment does not fill the list.

    weights, pretrained_tag: where they are now, if they moved; probes: search with FAISS; None is exact; every: list
    windows that overlap, too.

    Raises ClipVipError as ``embedding.encoder_of``.
    """

    def __init__(
        self,
        features: Features,
        weights: str | None = None,
        pretrained_tag: str | None = None,
        device: str = "auto",
        probes: int | None = None,
        every: bool = False,
    ) -> None:
        self.features, self.probes = features, probes
        self.beside = 0 if every else overlapping(features.settings)
        self.encoder = encoder_of(features.settings, weights, pretrained_tag, device)

    def answer(
        self, texts: Sequence[str] = (), videos: Sequence[str | Path] = (), top: int = 10
    ) -> list[dict]:
        """For each text, then each video, {"text" or "video", "results"}, and "cut": true for a text that is longer
        than the model's context. A result is {"rank", "score", "row"} and what ids.jsonl says of the row; where windows
        overlap also "overlapping", how many that overlap it were left out above the last result.

        Raises ClipVipError as ``search`` and ``faiss_search``; VideoError for a video.
        """
        check_asked(texts, videos)
        settings = self.features.settings
        queries, asked = [], []
        if texts:
            queries.append(self.encoder.texts(list(texts), precision=settings["precision"]))
            is_cut = self.encoder.tokenizer.is_cut
            asked += [{"text": text} | ({"cut": True} if is_cut(text) else {}) for text in texts]
        if videos:
            like = {name: settings[name] for name in ("frames", "antialias") if name in settings}
            model = self.encoder.model
            queries.append(encode_videos(model, list(videos), precision=settings["precision"], **like))
        asked += [{"video": str(video)} for video in videos]
        found = self._found(np.concatenate(queries), top)
        return [query | {"results": results} for query, results in zip(asked, found, strict=True)]

    def near(self, row: int, top: int = 10) -> list[dict]:
        """The results nearest to a row, itself first. Raises ClipVipError if the row does not exist."""
        if not 0 <= row < len(self.features):
            raise ClipVipError(f"no row {row}: expected 0 to {len(self.features) - 1}; name another")
        return self._found(np.asarray(self.features.array[row : row + 1], np.float32), top)[0]

    def _found(self, queries: np.ndarray, top: int) -> list[list[dict]]:
        enough = top * (1 + self.beside)
        if self.probes is None:
            rows, scores = search(self.features, queries, enough)
        else:
            rows, scores = faiss_search(self.features, queries, enough, self.probes)
        return [self._listed(found, cosines, top) for found, cosines in zip(rows, scores, strict=True)]

    def _listed(self, rows: np.ndarray, cosines: np.ndarray, top: int) -> list[dict]:
        """The first ``top`` of ranked rows, without windows that overlap a better one."""
        listed: list[dict] = []
        of_video: dict[tuple, list[dict]] = {}
        for row, score in zip(rows.tolist(), cosines.tolist(), strict=True):
            if len(listed) == top:
                break
            found = {"rank": len(listed) + 1, "score": score, "row": row, **self.features.row(row)}
            if self.beside:
                better = of_video.setdefault((found["path"], found.get("key")), [])
                if best := next((each for each in better if _overlap(each, found)), None):
                    best["overlapping"] += 1
                    continue
                better.append(found)
                found["overlapping"] = 0
            listed.append(found)
        return listed


def overlapping(settings: dict) -> int:
    """How many windows of a video overlap one of them at most, by the settings of a folder of features."""
    if "window" not in settings:
        return 0
    return 2 * (math.ceil(round(settings["window"] / settings["stride"], 6)) - 1)


def _overlap(one: dict, two: dict) -> bool:
    return one["start"] < two["end"] and two["start"] < one["end"]


def answer(
    features: Features,
    texts: Sequence[str] = (),
    videos: Sequence[str | Path] = (),
    *,
    top: int = 10,
    weights: str | None = None,
    pretrained_tag: str | None = None,
    device: str = "auto",
    probes: int | None = None,
    every: bool = False,
) -> list[dict]:
    """What `clipvip search` tells: `Searcher.answer` of a model that is loaded for it."""
    check_asked(texts, videos)
    return Searcher(features, weights, pretrained_tag, device, probes, every).answer(texts, videos, top)


def check_asked(texts: Sequence[str], videos: Sequence[str | Path]) -> None:
    """Raises ClipVipError for nothing, or nothing but spaces, or what is not Unicode."""
    if not len(texts) and not len(videos):
        raise ClipVipError("search expected a text or a video to look for, got neither")
    for asked in map(str, [*texts, *videos]):
        if not asked.strip():
            raise ClipVipError(f"search expected a text or a video to look for, got {asked!r}; name one")
        if not is_unicode(asked):
            raise ClipVipError(f"search expected Unicode to look for, got {asked[:60]!a}; write it as UTF-8")


def search(features: Features, queries: object, top: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of each query [Q, E], best first: (rows int64 [Q, k], cosines float64 [Q, k]).

    k is cut to the number of rows; equal cosines come in the rows' order. Raises ClipVipError for queries of another
    width, top below 1, or a row that is not a unit vector.
    """
    queries, k = _checked(features, queries, top)
    margin = MARGIN[str(features.array.dtype)]
    single = queries.astype(np.float32)
    kept = [np.zeros(0, np.int64) for _ in queries]
    scores = [np.zeros(0, np.float32) for _ in queries]
    for start, rows in features.chunks(CHUNK):
        products = single @ rows.T
        for q, found in enumerate(products):
            near = np.concatenate([scores[q], found])
            which = np.concatenate([kept[q], np.arange(start, start + len(rows))])
            if len(near) > k:
                good = near >= np.partition(near, -k)[-k] - 2 * margin
                near, which = near[good], which[good]
            scores[q], kept[q] = near, which
    return _best(features, queries, kept, k)


def _checked(features: Features, queries: object, top: int) -> tuple[np.ndarray, int]:
    if top < 1:
        raise ClipVipError(f"expected top of at least 1, got {top}; ask for one result or more")
    queries = unit_rows(queries, "queries")
    if queries.shape[1] != features.array.shape[1]:
        raise ClipVipError(
            f"expected queries of width {features.array.shape[1]}, got {queries.shape[1]}; encode them with the "
            "weights that made the features"
        )
    return queries, min(top, len(features))


def _best(features: Features, queries: np.ndarray, kept: list[np.ndarray], k: int):
    """Cosines in float64 of the kept rows, and the k best of each query; ties in the rows' order."""
    best_rows, best_scores = [], []
    for query, rows in zip(queries, kept, strict=True):
        rows = np.sort(rows)
        cosines = np.empty(len(rows))
        for start in range(0, len(rows), CHUNK):
            part = np.asarray(features.array[rows[start : start + CHUNK]], np.float64)
            # A sum over each row, not a matrix product: its order of additions does not depend on the row's place.
            cosines[start : start + CHUNK] = (part * query).sum(1) / np.sqrt((part * part).sum(1))
        if not np.isfinite(cosines).all():
            raise ClipVipError(
                f"{features.folder / 'features.npy'} expected finite rows, got NaN or zeros; remove the folder and "
                "embed again"
            )
        order = np.argsort(-cosines, kind="stable")[:k]
        best_rows.append(rows[order])
        best_scores.append(cosines[order])
    return np.stack(best_rows), np.stack(best_scores)


# ---------------------------------------------------------------------------------------------------------- FAISS


def faiss_search(
    features: Features, queries: object, top: int = 10, probes: int = PROBES
) -> tuple[np.ndarray, np.ndarray]:
    """As ``search``, by an index that is built at the first call and kept beside the features.

    probes: cells that are looked into; all of them give the exact answer. Raises ClipVipError as ``search``, or if
    FAISS is not installed.
    """
    faiss = _faiss()
    queries, k = _checked(features, queries, top)
    if probes < 1:
        raise ClipVipError(f"expected probes of at least 1, got {probes}; more find more, and take longer")
    index = _index(faiss, features)
    rows = np.full((len(queries), k), -1)
    while (short := (rows < 0).any(1)).any():  # at first all; then those whose cells hold fewer than k rows
        index.nprobe = min(probes, index.nlist)
        rows[short] = index.search(queries[short].astype(np.float32), k)[1]
        if index.nprobe == index.nlist and (rows < 0).any():  # all cells hold all rows, so some are NaN
            raise ClipVipError(
                f"{features.folder / INDEX} expected {len(features)} rows, finds fewer; remove it and search again"
            )
        probes *= 2
    return _best(features, queries, list(rows), k)


def _faiss():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its wrapper's types
            import faiss
    except ImportError as error:
        raise ClipVipError(
            "an index expected FAISS, it is not installed; run pip install faiss-cpu, or search without --faiss"
        ) from error
    return faiss


def _index(faiss, features: Features):
    """The index beside the features, built again if it is not there or belongs to others."""
    path, about_path = features.folder / INDEX, features.folder / INDEX_ABOUT
    about = {
        "rows": len(features),
        "ids_sha256": features.meta["ids_sha256"],
        "features_sha256": features.meta["features_sha256"],
        "faiss": faiss.__version__,
    }
    if path.is_file() and about_path.is_file() and read_json(about_path) == about:
        return faiss.read_index(str(path))
    for _ in features.chunks(CHUNK):
        pass  # a row that is not a unit vector is named before FAISS fails on it in its own words
    cells = max(1, min(round(4 * len(features) ** 0.5), len(features) // 39))
    quantizer = faiss.IndexFlatIP(features.array.shape[1])
    index = faiss.IndexIVFFlat(quantizer, features.array.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = 10  # of k-means: a quarter of the usual time, and cells hardly worse
    sample = np.random.default_rng(0).choice(len(features), min(len(features), 64 * cells), replace=False)
    index.train(np.asarray(features.array[np.sort(sample)], dtype=np.float32))
    for _, rows in features.chunks(CHUNK):
        index.add(rows)
    about_path.unlink(missing_ok=True)
    with atomic_path(path) as partial:
        faiss.write_index(index, str(partial))
    write_json(about_path, about)
    return index
