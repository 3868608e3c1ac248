"""Homunculi: a mixture of recursions whose passes go through four regions under a packet of neuromodulators.

One shared block is applied again to the tokens that take another pass. In each pass the temporal lobe binds a token to
its context, the amygdala says how much it matters, the prefrontal cortex plans and inhibits across passes, and the
neocortex answers with experts. A packet of bounded signals, exactly 1 at the start, influences each pass. The equations
stand in docs/architectures/homunculi.md.
"""

from .config import EFFECTS, KAPPA, REGIONS, SIGNALS, Config
from .model import Homunculi

__all__ = ["EFFECTS", "KAPPA", "REGIONS", "SIGNALS", "Config", "Homunculi"]
