"""Where two answers to one question part, and whether the tokens chosen there are as good as tied.

Floating-point sums depend on their order, so that another batch or another kernel changes the last bits of a score.
Where the two best tokens of a greedy answer are that close, either is right: a *tie*. Anything else is a disagreement.

The tokens of the other answer are not known, only its text. They are found on the reference's own path: the first
place whose token no longer leads to the other text, and there the likeliest token that does. The reference then goes
on from that token: only where it arrives at the other text, over nothing but ties, are the answers said to be tied.
Two tokenisations of one text may part before the texts do; a tie at an earlier place that leads to the other text
counts too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mhe.values import TokenChance

    AnswerPath: TypeAlias = Callable[[Sequence[int]], Sequence[Sequence[TokenChance]]]
    """The reference's likeliest tokens at each place of an answer that begins with the given tokens."""

TIE = 1e-4
"""Natural log-probabilities that lie this close are tied."""
LIKELIEST = 50
"""Tokens looked at in one place; a token beyond them is no tie, whatever it is."""
MOST_FORKS = 4
"""Ties in one answer that are followed."""


# ---------------------------------------------------------------- texts


def without_half_characters(text: str) -> str:
    """A text without what is left at its end of a character whose last bytes were cut off.

    An answer may end within a character: some backends then show a sign for its bytes, others nothing.
    """
    return text.rstrip("\N{REPLACEMENT CHARACTER}").rstrip()


@dataclass(frozen=True, slots=True)
class WordDifference:
    """The first word in which two texts differ."""

    place: int
    """Counted from 1."""
    first: str
    """Empty where the text ends before."""
    second: str


@dataclass(frozen=True, slots=True)
class TextAgreement:
    """How many texts of two sets are equal."""

    samples: int
    """That both have."""
    equal: int
    differences: Mapping[str, WordDifference]
    """By sample, in the order of the first set."""

    @property
    def share(self) -> float | None:
        """Equal texts of all; None of none."""
        return self.equal / self.samples if self.samples else None


def first_different_word(first: str, second: str) -> WordDifference | None:
    """Where two texts part; None where they are equal.

    Words are what stands between white space; texts that differ in white space alone part in their first run of it
    that differs.
    """
    if first == second:
        return None
    words, others = first.split(), second.split()
    for place in range(max(len(words), len(others))):
        pair = [found[place] if place < len(found) else "" for found in (words, others)]
        if pair[0] != pair[1]:
            return WordDifference(place + 1, *pair)
    at = next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    return WordDifference(len(first[:at].split()), first[at : at + 1], second[at : at + 1])


def agreement_of_texts(first: Mapping[str, str], second: Mapping[str, str]) -> TextAgreement:
    """How far two sets of texts, by sample, agree over the samples that both have."""
    shared = [sample for sample in first if sample in second]
    found = {sample: first_different_word(first[sample], second[sample]) for sample in shared}
    differences = {sample: difference for sample, difference in found.items() if difference is not None}
    return TextAgreement(len(shared), len(shared) - len(differences), differences)


# ---------------------------------------------------------------- tokens


@dataclass(frozen=True, slots=True)
class Fork:
    """One place where the reference's answer and another part."""

    place: int
    """Of the token in the answer, counted from 1."""
    best: TokenChance
    """What the reference chose."""
    second: TokenChance | None
    """The next likeliest; None where no other token is possible."""
    other: TokenChance | None
    """What the other answer has there; None where no likely token leads to its text."""

    @property
    def gap(self) -> float | None:
        """Of the log-probabilities of the two best tokens."""
        return None if self.second is None else self.best.log_probability - self.second.log_probability

    @property
    def is_tie(self) -> bool:
        """Whether the other token is as good as the best one."""
        return self.other is not None and self.best.log_probability - self.other.log_probability <= TIE


@dataclass(frozen=True, slots=True)
class Explanation:
    """How the reference's answer and another part."""

    forks: tuple[Fork, ...] = ()
    """In order. Of answers that are tied every one is a tie; of others the last one is not, where it is known."""
    is_tied: bool = False
    """Whether ties alone lead from the one answer to the other."""
    reason: str | None = None
    """What is not known, and why."""


