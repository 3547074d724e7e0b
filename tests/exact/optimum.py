"""The optimum of a KL-regularised reward and its value."""

from alignax import targets


def optimum(rewards, logp_ref, *, beta):
    """``log π*`` and ``β log Z``, the largest ``E r − β KL``."""
    logp, log_z = targets.posterior(rewards, logp_ref, beta=beta)
    return logp, beta * log_z
