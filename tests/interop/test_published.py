"""Published weights: built strictly, read without running code, written as a folder that loads."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from homunculi.cli import main
from homunculi.errors import InputError
from homunculi.interop import published
from homunculi.interop.published import mor, ncn
from homunculi.interop.published.files import import_model, read
from homunculi.interop.published.vocabulary_space import VARIANTS
from homunculi.models import build, name_of
from homunculi.models.files import load_model

NCN: dict[str, Any] = {
    "vocab_size": 17,
    "d_model": 12,
    "nhead": 2,
    "num_layers": 2,
    "dim_feedforward": 20,
    "max_position_embeddings": 9,
    "tie_weights": True,
    "ncn_input_dim": 12,
    "ncn_hidden_dim": 5,
    "ncn_heads": 3,
    "num_mod_signals": 2,
    "modulation_signal_names": ["precision", "gain"],
    "ncn_activation_fn": "relu",
}
MOR: dict[str, Any] = {
    "kind": "expert",
    "num_recursion": 2,
    "sharing": "middle_cycle",
    "num_hidden_layers": 6,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "vocab_size": 17,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "cfg": {"type": "expert", "capacity": "1.0,0.5", "expert": {"alpha": 0.2, "gating": "weighted"}, "token": {}},
}
SYSTEMS = {"ncn": (NCN, ncn), "mor": (MOR, mor)}
IDS = torch.arange(9)[None] % 17


def theirs(system: str, every_name: bool = False) -> dict[str, Tensor]:
    """Random weights by the authors' names, tied ones under their first name or under all."""
    torch.manual_seed(0)
    config, module = SYSTEMS[system]
    given = published.Given(config)
    own = (
        build("ncn_published", **fields(ncn.configuration(given)))
        if system == "ncn"
        else build("mor_published", **fields(mor.configuration(given, "expert", True)))
    )
    state = own.state_dict()
    names = module.names(own)  # type: ignore[attr-defined]
    return {name: state[key] for key, found in names.items() for name in (found if every_name else found[:1])}


def fields(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in type(config).__dataclass_fields__}


@pytest.mark.parametrize("system", SYSTEMS)
def test_tied_tensors_may_stand_under_one_name_or_under_all(system: str) -> None:
    config, _ = SYSTEMS[system]
    once, often = theirs(system), theirs(system, every_name=True)
    assert len(once) < len(often)
    models = [published.build(system, config, weights) for weights in (once, often)]
    assert torch.equal(*(model(IDS).logits for model in models))
    assert not any(model.training for model in models)
    assert name_of(models[0].config) == f"{system}_published"


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_missing_a_surplus_and_a_misshapen_tensor_are_named(system: str) -> None:
    config, _ = SYSTEMS[system]
    weights = theirs(system)
    for name, tensor in weights.items():
        with pytest.raises(InputError, match=f"{name} is missing"):
            published.build(system, config, {n: t for n, t in weights.items() if n != name})
        with pytest.raises(InputError, match=name):
            published.build(system, config, weights | {name: torch.cat([tensor, tensor])})
    with pytest.raises(InputError, match=r"surplus\.weight"):
        published.build(system, config, weights | {"surplus.weight": torch.zeros(2)})
    first = next(iter(weights))
    with pytest.raises(InputError, match=f"{first} .*int64"):
        published.build(system, config, weights | {first: weights[first].long()})
    with pytest.raises(InputError, match=f"{first} is no tensor"):
        published.build(system, config, weights | {first: "text"})  # type: ignore[dict-item]


def test_tied_tensors_that_differ_are_named() -> None:
    weights = theirs("mor", every_name=True)
    name = "model.layers.2.block.1.self_attn.q_proj.weight"
    with pytest.raises(InputError, match=f"{name} differs from model.layers.1.block.1.self_attn.q_proj.weight"):
        published.build("mor", MOR, weights | {name: weights[name] + 1})


def test_building_leaves_the_weights_and_the_random_state_alone() -> None:
    weights = theirs("ncn")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model = published.build("ncn", NCN, weights)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert weights["final_norm.weight"].any()


def test_a_system_that_there_is_not_gets_a_list_of_those_there_are() -> None:
    with pytest.raises(InputError, match=r"nothing: .*mor, ncn"):
        published.build("nothing", {}, {})


