"""A plain transformer under a tiny controller: neuromodulatory control, causal, neutral at the start.

The controller reads the token table's rows only: each token's own, and a pool of those before it. For every token and
block it sets a gain of both updates of the residual stream, a precision of attention (an inverse temperature) and a
gate of the feed-forward part. Idea: M. C. Morgan, "Neuromodulatory Control Networks" (2025); here the pool is causal,
and the maps give exactly 1 for a controller that says 0. The equations stand in docs/architectures/ncn.md.
"""

from .config import MAPS, PARTS, VARIANTS, Config
from .model import NCN

__all__ = ["MAPS", "NCN", "PARTS", "VARIANTS", "Config"]
