"""Claims about mixtures of recursions (Bae et al. 2025, arXiv 2507.10524)."""

from __future__ import annotations

from homunculi.experiments.claims.entry import Claim, Plan, claim
from homunculi.experiments.claims.verdicts import beats


@claim
def pareto() -> Claim:
    def plan(size: str) -> tuple[Plan]:
        sides = (
            f"gpt=gpt:{size};model.n_blocks=8",
            f"mor=mor:{size}",
            f"expert=mor:{size};model.router=expert_choice",
            f"fixed=recursive:{size}",
        )
        return (Plan(sides, match=("flops",)),)

    return Claim(
        id="mor-pareto",
        system="MoR",
        claim="at equal training FLOPs it ends below a plain transformer, with half of its parameters or fewer",
        figure="360 M shape, 16.5e18 FLOPs: NLL 2.7511 (167 M, two passes) against 2.7824 (315 M); 2.7925 with three",
        check="eight steps of four stored blocks against eight blocks; a threshold or the choice of experts routes",
        control="the same blocks at a fixed depth",
        rule=beats("mor", "expert", over="gpt", controls=("fixed",), most_parameters=0.55),
        sizes={size: plan(size) for size in ("small", "medium")},
        minutes={"small": 6.0, "medium": 2.5},
    )


@claim
def throughput() -> Claim:
    return Claim(
        id="mor-throughput",
        system="MoR",
        claim="leaving early and batching by depth doubles the throughput of inference",
        figure="up to 2.06 times that of the plain transformer",
        check="decoded tokens/s against our plain transformer of equal loss",
        control="the ratio of FLOPs",
        needs="decoding that batches tokens by depth, and decoding cases of mor in bench",
    )
