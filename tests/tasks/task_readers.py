"""Slow readers of the tasks, one row at a time and in plain Python: what is the answer after these tokens?

A reader gets the tokens up to a position and the dials, never what follows, and returns the right id. The reader of
`compression` gets all tokens and the position that is asked for, as its decoder does.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

Reader = Callable[[list[int], dict[str, Any]], int]
READERS: dict[str, Reader] = {}
NEEDED: dict[str, Reader] = {}


def reader(name: str, of: dict[str, Reader] = READERS) -> Callable[[Reader], Reader]:
    def register(function: Reader) -> Reader:
        of[name] = function
        return function

    return register


def after(ids: list[int], thing: int) -> int:
    return ids[ids.index(thing) + 1]


@reader("recall")
@reader("noisy_recall")
def read_recall(ids: list[int], dials: dict[str, Any]) -> int:
    return after(ids, ids[-1])


@reader("fuzzy_recall")
def read_fuzzy_recall(ids: list[int], dials: dict[str, Any]) -> int:
    first_value = 2 + dials["vocabulary"] // 2
    known: dict[tuple[int, ...], list[int]] = {}
    key: list[int] = []
    value: list[int] | None = None
    for token in ids:
        if token == 1:
            known.setdefault(tuple(key), [])
            value = []
        elif token >= first_value:
            assert value is not None
            value.append(token)
            if len(value) > len(known[tuple(key)]):
                known[tuple(key)].append(token)
        else:
            key, value = ([token], None) if value is not None else ([*key, token], None)
    return known[tuple(key)][len(value or [])]


@reader("selective_copy")
def read_selective_copy(ids: list[int], dials: dict[str, Any]) -> int:
    return [token for token in ids if token > 1][ids.count(1) - 1]


@reader("compression")
def read_compression(ids_and_place: list[int], dials: dict[str, Any]) -> int:
    return ids_and_place[ids_and_place[-1]]


@reader("memorisation")
def read_memorisation(ids: list[int], dials: dict[str, Any]) -> int:
    facts, mask = dials["facts"], (1 << 64) - 1
    side = facts if dials["key_tokens"] == 1 else min(n for n in range(facts + 1) if n * n >= facts)
    number = ids[-1] if dials["key_tokens"] == 1 else ids[-2] * side + ids[-1] - side
    number = (number + 0x9E3779B97F4A7C15) & mask
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & mask
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & mask
    return dials["key_tokens"] * side + (number ^ (number >> 31)) % 16


def followed(ids: list[int], start: int, n_arrows: int, steps: int) -> int:
    arrows = dict(zip(ids[0 : 2 * n_arrows : 2], ids[1 : 2 * n_arrows : 2], strict=True))
    for _ in range(steps):
        start = arrows[start]
    return start


@reader("compositional_recall")
def read_compositional_recall(ids: list[int], dials: dict[str, Any]) -> int:
    return followed(ids, ids[-1], dials["pairs"], dials["hops"])


@reader("compositional_recall", NEEDED)
def hops_needed(ids: list[int], dials: dict[str, Any]) -> int:
    return int(dials["hops"])


@reader("pointer_chasing", NEEDED)
def marks_before(ids: list[int], dials: dict[str, Any]) -> int:
    return ids[-1 - dials["steps"] :].count(1)


@reader("pointer_chasing")
def read_pointer_chasing(ids: list[int], dials: dict[str, Any]) -> int:
    return followed(ids, ids[-1], dials["arrows"], marks_before(ids, dials))


@reader("forgetting")
def read_forgetting(ids: list[int], dials: dict[str, Any]) -> int:
    newest = {}
    for key, value in zip(ids[::2], ids[1::2], strict=False):
        if key != 0:
            newest[key] = value
    return newest[ids[-1]]


def read_and_written(ids: list[int]) -> tuple[list[int], list[int]]:
    return ids[: ids.index(1)], ids[ids.index(1) + 1 :]


@reader("copy")
def read_copy(ids: list[int], dials: dict[str, Any]) -> int:
    read, written = read_and_written(ids)
    return read[len(written)]


@reader("reverse")
def read_reverse(ids: list[int], dials: dict[str, Any]) -> int:
    read, written = read_and_written(ids)
    return read[-1 - len(written)]


@reader("sort")
def read_sort(ids: list[int], dials: dict[str, Any]) -> int:
    read, written = read_and_written(ids)
    return sorted(read)[len(written)]


@reader("add")
def read_add(ids: list[int], dials: dict[str, Any]) -> int:
    base = dials["base"]
    plus, equals = ids.index(base), ids.index(base + 1)

    def number(digits: list[int]) -> int:
        return sum(digit * base**place for place, digit in enumerate(digits))

    total = number(ids[:plus]) + number(ids[plus + 1 : equals])
    return total // base ** (len(ids) - equals - 1) % base


@reader("parity")
def read_parity(ids: list[int], dials: dict[str, Any]) -> int:
    return ids.count(1) % 2


@reader("dyck")
def read_dyck(ids: list[int], dials: dict[str, Any]) -> int:
    open_brackets: list[int] = []
    for token in ids:
        if token < dials["kinds"]:
            open_brackets.append(token)
        else:
            assert open_brackets.pop() == token - dials["kinds"]
        assert len(open_brackets) <= dials["depth"]
    return dials["kinds"] + open_brackets[-1]


@reader("modular_arithmetic")
def read_modular_arithmetic(ids: list[int], dials: dict[str, Any]) -> int:
    text = "(" * (len(ids) // 2) + str(ids[0])
    for operation, number in zip(ids[1::2], ids[2::2], strict=True):
        text += "+-*"[operation - dials["modulus"]] + str(number) + ")"
    value = eval(text)
    return int(value % dials["modulus"])


@reader("s5")
def read_s5(ids: list[int], dials: dict[str, Any]) -> int:
    orders = list(permutations(range(dials["things"])))
    now = tuple(range(dials["things"]))
    for number in ids:
        now = tuple(orders[number][thing] for thing in now)
    return orders.index(now)


@reader("modular_addition")
def read_modular_addition(ids: list[int], dials: dict[str, Any]) -> int:
    return (ids[0] + ids[1]) % dials["prime"]


@reader("agreement")
def read_agreement(ids: list[int], dials: dict[str, Any]) -> int:
    start = len(ids) - 1 - ids[::-1].index(1) if 1 in ids else -1
    the, noun = ids[start + 1], ids[start + 2]
    assert the == 0 and 4 <= noun < 36 and len(ids) - start - 3 == dials["distance"]
    return 2 + noun % 2


@reader("name_recall")
def read_name_recall(ids: list[int], dials: dict[str, Any]) -> int:
    whose, thing, mark = ids[-3:]
    assert (whose, mark) == (2, 3)
    told = ids.index(thing)
    assert ids[told - 1] == 0
    return ids[told - 2]


def entities(ids: list[int], dials: dict[str, Any]) -> tuple[dict[int, int], dict[int, int]]:
    """Where everybody and everything is by the rules of the world, and how many look-ups it takes to say so."""
    people, things, first_verb = dials["people"], dials["things"], dials["people"] + dials["things"] + dials["rooms"]
    where: dict[int, int] = {}
    holder: dict[int, int] = {}
    steps: dict[int, int] = {}
    for n_told in range(people + things + dials["events"]):
        who, verb, what = ids[3 * n_told : 3 * n_told + 3]
        if verb in (first_verb, first_verb + 3):  # goes, at
            assert where.get(who) != what
            where[who] = what
            steps[who] = 1
            where.update({thing: what for thing, held_by in holder.items() if held_by == who})
        elif verb == first_verb + 1:
            assert where[who] == where[what] and what not in holder and who < people <= what < people + things
            holder[what], steps[what] = who, 2
        else:
            assert verb == first_verb + 2 and holder.pop(what) == who
    return where, steps


@reader("entity_tracking")
def read_entity_tracking(ids: list[int], dials: dict[str, Any]) -> int:
    return entities(ids, dials)[0][ids[-1]]


@reader("entity_tracking", NEEDED)
def look_ups_needed(ids: list[int], dials: dict[str, Any]) -> int:
    return entities(ids, dials)[1][ids[-1]]


def evaluated(ids: list[int], digits: int) -> tuple[int, int]:
    """Value and height of the bracket that the last token closes, by recursion from its end."""

    def thing(end: int) -> tuple[int, int, int]:
        if ids[end] < digits:
            return ids[end], 0, end
        assert ids[end] == digits + 3
        values, height, at = [], 0, end - 1
        while not digits <= ids[at] < digits + 3:
            value, inner, start = thing(at)
            values.append(value)
            height, at = max(height, inner), start - 1
        assert len(values) >= 2
        return (max, min, lambda all_of: sum(all_of) % digits)[ids[at] - digits](values), height + 1, at

    return thing(len(ids) - 1)[:2]


@reader("nested_brackets")
def read_nested_brackets(ids: list[int], dials: dict[str, Any]) -> int:
    return evaluated(ids, dials["digits"])[0]


@reader("nested_brackets", NEEDED)
def height_needed(ids: list[int], dials: dict[str, Any]) -> int:
    height = evaluated(ids, dials["digits"])[1]
    assert height <= dials["depth"]
    return height
