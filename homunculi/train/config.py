"""The description of a run: frozen, typed, complete. A recipe is a function that returns one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from homunculi.errors import InputError
from homunculi.settings import check_range, from_json, to_json
from homunculi.text.config import TextConfig
from homunculi.train.interventions import read_intervention

Precision = Literal["float32", "bf16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How weights are updated.

    Attributes:
        optimizer: muon uses Muon for weight matrices and AdamW for the rest.
        clip: largest norm of the gradient; 0 leaves it alone.
        schedule: wsd is warm-up, constant, linear decay over the last `decay_frac`; cosine decays from the warm-up on.
        final_lr_frac: learning rate at the end as a share of `lr`.
        ema: decay of a running mean of the weights that evaluation and `load` then use; 0: none.
        plasticity: whether a model that scales the updates of its regions does so by their own signals, by each
            other's (a control), or not at all; other models have no such regions.
        micro_tokens: the most tokens that go through the model at once on one process; 0: 65,536 on a GPU, 16,384 on
            a CPU. The rest of the global batch is accumulated.
        loss_chunks: the read-out and its loss in that many pieces, recomputed in the backward pass: less memory, more
            time.
        eval_tokens: how many tokens of the validation text an evaluation reads; 0: all.
        cuda_graphs: auto captures the compiled forward and backward of a single process on a GPU as graphs, which are
            launched at once: models of many small operations train up to twice as fast. Not where an update has several
            micro-batches. off: if a graph takes too much memory.
        deterministic: ask for algorithms that give the same bits on a GPU too (the CPU's do by themselves).
        interventions: signals that are held or shuffled in training and evaluation, for ablations: each
            ``PATTERN=neutral:NUMBER``, ``PATTERN=scaled:NUMBER`` or ``PATTERN=shuffled``
            (`homunculi.train.interventions`).
    """

    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    schedule: Literal["wsd", "cosine"] = "wsd"
    warmup_frac: float = 0.05
    decay_frac: float = 0.3
    final_lr_frac: float = 0.0
    ema: float = 0.0
    plasticity: Literal["own", "shuffled", "off"] = "own"
    micro_tokens: int = 0
    loss_chunks: int = 1
    eval_tokens: int = 65_536
    cuda_graphs: Literal["auto", "off"] = "auto"
    deterministic: bool = False
    interventions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_range("train.weight_decay", self.weight_decay, low=0)
        check_range("train.beta1", self.beta1, low=0, high=0.9999)
        check_range("train.beta2", self.beta2, low=0, high=0.99999)
        check_range("train.clip", self.clip, low=0)
        for name in ("warmup_frac", "decay_frac", "final_lr_frac"):
            check_range(f"train.{name}", getattr(self, name), low=0, high=1)
        if self.warmup_frac + self.decay_frac > 1:
            raise InputError("train.decay_frac: warm-up and decay together are longer than the run; lower one of them")
        check_range("train.ema", self.ema, low=0, high=0.99999)
        check_range("train.micro_tokens", self.micro_tokens, low=0)
        check_range("train.loss_chunks", self.loss_chunks, low=1)
        check_range("train.eval_tokens", self.eval_tokens, low=0)
        for text in self.interventions:
            read_intervention(text)


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputConfig:
    """What a run writes down.

    Attributes:
        log_every: steps between metric lines.
        keep_last: how many of the latest checkpoints stay; the best by validation loss stays as well.
        keep_every: also keep each checkpoint at a multiple of this many steps; 0: none.
        prompts: texts that samples continue; an empty one starts from nothing.
        sample_tokens: length of a sample.
        temperature: of samples; 0 takes the likeliest token.
    """

    log_every: int = 10
    keep_last: int = 2
    keep_every: int = 0
    prompts: tuple[str, ...] = ("",)
    sample_tokens: int = 100
    temperature: float = 0.8

    def __post_init__(self) -> None:
        check_range("output.log_every", self.log_every, low=1)
        check_range("output.keep_last", self.keep_last, low=1)
        check_range("output.keep_every", self.keep_every, low=0)
        check_range("output.sample_tokens", self.sample_tokens, low=1)
        check_range("output.temperature", self.temperature, low=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class InstrumentsConfig:
    """What is measured inside the model while it trains (`homunculi.train.watching`). Training itself goes on with the
    same bits whatever stands here.

    Attributes:
        watch: off: nothing is measured.
        names: of the instruments; none named: all that have something to measure in the model.
        every: steps between measurements; 0: a twentieth of the run, and no less than 50. The model is measured
            untrained and at the end as well.
        log_spaced: also after 1, 2, 4, 8, … steps, where most changes.
        probe_tokens: about how many tokens of the start of the validation text the model reads for it, in rows of at
            most 256.
    """

    watch: Literal["on", "off"] = "on"
    names: tuple[str, ...] = ()
    every: int = 0
    log_spaced: bool = True
    probe_tokens: int = 512

    def __post_init__(self) -> None:
        check_range("instruments.every", self.every, low=0)
        check_range("instruments.probe_tokens", self.probe_tokens, low=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything that determines a run.

    Attributes:
        model: configuration of a registered architecture; its `max_seq_len` is the training context.
        corpus: what to read (see `homunculi.text.corpora`): a name, a path, or a weighted mixture.
        steps: optimiser updates.
        batch_tokens: tokens of one update over all processes; a multiple of the context.
        seed: of weights, dropout and samples; data_seed: of the order of batches.
        eval_every, sample_every, checkpoint_every: in steps; 0: only at the end.
        compile: auto compiles on a GPU and falls back to eager with a recorded reason.
        device: auto, cpu, cuda, cuda:1, mps.
    """

    model: Any
    corpus: str = "stories"
    steps: int = 1000
    batch_tokens: int = 8192
    seed: int = 0
    data_seed: int = 0
    lr: float = 1e-3
    eval_every: int = 100
    sample_every: int = 100
    checkpoint_every: int = 100
    precision: Precision = "float32"
    compile: Literal["auto", "on", "off"] = "auto"
    device: str = "auto"
    text: TextConfig = field(default_factory=TextConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    instruments: InstrumentsConfig = field(default_factory=InstrumentsConfig)

    def __post_init__(self) -> None:
        check_range("steps", self.steps, low=1)
        check_range("batch_tokens", self.batch_tokens, low=1)
        check_range("seed", self.seed, low=0, high=2**62)
        check_range("data_seed", self.data_seed, low=0, high=2**62)
        check_range("lr", self.lr, above=0)
        for name in ("eval_every", "sample_every", "checkpoint_every"):
            check_range(name, getattr(self, name), low=0)
        if self.text.document_mask and any(read_intervention(text).shuffles for text in self.train.interventions):
            raise InputError("text.document_mask: a shuffled signal may be another document's; set it to false")


def config_to_json(config: RunConfig) -> dict[str, Any]:
    """`config` as JSON values; the model's group names its architecture."""
    from homunculi.models import name_of

    described = to_json(config)
    described["model"] = {"architecture": name_of(config.model)} | described["model"]
    return described


def config_from_json(data: dict[str, Any]) -> RunConfig:
    """The configuration that `config_to_json` described.

    Raises:
        InputError: a field is missing, unknown or of the wrong type, or the architecture is not installed.
    """
    from homunculi.models import get

    described = dict(data)
    model = described.pop("model", None)
    if not isinstance(model, dict) or not isinstance(model.get("architecture"), str):
        raise InputError("run.json: config.model names no architecture; the file is damaged or of another program")
    fields = {name: value for name, value in model.items() if name != "architecture"}
    built = from_json(get(model["architecture"]).config_type, fields, "model")
    return from_json(RunConfig, described | {"model": built})
