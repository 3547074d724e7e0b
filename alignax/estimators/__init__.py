"""Sampled estimators of divergences between policies: values, and losses.

Two questions are kept apart. What does the *value* estimate? And what does the
*gradient* estimate, when automatic differentiation meets a sum over samples whose
law moves with the policy? They have different answers: k3 is an unbiased value of
KL(π‖ρ), and as a loss it descends KL(ρ‖π). So values have plain names, and what is
made to be differentiated is a ``*_surrogate``, named by its target:

- ``sequence_*``: the divergence between the laws of whole sequences. For a KL
  penalty this is nearly always what is meant: ``sequence_kl_surrogate``, or
  ``rao_blackwell_surrogate`` where the logits are at hand.
- ``myopic_*``: the sum over tokens with the law of the prefixes held fixed; what
  a KL term in the loss amounts to in other frameworks, at best.

All return token terms ``[..., T]`` whose *sum* over tokens has the stated
expectation, for tokens from the policy π, a behaviour policy b, or the reference ρ:

==================================  ======  ============================  ============================  ========  ================================
function                            tokens  value                         gradient                      variance  used by
==================================  ======  ============================  ============================  ========  ================================
sequence_kl_surrogate               π       sequence KL(π‖ρ)              sequence KL(π‖ρ)              ε^2       KL in reward, γ = 1
sequence_control_variate_surrogate  π       sequence KL(π‖ρ)              sequence KL(π‖ρ)              ε^2       alignax
sequence_k2_surrogate               π       biased                        sequence KL(π‖ρ)              ε^2       alignax
rao_blackwell_surrogate             π       sequence KL(π‖ρ)              sequence KL(π‖ρ)              ε^2       Amini et al. 2025
top_k_sampled_tail_surrogate        π       sequence KL(π‖ρ)              sequence KL(π‖ρ)              ε^2       alignax
top_k_bucket_surrogate              π       ΣKL of top-k buckets          ΣKL of top-k buckets          ε^2       alignax
off_policy_sequence_kl_surrogate    b       sequence KL(π‖ρ)              sequence KL(π‖ρ)              ε^2       alignax
sequence_ratio_kl_surrogate         b       sequence KL(π‖ρ)              sequence KL(π‖ρ)              ε^2       Shah et al. 2025, disco
sequence_weighted_k3_surrogate      b       sequence KL(π‖ρ)              sequence KL(π‖ρ)              ε^2       TRL's, for sequences
sequence_f_surrogate                π       sequence D(π‖ρ)               sequence D(π‖ρ)               ε^2       f-DPG
sequence_f_reference_surrogate      ρ       sequence D(π‖ρ)               sequence D(π‖ρ)               ε^2       DPH-RL
forward_kl_surrogate                ρ       sequence KL(ρ‖π)              sequence KL(ρ‖π)              ε^2       DPH-RL
myopic_kl_surrogate                 π       sequence KL(π‖ρ)              myopic KL(π‖ρ)                ε^2       KL in reward, γ = 0
myopic_k2_surrogate                 π       biased                        myopic KL(π‖ρ)                ε^2       verl, OpenRLHF, KDRL
myopic_straight_through_surrogate   π       sequence KL(π‖ρ)              myopic KL(π‖ρ)                ε^2       verl k3+
myopic_forward_k3_surrogate         π       sequence KL(π‖ρ)              myopic KL(ρ‖π)                ε^2       GRPO: TRL, verl, OpenRLHF, Tunix
myopic_rao_blackwell_surrogate      π       sequence KL(π‖ρ)              myopic KL(π‖ρ)                ε^2       GKD
off_policy_myopic_kl_surrogate      b       sequence KL(π‖ρ)              myopic KL(π‖ρ)                ε^2       alignax
myopic_weighted_k3_surrogate        b       myopic KL(π‖ρ), b's prefixes  myopic KL(π‖ρ), b's prefixes  ε^2       TRL ≥ 1.16 by default
myopic_f_surrogate                  π       myopic D(π‖ρ)                 myopic D(π‖ρ)                 ε^2       alignax
myopic_top_k_f_surrogate            π       myopic D(π‖ρ)                 myopic D(π‖ρ)                 ε^2       alignax
myopic_f_reference_surrogate        ρ       ΣD(π‖ρ), ρ's prefixes         ΣD(π‖ρ), ρ's prefixes         ε^2       DPH-RL
k1                                  π       sequence KL(π‖ρ)              none: mean zero               ε^2       Schulman 2020
k2                                  π       biased                        myopic KL(π‖ρ)                ε^4       Schulman 2020
k3                                  π       sequence KL(π‖ρ)              myopic KL(ρ‖π)                ε^4       Schulman 2020
absolute_log_ratio                  π       biased                        myopic ‖π − ρ‖₁               ε^2       verl
estimated_control_variate           π       sequence KL(π‖ρ)              other                         ε^4       alignax
control_variate                     π       sequence KL(π‖ρ)              other                         ε^2       Schulman 2020
rao_blackwell                       π       sequence KL(π‖ρ)              myopic KL(π‖ρ)                ε^4       Amini et al. 2025
top_k_bucket                        π       ΣKL of top-k buckets          myopic KL of top-k buckets    ε^4       distillation
top_k_partial                       π       biased                        other                         ε^2       distillation
top_k_sampled_tail                  π       sequence KL(π‖ρ)              myopic KL(π‖ρ)                ε^2       alignax
f_from_policy                       π       myopic D(π‖ρ)                 none: mean zero               ε^4       RAPO (forward KL)
f_from_reference                    ρ       ΣD(π‖ρ), ρ's prefixes         none: mean zero               ε^4       DPH-RL
forward_k1                          ρ       sequence KL(ρ‖π)              sequence KL(ρ‖π)              ε^2       fine-tuning
==================================  ======  ============================  ============================  ========  ================================

D is any f-divergence; "variance" is the order, in the size ε of the log-ratios, of
the variance of the value, and of the gradient for a surrogate. ``TABLE`` is this
table as data, each record callable on ``Samples``.

A loss that is not here: take any token loss with an unbiased value and an unbiased
myopic gradient, times importance weights (``prefix_weights``; ``context_weights``
for sums over the vocabulary) if the tokens are not the policy's, and
``sequence_surrogate`` adds the future term.
"""  # noqa: E501