@pytest.mark.parametrize(
    ("system", "change", "named"),
    [
        ("ncn", {"vocab_size": "many"}, "config.vocab_size"),
        ("ncn", {"nhead": True}, "config.nhead"),
        ("ncn", {"nhead": 5}, "n_heads"),
        ("ncn", {"modulation_signal_names": ["gain", "mood"]}, "mood"),
        ("ncn", {"num_mod_signals": 3}, "config.num_mod_signals"),
        ("ncn", {"ncn_input_dim": 8}, "config.ncn_input_dim"),
        ("mor", {"kind": "mixture"}, "config.kind"),
        ("mor", {"kind": None}, "config.kind"),
        ("mor", {"hidden_act": "gelu"}, "config.hidden_act"),
        ("mor", {"num_hidden_layers": 7}, "sharing"),
        ("mor", {"cfg": {"capacity": "1.0,half"}}, "config.cfg.capacity"),
        ("mor", {"cfg": {"rand_router": True}}, "config.cfg.rand_router"),
        ("mor", {"cfg": {"expert": {"gating": "additive"}}}, "config.cfg.expert.gating"),
        ("mor", {"cfg": {"expert": {"cap_warmup_step": 5}}}, "config.cfg.expert.cap_warmup_step"),
        ("mor", {"cfg": {"expert": 3}}, "config.cfg.expert"),
        ("mor", {"kind": "token", "mor": {"kv_share": True}}, "config.mor.kv_share"),
    ],
)
def test_a_setting_that_is_wrong_or_not_reproduced_is_named(system: str, change: dict[str, Any], named: str) -> None:
    config, _ = SYSTEMS[system]
    with pytest.raises(InputError, match=named):
        published.build(system, config | change, theirs(system))
    with pytest.raises(InputError, match="config"):
        published.build(system, [], {})  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_file_becomes_a_folder_that_loads_the_same_model(system: str, suffix: str, tmp_path: Path) -> None:
    config, _ = SYSTEMS[system]
    weights, file = theirs(system), tmp_path / f"given{suffix}"
    if suffix == ".pt":
        torch.save(
            {"step": 5, "config": config, "model_state_dict": {f"module.{n}": t for n, t in weights.items()}}, file
        )
    else:
        prefixed = {f"weights/{name}": tensor for name, tensor in weights.items()}
        save_file(prefixed | {"logits": torch.zeros(1)}, file, metadata={"config": json.dumps(config)})
    model = import_model(system, file, tmp_path / "made")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["config.json", "model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name, "made"]
    loaded = load_model(tmp_path / "made")
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert torch.equal(loaded(IDS).logits, published.build(system, config, weights)(IDS).logits)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "ran")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, legacy: bool) -> None:
    file, trace = tmp_path / "evil.pt", tmp_path / "trace"
    torch.save({"model": {"w": torch.zeros(2)}, "config": Evil(trace)}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=r"evil\.pt: refused"):
        read(file)
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.read_text() == "ran", "the trap must work where it is allowed to"


def test_a_bare_pickle_is_refused_as_well(tmp_path: Path) -> None:
    file, trace = tmp_path / "evil.pth", tmp_path / "trace"
    file.write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(InputError, match=r"evil\.pth"):
        read(file)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.pt", None, "no such file"),
        ("weights.txt", b"text", ".safetensors"),
        ("cut.safetensors", b"\x08\x00\x00\x00", "not a whole safetensors file"),
        ("noise.pt", b"noise" * 50, "noise.pt"),
        ("empty.pt", b"", "empty.pt"),
    ],
)
def test_a_file_that_is_no_checkpoint_gets_one_line(
    name: str, content: bytes | None, said: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as refused:
        read(tmp_path / name)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_without_a_state_dict_and_a_taken_folder_are_refused(tmp_path: Path) -> None:
    torch.save({"step": 3}, tmp_path / "empty.pt")
    with pytest.raises(InputError, match="no state dict"):
        read(tmp_path / "empty.pt")
    save_file(theirs("ncn"), tmp_path / "bare.safetensors")
    with pytest.raises(InputError, match="--config"):
        import_model("ncn", tmp_path / "bare.safetensors", tmp_path / "made")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match=r"broken\.json"):
        import_model("ncn", tmp_path / "bare.safetensors", tmp_path / "made", tmp_path / "broken.json")
    assert not (tmp_path / "made").exists()
    with pytest.raises(InputError, match="is taken"):
        import_model("ncn", tmp_path / "bare.safetensors", tmp_path)


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str | Path
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line."""
    monkeypatch.setattr(sys, "argv", ["homunculi", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_the_verb_says_what_it_wrote(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save_file(theirs("mor"), tmp_path / "bare.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(MOR))
    words = ("import", "mor", tmp_path / "bare.safetensors", "--config", tmp_path / "config.json", "--to")
    code, out, err = run(capsys, monkeypatch, *words, tmp_path / "one", "--json")
    assert code == 0, err
    found = json.loads(out)
    n_parameters = sum(p.numel() for p in load_model(tmp_path / "one").parameters())
    assert (found["architecture"], found["parameters"], found["causal"]) == ("mor_published", n_parameters, False)
    assert found["note"] and Path(found["folder"]) == tmp_path / "one"
    code, out, err = run(capsys, monkeypatch, *words, tmp_path / "two")
    assert code == 0 and "NOT causal" in out and out.splitlines()[-1] == str(tmp_path / "two")


def test_the_verb_refuses_with_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    torch.save({"model": Evil(trace)}, tmp_path / "evil.pt")
    for words, said in (
        (("ncn", tmp_path / "evil.pt"), "evil.pt: refused"),
        (("ncn", tmp_path / "absent.pt"), "absent.pt: no such file"),
        (("nothing", tmp_path / "evil.pt"), "no such published system"),
    ):
        code, out, err = run(capsys, monkeypatch, "import", *words, "--to", tmp_path / "made")
        assert code == 2 and not out and said in err and len(err.strip().splitlines()) == 1
    assert not trace.exists() and not (tmp_path / "made").exists()


def test_what_is_known_of_causality_depends_on_the_form() -> None:
    assert not published.causality("ncn", published.build("ncn", NCN, theirs("ncn")))[0]
    assert not published.causality("mor", published.build("mor", MOR, theirs("mor")))[0]
    assert published.causality("mor", build("mor_published", vocab_size=9, d_model=32, routing="token"))[0]


RELU_IS_GELU = ("v1_", "v2_", "v3_", "v4_", "v5_", "v6_", "v8_", "v14_", "v15_", "v16_")
RELU_IS_RELU = ("v9_", "v12_", "v13_")


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name.startswith(RELU_IS_GELU + RELU_IS_RELU)])
def test_relu_is_refused_where_the_original_takes_it_for_gelu(variant: str) -> None:
    said = "config.activation" if variant.startswith(RELU_IS_GELU) else "weights: logit_scale is missing"
    with pytest.raises(InputError, match=said):
        published.build(f"vocabulary-space/{variant}", {"vocab_size": 1024, "activation": "relu"}, {})
