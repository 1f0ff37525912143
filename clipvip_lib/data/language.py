"""What is written and said about a clip of the embedded world: captions, paragraphs, alt-text, subtitles.

Four registers, as in life. *People's captions* name things with a few synonyms; a stated share tells what happens
and in which order, the rest only what is there and where. *Paragraphs* tell the events one sentence each.
*Alt-text* is a row of keywords. *Automatic subtitles* are what somebody happened to say: chatter, words that
belong to the neighbouring clip, partial mentions in other words than people write.
"""

from __future__ import annotations

import itertools
import re

import numpy as np

from clipvip_lib.data.world import DrawnClip, Thing, pick
from clipvip_lib.profiles import WorldSize

# Share of people's captions that tell the event (MSR-VTT's captions mostly name an action), and one phrase per motion:
# set by when order is learned. With 0.6 and two or three phrases a model that can learn order had not begun to after
# 400 steps of fine-tuning, with 0.8 and two it learned it after 200 to 300, with these after 100 to 200.
TELLS_ORDER = WorldSize.tells_order
# Share of captions that name the background: with 0.3 the baseline (mean pooling, not post-pretrained, fine-tuned)
# had R@1 22.8 on msrvtt; this brought it to about 25 (ONE_THING and TWO_THINGS to 31).
TELLS_BACKGROUND = 0.7
# Of the narrations of how-to videos 30 % can be aligned with the picture and 15 % are so as they stand (Han et al.,
# CVPR 2022). The rest is talk that is not about the picture: subtitles with no content at all.
SUBTITLE_CHATTER = 0.7
SUBTITLE_NEIGHBOUR = 0.15  # subtitles about the neighbouring clip: speech runs ahead of or behind the picture
# Share of spoken names of shapes and motions that are people's written words. No figure was found; half, because
# speech and captions share many words and neither contains the other.
SPOKEN_AS_WRITTEN = WorldSize.spoken_as_written
SUBTITLE_TELLS_EVENT = 0.35  # of the subtitles with content, those that speak of what happens
ALT_TELLS_EVENT = 0.3  # alt-text that names the motion
ANNOTATORS = 5  # captions per training clip (MSR-VTT has 20; five keep the files small)

SHAPE = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
    "heart": ("heart",),
    "moon": ("moon", "crescent"),
}
COLOUR = {
    "red": ("red", "crimson"),
    "orange": ("orange",),
    "yellow": ("yellow", "golden"),
    "green": ("green",),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
    "white": ("white",),
}
MOTION = {
    "grows": ("grows",),
    "shrinks": ("shrinks",),
    "appears": ("appears",),
    "vanishes": ("vanishes",),
    "slides left": ("slides left",),
    "slides right": ("slides right",),
    "rises": ("rises",),
    "falls": ("falls",),
}
BACKGROUND = {
    "wood": ("on a wooden table", "on wood"),
    "bricks": ("in front of a brick wall", "against bricks"),
    "sand": ("on sand", "on a beach"),
    "water": ("on water", "over a lake"),
    "grass": ("on grass", "on a lawn"),
    "tiles": ("on tiles", "on a tiled floor"),
}
COLUMN = ("on the left", "in the centre", "in the centre", "on the right")  # of the lanes
ROW = ("at the top", "in the middle", "in the middle", "at the bottom")

# How the same is said aloud where it is not said in people's written words.
SPOKEN_SHAPE = {
    "circle": ("round one",),
    "square": ("blocky one",),
    "triangle": ("pointy one",),
    "star": ("sparkly one",),
    "cross": ("crossed one",),
    "ring": ("loop",),
    "heart": ("lovely one",),
    "moon": ("curvy one",),
}
SPOKEN_MOTION = {
    "grows": ("look how huge it is getting", "it just keeps blowing up"),
    "shrinks": ("look how tiny it is getting", "it just keeps going down to nothing"),
    "appears": ("and here it comes", "oh there it is now"),
    "vanishes": ("and off it goes", "and now it is gone"),
    "slides left": ("we are heading over to this side", "going left here"),
    "slides right": ("we are heading over to the other side", "going right here"),
    "rises": ("up we go", "going all the way up"),
    "falls": ("down we go", "dropping all the way down"),
}
CHATTER = (
    "so yeah um welcome back guys",
    "thanks so much for watching today",
    "do not forget to hit that button",
    "and i was like okay whatever you know",
    "let me know what you think below",
    "we have been doing this for years",
    "all right so let us get started",
    "honestly i did not expect that at all",
    "like i said in the last one",
    "uh give me one second here",
    "this is my favourite part you guys",
    "okay so what else is there",
)
FILLER = ("so now", "okay and", "you see", "um", "right so", "and then i")
ALT_TAIL = ("stock footage", "royalty free clip", "4k motion background", "animation loop")


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _name(rng: np.random.Generator, thing: Thing) -> str:
    return f"{pick(rng, COLOUR[thing.colour])} {pick(rng, SHAPE[thing.shape])}"


def caption(clip: DrawnClip, rng: np.random.Generator, tells_order: float = TELLS_ORDER) -> tuple[str, bool]:
    """One person's sentence about a clip, and whether it tells the events (and so their order). tells_order: the share
    that does."""
    tells = bool(clip.events) and rng.random() < tells_order
    text = " then ".join(_event_clauses(clip, rng)) if tells else _inventory(clip, rng)
    if tells and len(clip.events) == 1 and len(clip.things) > 1:
        other = pick(rng, [t for i, t in enumerate(clip.things) if i != clip.events[0].thing])
        text += f" next to {_article(_name(rng, other))}"
    if rng.random() < TELLS_BACKGROUND:
        text += f" {pick(rng, BACKGROUND[clip.background])}"
    return text, tells


