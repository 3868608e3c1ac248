"""The exported folder without transformers: what lies in it, that its code stands alone, and what is refused."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from homunculi.cli.main import main
from homunculi.core.model import LanguageModel
from homunculi.errors import InputError
from homunculi.experiments.subject import add_noise
from homunculi.interop import hf
from homunculi.interop.flattening import flat_name, flatten
from homunculi.models import Architecture, build, get, names, registry
from homunculi.runs.directory import claim
from homunculi.text.config import TextConfig
from homunculi.text.tokenizers import ByteTokenizer, load_tokenizer
from homunculi.train.config import OutputConfig, RunConfig, TrainConfig, config_to_json
from homunculi.train.loading import load
from homunculi.train.loop import train
from tests.contract.contract_checks import SIZES, cases
from tests.interop.outside import NAME, outside  # noqa: F401
from tests.train.conftest import Listener

MAY_IMPORT = {"torch", "transformers"}
IDS = torch.randint(SIZES["vocab_size"], (2, 9), generator=torch.Generator().manual_seed(0))
# Loads the folders named on its command line as packages, where neither transformers nor this package exists.
READ_ALONE = """
    import sys


    class Gone:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("homunculi", "lab_of_mine", "transformers"):
                raise ModuleNotFoundError(name)


    sys.meta_path.insert(0, Gone())
    import importlib, json
    import torch
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(1)
    ids = load_file("ids.safetensors")["ids"]
    for folder in sys.argv[1:]:
        kinds = importlib.import_module(f"{folder}.architecture")
        from_json = importlib.import_module(f"{folder}.settings").from_json
        described = json.load(open(f"{folder}/config.json"))["homunculi"]["config"]
        model = kinds.Model(from_json(kinds.Config, described)).eval()
        weights = load_file(f"{folder}/model.safetensors")
        model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in weights.items()})
        save_file({"logits": model(ids).logits.detach().contiguous()}, f"{folder}.safetensors")
