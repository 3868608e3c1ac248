"""Overrides, JSON round trips and the one-line errors of homunculi.settings."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from homunculi.errors import InputError
from homunculi.settings import changed, check_range, fields_of, from_json, override, to_json, to_text


class ModelSettings(Protocol):
    @property
    def d_model(self) -> int: ...


class Base: ...


@dataclass(frozen=True)
class Straight:
    d_model: int = 64
    n_heads: int = 4
    layers: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        check_range("n_heads", self.n_heads, low=1)
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not divisible by\nn_heads {self.n_heads}")


@dataclass(frozen=True)
class Looped(Base):
    d_model: int = 64
    repeats: int = 3


@dataclass(frozen=True)
class Step:
    block: int
    wave: int = 0


@dataclass(frozen=True)
class Teacher:
    weight: float
    model: ModelSettings


@dataclass(frozen=True)
class Recipe:
    corpus: str = "stories"
    steps: int = field(default=100, metadata={"help": "updates to make"})
    lr: float = 1e-3
    compile: bool = False
    precision: Literal["float32", "bf16"] = "float32"
    clip: float | None = None
    limit: int | Literal["auto"] = "auto"
    note: str | None = None
    tags: tuple[str, ...] = ()
    betas: tuple[float, float] = (0.9, 0.95)
    schedule: tuple[Step, ...] = (Step(0), Step(1, wave=2))
    free: Any = None
    model: ModelSettings = Straight()
    spare: Base = Looped()
    teacher: Teacher | None = None
    n_tokens: int = field(init=False, default=7)

    def __post_init__(self) -> None:
        check_range("lr", self.lr, above=0)


TAUGHT = Recipe(teacher=Teacher(0.5, Looped()))
ARCHITECTURES: dict[Any, str] = {Straight: "straight", Looped: "looped"}


def architecture_of(group: Any) -> dict[str, Any]:
    return {"architecture": ARCHITECTURES[type(group)]} if type(group) in ARCHITECTURES else {}


def class_of(path: str, data: dict[str, Any]) -> type | None:
    wanted = data.pop("architecture", None)
    return next((cls for cls, name in ARCHITECTURES.items() if name == wanted), None)


def through_json(config: Any) -> Any:
    text = json.dumps(to_json(config, architecture_of), allow_nan=False)
    return from_json(type(config), json.loads(text), resolve=class_of)


def line_of(call: Callable[..., Any], *values: Any, **options: Any) -> str:
    """The one line that a call is refused with."""
    with pytest.raises(InputError) as caught:
        call(*values, **options)
    assert len(str(caught.value).splitlines()) == 1 and str(caught.value).isprintable()
    return str(caught.value)


def refusal(*assignments: str, config: Any = None, path: str = "") -> str:
    return line_of(override, config or Recipe(), assignments, path)


def test_whole_numbers_are_exact() -> None:
    texts = ["7", "-3", "1_000", "4e6", "4M", "32k", "2G", "1.5k", " 12 ", "123456789012345678901"]
    numbers = [7, -3, 1000, 4_000_000, 4_000_000, 32_000, 2_000_000_000, 1500, 12, 123456789012345678901]
    assert [override(Recipe(), [f" steps ={text}"]).steps for text in texts] == numbers


def test_switches_text_choices_and_optional_values() -> None:
    for text in ("true", "Yes", "1"):
        assert override(Recipe(compile=False), [f"compile={text}"]).compile is True
    for text in ("false", "NO", "0"):
        assert override(Recipe(compile=True), [f"compile={text}"]).compile is False
    assert override(Recipe(), ["corpus= a=b,c "]).corpus == " a=b,c "
    assert override(Recipe(), ["precision=bf16"]).precision == "bf16"
    config = override(Recipe(), ["clip=0.5", "limit=3", "note=x"])
    assert config == Recipe(clip=0.5, limit=3, note="x")
    assert override(config, ["clip=none", "limit=auto", "note=NULL"]) == Recipe()


def test_tuples_by_comma_or_json() -> None:
    config = override(Recipe(), ["model.layers=3, 4", "tags=a, b", "betas=[0, 0.5]", 'schedule=[{"block": 4}]'])
    assert config == Recipe(model=Straight(layers=(3, 4)), tags=("a", "b"), betas=(0.0, 0.5), schedule=(Step(4),))
    assert override(config, ["tags="]).tags == ()
    assert override(config, ['tags=["a,b", "none"]']).tags == ("a,b", "none")


def test_an_open_field_keeps_the_type_it_holds() -> None:
    assert override(Recipe(free="4"), ["free=5"]).free == "5"
    assert override(Recipe(free=4), ["free=5"]).free == 5
    assert override(Recipe(), ["free=[1, [2.5, null]]"]).free == (1, (2.5, None))
    assert refusal("free=x", config=Recipe(free=4)) == "free: expected a whole number, got 'x'"


def test_assignments_are_validated_together_in_any_order_and_the_last_counts() -> None:
    pair = ["model.d_model=90", "model.n_heads=6"]
    assert override(Recipe(), pair) == override(Recipe(), pair[::-1]) == Recipe(model=Straight(90, 6))
    recipe = Recipe()
    assert override(recipe, ["steps=1", "steps=2"]).steps == 2
    assert override(recipe, []) is recipe and recipe == Recipe()


def test_a_group_is_found_by_its_value_under_a_protocol_a_base_class_or_any() -> None:
    config = override(Recipe(free=Looped()), ["model.n_heads=8", "spare.repeats=5", "free.repeats=9"])
    assert config == Recipe(free=Looped(repeats=9), model=Straight(n_heads=8), spare=Looped(repeats=5))


def test_an_optional_group_can_be_set_to_none_but_not_in_part_as_well() -> None:
    assert override(TAUGHT, ["teacher=none"]).teacher is None
    changes = ["teacher.weight=2", "teacher.model.repeats=1"]
    assert override(TAUGHT, changes).teacher == Teacher(2.0, Looped(repeats=1))
    assert refusal("teacher=none", "teacher.weight=1", config=TAUGHT).startswith("teacher: set to none and given")


def test_numbers_must_be_whole_or_finite() -> None:
    not_whole = ["four", "1.5", "4.0001k", "1e-3", "2m", "2K", "1__0", "nan", "9e999", "9" * 4300 + "e9", "\u0661"]
    for text in ["", *not_whole]:
        assert refusal(f"model.n_heads={text}").startswith(f"model.n_heads: expected a whole number, got '{text[:70]}")
    for text in ("nan", "NaN", "inf", "-inf", "infinity", "1e999", "fast", ""):
        assert refusal(f"lr={text}") == f"lr: expected a finite number, got '{text}'"


REFUSED = [
    ("n_heads", "n_heads: expected key=value"),
    ("=3", "=3: expected key=value"),
    ("steps_=1", "steps_: no such setting; did you mean steps? (homunculi list settings shows all)"),
    ("n_heads=4", "n_heads: no such setting; did you mean model.n_heads? (homunculi list settings shows all)"),
    ("qqq=1", "qqq: no such setting (homunculi list settings shows all)"),
    ("d_model=8", "d_model: no such setting; did you mean model.d_model or spare.d_model?"),
    ("model.__init__=1", "model.__init__: no such setting"),
    ("teacher.weight=1", "teacher.weight: teacher is none here and has no settings"),
    ("model=gpt", "model is a group: set one of model.d_model, model.n_heads, model.layers"),
    ("compile=2", "compile: expected true or false, got '2'"),
    ("precision=fp8", "precision: expected one of float32, bf16, got 'fp8'"),
    ("precision=float23", "precision: expected one of float32, bf16, got 'float23'; did you mean float32?"),
    ("clip=x", "clip: expected a finite number or none, got 'x'"),
    ("limit=autp", "limit: expected a whole number or one of auto, got 'autp'; did you mean auto?"),
    ("betas=[1,2,3]", "betas: expected a list of 2 values, got [1, 2, 3]"),
    ("betas=[0, NaN]", "betas[1]: expected a finite number, got nan"),
    ("model.layers=1,x", "model.layers: expected a whole number, got 'x'"),
    ("model.layers=[1,true]", "model.layers[1]: expected a whole number, got True"),
    ("model.layers=" + "[" * 100_000, "model.layers: expected a list, each a whole number, got '[[["),
    ('schedule=[{"blok": 4}]', "schedule[0].blok: no such setting; did you mean schedule[0].block?"),
    ("schedule=3", "schedule: expected Step settings, got '3'"),
    ("free={}", "free: nothing says which class of settings this is"),
    ("free=" + "[" * 100_000, "free: expected a JSON value, got '[[["),
    ("lr=0", "lr: 0.0 must be above 0"),
    ("model.n_heads=0", "model.n_heads: 0 must be at least 1"),
    ("model.n_heads=5", "model.d_model 64 is not divisible by n_heads 5"),
]


@pytest.mark.parametrize(("assignment", "message"), REFUSED, ids=[text[:20] for text, _ in REFUSED])
def test_a_refusal_names_the_setting_and_what_is_expected(assignment: str, message: str) -> None:
    assert refusal(assignment).startswith(message)


def test_the_nearest_setting_is_suggested_and_none_where_none_is_near() -> None:
    near = {"MODEL.LAYERS": "model.layers", "modle.n_heads": "model.n_heads", "model.lr": "lr", "steps.x": "steps"}
    for key, name in near.items():
        assert refusal(f"{key}=1").startswith(f"{key}: no such setting; did you mean {name}? (")
    assert "did you mean" not in refusal("precision=fp8") + refusal("qqq=1") + refusal("clip=x")


def test_the_path_of_the_configuration_itself_is_in_every_refusal() -> None:
    for assignment in ("n_heads=x", "n_head=3", "n_heads=0", "n_heads=5"):
        assert refusal(assignment, config=Straight(), path="model") == refusal(f"model.{assignment}")


@dataclass(frozen=True)
class Stubborn:
    message: str = ""
    n: int = 1

    def __post_init__(self) -> None:
        if self.n == 0:
            raise InputError(self.message)
        divmod(1, self.n - 13)


@dataclass(frozen=True)
class Outer:
    inner: Stubborn = Stubborn()


def test_a_refusal_by_a_group_gets_its_name_once() -> None:
    prefixed = {"n: 0 is too small": "inner.n: 0 is too small", "innermost is\nwrong": "inner: innermost is wrong"}
    for raised, shown in [*prefixed.items(), *[(text, text) for text in ("inner.n: 0 is too small", "inner is wrong")]]:
        assert refusal("inner.n=0", config=Outer(Stubborn(raised))) == shown
        assert line_of(from_json, Outer, {"inner": {"message": raised, "n": 0}}) == shown
    assert refusal("inner.n=13", config=Outer()).startswith("inner: ")  # a division by zero


# Any configuration: printed back, through JSON, and keys and values at random

repeatable = budget(deadline=None, derandomize=True, max_examples=150)
finite = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(alphabet=string.printable + "éλ☃", max_size=12)
whole = st.integers(-(10**40), 10**40)
scalars = st.none() | st.booleans() | whole | finite | words
plain = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5)
looped = st.builds(Looped, d_model=whole, repeats=whole)
layers = st.lists(whole, max_size=4).map(tuple)
straight = st.builds(lambda h, d, layers: Straight(h * d, h, layers), st.integers(1, 64), st.integers(0, 256), layers)
recipes = st.builds(
    Recipe,
    corpus=words,
    steps=whole,
    lr=st.floats(min_value=1e-300, allow_infinity=False),
    compile=st.booleans(),
    precision=st.sampled_from(["float32", "bf16"]),
    clip=st.none() | finite,
    limit=whole | st.just("auto"),
    note=st.none() | words.filter(lambda text: text.strip().lower() not in ("none", "null")),
    tags=st.lists(words, max_size=3).map(tuple),
    betas=st.tuples(finite, finite),
    schedule=st.lists(st.builds(Step, whole, whole), max_size=3).map(tuple),
    free=plain | looped,
    model=straight | looped,
    spare=looped,
    teacher=st.none() | st.builds(Teacher, finite, straight | looped),
)
keys = st.sampled_from([row[0] for row in fields_of(TAUGHT)] + ["model", "teacher", "steps.x", "", "."])
near_json = st.text(alphabet='[]{},":0123.eE+-kMGnulaif', max_size=20)


@given(config=recipes)
@repeatable
def test_every_value_printed_back_is_the_identity(config: Recipe) -> None:
    again = override(config, [f"{name}={to_text(value)}" for name, _, value, _ in fields_of(config)])
    assert again == config
    assert [type(row[2]) for row in fields_of(again)] == [type(row[2]) for row in fields_of(config)]


@given(config=recipes)
@repeatable
def test_json_and_back_is_the_identity(config: Recipe) -> None:
    again = through_json(config)
    assert again == config and type(again.model) is type(config.model)
    assert changed(again, config) == {}


@given(config=recipes, base=recipes)
@repeatable
def test_changed_gives_exactly_what_differs(config: Recipe, base: Recipe) -> None:
    before, after = ({row[0]: row[2] for row in fields_of(one)} for one in (base, config))
    differing = {name for name in before | after if before.get(name) != after.get(name)}
    groups = {"model", "free", "teacher", "teacher.model"}
    assert {name for name in changed(config, base) if name not in groups} == differing - groups


@given(key=st.text(max_size=30) | keys, text=st.text(max_size=30) | near_json)
@repeatable
def test_no_assignment_raises_anything_but_one_line(key: str, text: str) -> None:
    try:
        config = override(TAUGHT, [f"{key}={text}"])
    except InputError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert through_json(config) == config


def test_to_json_writes_every_setting_and_the_tags_first() -> None:
    data = to_json(TAUGHT, architecture_of)
    assert list(data) == [name for name in Recipe.__dataclass_fields__ if name != "n_tokens"]
    assert data["betas"] == [0.9, 0.95]
    assert data["schedule"] == [{"block": 0, "wave": 0}, {"block": 1, "wave": 2}]
    assert list(data["model"]) == ["architecture", "d_model", "n_heads", "layers"]
    assert data["teacher"] == {"weight": 0.5, "model": {"architecture": "looped", "d_model": 64, "repeats": 3}}
    assert "architecture" not in to_json(Recipe())["model"]


def test_the_outermost_group_is_tagged_and_resolved_too_and_no_tag_hides_a_setting() -> None:
    data = to_json(Looped(repeats=5), architecture_of)
    assert data == {"architecture": "looped", "d_model": 64, "repeats": 5}
    assert vars(from_json(Any, data, resolve=class_of)) == vars(Looped(repeats=5))
    assert data["architecture"] == "looped"
    with pytest.raises(ValueError, match=r"model\.d_model: a tag has the name"):
        to_json(Recipe(), lambda group: {"d_model": 1} if isinstance(group, Straight) else {})


UNWRITABLE: list[tuple[dict[str, Any], str]] = [
    ({"lr": math.inf}, "lr: expected a finite number, got inf"),
    ({"clip": math.nan}, "clip: expected a finite number or none, got nan"),
    ({"steps": 4e6}, "steps: expected a whole number, got 4000000.0"),
    ({"free": {1}}, "free: expected a JSON value, got {1}"),
    ({"teacher": Looped()}, "teacher: expected Teacher settings or none, got Looped("),
]


def test_to_json_makes_values_plain_and_refuses_what_could_not_be_read_back() -> None:
    for wrong, message in UNWRITABLE:
        assert line_of(to_json, Recipe(**wrong)).startswith(message)
    data = to_json(Recipe(lr=type("Fine", (float,), {})(0.5), tags=["a"], clip=2))  # type: ignore[arg-type]
    assert (type(data["lr"]), data["lr"], data["tags"], data["clip"]) == (float, 0.5, ["a"], 2.0)


UNREADABLE: list[tuple[dict[str, Any], str]] = [
    ({"stepz": 1}, "stepz: no such setting; did you mean steps?"),
    ({"steps": True}, "steps: expected a whole number, got True"),
    ({"lr": 10**400}, "lr: expected a finite number, got 1000"),
    ({"precision": "bf17"}, "precision: expected one of float32, bf16, got 'bf17'; did you mean bf16?"),
    ({"tags": "abc"}, "tags: expected a list, each text, got 'abc'"),
    ({"schedule": [{"wave": 1}]}, "schedule[0].block: missing, and it has no default"),
    ({"teacher": {"architecture": "looped"}}, "teacher: expected Teacher settings or none, got Looped settings"),
    ({"model": {"d_model": 8}}, "model: nothing says which class of settings this is"),
    ({"model": {"architecture": "looped", "n_heads": 1}}, "model.n_heads: no such setting"),
    ({"model": {"architecture": "straight", "n_heads": 0}}, "model.n_heads: 0 must be at least 1"),
]


@pytest.mark.parametrize(("edit", "message"), UNREADABLE)
def test_from_json_is_strict_and_names_the_setting(edit: dict[str, Any], message: str) -> None:
    data = to_json(Recipe(), architecture_of) | edit
    assert line_of(from_json, Recipe, data, resolve=class_of).startswith(message)


def test_from_json_takes_defaults_and_names_where_it_is() -> None:
    assert from_json(Recipe, {"lr": 1}) == Recipe(lr=1.0)
    assert line_of(from_json, Step, {"block": "x"}, "run.json").startswith("run.json.block: expected a whole")
    assert line_of(from_json, Recipe, [1]) == "settings: expected Recipe settings, got [1]"


def test_fields_of_lists_settings_with_type_value_and_help() -> None:
    rows = {name: rest for name, *rest in fields_of(Recipe())}
    assert rows["steps"] == ["int", 100, "updates to make"]
    assert rows["precision"] == ["float32 | bf16", "float32", ""]
    assert rows["teacher"] == ["Teacher | none", None, ""]
    assert rows["betas"][0] == "tuple[float, float]"
    assert rows["model.layers"] == ["tuple[int, ...]", (1, 2), ""]
    assert "model" not in rows and "n_tokens" not in rows


def test_changed_names_what_differs_and_another_class() -> None:
    base = Recipe()
    assert changed(override(base, ["steps=7", "model.n_heads=8"]), base) == {"steps": (100, 7), "model.n_heads": (4, 8)}
    difference = changed(replace(base, model=Looped()), base)
    assert difference.pop("model") == (f"{__name__}.Straight", f"{__name__}.Looped")
    assert difference == {"model.n_heads": (4, None), "model.layers": ((1, 2), None), "model.repeats": (None, 3)}


def test_check_range_refuses_in_one_line_what_is_outside_and_nothing_else() -> None:
    assert line_of(check_range, "lr", 0, above=0) == "lr: 0 must be above 0"
    assert line_of(check_range, "lr", -1, low=0, high=1) == "lr: -1 must be at least 0"
    assert line_of(check_range, "lr", 1.5, low=0, high=1) == "lr: 1.5 must be at most 1"
    assert line_of(check_range, "lr", "4", low=0) == "lr: expected a finite number, got '4'"
    for bound in ("above", "low", "high"):
        assert line_of(check_range, "lr", math.nan, **{bound: 0}).startswith("lr: nan must be ")
    check_range("x", 0, low=0, high=0)
    check_range("x", 1e-9, above=0)
