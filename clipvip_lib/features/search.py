"""The nearest rows of a folder of features: exact by default, with FAISS for millions.

Exact: features stay on the disk and are read chunk by chunk in float32; rows that come near a query's k-th best are
kept, and scored again in float64, each row by the same sum. So equal rows have equal scores, whatever chunk they
were in, and ties come in the order of the rows. FAISS (`pip install clipvip_lib[faiss]`) looks into ``probes`` of
sqrt(n) / 2 cells instead, where a row is one bit per number (RaBitQ, arXiv 2405.12497). Its index stays on the disk
too. Of the best 5 k + ``FETCH`` found there the rows themselves are scored as above. Some of the nearest are missed.

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
from clipvip_lib.features.media import lost
from clipvip_lib.features.text_files import check_asked
from clipvip_lib.files import atomic_path, read_json, write_json
from clipvip_lib.models.encoding import encode_videos
from clipvip_lib.precision import beside_int8
from clipvip_lib.retrieval import unit_rows

CHUNK = 8192  # rows, which a processor's cache holds
#: How far a float32 product, or one of rows stored in float16, may be from the float64 cosine.
MARGIN = {"float32": 1e-5, "float16": 4e-3}
INDEX, INDEX_ABOUT = "features.faiss", "features.faiss.json"
KIND = "IVF RaBitQ"
PROBES = 32
FETCH = 500
SAMPLE = 40  # rows per cell that k-means sees: FAISS warns of fewer


class Searcher:
    """A folder of features and the model that made them, loaded once.

    Queries are encoded by the weights that made the features, in the same precision, videos with as many frames. For
    rows made in int8 they are encoded as "auto": no processor is too old for that, and it is closer to float32.
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
        """For each text, then each video, {"text" or "video", "results"}, "cut": true for a text that is longer than
        the model's context, and "unknown", the words that its vocabulary lacks. A result is {"rank", "score",
        "row"} and what ids.jsonl says of the row; where windows overlap also "overlapping", how many that overlap it
        were left out above the last result; "lost" says why its file is not what was embedded, where that is so.

        Raises ClipVipError as ``search`` and ``faiss_search``; VideoError for a video.
        """
        check_asked(texts, videos)
        settings = self.features.settings
        precision = beside_int8(settings["precision"])
        queries, asked = [], []
        if texts:
            queries.append(self.encoder.texts(list(texts), precision=precision))
            for text in texts:
                about = {
                    "cut": self.encoder.tokenizer.is_cut(text),
                    "unknown": self.encoder.tokenizer.unknown(text),
                }
                asked.append({"text": text} | {name: value for name, value in about.items() if value})
        if videos:
            like = {name: settings[name] for name in ("frames", "antialias") if name in settings}
            model = self.encoder.model
            queries.append(encode_videos(model, list(videos), precision=precision, **like))
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
            about = self.features.row(row)
            found = {"rank": len(listed) + 1, "score": score, "row": row, **about}
            found.pop("stamp", None)
            if self.beside:
                better = of_video.setdefault((found["path"], found.get("key")), [])
                if best := next((each for each in better if _overlap(each, found)), None):
                    best["overlapping"] += 1
                    continue
                better.append(found)
                found["overlapping"] = 0
            if why := lost(about):
                found["lost"] = why
            listed.append(found)
        return listed


def overlapping(settings: dict) -> int:
    """How many windows of a video overlap one of them at most, by the settings of a folder of features."""
    if "window" not in settings:
        return 0
    return 2 * (math.ceil(round(settings["window"] / settings["stride"], 6)) - 1)


def _overlap(one: dict, two: dict) -> bool:
    return one["start"] < two["end"] and two["start"] < one["end"]


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
    least = np.full(len(queries), -np.inf)
    for start, rows in features.chunks(CHUNK):
        products = single @ rows.T
        for q, found in enumerate(products):
            which = np.flatnonzero(found >= least[q])
            near = np.concatenate([scores[q], found[which]])
            which = np.concatenate([kept[q], start + which])
            if len(near) > k:
                least[q] = np.partition(near, -k)[-k] - 2 * margin
                good = near >= least[q]
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
    unit, k = _checked(features, queries, top)
    if probes < 1:
        raise ClipVipError(f"expected probes of at least 1, got {probes}; more find more, and take longer")
    index = _index(faiss, features)
    while probes < index.nlist:
        index.nprobe = probes
        found = index.search(unit.astype(np.float32), min(FETCH + 5 * k, len(features)))[1]
        if (found[:, k - 1] >= 0).all():
            return _best(features, unit, [row[row >= 0] for row in found], k)
        probes *= 2  # some query's cells hold fewer than k rows
    return search(features, queries, top)


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
        "kind": KIND,
        "rows": len(features),
        "ids_sha256": features.meta["ids_sha256"],
        "features_sha256": features.meta["features_sha256"],
        "faiss": faiss.__version__,
    }
    if not (path.is_file() and about_path.is_file() and read_json(about_path) == about):
        width, cells = (
            features.array.shape[1],
            max(1, min(round(len(features) ** 0.5 / 2), len(features) // SAMPLE)),
        )
        index = faiss.IndexIVFRaBitQ(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
        index.cp.niter = 10  # of k-means: a quarter of the usual time, and cells hardly worse
        index.cp.min_points_per_centroid = 1  # else FAISS warns of folders with a few rows
        picked = np.zeros(len(features), bool)
        picked[np.random.default_rng(0).permutation(len(features))[: SAMPLE * cells]] = True
        # In order, so that memory holds no more; and a row that is not a unit vector is named before FAISS fails on it.
        sample = [rows[picked[start : start + CHUNK]] for start, rows in features.chunks(CHUNK)]
        index.train(np.concatenate(sample))
        for _, rows in features.chunks(CHUNK):
            index.add(rows)
        about_path.unlink(missing_ok=True)
        with atomic_path(path) as partial:
            faiss.write_index(index, str(partial))
        write_json(about_path, about)
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