"""


def small(name: str) -> LanguageModel:
    """A model with noise in every parameter, so that nothing hides behind a zero."""
    model = cases(name)[0].model().eval()
    with torch.no_grad():
        add_noise(model, seed=1)
    return model


def imported(text: str) -> tuple[set[str], set[str]]:
    """Top-level packages that a module imports anywhere, and files of its own folder."""
    packages, siblings = set(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            packages.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1, ast.unparse(node)
            siblings |= {node.module} if node.module else {alias.name for alias in node.names}
    return packages, siblings


def followed(folder: Path, start: str) -> set[str]:
    """Modules that the loader of remote code copies, which reads lines and not the syntax."""
    found, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            text = (folder / f"{name}.py").read_text(encoding="utf-8")
            waiting += re.findall(r"^\s*from\s+\.(\S+)\s+import", text, flags=re.MULTILINE)
    return found


def read_alone(folders: list[Path]) -> list[torch.Tensor]:
    """Logits of `IDS` by the architectures in folders that lie side by side."""
    place = folders[0].parent
    save_file({"ids": IDS}, place / "ids.safetensors")
    command = [sys.executable, "-c", textwrap.dedent(READ_ALONE), *(folder.name for folder in folders)]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [load_file(place / f"{folder.name}.safetensors")["logits"] for folder in folders]


@pytest.mark.parametrize("name", names())
def test_the_code_of_the_folder_imports_torch_transformers_and_itself_only(name: str, tmp_path: Path) -> None:
    hf.export(small(name), tmp_path / "given")
    paths = {path.stem: path for path in (tmp_path / "given").glob("*.py")}
    for path in paths.values():
        text = path.read_text(encoding="utf-8")
        compile(text, path.name, "exec")
        packages, siblings = imported(text)
        assert packages <= MAY_IMPORT | sys.stdlib_module_names, path.name
        assert siblings <= paths.keys(), path.name
    assert followed(tmp_path / "given", "modeling_homunculi") == paths.keys()
    assert followed(tmp_path / "given", "configuration_homunculi") == {"configuration_homunculi"}


def test_every_architecture_stands_alone_and_gives_the_same_logits(tmp_path: Path) -> None:
    subjects = [small(name) for name in names()]
    folders = [tmp_path / f"number_{i}" for i in range(len(subjects))]
    for model, folder in zip(subjects, folders, strict=True):
        hf.export(model, folder)
    found = zip(names(), subjects, read_alone(folders), strict=True)
    assert not [name for name, model, logits in found if not torch.equal(model(IDS).logits, logits)]


def test_an_architecture_of_another_package_stands_alone(outside: Architecture, tmp_path: Path) -> None:  # noqa: F811
    model = small(NAME)
    files = hf.export(model, tmp_path / "given")
    assert {"outside_lab_of_mine_net.py", "outside_lab_of_mine_pieces_scale.py", "models.py"} <= set(files)
    assert not {name for name in files if "experiments" in name}
    written = json.loads((tmp_path / "given" / "config.json").read_text())
    assert written["model_type"] == "homunculi_twice_over_1"
    assert (written["num_hidden_layers"], written["num_blocks"]) == (12, 6)
    assert followed(tmp_path / "given", "modeling_homunculi") == {name[:-3] for name in files if name.endswith(".py")}
    assert torch.equal(read_alone([tmp_path / "given"])[0], model(IDS).logits)


def test_tensors_keep_their_bits_under_prefixed_names(tmp_path: Path) -> None:
    model = small("gpt")
    hf.export(model, tmp_path / "given")
    written = load_file(tmp_path / "given" / "model.safetensors")
    own = model.state_dict()
    assert written.keys() == {f"model.{name}" for name in own}
    assert all(torch.equal(written[f"model.{name}"], tensor) for name, tensor in own.items())


def test_equal_models_give_equal_folders(tmp_path: Path) -> None:
    for name in ("one", "two"):
        hf.export(small("gpt"), tmp_path / name, ByteTokenizer())
    one, two = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [path.name for path in one] == [path.name for path in two]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_sizes_have_the_names_of_transformers() -> None:
    shape = {"d_model": 32, "n_blocks": 3, "n_heads": 4, "n_kv_heads": 2, "activation": "relu2"}
    written = hf.describe(build("gpt", vocab_size=11, max_seq_len=8, tied=False, **shape))
    assert written["architectures"] == ["HomunculiForCausalLM"]
    assert written["auto_map"]["AutoModelForCausalLM"] == "modeling_homunculi.HomunculiForCausalLM"
    expected = {
        "model_type": "homunculi_gpt",
        "dtype": "float32",
        "vocab_size": 11,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_blocks": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": 8,
        "tie_word_embeddings": False,
    }
    assert {key: written[key] for key in expected} == expected
    assert written["homunculi"]["config"]["n_kv_heads"] == 2
    assert hf.describe(build("gpt", vocab_size=11, **shape))["tie_word_embeddings"] is True


def test_describing_leaves_the_model_as_it_was() -> None:
    model = build("gpt", vocab_size=11, d_model=16, n_heads=2, dropout=0.5).train()
    before = torch.get_rng_state()
    hf.describe(model)
    assert model.training and all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_end_of_text_is_told_everywhere(tmp_path: Path) -> None:
    files = hf.export(small("gpt"), tmp_path / "with", ByteTokenizer())
    assert {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"} <= set(
        files
    )
    read = {name: json.loads((tmp_path / "with" / name).read_text()) for name in files if name.endswith(".json")}
    for name in ("config.json", "generation_config.json"):
        assert {read[name][f"{kind}_token_id"] for kind in ("bos", "eos", "pad")} == {256}
    assert read["special_tokens_map.json"]["eos_token"] == "<|endoftext|>"
    assert read["tokenizer_config.json"]["model_max_length"] == 20
    assert load_tokenizer(tmp_path / "with").to_json() == ByteTokenizer().to_json()
    files = hf.export(small("gpt"), tmp_path / "without")
    assert not [name for name in files if "token" in name and name.endswith(".json")]
    assert "eos_token_id" not in json.loads((tmp_path / "without" / "generation_config.json").read_text())


def test_an_architecture_exempt_from_cached_decoding_decodes_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = get("gpt")
    exempt = Architecture("gpt", known.config_type, known.model_type, {"cached_decoding": "for this test"})
    monkeypatch.setitem(registry._REGISTERED, "gpt", exempt)
    hf.export(small("gpt"), tmp_path / "given")
    assert json.loads((tmp_path / "given" / "generation_config.json").read_text())["use_cache"] is False


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, reason in (("full", "is not empty"), ("file", "is no folder"), ("file/inner", "cannot be written")):
        with pytest.raises(InputError, match=reason) as caught:
            hf.export(small("gpt"), tmp_path / name)
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "mine.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    hf.export(small("gpt"), "empty")
    hf.export(small("gpt"), "a/new/one")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    hf.export(small("gpt"), ".")
    found = [{path.name for path in (tmp_path / name).iterdir()} for name in ("empty", "a/new/one", "here")]
    assert found[0] == found[1] == found[2] and "model.safetensors" in found[0]


def test_a_crash_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def crash(path: Path, content: str | bytes) -> None:
        written.append(path)
        if len(written) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(hf, "write_atomic", crash)
    with pytest.raises(KeyboardInterrupt):
        hf.export(small("gpt"), tmp_path / "given")
    assert len(written) == 5 and not list(tmp_path.iterdir())


def test_imports_that_cannot_be_rewritten_are_refused_in_one_line() -> None:
    for text, reason in (
        ("import homunculi.errors\n", "write `from … import …`"),
        ("if True: from homunculi.core import cache\n", "on a line of its own"),
        ("from homunculi.nowhere import x\n", "has no source file"),
        ("from homunculi.nowhere.at.all import x\n", "has no source file"),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            flatten({"start": text}, {"homunculi"})
        assert "\n" not in str(caught.value)


def test_two_modules_cannot_share_a_file() -> None:
    assert flat_name("homunculi.core.taps") == "core_taps"
    assert flat_name("mine.core-1.taps") == "outside_mine_core_1_taps"
    assert flat_name("homunculi") == "homunculi"
    with pytest.raises(InputError, match=r"its file would be errors\.py"):
        flatten({"errors": "from homunculi.errors import InputError\n"}, {"homunculi"})


def test_a_class_inside_a_function_cannot_be_exported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = get("gpt")

    class Inner(known.model_type):  # type: ignore[name-defined]
        pass

    monkeypatch.setitem(registry._REGISTERED, "gpt", Architecture("gpt", known.config_type, Inner))
    with pytest.raises(InputError, match="put it into a file"):
        hf.export(small("gpt"), tmp_path / "given")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run of a second."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "corpus.txt").write_text("one two three four five six seven eight nine ten. " * 90)
    config = RunConfig(
        model=get("gpt").config_type(d_model=16, n_blocks=2, n_heads=2, max_seq_len=32),
        corpus=str(folder / "corpus.txt"),
        steps=2,
        batch_tokens=128,
        checkpoint_every=1,
        device="cpu",
        text=TextConfig(tokenizer="bytes", val_frac=0.1),
        train=TrainConfig(final_lr_frac=0.5),
        output=OutputConfig(prompts=("a",), sample_tokens=2),
    )
    directory = claim(folder / "run")
    directory.write_info({"recipe": "tiny", "config": config_to_json(config)})
    train(config, directory, Listener())
    return folder / "run"


@pytest.fixture
def homunculi(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The program in this process: exit code, stdout, stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["homunculi", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


def test_the_verb_exports_the_latest_checkpoint_or_the_one_asked_for(
    run: Path, tmp_path: Path, homunculi: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, _ = homunculi("export", run, "--to", "hf", tmp_path / "last", "--json")
    said = json.loads(out)
    assert code == 0 and said["folder"] == str(tmp_path / "last")
    assert sorted(said["files"]) == sorted(path.name for path in (tmp_path / "last").iterdir())
    code, out, _ = homunculi("export", run, "--to", "hf", tmp_path / "first", "--step", "1")
    assert code == 0 and out.strip() == str(tmp_path / "first")
    first, last = load(run, 1).state_dict(), load(run).state_dict()
    assert not torch.equal(first["embed.weight"], last["embed.weight"])
    for name, own in (("last", last), ("first", first)):
        written = load_file(tmp_path / name / "model.safetensors")
        assert torch.equal(written["model.embed.weight"], own["embed.weight"])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["{run}", "--to", "hf", "{run}"], "is not empty"),
        (["nowhere", "--to", "hf", "out"], "nowhere: is no run"),
        (["{run}", "--to", "elsewhere", "out"], "--to elsewhere: no such system; there is hf"),
        (["{run}", "--to", "hf", "out", "--step", "7"], "no checkpoint of step 7"),
        (["{run}", "out"], "--to"),
    ],
)
def test_the_verb_refuses_in_one_line(
    arguments: list[str], reason: str, run: Path, tmp_path: Path, homunculi: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = homunculi("export", *[argument.replace("{run}", str(run)) for argument in arguments])
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and reason in err
    assert not list(tmp_path.iterdir())
