"""Claims about layers of trained models repeated or shared, and about loops that are there from the start."""

from __future__ import annotations

from homunculi.experiments.claims.entry import Claim, Plan, claim
from homunculi.experiments.claims.verdicts import beats, ordered

RYS, DISCUSSION = "relayering", "discussion of relayering"
TRAINED = "relayering of trained models"
EQUAL = ("parameters", "flops")


@claim
def middle() -> Claim:
    return Claim(
        id="rys-middle",
        system=RYS,
        claim="a block of middle layers run twice improves a trained model without training",
        figure="first place of a leaderboard at 72 B parameters",
        check="all (i, j), the winner on probes that did not choose it",
        control="the same sweep with shuffled answers, to price the choice among so many",
        needs=TRAINED,
    )


@claim
def single() -> Claim:
    return Claim(
        id="rys-single",
        system=RYS,
        claim="one layer run twice does nothing, too many hurt",
        check="the same sweep by length of the block",
        control="shuffled answers",
        needs=TRAINED,
    )


@claim
def anatomy() -> Claim:
    return Claim(
        id="rys-anatomy",
        system=RYS,
        claim="early layers encode, middle layers think, late layers decode",
        check="similarity of one content in several forms by layer; the map of the sweep",
        control="shuffled pairs",
        needs=TRAINED + ", and similarity of states by layer",
    )


@claim
def fragile() -> Claim:
    return Claim(
        id="rys-fragile",
        system="sceptics of relayering",
        claim="the anatomy is a fragile signal",
        check="reliability of the sweep's map over halves of the probes, seeds and models",
        control="shuffled answers",
        needs=TRAINED,
    )


@claim
def looped_in_training() -> Claim:
    def plan(size: str) -> tuple[Plan]:
        sides = (
            f"once=recursive:{size};model.n_slots=4;model.n_passes=1",
            f"looped=recursive:{size}",
            f"growing=recursive:{size};model.growth=steps",
        )
        return (Plan(sides, match=EQUAL),)

    return Claim(
        id="loop-trained",
        system=DISCUSSION,
        claim="blocks looped in training beat blocks applied once, and loops that grow in training beat both",
        check="four stored blocks applied once; two of them three times from the start; one, two, then three times",
        control="equal training FLOPs: what loops less trains for longer",
        rule=ordered("growing", "looped", "once"),
        sizes={size: plan(size) for size in ("small", "medium")},
        minutes={"small": 5.0, "medium": 2.0},
        beyond="whether it is better than doubling layers of a trained model needs " + TRAINED,
    )


@claim
def grow() -> Claim:
    def plan(size: str) -> tuple[Plan]:
        sides = (f"scheduled=recursive:{size};model.growth=steps", f"gaining=recursive:{size};model.growth=loss")
        return (Plan(sides, match=EQUAL),)

    return Claim(
        id="loop-grow",
        system=DISCUSSION,
        claim="passes added when the held-out loss stops gaining beat passes added on a schedule",
        check="a loop that grows by its validation loss against one that grows in equal stages",
        control="equal training FLOPs; the loop that decides is charged as if it were full-grown at once",
        rule=beats("gaining", over="scheduled"),
        sizes={size: plan(size) for size in ("small", "medium")},
        minutes={"small": 5.0, "medium": 2.0},
    )


@claim
def dynamic() -> Claim:
    return Claim(
        id="loop-dynamic",
        system=DISCUSSION,
        claim="the model itself picks how often layers loop, or skips groups of them",
        check="a router over repeating and skipping on a trained model; loss against FLOPs",
        control="random choice at equal FLOPs",
        needs=TRAINED + ", and a router over its paths",
    )


@claim
def pointers() -> Claim:
    return Claim(
        id="layer-pointers",
        system=DISCUSSION,
        claim="layers that do the same can be replaced by pointers to one of them",
        check="layers merged by similarity; loss against layers left, once more after a little training",
        control="layers merged at random",
        needs=TRAINED,
    )


@claim
def thought() -> Claim:
    return Claim(
        id="latent-thought",
        system=DISCUSSION,
        claim="feeding the last state back in beats writing thoughts down",
        check="passes of continuous thought at equal FLOPs on a task that needs steps",
        control="filler tokens",
        needs="passes that feed the last state back in as a token, and a task of steps in the battery of skills",
    )


@claim
def bandwidth() -> Claim:
    return Claim(
        id="loop-bandwidth",
        system=DISCUSSION,
        claim="few looped layers stay in the cache and skipped ones need no bandwidth, so decoding is faster",
        check="decoded tokens/s and bytes moved, looped against unrolled at equal FLOPs, on CPU and GPU",
        control="the bytes that theory gives",
        needs="decoding cases of recursive models in bench",
    )
