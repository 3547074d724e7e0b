"""The peers' losses, written again from their descriptions, in numpy.

Of arrays ``(logp_w, logp_l, ref_w, ref_l, length_w, length_l)``. Nothing here is ours:
the softplus, the sorting and the divergences are numpy's own.
"""

import numpy as np


def softplus(x):
    return np.logaddexp(0, x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def ratios(arrays):
    pol_w, pol_l, ref_w, ref_l = arrays[:4]
    return pol_w - ref_w, pol_l - ref_l


def sigmoid_of(score):
    return lambda arrays, beta: softplus(-beta * score(arrays))


def margin(arrays):
    u, v = ratios(arrays)
    return u - v


def mean_margin(arrays):
    u, v = ratios(arrays)
    return u / arrays[4] - v / arrays[5]


def policy_margin(arrays):
    return arrays[0] - arrays[1]


def mean_policy_margin(arrays):
    return arrays[0] / arrays[4] - arrays[1] / arrays[5]


def nll(arrays):
    return -arrays[0] / arrays[4]


def exo_pair(arrays, beta, epsilon=1e-3):
    z = beta * margin(arrays)
    log_win, log_lose = -softplus(-z), -softplus(z)
    return np.exp(log_win) * (log_win - np.log(1 - epsilon)) + np.exp(log_lose) * (
        log_lose - np.log(epsilon)
    )


def nca_pair(arrays, beta):
    u, v = ratios(arrays)
    return softplus(-beta * u) + softplus(beta * u) / 2 + softplus(beta * v) / 2


def robust(arrays, beta, epsilon):
    z = beta * margin(arrays)
    return ((1 - epsilon) * softplus(-z) - epsilon * softplus(z)) / (1 - 2 * epsilon)


def smoothed(arrays, beta, epsilon):
    z = beta * margin(arrays)
    return (1 - epsilon) * softplus(-z) + epsilon * softplus(z)


def bco_pair(arrays, beta):
    u, v = ratios(arrays)
    return softplus(-beta * u) + softplus(beta * v)


def sppo_hard(arrays, beta):
    u, v = ratios(arrays)
    return (u - 0.5 / beta) ** 2 + (v + 0.5 / beta) ** 2


def aot(arrays, beta):
    policy, reference = arrays[0] - arrays[1], arrays[2] - arrays[3]
    return softplus(-beta * (np.sort(policy) - np.sort(reference)))


def aot_unpaired(arrays, beta):
    u, v = ratios(arrays)
    return softplus(-beta * (np.sort(u) - np.sort(v)))


def apo_zero(arrays, beta):
    u, v = ratios(arrays)
    return 1 - sigmoid(beta * u) + sigmoid(beta * v)


def apo_down(arrays, beta):
    u, v = ratios(arrays)
    return sigmoid(beta * u) + 1 - sigmoid(beta * (u - v))


def discopop(arrays, beta, tau=0.05):
    z = beta * margin(arrays)
    share = sigmoid(z / tau)
    return (1 - share) * softplus(-z) + share * np.exp(-z)


def orpo(arrays, beta):
    w, l = arrays[0] / arrays[4], arrays[1] / arrays[5]
    odds = (w - l) - (np.log1p(-np.exp(w)) - np.log1p(-np.exp(l)))
    return nll(arrays) + beta * softplus(-odds)


def alpha_reward(arrays, alpha):
    w, l = arrays[0] / arrays[4], arrays[1] / arrays[5]
    return ((1 - np.exp(w) ** -alpha) - (1 - np.exp(l) ** -alpha)) / alpha


# Trainer and loss type: its formula, and what the loss needs beside ``beta``.
FORMULAS = {
    "dpo/sigmoid": (sigmoid_of(margin), {}),
    "dpo/hinge": (lambda a, beta: np.maximum(0, 1 - beta * margin(a)), {}),
    "dpo/ipo": (lambda a, beta: (mean_margin(a) - 1 / (2 * beta)) ** 2, {}),
    "dpo/exo_pair": (exo_pair, {}),
    "dpo/nca_pair": (nca_pair, {}),
    "dpo/robust": (lambda a, beta, noise: robust(a, beta, noise), {"noise": 0.1}),
    "dpo/bco_pair": (bco_pair, {}),
    "dpo/sppo_hard": (sppo_hard, {}),
    "dpo/aot": (aot, {}),
    "dpo/aot_unpaired": (aot_unpaired, {}),
    "dpo/apo_zero": (apo_zero, {}),
    "dpo/apo_down": (apo_down, {}),
    "dpo/discopop": (discopop, {}),
    "dpo/sft": (lambda a, beta: nll(a), {}),
    "dpo/sigmoid_norm": (sigmoid_of(mean_margin), {}),
    "online_dpo/sigmoid": (sigmoid_of(margin), {}),
    "online_dpo/ipo": (lambda a, beta: (margin(a) - 1 / (2 * beta)) ** 2, {}),
    "cpo/sigmoid": (
        lambda a, beta, alpha: softplus(-beta * policy_margin(a)) + alpha * nll(a),
        {"alpha": 0.7},
    ),
    "cpo/hinge": (
        lambda a, beta, weight: (
            np.maximum(0, 1 - beta * policy_margin(a)) + weight * nll(a)
        ),
        {"weight": 0.7},
    ),
    "cpo/ipo": (
        lambda a, beta, weight: (
            (mean_policy_margin(a) - 1 / (2 * beta)) ** 2 + weight * nll(a)
        ),
        {"weight": 0.7},
    ),
    "cpo/simpo": (
        lambda a, beta, gamma, weight: (
            softplus(-beta * (mean_policy_margin(a) - gamma / beta)) + weight * nll(a)
        ),
        {"gamma": 0.5, "weight": 0.7},
    ),
    "cpo/alphapo": (
        lambda a, beta, alpha, gamma, weight: (
            softplus(-beta * alpha_reward(a, alpha) + gamma) + weight * nll(a)
        ),
        {"alpha": 0.25, "gamma": 0.5, "weight": 0.7},
    ),
    "orpo": (orpo, {}),
}
# Beside ``weight`` times the likelihood of a third completion.
GOLD = {
    "tpo/sigmoid": (lambda a, beta: softplus(-beta * policy_margin(a)), {}),
    "tpo/hinge": (lambda a, beta: np.maximum(0, 1 - beta * policy_margin(a)), {}),
    "tpo/ipo": (lambda a, beta: (mean_policy_margin(a) - 1 / (2 * beta)) ** 2, {}),
    "tpo/tpo-l": (
        lambda a, beta, gamma: softplus(-beta * mean_policy_margin(a) + gamma),
        {"gamma": 0.5},
    ),
}


def kto(log_ratio, desirable, anchor, beta):
    good = 1 - sigmoid(beta * (log_ratio - anchor))
    bad = 1 - sigmoid(beta * (anchor - log_ratio))
    return np.where(desirable, good, bad)


def apo_zero_unpaired(log_ratio, desirable, anchor, beta):
    return kto(log_ratio, desirable, 0.0, beta)


def bco(log_ratio, desirable, shift, beta):
    logit = beta * log_ratio - shift
    return np.where(desirable, softplus(-logit), softplus(logit))


UNPAIRED = {
    "kto/kto": kto,
    "kto/apo_zero_unpaired": apo_zero_unpaired,
    "bco": bco,
}
# f-DPO's scores with their constants dropped.
SCORES = {
    "reverse_kl": lambda ratio: ratio,
    "forward_kl": lambda ratio: -np.exp(-ratio),
    "js_divergence": lambda ratio: -softplus(-ratio),
    "alpha_divergence": lambda ratio: np.exp(-0.5 * ratio) / -0.5,
}


def slope(function, arrays, number, step=1e-6):
    """Central differences by one array's entries, of the sum of a function."""
    out = np.zeros_like(arrays[number])
    for i in range(out.size):
        moved = [[np.array(a, float) for a in arrays] for _ in range(2)]
        moved[0][number][i] += step
        moved[1][number][i] -= step
        out[i] = (function(moved[0]).sum() - function(moved[1]).sum()) / (2 * step)
    return out
