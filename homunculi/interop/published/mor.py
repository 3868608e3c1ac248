"""Mixture-of-Recursions (Bae et al. 2025): the released configuration and weights, and the plain recursive models."""

from __future__ import annotations

from typing import Any

from homunculi.core.model import LanguageModel
from homunculi.errors import InputError
from homunculi.interop.published.reading import Given, Weights
from homunculi.models.mor_published import Config, ExpertChoice, MoRPublished, TokenChoice

KINDS = {"recursive": "none", "expert": "expert", "token": "token"}
SHARINGS = ("cycle", "middle_cycle", "sequence", "middle_sequence")
DEFAULT_CONTEXT = 2048  # tokens that the published models were trained on
# Parts of a block under our names and theirs, without its attention, of which there may be several.
BLOCK = {
    "attn_norm.weight": "input_layernorm.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "mlp.gate.weight": "mlp.gate_proj.weight",
    "mlp.in.weight": "mlp.up_proj.weight",
    "mlp.out.weight": "mlp.down_proj.weight",
}
ATTENTION = {f"{part}.weight": f"self_attn.{part}_proj.weight" for part in "qkvo"}


def build(given: Given, weights: Weights) -> LanguageModel:
    """The model of a configuration by the original's names.

    The original's plain recursive class never ties its read-out to the token table, whatever the configuration says:
    there the weights decide.
    """
    routing = given.choose("kind", KINDS)
    tied = given.get("tie_word_embeddings", bool) and (routing != "none" or "lm_head.weight" not in weights)
    model = MoRPublished(configuration(given, routing, tied))
    weights.fill(model, names(model))
    return model


def configuration(given: Given, routing: Any, tied: bool) -> Config:
    """Our configuration."""
    given.require("hidden_act", "silu")
    given.require("attention_bias", False)
    given.require("mlp_bias", False)
    n_heads = given.get("num_attention_heads", int)
    routed = _routed(given, routing, given.get("num_recursion", int))
    return Config(
        vocab_size=given.get("vocab_size", int),
        d_model=given.get("hidden_size", int),
        n_slots=given.get("num_hidden_layers", int),
        n_passes=given.get("num_recursion", int),
        sharing=given.choose("sharing", {name: name for name in SHARINGS}),
        n_heads=n_heads,
        n_kv_heads=given.get("num_key_value_heads", int, n_heads),
        d_mlp=given.get("intermediate_size", int),
        max_seq_len=given.get("max_position_embeddings", int, DEFAULT_CONTEXT),
        tied=tied,
        rope_base=given.get("rope_theta", float, 10000.0),
        norm_eps=given.get("rms_norm_eps", float, 1e-6),
        routing=routing,
        **routed,
    )


def _routed(given: Given, routing: str, n_passes: int) -> dict[str, Any]:
    """The settings of the router; those of a form that is not reproduced are refused."""
    shares_kv = bool(given.group("mor").values.get("kv_share", False))
    if shares_kv and routing != "expert":
        raise InputError("config.mor.kv_share: shared keys and values are reproduced for expert choice only")
    if routing == "none":
        return {}
    options = given.group("cfg")
    chosen = options.group(routing)
    options.require("rand_router", False)
    options.require("temp", 1.0)
    chosen.require("gating", "weighted")
    if routing == "token":
        chosen.require("bal_warmup_step", 0)
        options.require("router_type", "linear")
        return {"token": _token_choice(options, chosen)}
    chosen.require("cap_warmup_step", 0)
    chosen.require("include_first", True)
    untied = given.values.get("attention_untied_across_recursions", False)
    expert = ExpertChoice(
        capacity=_capacity(options, n_passes),
        router=options.choose("router_type", {"linear": "linear", "mlp": "mlp"}, "linear"),
        gate=chosen.choose("router_func", {"sigmoid": "sigmoid", "tanh": "tanh"}, "sigmoid"),
        alpha=chosen.get("alpha", float, 0.1),
        auxiliary=chosen.choose("sampling", {"aux_loss": "loss", "aux_router": "router"}, "aux_loss"),
        coefficient=chosen.get("coeff", float, 0.001),
        shared_kv=shares_kv,
        tied_attention=not untied,
    )
    return {"expert": expert}


