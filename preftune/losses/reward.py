"""The loss of reward models. Shapes: the legend in `preftune.records`."""

from __future__ import annotations

import torch.nn.functional as F

from preftune.losses.batch import Denominators, LossOutput, TokenBatch, at_least_fp32
from preftune.losses.preference import pair_metrics, pair_weights, pairs_of


def bradley_terry(batch: TokenBatch, denominators: Denominators, *, center: float) -> LossOutput:
    """−log σ(s_w − s_l − m) + c · (s_w + s_l)², mean over pairs.

    The first term alone leaves every prompt's scores free to drift by a constant; the second keeps them around 0.

    Args:
        batch: scores (with their graph), pairs and lengths of one micro-batch; m is `margins_P`, 0 where it is None.
        denominators: totals of the whole optimizer batch; `pairs` is used.
        center: c, at least 0.

    Returns:
        The micro-batch's share of the loss. Metrics are those of `preftune.losses.preference.pair_metrics`; `rewards/…`
        are the head's raw scores.

    Raises:
        ValueError: scores, lengths or pairs are missing, c is negative, or the denominators are smaller than this
            micro-batch alone could have.

    References:
        Bradley and Terry 1952; Ouyang et al. 2022 (InstructGPT, eq. 1); Touvron et al. 2023 (Llama 2, eq. 2: margin);
        Eisenstein et al. 2023 ("Helping or herding?", centring).
    """
    if batch.scores_S is None or batch.lengths_S is None:
        raise ValueError("a reward model's loss needs scores_S and lengths_S")
    if not center >= 0.0:
        raise ValueError(f"center must be at least 0, not {center:g}")
    pairs_P2 = pairs_of(batch, denominators)
    scores_S = at_least_fp32(batch.scores_S)
    chosen_P, rejected_P = scores_S[pairs_P2].unbind(1)
    distance_P = chosen_P - rejected_P
    if batch.margins_P is not None:
        distance_P = distance_P - batch.margins_P.to(scores_S.dtype)
    loss_P = -F.logsigmoid(distance_P) + center * (chosen_P + rejected_P).square()
    weights_P = pair_weights(batch, pairs_P2, scores_S.dtype)
    loss = (loss_P * weights_P).sum() / max(denominators.pairs, 1.0)
    return LossOutput(loss, pair_metrics(scores_S, batch.lengths_S, pairs_P2, weights_P))
