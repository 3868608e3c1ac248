"""Load exported folders where this package does not exist, and write down what they answer: hf_reader.py FOLDER…

Beside FOLDER lie asked.safetensors and, afterwards, answers.safetensors or failed.txt.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

FORBIDDEN = ("homunculi", "homunculi_recipes", "lab_of_mine")


class Forbidden:
    """Whatever the search path holds, these packages are not there."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def answers(folder: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    asked = load_file(folder.parent / "asked.safetensors")
    ids, prompts, mask = asked["ids"], asked["prompts"], asked["mask"]
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    realign(model)
    n_new = int(asked["n_new"])
    found = {
        "logits": model(ids).logits,
        "loss": model(ids, labels=ids).loss,
        "padded": model(prompts, attention_mask=mask).logits,
        "uncached": model.generate(ids[:, :7], max_new_tokens=n_new, use_cache=False),
    }
    if model.generation_config.use_cache:
        found["cached"] = model.generate(ids[:, :7], max_new_tokens=n_new)
        found["ragged"] = model.generate(prompts, attention_mask=mask, max_new_tokens=n_new)
        found["ragged_uncached"] = model.generate(prompts, attention_mask=mask, max_new_tokens=n_new, use_cache=False)
    if int(asked["has_hidden"]):
        hidden = model(ids, output_hidden_states=True).hidden_states
        found |= {f"hidden_{i}": x_BTD for i, x_BTD in enumerate(hidden)}
    model.save_pretrained(folder.parent / "again")
    again = AutoModelForCausalLM.from_pretrained(folder.parent / "again", trust_remote_code=True)
    realign(again)
    found["again"] = again(ids).logits
    assert not [name for name in sys.modules if name.partition(".")[0] in FORBIDDEN]
    return {name: torch.clone(tensor.detach()).contiguous() for name, tensor in found.items()}


def realign(model: Any) -> None:
    """Weights where torch would put them: a product's last bit may depend on how its operands lie in memory, and in a
    mapped file they lie anywhere."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def main(folders: list[Path]) -> None:
    sys.meta_path.insert(0, Forbidden())  # type: ignore[arg-type]
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    for folder in folders:
        try:
            with torch.no_grad():
                save_file(answers(folder), folder.parent / "answers.safetensors")
        except Exception:  # of any kind: it is the answer
            (folder.parent / "failed.txt").write_text(traceback.format_exc())


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