def _token_choice(options: Given, chosen: Given) -> TokenChoice:
    return TokenChoice(
        gate=chosen.choose("router_func", {"softmax": "softmax", "sigmoid": "sigmoid"}, "softmax"),
        alpha=chosen.get("alpha", float, 1.0),
        balancing=chosen.choose("balancing", {"loss": "loss", "loss_free": "loss_free"}, "loss"),
        coefficient=chosen.get("coeff", float, 0.1),
        bias_rate=chosen.get("u", float, 0.001),
        z_coefficient=options.get("z_coeff", float, 0.0) if options.get("z_loss", bool, False) else 0.0,
    )


def _capacity(options: Given, n_passes: int) -> tuple[float, ...]:
    """Shares out of text such as ``1.0,0.667,0.334``; empty where they are left to the default."""
    text = options.get("capacity", str) if options.values.get("capacity") is not None else ""
    try:
        return tuple(float(word) for word in text.split(",")) if text else ()
    except ValueError as error:
        raise InputError(f"config.cfg.capacity: {text[:60]!a}, expected {n_passes} numbers with commas") from error


def names(model: MoRPublished) -> dict[str, list[str]]:
    """Our name of each tensor → all names that it has in theirs, one for each application of its block."""
    config, edge = model.config, len(model.regions[0])
    found = {"embed.weight": ["model.embed_tokens.weight"], "norm.weight": ["model.norm.weight"]}
    if model.untied is None:
        found["embed.weight"].append("lm_head.weight")
    else:
        found["untied.weight"] = ["lm_head.weight"]
    pass_of = {i: r for r, steps in enumerate(model.passes) for i in steps}
    for i, step in enumerate(model.schedule):
        ours, theirs = f"blocks.{step.block}", _layer(model, i, pass_of.get(i))
        pairs = {f"{ours}.{own}": f"{theirs}.{name}" for own, name in BLOCK.items()}
        attention = pass_of.get(i, 0) % len(model.blocks[step.block].attns)  # type: ignore[arg-type]
        pairs |= {f"{ours}.attns.{attention}.{own}": f"{theirs}.{name}" for own, name in ATTENTION.items()}
        for own, name in pairs.items():
            found.setdefault(own, []).append(name)
    for own, name in (("routers", "mor_router"), ("routers_beside", "mlp_router")):
        for r, router in enumerate(getattr(model, own)):
            place = f"model.layers.{r + edge}.{name}.router"
            parts = ("",) if len(router) == 1 else ("0.", "2.")
            found |= {f"{own}.{r}.{part or '0.'}weight": [f"{place}.{part}weight"] for part in parts}
    if config.routing == "token":
        found["router_bias_R"] = [f"model.layers.{edge}.router_bias"]
    return found


def _layer(model: MoRPublished, i: int, recursion: int | None) -> str:
    """Their name of the block applied at step `i`: routed models have one layer for each recursion, or one for all."""
    routing, edge = model.config.routing, len(model.regions[0])
    if routing == "none" or i < edge:
        return f"model.layers.{i}"
    if recursion is None:
        return f"model.layers.{edge + (len(model.passes) if routing == 'expert' else 1)}"
    k = i - model.passes[recursion].start
    if routing == "expert":
        return f"model.layers.{edge + recursion}.block.{k}"
    return f"model.layers.{edge}.block_list.{recursion}.{k}"


def causality(model: LanguageModel) -> tuple[bool, str]:
    if model.config.routing == "expert":
        return False, "expert choice ranks the tokens of a row against later ones, in evaluation too"
    return True, "no token's part in a recursion depends on later ones"
