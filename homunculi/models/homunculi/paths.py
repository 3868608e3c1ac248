"""Whether a token goes through a region of a pass or past it: the memory, or the experts.

    score = w · y / rms(y) + a (2 s − 1) + u · p         its state, how much it matters, what is planned
    it goes through where the score is above the threshold of the pass and the quota of its rank in the pass has room
    what the region says to it is multiplied by 2σ(score − threshold)

Who goes past a region is not computed there, in training or in decoding; it neither writes to the memory nor lets time
pass in it. After an update thresholds follow the scores measured in it, as those of depth do.

Legend: B batch, C places of a pass, A some rows of it, D width, P plan, R passes, N paths.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...core.taps import TapPoint
from ...parts.gathered import Gathered, gather, gather_now, look, measure
from ...parts.linear import Linear
from ...parts.routers import scored, seated
from ...parts.routing import Quota
from .config import Config
from .state import Path, Place, Slot


class PathRouter(nn.Module):
    """Who goes through one region.

    Attributes:
        threshold_R: buffer, one a pass.
        mean_R: buffer, the mean scores that the thresholds have followed.
    """

    threshold_R: Tensor
    mean_R: Tensor

    def __init__(self, config: Config, name: str) -> None:
        super().__init__()
        self.name, self.number = name, config.paths.index(name)
        self.quota, self.rate = Quota(config.path_share, config.burst), config.routing.threshold_rate
        self.state = Linear(config.d_model, 1)
        self.alarm = nn.Parameter(torch.ones(())) if config.has("amygdala") else None
        self.plan = Linear(config.plan_width, 1) if config.has("prefrontal") else None
        self.register_buffer("threshold_R", torch.zeros(config.n_passes))
        self.register_buffer("mean_R", torch.zeros(config.n_passes))

    def init_weights(self) -> None:
        """Scores have a standard deviation of one half, plans of one half as much say."""
        nn.init.normal_(self.state.weight, std=0.5 * self.state.in_features**-0.5)
        if self.plan is not None:
            nn.init.normal_(self.plan.weight, std=0.5 * self.plan.in_features**-0.5)

    def forward(
        self,
        y_BCD: Tensor,
        salience_BC1: Tensor | None,
        plan_BCP: Tensor | None,
        place: Place,
        slot: Slot | None,
        taps: TapPoint,
    ) -> Path:
        """Who goes through, of those who take a pass.

        Args:
            y_BCD: their states; salience_BC1, plan_BCP: the latest, None without the region that makes it.
            slot: with one the host looks who goes through, and counts them there.
        """
        site, threshold = f"paths.{self.name}", self.threshold_R[place.r]
        score_BC = taps(f"{site}.score", self._score(y_BCD, salience_BC1, plan_BCP))
        gate_BC = taps(f"{site}.gate", (2 * torch.sigmoid(score_BC - threshold)).to(score_BC.dtype))
        wants_BC = score_BC > threshold
        if place.taken_BC is not None:
            wants_BC = wants_BC & place.taken_BC
        before_A = None if slot is None else place.rows(slot.through_BN[:, self.number])
        _, count_BC = seated(wants_BC, self.quota.at(place.ranks() - 1), before_A, taps, f"{site}.taking")
        if slot is None or before_A is None:
            block: Gathered | None = gather(count_BC, self.places(place.n_places))
        else:
            crowd = look(count_BC, before_A)
            block = gather_now(crowd, measure(crowd, recorded=False))
            through = place.rows(slot.through_BN).clone()
            through[:, self.number] = count_BC[:, -1]
            place.write_rows(slot.through_BN, through)
        return Path(block, gate_BC[..., None], score_BC, wants_BC, place.taken_BC)

    def _score(self, y_BCD: Tensor, salience_BC1: Tensor | None, plan_BCP: Tensor | None) -> Tensor:
        score_BC1 = scored(self.state, y_BCD)
        if self.alarm is not None and salience_BC1 is not None:
            score_BC1 = score_BC1 + self.alarm.to(score_BC1.dtype) * (2 * salience_BC1 - 1)
        if self.plan is not None and plan_BCP is not None:
            score_BC1 = score_BC1 + self.plan(plan_BCP)
        return score_BC1[..., 0]

    def places(self, n_places: int) -> int:
        """The most tokens that go through, of a pass with so many places."""
        return self.quota.of_first(n_places)

    @torch.no_grad()
    def statistics(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Of the tokens of each pass: the share that wanted to go through, mean and deviation of their scores."""
        rows = []
        for path in paths:
            score_BC = path.score_BC.float()
            present_BC = torch.ones_like(score_BC) if path.present_BC is None else path.present_BC.float()
            n = present_BC.sum().clamp(min=1)
            mean = (score_BC * present_BC).sum() / n
            variance = ((score_BC - mean).square() * present_BC).sum() / n
            rows.append(torch.stack([path.wants_BC.sum() / n, mean, variance.sqrt()]))
        wanting_R, mean_R, deviation_R = torch.stack(rows, 1)
        measured = {"wanting": wanting_R, "score_mean": mean_R, "score_deviation": deviation_R}
        found = {f"{self.name}_{key}": value for key, value in measured.items()}
        return found | {f"wanting_{self.name}": wanting_R.mean()}

    def follow(self, statistics: dict[str, Tensor]) -> None:
        """Move thresholds with the scores, and by rate · deviation · (share that wanted to − share held)."""
        wanting_R, mean_R, deviation_R = (
            statistics[f"{self.name}_{key}"].to(self.mean_R) for key in ("wanting", "score_mean", "score_deviation")
        )
        self.threshold_R.add_(mean_R - self.mean_R + self.rate * deviation_R * (wanting_R - self.quota.share))
        self.mean_R.copy_(mean_R)
