"""Claims about the flagship: four regions, a packet of neuromodulators, tokens that choose their depth."""

from __future__ import annotations

from homunculi.experiments.claims.entry import Claim, Plan, claim
from homunculi.experiments.claims.measures import converges
from homunculi.experiments.claims.skill_figures import depths, own_jobs, shown
from homunculi.experiments.claims.verdicts import all_better, beats, each_needed

REGIONS = ("temporal", "amygdala", "prefrontal", "neocortex")
# Tasks of the battery of skills that ask for what a region is meant for: if it does its own job, a plain part in its
# place costs most there. No task is two regions', or a loss there would tell nothing of either.
PROBES = {
    "temporal": ("recall", "name_recall", "entity_tracking"),  # binding over a distance: what goes with what
    "amygdala": ("forgetting", "compression"),  # salience: what matters is kept, the rest let go
    "prefrontal": ("noisy_recall", "selective_copy", "pointer_chasing"),  # inhibition of what distracts; plans
    "neocortex": ("memorisation", "fuzzy_recall"),  # expertise: what is known by heart
}
SIZES = ("small", "medium")
MINUTES = {"small": 4.0, "medium": 6.0}
SCORES, PACKET = "steps.*.router.score", "steps.*.packet.*"  # taps at which a signal is another token's


@claim
def small_models_converge() -> Claim:
    return Claim(
        id="homunculi-converges",
        system="Homunculi",
        claim="small models with four regions and the packet converge",
        check="curves over seeds: no run diverges, rises again, or ends above a count model of the same text",
        control="a mixture of recursions of equal parameters",
        rule=converges("homunculi", control="mor"),
        sizes={size: (Plan((f"homunculi=homunculi:{size}", f"mor=mor:{size}")),) for size in SIZES},
        minutes=MINUTES,
    )


@claim
def plain() -> Claim:
    return Claim(
        id="homunculi-plain",
        system="Homunculi",
        claim="at equal parameters, and at no more FLOPs a token, it predicts better than a plain transformer",
        figure="none: nobody has compared them",
        check="the flagship against the plain transformer on the same batches; the budgets stand beside the curves",
        control="a mixture of recursions of equal parameters: recursion without regions and packet",
        rule=beats("homunculi", over="gpt", controls=("mor",)),
        sizes={size: (Plan((f"gpt=gpt:{size}", f"homunculi=homunculi:{size}", f"mor=mor:{size}")),) for size in SIZES},
        minutes=MINUTES,
    )


@claim
def regions() -> Claim:
    def plan(size: str) -> tuple[Plan]:
        sides = [f"whole=homunculi:{size}"]
        for region in REGIONS:
            rest = ",".join(name for name in REGIONS if name != region)
            sides.append(f"no-{region}=homunculi:{size};model.regions={rest};model.filled={region}")
        return (Plan(tuple(sides)),)

    return Claim(
        id="homunculi-regions",
        system="Homunculi",
        claim="each region does something that a plain part of its size does not",
        check="the model without one region at a time",
        control="in the region's place a plain feed-forward part of as many parameters",
        rule=each_needed("whole", {region: f"no-{region}" for region in REGIONS}),
        sizes={size: plan(size) for size in SIZES},
        minutes=MINUTES,
        shown=shown(
            "skills_regions", own_jobs("homunculi", {region: f"filled-{region}" for region in REGIONS}, PROBES)
        ),
        beyond="whether each does its own job (binding far back, salience, inhibition, expertise) is no part of the "
        "verdict; where skills have been measured, figures say what each adds to small models on its probe tasks",
    )


@claim
def depth() -> Claim:
    def plan(size: str) -> tuple[Plan]:
        sides = [f"{name}={name}:{size}" for name in ("homunculi", "mor")]
        dealt = [f"{name}-dealt={name}:{size};train.interventions={SCORES}=shuffled" for name in ("homunculi", "mor")]
        return (Plan((*sides, *dealt)),)

    return Claim(
        id="homunculi-depth",
        system="Homunculi, MoR",
        claim="the model decides how deeply it processes a token, and its choice is worth something",
        check="the flagship and a mixture of recursions, each against itself with depths that say nothing of the token",
        control="each token has the score of an earlier one, so that depths are as frequent and mean nothing",
        rule=all_better(("homunculi", "homunculi-dealt"), ("mor", "mor-dealt")),
        sizes={size: plan(size) for size in SIZES},
        minutes={"small": 4.5, "medium": 4.5},
        shown=shown("skills_depth", depths),
        beyond="depth against surprisal, kind of word and position needs scans of every run: depth by token; whether "
        "small models choose as many passes as answers need is in figures, where skills have been measured, and is no "
        "part of the verdict",
    )


@claim
def packet() -> Claim:
    def plan(size: str) -> tuple[Plan]:
        model = f"homunculi:{size}"
        sides = (
            f"packet={model}",
            f"without={model};model.signals=[];model.filled=packet",
            f"shuffled={model};train.interventions={PACKET}=shuffled",
            f"steady={model};train.plasticity=off",
            f"misdirected={model};train.plasticity=shuffled",
        )
        return (Plan(sides),)

    return Claim(
        id="homunculi-packet",
        system="Homunculi",
        claim="the packet of neuromodulators helps what passes compute and how layers learn",
        check="with the packet, and with a plain part of its size; updates scaled by its dopamine, and not",
        control="a packet that speaks of another token; scales handed to other regions",
        rule=all_better(*(("packet", other) for other in ("without", "shuffled", "steady", "misdirected"))),
        sizes={size: plan(size) for size in SIZES},
        minutes=MINUTES,
        beyond="an influence without bounds needs an option of the model",
    )


@claim
def mind() -> Claim:
    return Claim(
        id="homunculi-mind",
        system="Homunculi",
        claim="there are hints of a theory of mind",
        figure="consistent enough",
        check="stories of false belief with twins of true belief, controls of knowledge, order and cues; probes",
        control="the plain transformer of its size; probes of shuffled labels; a count model",
        needs="the verb mind: the battery of theory of mind",
    )
