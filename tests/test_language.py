"""What is said of a clip: documented shares, the order told rightly, nothing told that should not be."""

import hashlib
import itertools
import re

import numpy as np

from clipvip_lib.data import language, world
from clipvip_lib.data.language import MOTION
from clipvip_lib.data.world import DrawnClip, Event, Thing, rng_for

TWO = DrawnClip(
    "wood",
    (Thing("circle", "red"), Thing("star", "blue")),
    ((0, 1), (2, 3)),
    (Event(1, "grows"), Event(0, "falls")),
    (0.0, 0.0),
    0.0,
    0,
)
MOTION_WORDS = {word for phrases in MOTION.values() for phrase in phrases for word in phrase.split()} - {
    "the", "to", "left", "right", "in"
}  # fmt: skip


def clips(count: int) -> list[DrawnClip]:
    return [clip for i in range(count // 4) for clip in world.sample_video(rng_for(3, "lang", i), "train")]


def test_the_world_of_seed_0_says_what_it_always_said():
    """A change of this hash changes the study's data: say so in the commit."""
    digest = hashlib.sha256()
    for index, clip in enumerate(clips(40)):
        rng = rng_for(0, "words", index)
        for said in (
            language.caption(clip, rng)[0],
            language.alt_text(clip, rng),
            language.subtitle(clip, clip, rng),
        ):
            digest.update(said.encode())
    assert digest.hexdigest()[:16] == "f3a52f0969c5e1f0"


def test_captions_tell_the_events_in_order_or_not_at_all():
    told = 0
    for trial in range(400):
        text, tells = language.caption(TWO, rng_for(trial))
        told += tells
        if tells:
            first, second = text.split(" then ")
            assert any(phrase in first for phrase in MOTION["grows"])
            assert any(phrase in second for phrase in MOTION["falls"])
        else:
            assert not MOTION_WORDS & set(text.split())
    assert abs(told / 400 - language.TELLS_ORDER) < 0.08


def test_places_are_told_of_resting_things_only():
    for trial in range(200):
        text, tells = language.caption(TWO, rng_for(trial))
        if not tells and "circle" in text:
            after = text.split("circle")[1].split(" and ")[0]
            assert not any(place in after for place in (*language.COLUMN, *language.ROW))


def test_subtitles_have_the_documented_shares():
    listed = clips(4000)
    other = DrawnClip("sand", (Thing("moon", "pink"),), ((0, 0),), (Event(0, "appears"),), (0.0, 0.0), 0.0, 0)
    texts = [language.subtitle(clip, other, rng_for(9, i)) for i, clip in enumerate(listed)]
    pairs = {f"{a} {b}" for a, b in itertools.product(language.CHATTER, repeat=2)}
    chatter = np.mean([text in pairs for text in texts])
    assert abs(chatter - language.SUBTITLE_CHATTER) < 0.03
    neighbour = np.mean(
        [bool(re.search("pink|curvy|moon|crescent", text)) for text in texts if text not in pairs]
    )
    own_pink = np.mean([any(t.colour == "pink" or t.shape == "moon" for t in c.things) for c in listed])
    expected = language.SUBTITLE_NEIGHBOUR / (1 - language.SUBTITLE_CHATTER)
    assert expected < neighbour < expected + own_pink
    tables = (language.SPOKEN_MOTION, MOTION)
    aloud, written = ({phrase for phrases in table.values() for phrase in phrases} for table in tables)
    content = [text for text in texts if text not in pairs]
    tells = {
        way: np.mean([any(text.endswith(phrase) for phrase in phrases) for text in content])
        for way, phrases in (("aloud", aloud), ("written", written))
    }
    assert abs(sum(tells.values()) - language.SUBTITLE_TELLS_EVENT) < 0.04
    assert abs(tells["written"] / sum(tells.values()) - language.SPOKEN_AS_WRITTEN) < 0.08


def test_spoken_names_are_all_or_none_of_the_written_ones_on_demand():
    """The worlds of the multiverse: speech that shares every name of shapes and motions with writing, or none."""
    tables = ((language.SHAPE, language.SPOKEN_SHAPE), (MOTION, language.SPOKEN_MOTION))
    written, aloud = ({p for table in tables for ps in table[which].values() for p in ps} for which in (0, 1))
    for share, never in ((0.0, written), (1.0, aloud)):
        texts = [language.subtitle(clip, clip, rng_for(4, i), share) for i, clip in enumerate(clips(1200))]
        assert not [text for text in texts if any(re.search(rf"\b{phrase}\b", text) for phrase in never)]


def test_no_caption_tells_the_order_in_a_world_without_it():
    for index, clip in enumerate(clips(400)):
        text, tells = language.caption(clip, rng_for(5, index), 0.0)
        said = [text, *language.paragraph(clip, rng_for(6, index), 0.0)]
        assert not tells and len(said) == 2
        assert not any(
            motion in sentence for sentence in said for motion in (p for ps in MOTION.values() for p in ps)
        )


def test_paragraphs_are_one_sentence_an_event_in_order():
    first, second = language.paragraph(TWO, rng_for(0))
    assert any(phrase in first for phrase in MOTION["grows"])
    assert second.startswith("then ")
    assert any(phrase in second for phrase in MOTION["falls"])


def test_the_vocabulary_knows_every_word_that_can_be_said():
    known = {word for phrase in language.vocabulary() for word in phrase.replace(",", " ").split()}
    for index, clip in enumerate(clips(1200)):
        rng = rng_for(11, index)
        said = [
            language.caption(clip, rng)[0],
            language.alt_text(clip, rng),
            language.subtitle(clip, clip, rng),
        ]
        said += language.paragraph(clip, rng)
        unknown = {word for text in said for word in text.replace(",", " ").split()} - known
        assert not unknown, unknown


def test_named_things_reads_synonyms_back():
    assert language.named_things("a crimson disc and a blue plus sign on wood") == [
        "red circle",
        "blue cross",
    ]
    assert language.named_things("a wooden table") == []
    for trial in range(100):
        text, _ = language.caption(TWO, rng_for(trial, "n"))
        assert set(language.named_things(text)) <= {"red circle", "blue star"}
        assert language.named_things(text)
