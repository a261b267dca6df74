"""Stacking: a logistic regression on the members' logits."""

from __future__ import annotations

import numpy as np

from ray_jobs.ensembling.blend import Blend
from ray_jobs.ensembling.logistic import fit_logistic, logit
from ray_jobs.ensembling.validation import Validation


def stack(validation: Validation) -> Blend:
    """Coefficients of the members' logits with an L2 penalty (Wolpert 1992; Breiman 1996).

    The penalty draws towards 1 / M rather than 0, so that with few rows stacking becomes the mean
    logit. It is that of a normal prior of standard deviation 1 on each coefficient (scikit-learn's
    C = 1): enough to share weight among members that agree, lost among thousands of rows.
    """
    logits = np.column_stack([logit(p) for p in validation.predictions.values()])
    coefficients, intercept = fit_logistic(
        logits,
        validation.y.astype(np.float64),
        prior_mean=1 / logits.shape[1],
        prior_precision=1.0,
    )
    weights = dict(zip(validation.members, coefficients.tolist(), strict=True))
    return Blend(link="logit", weights=weights, intercept=intercept)
