"""A small English grammar in, minimal pairs out: one sentence that is right, one that is not.

Sentences come in squares of two pairs, and the two good sentences of a square together hold the
same words, each as often, as the two bad ones. No count of words can therefore tell good from bad.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deltatune.data.offline.distinct_examples import digits, without_repeats

__all__ = ["LEVELS", "Pair", "Phenomenon", "squares"]

Pair = tuple[str, str]  # good, bad
Square = tuple[Pair, Pair]


@dataclass(frozen=True)
class Phenomenon:
    """One rule of the grammar that a sentence keeps or breaks.

    Args:
        name: as it stands in the column `phenomenon`.
        slots: the choices of each place of the frame; all sentences of two frames differ.
        write: one choice of each slot in, a square out.
    """

    name: str
    slots: tuple[Sequence[Any], ...]
    write: Callable[..., Square]

    @property
    def number_of_frames(self) -> int:
        """How many squares there are, those that would use a word twice included."""
        return math.prod(len(slot) for slot in self.slots)

    def square(self, number: int) -> Square | None:
        """Return the square of a frame; None where it would use a word twice."""
        places = digits(number, bases=[len(slot) for slot in self.slots])
        chosen = [slot[place] for slot, place in zip(self.slots, places, strict=True)]
        words = [choice for choice in chosen if isinstance(choice, Noun | str)]
        return self.write(*chosen) if len(set(words)) == len(words) else None


@dataclass(frozen=True)
class Noun:
    """A noun in both numbers."""

    one: str
    many: str


@dataclass(frozen=True)
class Verb:
    """A verb whose past differs from its base, so that a missing ending is always a mistake."""

    base: str
    third: str
    past: str


def _nouns(singulars: str) -> tuple[Noun, ...]:
    names = singulars.split()
    return tuple(Noun(name, f"{name}es" if name[-1] == "s" else f"{name}s") for name in names)


# No word for a person: of one person "themselves" would be right.
ACTORS = _nouns("class method module function server thread process parser script program")
NOUNS = (
    *ACTORS,
    *_nouns("file line key value name list string table page window button message path queue"),
)
VOWEL_NOUNS = _nouns(
    "object option element argument attribute item error exception event address archive integer "
    "iterator encoder instance"
)
VERBS = tuple(
    Verb(base, f"{base}s", f"{base}d" if base.endswith("e") else f"{base}ed")
    for base in (
        "return create remove change check update close open handle follow replace load store "
        "ignore accept print call parse"
    ).split()
)
ADJECTIVES = tuple("new old empty large small local current valid long short simple full".split())
DEMONSTRATIVES = (("this", "these"), ("that", "those"))


def squares(phenomenon: Phenomenon, generator: torch.Generator) -> Iterator[Square]:
    """Yield every square of a phenomenon once, in random order."""
    for number in without_repeats(phenomenon.number_of_frames, generator):
        square = phenomenon.square(number)
        if square is not None:
            yield square


def _crossed(frame: str, one: tuple[str, str], many: tuple[str, str]) -> Square:
    """Two words that have to agree: both of `one` or both of `many`; the bad ones are mixed."""
    return (
        (frame.format(one[0], one[1]), frame.format(one[0], many[1])),
        (frame.format(many[0], many[1]), frame.format(many[0], one[1])),
    )


def _determiner(verb: Verb, near: tuple[str, str], noun: Noun, adverb: str) -> Square:
    frame = f"you can {verb.base} {{}} {{}}{adverb}."
    return _crossed(frame, (near[0], noun.one), (near[1], noun.many))


def _article(verb: Verb, consonant: Noun, vowel: Noun) -> Square:
    one, other = f"every {vowel.one} {verb.third}", f"every {consonant.one} {verb.third}"
    return (
        (f"{one} a {consonant.one}.", f"{one} an {consonant.one}."),
        (f"{other} an {vowel.one}.", f"{other} a {vowel.one}."),
    )


def _verb_form(actor: Noun, verb: Verb, noun: Noun) -> Square:
    will, plain = f"the {actor.one} will", f"the {actor.one}"
    return _crossed(f"{{}} {{}} the {noun.one}.", (will, verb.base), (plain, verb.third))


def _agreement(adjective: str, actor: Noun, verb: Verb, noun: Noun) -> Square:
    frame = f"the {adjective} {{}} {{}} the {noun.one}."
    return _crossed(frame, (actor.one, verb.third), (actor.many, verb.base))


def _reflexive(adjective: str, actor: Noun, verb: Verb, ending: str) -> Square:
    frame = f"the {adjective} {{}} {verb.past} {{}} {ending}."
    return _crossed(frame, (actor.one, "itself"), (actor.many, "themselves"))


def _word_order(adjective: str, actor: Noun, verb: Verb, noun: Noun) -> Square:
    one, two = f"the {adjective} {actor.one}", f"the {noun.one}"
    swaps = (
        f"the {actor.one} {adjective} {verb.third} {two}.",
        f"{one} {two} {verb.third}.",
        f"{one} {verb.third} {noun.one} the.",
        f"{adjective} the {actor.one} {verb.third} {two}.",
    )
    bad = swaps[(len(adjective) + len(verb.base) + len(noun.one)) % len(swaps)]
    other_bad = f"the {noun.one} {verb.third} {actor.one} the {adjective}."
    return (
        (f"{one} {verb.third} {two}.", bad),
        (f"{two} {verb.third} {one}.", other_bad),
    )


def _auxiliary(adjective: str, actor: Noun, verb: Verb, noun: Noun) -> Square:
    thing = f"the {adjective} {noun.one}"
    passive, active = f"by the {actor.one}", f"the {actor.one}"
    return (
        (f"{thing} is {verb.past} {passive}.", f"{thing} {verb.past} {passive}."),
        (f"{active} {verb.past} {thing}.", f"{active} is {verb.past} {thing}."),
    )


def _tense(adjective: str, actor: Noun, verb: Verb, noun: Noun) -> Square:
    frame = f"the {actor.one} {{}} {{}} the {adjective} {noun.one}."
    return _crossed(frame, ("has", verb.past), ("will", verb.base))


def _with_attractor(actor: Noun, between: str, other: Noun, is_alike: bool) -> tuple[str, str]:
    """Return a singular and a plural subject, each with a second noun close to what follows.

    The second noun has the subject's number in half of all frames, so that it tells nothing.
    """
    beside_one, beside_many = (other.one, other.many) if is_alike else (other.many, other.one)
    return (
        f"the {actor.one} {between} the {beside_one}",
        f"the {actor.many} {between} the {beside_many}",
    )


def _far_agreement(actor: Noun, between: str, other: Noun, alike: bool, verb: Verb) -> Square:
    one, many = _with_attractor(actor, between, other, alike)
    return _crossed("{} {} it.", (one, verb.third), (many, verb.base))


def _relative_clause(actor: Noun, other: Noun, alike: bool, inner: Verb, verb: Verb) -> Square:
    one, many = _with_attractor(actor, "that", other, alike)
    frame = f"{{}} {inner.past} {{}} it."
    return _crossed(frame, (one, verb.third), (many, verb.base))


def _far_reflexive(actor: Noun, between: str, other: Noun, alike: bool, verb: Verb) -> Square:
    one, many = _with_attractor(actor, between, other, alike)
    return _crossed(f"{{}} {verb.past} {{}}.", (one, "itself"), (many, "themselves"))


def _far_determiner(
    verb: Verb, near: tuple[str, str], first: str, second: str, noun: Noun
) -> Square:
    frame = f"you can {verb.base} {{}} {first} and very {second} {{}}."
    return _crossed(frame, (near[0], noun.one), (near[1], noun.many))


def _coordination(actor: Noun, between: str, other: Noun, verb: Verb, noun: Noun) -> Square:
    one = f"the {actor.one} {between} the {other.one}"
    many = f"the {actor.one} and the {other.one}"
    return _crossed(f"{{}} {{}} every {noun.one}.", (one, verb.third), (many, verb.base))


ADVERBS = ("", " now", " here", " again", " later", " twice")
ENDINGS = ("now", "here", "again", "later", "twice", "first")
BETWEEN = ("of", "beside", "behind", "near", "inside", "under")
ALIKE = (True, False)
LEVELS: tuple[tuple[Phenomenon, ...], ...] = (
    (
        Phenomenon("determiner", (VERBS, DEMONSTRATIVES, NOUNS, ADVERBS), _determiner),
        Phenomenon("article", (VERBS, NOUNS, VOWEL_NOUNS), _article),
        Phenomenon("verb form", (ACTORS, VERBS, NOUNS), _verb_form),
    ),
    (
        Phenomenon("agreement", (ADJECTIVES, ACTORS, VERBS, NOUNS), _agreement),
        Phenomenon("reflexive", (ADJECTIVES, ACTORS, VERBS, ENDINGS), _reflexive),
        Phenomenon("word order", (ADJECTIVES, ACTORS, VERBS, NOUNS), _word_order),
        Phenomenon("auxiliary", (ADJECTIVES, ACTORS, VERBS, NOUNS), _auxiliary),
        Phenomenon("tense", (ADJECTIVES, ACTORS, VERBS, NOUNS), _tense),
    ),
    (
        Phenomenon("far agreement", (ACTORS, BETWEEN, NOUNS, ALIKE, VERBS), _far_agreement),
        Phenomenon("relative clause", (ACTORS, ACTORS, ALIKE, VERBS, VERBS), _relative_clause),
        Phenomenon("far reflexive", (ACTORS, BETWEEN, NOUNS, ALIKE, VERBS), _far_reflexive),
        Phenomenon(
            "far determiner",
            (VERBS, DEMONSTRATIVES, ADJECTIVES, ADJECTIVES, NOUNS),
            _far_determiner,
        ),
        Phenomenon("coordination", (ACTORS, BETWEEN, NOUNS, VERBS, NOUNS), _coordination),
    ),
)
