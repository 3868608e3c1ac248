"""Claims about systems that are not built here yet."""

from __future__ import annotations

from homunculi.experiments.claims.entry import Claim, claim


@claim
def bdh_parity() -> Claim:
    return Claim(
        id="bdh-parity",
        system="BDH",
        claim="it rivals a transformer of equal parameters",
        figure="10 M to 1 B parameters",
        check="against the plain transformer at 10 M to 25 M parameters, at equal FLOPs too",
        control="the plain transformer of equal FLOPs",
        needs="the architecture bdh",
    )


@claim
def bdh_sparse() -> Claim:
    return Claim(
        id="bdh-sparse",
        system="BDH",
        claim="activations are positive and sparse, and single synapses respond to one concept",
        figure="about 5 % active",
        check="share of active neurons; selectivity for concepts against shuffled labels",
        control="a transformer with ReLU",
        needs="the architecture bdh, and an instrument of selectivity",
    )


@claim
def ctm_adaptive() -> Claim:
    return Claim(
        id="ctm-adaptive",
        system="CTM",
        claim="internal ticks and synchronisation give compute that adapts to the input",
        figure="parity, mazes",
        check="parity with stopping by certainty; accuracy against ticks",
        control="an LSTM with as many ticks",
        needs="the architecture ctm, and parity in the battery of skills",
    )


@claim
def monet_experts() -> Claim:
    return Claim(
        id="monet-experts",
        system="Monet",
        claim="each expert means one thing, and what it knows can be removed by domain",
        figure="262,144 experts",
        check="selectivity of experts; targeted against random removal",
        control="neurons of a dense feed-forward part",
        needs="the architecture monet, and an instrument of selectivity",
    )


@claim
def moe_x() -> Claim:
    return Claim(
        id="moe-x",
        system="MoE-X",
        claim="wide, sparse experts are easier to interpret at equal quality",
        figure="chess: board read out at 0.840 against 0.734, loss 0.211 against 0.212",
        check="selectivity and loss at equal active parameters",
        control="experts routed as in the Switch transformer",
        needs="experts routed by their expected sparsity, and an instrument of selectivity",
    )


@claim
def dopamine_modes() -> Claim:
    return Claim(
        id="dopamine-modes",
        system="Dopamine PEFT",
        claim="thresholds and gains of neurons adapt a frozen model with a few hundred parameters a layer",
        figure="rotated digits",
        check="a model of stories adapted to another style",
        control="low-rank adapters of equally many parameters",
        needs="adapters of thresholds and gains, and low-rank adapters",
    )