from alignax.estimators.control import (
    control_variate,
    estimated_control_variate,
    optimal_coefficient,
)
from alignax.estimators.generators import (
    f_from_policy,
    f_from_reference,
    myopic_f_reference_surrogate,
    myopic_f_surrogate,
)
from alignax.estimators.myopic import (
    myopic_forward_k3_surrogate,
    myopic_k2_surrogate,
    myopic_kl_surrogate,
    myopic_straight_through_surrogate,
    myopic_top_k_f_surrogate,
    myopic_weighted_k3_surrogate,
    off_policy_myopic_kl_surrogate,
)
from alignax.estimators.off_policy import sequence_weighted_k3_surrogate
from alignax.estimators.pointwise import (
    absolute_log_ratio,
    forward_k1,
    k1,
    k2,
    k3,
)
from alignax.estimators.sequence import (
    forward_kl_surrogate,
    off_policy_sequence_kl_surrogate,
    sequence_control_variate_surrogate,
    sequence_f_reference_surrogate,
    sequence_f_surrogate,
    sequence_k2_surrogate,
    sequence_kl_surrogate,
    sequence_ratio_kl_surrogate,
    sequence_surrogate,
)
from alignax.estimators.table import TABLE, Estimator, Samples
from alignax.estimators.vocabulary import (
    myopic_rao_blackwell_surrogate,
    rao_blackwell,
    rao_blackwell_surrogate,
    top_k_bucket,
    top_k_bucket_surrogate,
    top_k_partial,
    top_k_sampled_tail,
    top_k_sampled_tail_surrogate,
)
from alignax.estimators.weights import (
    context_weights,
    effective_sample_size,
    masked_weights,
    prefix_weights,
    sequence_weights,
    token_weights,
    truncated_weights,
)

__all__ = [
    "TABLE",
    "Estimator",
    "Samples",
    "absolute_log_ratio",
    "context_weights",
    "control_variate",
    "effective_sample_size",
    "estimated_control_variate",
    "f_from_policy",
    "f_from_reference",
    "forward_k1",
    "forward_kl_surrogate",
    "k1",
    "k2",
    "k3",
    "masked_weights",
    "myopic_f_reference_surrogate",
    "myopic_f_surrogate",
    "myopic_forward_k3_surrogate",
    "myopic_k2_surrogate",
    "myopic_kl_surrogate",
    "myopic_rao_blackwell_surrogate",
    "myopic_straight_through_surrogate",
    "myopic_top_k_f_surrogate",
    "myopic_weighted_k3_surrogate",
    "off_policy_myopic_kl_surrogate",
    "off_policy_sequence_kl_surrogate",
    "optimal_coefficient",
    "prefix_weights",
    "rao_blackwell",
    "rao_blackwell_surrogate",
    "sequence_control_variate_surrogate",
    "sequence_f_reference_surrogate",
    "sequence_f_surrogate",
    "sequence_k2_surrogate",
    "sequence_kl_surrogate",
    "sequence_ratio_kl_surrogate",
    "sequence_surrogate",
    "sequence_weighted_k3_surrogate",
    "sequence_weights",
    "token_weights",
    "top_k_bucket",
    "top_k_bucket_surrogate",
    "top_k_partial",
    "top_k_sampled_tail",
    "top_k_sampled_tail_surrogate",
    "truncated_weights",
]