def _event_clauses(clip: DrawnClip, rng: np.random.Generator) -> list[str]:
    """The events in order, one clause each: ["a red circle grows", "a blue star vanishes"]."""
    return [
        f"{_article(_name(rng, clip.things[event.thing]))} {pick(rng, MOTION[event.motion])}"
        for event in clip.events
    ]


def _inventory(clip: DrawnClip, rng: np.random.Generator) -> str:
    """What is there and where: places only of things that stay in theirs."""
    movers = {
        event.thing
        for event in clip.events
        if event.motion in ("slides left", "slides right", "rises", "falls")
    }
    parts = []
    for index in rng.permutation(len(clip.things))[:2]:
        where = ""
        if index not in movers:
            column, row = clip.places[index]
            where = " " + (COLUMN[column] if rng.random() < 0.5 else ROW[row])
        parts.append(_article(_name(rng, clip.things[index])) + where)
    return " and ".join(parts)


def paragraph(clip: DrawnClip, rng: np.random.Generator, tells_order: float = TELLS_ORDER) -> list[str]:
    """One sentence per event, in order, as DiDeMo's several descriptions of moments of a video. In a world in which no
    caption tells the order (``tells_order`` 0) one sentence says what is there."""
    first, *rest = _event_clauses(clip, rng) if tells_order else [_inventory(clip, rng)]
    where = f" {pick(rng, BACKGROUND[clip.background])}" if rng.random() < TELLS_BACKGROUND else ""
    return [first + where] + [f"then {sentence}" for sentence in rest]


def alt_text(clip: DrawnClip, rng: np.random.Generator) -> str:
    """A row of keywords, as a stock-footage site writes."""
    words = [f"{t.colour} {t.shape}" for t in clip.things]
    if clip.events and rng.random() < ALT_TELLS_EVENT:
        words.append(clip.events[0].motion)
    words.append(f"{clip.background} background")
    if clip.events:
        words.append(pick(rng, ALT_TAIL))
    return ", ".join(words)


def subtitle(
    clip: DrawnClip, neighbour: DrawnClip, rng: np.random.Generator, as_written: float = SPOKEN_AS_WRITTEN
) -> str:
    """What speech recognition heard during a clip: chatter, words about the neighbour, or a partial mention.

    as_written: share of the names of shapes and motions that are the words that people write.
    """
    draw = rng.random()
    if draw < SUBTITLE_CHATTER:
        return f"{pick(rng, CHATTER)} {pick(rng, CHATTER)}"
    spoken = neighbour if draw < SUBTITLE_CHATTER + SUBTITLE_NEIGHBOUR else clip
    event = pick(rng, spoken.events)
    thing = spoken.things[event.thing]
    shapes, motions = (
        written if rng.random() < as_written else aloud
        for written, aloud in ((SHAPE, SPOKEN_SHAPE), (MOTION, SPOKEN_MOTION))
    )
    shape, mention = pick(rng, shapes[thing.shape]), rng.random()
    if mention < 0.4:
        what = f"this {thing.colour} {shape}"
    elif mention < 0.7:
        what = f"this {thing.colour} thing"
    else:
        what = f"the {shape} here"
    words = [pick(rng, FILLER), what]
    if rng.random() < SUBTITLE_TELLS_EVENT:
        words.append(pick(rng, motions[event.motion]))
    else:
        words.append(pick(rng, CHATTER))
    return " ".join(words)


def as_caption(subtitle: str) -> str:
    """A subtitle in the style and length of a caption, by rule and from its words alone: "um this red loop up we go" ->
    "a red ring rises". Of talk that names nothing the first phrase is kept."""
    for phrases, written in ((SPOKEN_SHAPE, SHAPE), (SPOKEN_MOTION, MOTION)):
        for name, spoken in phrases.items():
            for phrase in spoken:
                subtitle = re.sub(rf"\b{phrase}\b", written[name][0], subtitle)
    named = re.search(r"\b(?:this|the) (.+)", subtitle)
    if not named or subtitle.startswith(CHATTER):
        return next(phrase for phrase in CHATTER if subtitle.startswith(phrase))
    said = re.sub(rf" here\b| (?:{'|'.join(CHATTER)})$", "", named[1])
    return _article(said)


def image_text(clip: DrawnClip, rng: np.random.Generator) -> str:
    """A text found beside a still image: alt-text and people's words, half each, as CLIP's 400M web pairs mix."""
    return alt_text(clip, rng) if rng.random() < 0.5 else caption(clip, rng)[0]


def vocabulary() -> list[str]:
    """Every phrase that this module can write: what a tokenizer of the embedded world must know."""
    tables = (SHAPE, COLOUR, MOTION, BACKGROUND, SPOKEN_SHAPE, SPOKEN_MOTION)
    phrases = [phrase for table in tables for options in table.values() for phrase in options]
    phrases += [*COLUMN, *ROW, *CHATTER, *FILLER, *ALT_TAIL, *MOTION, *BACKGROUND]
    return [*phrases, "a", "an", "and", "then", "next to", "this", "thing", "the", "here", "background", ","]


def named_things(text: str) -> list[str]:
    """The things that a caption names, in order, in the world's own words: "a crimson disc" -> ["red circle"].

    Only for checking captions against the truth; nothing that a model sees is made with it.
    """
    colours = {word: colour for colour, words in COLOUR.items() for word in words}
    shapes = {word.split()[0]: shape for shape, words in SHAPE.items() for word in words}
    words = text.split()
    return [
        f"{colours[colour]} {shapes[shape]}"
        for colour, shape in itertools.pairwise(words)
        if colour in colours and shape in shapes
    ]