def explain_difference(path: AnswerPath, reference: str, other: str, *, stops: Sequence[str] = ()) -> Explanation:
    """Where the reference's answer and another, different one part. Raises what `ScoresTokens.next_tokens` raises."""
    walk = _Walk(path, other, tuple(stops))
    _, chosen = walk.answer(())
    if not chosen or not walk.arrives(chosen[-1], reference):
        return Explanation(reason="the reference answers otherwise when it is asked alone")
    ties = walk.ties((), MOST_FORKS)
    return Explanation(ties, is_tied=True) if ties else walk.departures()


@dataclass(frozen=True, slots=True)
class _Walk:
    """The reference's paths, seen from the other text."""

    path: AnswerPath
    other: str
    stops: tuple[str, ...]

    def answer(self, forced: tuple[int, ...]) -> tuple[Sequence[Sequence[TokenChance]], list[TokenChance]]:
        """Every place of the answer that begins with `forced`, and the token that stands there."""
        steps = self.path(forced)
        chosen = [
            next(chance for chance in step if chance.id == forced[place]) if place < len(forced) else step[0]
            for place, step in enumerate(steps)
        ]
        return steps, chosen

    def text(self, chance: TokenChance) -> str:
        """The answer's text with this token, cut at a stop text."""
        cuts = [place for stop in self.stops if (place := chance.text.find(stop)) >= 0]
        return chance.text[: min(cuts)] if cuts else chance.text

    def leads_on(self, chance: TokenChance) -> bool:
        """Whether the other text can still come of it."""
        text = self.text(chance)
        if chance.is_end or text != chance.text:
            return text.strip() == self.other
        # A character may be written by several tokens; until the last of them it is shown as unknown.
        begun = text.rstrip("\N{REPLACEMENT CHARACTER}").lstrip()
        return self.other.startswith(begun) or begun.strip() == self.other

    def arrives(self, last: TokenChance, text: str) -> bool:
        """Whether an answer with that last token is the text."""
        found = self.text(last).strip()
        return found == text or without_half_characters(found) == without_half_characters(text)

    def departure(self, chosen: Sequence[TokenChance], start: int) -> int | None:
        """The first place from `start` whose token does not lead to the other text."""
        return next((place for place in range(start, len(chosen)) if not self.leads_on(chosen[place])), None)

    def fork(self, step: Sequence[TokenChance], place: int, other: TokenChance | None = None) -> Fork:
        """That place; the other answer has the likeliest token that leads to its text, where none is named."""
        found = other or next((chance for chance in step[1:] if self.leads_on(chance)), None)
        return Fork(place + 1, step[0], step[1] if len(step) > 1 else None, found)

    def departures(self) -> Explanation:
        """Where the texts part; after a tie, where they part again, to the first place that is no tie."""
        forced: tuple[int, ...] = ()
        forks: list[Fork] = []
        while len(forks) < MOST_FORKS:
            steps, chosen = self.answer(forced)
            place = self.departure(chosen, len(forced))
            if place is None:
                return Explanation(tuple(forks), reason="one answer ends, at its limit, where the other goes on")
            fork = self.fork(steps[place], place)
            forks.append(fork)
            if fork.other is None or not fork.is_tie:
                return Explanation(tuple(forks))
            forced = (*(chance.id for chance in chosen[:place]), fork.other.id)
        return Explanation(tuple(forks), reason=f"more than {MOST_FORKS} ties")

    def ties(self, forced: tuple[int, ...], most: int) -> tuple[Fork, ...] | None:
        """Ties that lead from the answer that begins with `forced` to the other text; None where none do."""
        steps, chosen = self.answer(forced)
        place = self.departure(chosen, len(forced))
        if place is None:
            return () if chosen and self.arrives(chosen[-1], self.other) else None
        if most == 0:
            return None
        # Where the texts part, then places before: two tokenisations of one text may part earlier.
        for at in range(place, len(forced) - 1, -1):
            before = tuple(chance.id for chance in chosen[:at])
            for other in steps[at][1:]:
                fork = self.fork(steps[at], at, other)
                if not fork.is_tie:
                    break
                rest = self.ties((*before, other.id), most - 1) if self.leads_on(other) else None
                if rest is not None:
                    return (fork, *rest)
        return None
