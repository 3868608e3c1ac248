"""Claims about models whose state is as wide as the vocabulary, so that every state reads as words."""

from __future__ import annotations

from homunculi.experiments.claims.entry import Claim, claim

SYSTEM = "vocabulary space"
ARCHITECTURES = "the vocabulary-space architectures"


@claim
def rank8() -> Claim:
    return Claim(
        id="vocab-rank8",
        system=SYSTEM,
        claim="a low-rank map of rank 8 (164 K parameters) beats the causal convolution and the forms with attention",
        figure="loss 5.24 in 100 steps",
        check="all variants on the same tokens, each at its tuned learning rate",
        control="a bigram and a trigram count model of the same tokens",
        needs=ARCHITECTURES,
    )


@claim
def rank64() -> Claim:
    return Claim(
        id="vocab-rank64",
        system=SYSTEM,
        claim="rank 64 memorises where rank 8 generalises",
        figure="training loss 0.04",
        check="ranks 2 to 128, training and validation loss, once more under the mask as it was before its repair",
        control="the certificate",
        needs=ARCHITECTURES,
    )


@claim
def fourier() -> Claim:
    return Claim(
        id="vocab-fourier",
        system=SYSTEM,
        claim="projections on Fourier components across positions get stuck",
        figure="loss 6.81",
        check="both Fourier forms against linear attention at equal parameters",
        control="a vocabulary in permuted order",
        needs=ARCHITECTURES,
    )


@claim
def multihop() -> Claim:
    return Claim(
        id="vocab-multihop",
        system=SYSTEM,
        claim="several hops reach beyond n-grams",
        figure="an open question of the authors",
        check="agreement and recall over long distances by number of hops",
        control="the ceiling of n-grams on each task",
        needs=ARCHITECTURES + ", and the battery of skills",
    )


@claim
def readable() -> Claim:
    return Claim(
        id="vocab-readable",
        system=SYSTEM,
        claim="every state between input and output reads as words",
        check="top words of each step; loss of each step's state read out directly",
        control="a logit lens on the plain transformer",
        needs=ARCHITECTURES + ", and a logit lens",
    )


@claim
def match() -> Claim:
    return Claim(
        id="vocab-match",
        system=SYSTEM,
        claim="readable states can match opaque embeddings at language modelling",
        figure="an open question of the authors",
        check="the best readable variant against the plain transformer at equal parameters and at equal FLOPs",
        control="the variant with an embedding, which is labelled as such",
        needs=ARCHITECTURES,
    )


@claim
def attention() -> Claim:
    return Claim(
        id="vocab-attention",
        system=SYSTEM,
        claim="attention in vocabulary space is expensive and stops improving",
        figure="loss 6.06",
        check="the form with shared attention at its tuned rate, with more tokens",
        control="linear attention at equal parameters",
        needs=ARCHITECTURES,
    )


@claim
def stability() -> Claim:
    return Claim(
        id="vocab-stability",
        system=SYSTEM,
        claim="a bank of operations trains unstably",
        figure="two spikes",
        check="spikes of the loss over seeds and rates, clipped and normalised",
        control="linear attention",
        needs=ARCHITECTURES,
    )


@claim
def algorithms() -> Claim:
    return Claim(
        id="vocab-algorithms",
        system=SYSTEM,
        claim="it learns algorithms where others memorise patterns",
        figure="a slogan",
        check="copying, reversing, adding, parity, on lengths beyond those of training",
        control="a plain and a recursive transformer",
        needs=ARCHITECTURES + ", and the battery of skills",
    )
