"""Writes docs/adjacent.md: what stands beside the subject, each in an exact world.

python docs/generate_adjacent.py
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp

from alignax import adjacent as ad
from alignax import divergences as dv
from alignax import exact, preference

FOLDER = Path(__file__).parent
HEAD = """# Beside the subject

Ideas that share their mathematics with divergence-regularised policies, each a function
of `alignax.adjacent`, a check in a world small enough to be exact (`tests/adjacent`), and
a paragraph here. `python docs/generate_adjacent.py` writes the page; a test compares it
with the code.
"""
LEFT_OUT = """
## Left out

Diff-Instruct*'s own gradient formula: the autodiff of `score_divergence` is exact where
it could be checked. The clamps and running means of f-distill's code: they are practice,
with no exact answer. Rules induced from preferences (inverse constitutional AI) and
edits learned from users: what they give is pairs, for `alignax.preference`; the rest is
prompts to a language model, of which nothing is exact. Of the offline methods their
networks: A2PR's autoencoder of good actions, PRDC's search tree, WSRL's replay buffer.
"""


def table(*rows) -> str:
    head, *body = ([str(cell) for cell in row] for row in rows)
    lines = [head, ["---"] * len(head), *body]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def mixture(weights, means, variance) -> ad.Mixture:
    means = jnp.array(means)
    return ad.Mixture(
        jnp.log(jnp.array(weights)), means, jnp.full_like(means, variance)
    )


def distillation() -> str:
    """f-distill in one dimension, with its weights and its fixed points."""
    teacher = mixture([0.6, 0.4], [-1.5, 1.5], 0.3)
    ratios = jnp.log(jnp.array([0.25, 1.0, 4.0]))
    rows = []
    for name, div in (
        ("reverse KL", dv.reverse_kl()),
        ("twice Jensen-Shannon", dv.scale(dv.jensen_shannon(), 2.0)),
        ("Jeffreys", dv.jeffreys()),
        ("forward KL", dv.forward_kl()),
    ):

        def student(x):
            return ad.Mixture(jnp.zeros(1), x[:1], jnp.exp(x[1:]))

        def step(_, x, div=div, student=student):
            law = student(x)
            points, weights = ad.quadrature(law)
            factor = weights * ad.distribution_matching(
                div,
                ad.score(law, points),
                ad.score(teacher, points),
                ad.log_density(teacher, points) - ad.log_density(law, points),
            )
            moved = jax.grad(lambda x: jnp.sum(factor * ad.quadrature(student(x))[0]))
            return x - 0.05 * moved(x)

        end = jax.jit(
            lambda step=step: jax.lax.fori_loop(0, 1500, step, jnp.array([0.3, 0.0]))
        )()
        weight = ", ".join(f"{h:.2f}" for h in dv.score_weight(div, ratios))
        value = ad.mixture_divergence(div, student(end), teacher)
        deviation = jnp.exp(end[1] / 2)
        rows.append((name, weight, f"{end[0]:.2f}", f"{deviation:.2f}", f"{value:.3f}"))
    return (
        "\n## Score distillation\n\nf-distill (arXiv 2502.15681) moves a generator's "
        "samples by `h(r) (s_student − s_teacher)`, r = teacher/student, h = r² f'' "
        "(`divergences.score_weight`): `distribution_matching`. Its expectation is the "
        "exact divergence's gradient, for every divergence of the core, at any noise "
        "(`diffused`). A normal student of a teacher with modes of .6 at −1.5 and of .4 "
        "at 1.5: what seeks a mode, and what covers both.\n"
        + table(
            (
                "divergence",
                "h(¼), h(1), h(4)",
                "mean",
                "deviation",
                "divergence reached",
            ),
            *rows,
        )
    )


def scores() -> str:
    """De Bruijn's identity in numbers, and entropic score distillation."""
    p, q = mixture([1.0], [0.0], 1.0), mixture([0.5, 0.5], [-1.0, 1.0], 0.6)
    kl = ad.mixture_divergence(dv.reverse_kl(), p, q)
    rows = []
    for end in (0.5, 2.0, 8.0):
        times = end * ((jnp.arange(200) + 0.5) / 200)
        spent = ad.score_divergence(p, q, times, jnp.full(200, end / 200))
        robust = ad.score_divergence(
            p,
            q,
            times,
            jnp.full(200, end / 200),
            distance=functools.partial(ad.pseudo_huber, width=0.3),
        )
        rows.append((end, f"{spent:.4f}", f"{spent / kl:.1%}", f"{robust:.4f}"))
    target = mixture([0.7, 0.3], [-1.0, 1.0], 0.4)
    views = []
    for weight in (0.0, 0.5, 1.0):

        def step(_, means, weight=weight):
            law = ad.Mixture(jnp.zeros(4), means, jnp.full(4, 0.3))
            each = jax.tree.map(lambda x: x[:, None], law)
            points, weights = ad.quadrature(each)

            def of_all(mixture):
                return ad.score(mixture, points.reshape(-1)).reshape(points.shape)

            factor = ad.entropic_score(
                of_all(law),
                ad.score(each, points),
                of_all(target),
                entropy_weight=weight,
            )
            return means - 0.2 * jnp.sum(weights * factor, axis=1)

        end = jax.jit(
            lambda step=step: jax.lax.fori_loop(
                0, 600, step, jnp.linspace(-0.2, 0.6, 4)
            )
        )()
        law = ad.Mixture(jnp.zeros(4), end, jnp.full(4, 0.3))
        apart = ad.mixture_divergence(dv.reverse_kl(), law, target)
        places = ", ".join(f"{m:.2f}" for m in end + 0.0)
        objective = ad.entropic_objective(law, target, entropy_weight=weight)
        views.append((weight, places, f"{objective:.3f}", f"{apart:.3f}"))
    return (
        "\nThe squared difference of scores, integrated over the noise up to T "
        "(`score_divergence`), is what the noise has taken from the KL, "
        f"{kl:.4f} here:\n"
        + table(
            ("T", "½ ∫ E (s_p − s_q)² dt", "of the KL", "with `pseudo_huber`, c = .3"),
            *rows,
        )
        + "\nFour views of one object, each N(m, .3), and a teacher with modes of .7 at −1 and of .3 at 1. "
        "Entropic score distillation (arXiv 2401.00909, `entropic_score`) weighs the "
        "entropy of all views by λ: without it they crowd at the modes' tops, each "
        "on its own.\n"
        + table(
            ("λ", "the views' means", "`entropic_objective`", "KL(all views‖teacher)"),
            *views,
        )
    )


def control() -> str:
    """A classifier and a KL, over a chain of three steps."""
    keys = jax.random.split(jax.random.key(0), 2)
    initial = jax.nn.log_softmax(jax.random.normal(keys[0], (4,)))
    steps = jax.nn.log_softmax(jax.random.normal(keys[1], (3, 4, 4)))
    likelihood = jnp.log(jnp.array([0.9, 0.6, 0.1, 0.05]))
    before = ad.last_state(initial, steps)
    rows = [("pretrained", *(f"{p:.3f}" for p in jnp.exp(before)), "0.000")]
    for beta in (4.0, 1.0, 0.25):
        chain = ad.soft_optimal_chain(initial, steps, likelihood, beta=beta)
        end = ad.last_state(chain.log_initial, chain.log_steps)
        kl = exact.kl(end, before)
        rows.append((f"β = {beta}", *(f"{p:.3f}" for p in jnp.exp(end)), f"{kl:.3f}"))
    posterior = jnp.exp(jax.nn.log_softmax(before + likelihood))
    rows.append(("Bayes", *(f"{p:.3f}" for p in posterior), ""))
    return (
        "\n## Conditional control\n\nCTRL (arXiv 2406.12120) adds a condition y to a "
        "pretrained denoiser by reinforcement learning with the reward `log p(y|x)` and "
        "a KL: `soft_optimal_chain`. With β = 1 its samples have the conditional law "
        "exactly, with no classifier of noisy states; the law of the first state must "
        "be tilted as well. Four states with `p(y|x)` = .9, .6, .1, .05:\n"
        + table(("chain", *(f"x = {n}" for n in range(4)), "KL (nats)"), *rows)
    )


def zoomed(objective):
    """Where a function of two numbers is largest, by grids ever finer."""
    cells = jnp.stack(jnp.meshgrid(*[jnp.linspace(-1, 1, 25)] * 2), -1).reshape(-1, 2)

    def finer(_, carry):
        centre, width = carry
        points = centre[None] + width[None] * cells
        return points[jnp.nanargmax(jax.vmap(objective)(points))], width / 3

    start = jnp.array([0.0, -4.0]), jnp.array([7.0, 12.0])
    return jax.lax.fori_loop(0, 12, finer, start)[0]


def occupancies() -> str:
    """A switch that is hardly ever thrown, to a state that the proxy likes."""
    steps = jnp.log(jnp.array([[[1.0, 0], [1, 0], [0, 1]], [[0, 1.0]] * 3]))
    start = jnp.array([0.0, -jnp.inf])
    true = jnp.array([1.0, 0, 0, -1, -1, -1])
    proxy = jnp.array([1.0, 0, 0, 3, 3, 3])
    third = jnp.full(3, 1 / 3)
    logp_ref = jnp.log(jnp.stack([jnp.array([0.3, 0.6999, 0.0001]), third]))

    def visited(logp):
        return ad.occupancy(start, steps, logp, discount=0.99)

    def policy(x):
        logits = jnp.stack([x[0], jnp.zeros_like(x[0]), x[1]])
        return jax.nn.log_softmax(jnp.stack([logits, jnp.zeros(3)]))

    ref = visited(logp_ref)
    r = ad.correlation(proxy, true, ref.reshape(-1))

    def of_actions(div):
        return lambda logp, mu: jnp.sum(mu.sum(1) * dv.exact(div, logp, logp_ref))

    def of_pairs(div):
        return lambda _, mu: dv.exact(
            div, jnp.log(mu).reshape(-1), jnp.log(ref).reshape(-1)
        )

    def of_states(div):
        return lambda _, mu: dv.exact(div, jnp.log(mu.sum(1)), jnp.log(ref.sum(1)))

    def root(penalty):
        return lambda logp, mu: jnp.sqrt(jnp.maximum(penalty(logp, mu), 1e-12))

    def bound(mu):
        return ad.proxy_bound(proxy, mu.reshape(-1), ref.reshape(-1), correlation=r)

    def row(name, beta, mu):
        law = mu.reshape(-1)
        numbers = mu[1].sum(), law @ proxy, law @ true, bound(mu)
        return (name, beta, *(f"{x + 1e-9:.3f}" for x in numbers))

    kl, chi2 = dv.reverse_kl(), dv.pearson()
    betas = jnp.array([0.03, 0.1, 0.3, 1, 3, 10, 100])
    rows = [row("(the reference)", "", ref)]
    for name, penalty in (
        ("KL of actions", of_actions(kl)),
        ("χ² of actions", of_actions(chi2)),
        ("KL of pairs", of_pairs(kl)),
        ("χ² of pairs", of_pairs(chi2)),
        ("√χ² of pairs", root(of_pairs(chi2))),
        ("KL of states", of_states(kl)),
        ("χ² of states", of_states(chi2)),
    ):

        def objective(x, beta, penalty=penalty):
            mu = visited(policy(x))
            return mu.reshape(-1) @ proxy - beta * penalty(policy(x), mu)

        def optimum(beta, objective=objective):
            return visited(policy(zoomed(lambda x: objective(x, beta))))

        laws = jax.jit(lambda optimum=optimum: jax.lax.map(optimum, betas))()
        best = int(jnp.argmax(laws.reshape(len(betas), -1) @ true))
        rows.append(row(name, betas[best], laws[best]))
    mu = jax.jit(lambda: visited(policy(zoomed(lambda x: bound(visited(policy(x)))))))()
    rows.append(row("the bound itself", "", mu))
    # The penalties and the discriminator at the policy that the bound chooses.
    flat, flat_ref = mu.reshape(-1), ref.reshape(-1)
    seen = flat_ref > 0
    logit = jnp.where(seen, jnp.log(flat / jnp.where(seen, flat_ref, 1)), 0)
    size = flat @ jnp.expm1(logit)
    off = jnp.array([0.0, 0.5, -0.5])
    both = [
        law
        @ ad.discriminator_losses(logit[None] + off[:, None], jnp.full((3, 6), side)).T
        for law, side in ((flat, True), (flat_ref, False))
    ]
    missed = both[0] + both[1]
    penalty = ad.step_penalties(chi2, logit)
    root_penalty = ad.root_step_penalties(chi2, logit, jnp.full(6, size), least=1e-4)
    paid = (
        f"There √χ² is {jnp.sqrt(size):.3f}, and a step's penalty, f'(ratio), "
        f"{penalty[0]:.3f} at work and {penalty[3]:.3f} in the glitch; that of the root "
        f"{root_penalty[0]:.3f} and {root_penalty[3]:.3f}. The discriminator's two losses "
        f"add to {missed[0]:.4f} at the exact logit, and to {missed[1]:.4f} and "
        f"{missed[2]:.4f} half a nat above and below it.\n"
    )
    return (
        "\n## Occupancies and correlated proxies\n\nA proxy of correlation r with the "
        "reward where the reference goes (`correlation` over its `occupancy`) gives the "
        "policy at least `proxy_bound` of the true reward, in its deviations "
        "(arXiv 2403.03185, theorem 5.1); the term that it subtracts is √χ² of what the "
        "two policies visit. `step_penalties` and `root_step_penalties` make rewards of a "
        "discriminator's logit (`discriminator_losses`) whose policy gradient is the "
        "divergence's own, for every divergence of the core. A world of two states: work "
        "(action 1 pays 1, action 2 nothing, action 3 throws a switch for good) and a "
        "glitch, which the proxy counts as 3 and the truth as −1. The reference throws "
        f"the switch with .0001; γ = .99, r = {r:.3f}. For each penalty of the proxy's "
        "return, the β of seven (0.03 to 100) whose optimum has the most true reward:\n"
        + table(("penalty", "β", "time in the glitch", "proxy", "true", "bound"), *rows)
        + "\nThrowing the switch costs the actions' KL little and once, and pays for good: "
        "none of these β gives more than the reference has. Divergences of what is visited see the "
        "glitch. The bound knows neither the true reward nor a β to choose. The states' "
        "divergences are best here because in this world the actions' own part, work or "
        "rest, is not what goes wrong. " + paid
    )


def newton(loss, x):
    """A minimum of a convex loss."""
    slope, curve = jax.grad(loss), jax.hessian(loss)
    step = jax.jit(lambda x: x - jnp.linalg.solve(curve(x), slope(x)))
    for _ in range(25):
        x = step(x)
    return x


def adversary() -> str:
    """RPO where one completion was compared three times and won twice by luck."""
    beta = 0.2
    ref = jnp.log(jnp.array([0.2, 0.4, 0.3, 0.1]))
    wins = jnp.array([[0.0, 7, 5, 1], [3, 0, 4, 0], [3, 6, 0, 0], [2, 0, 0, 0]]) / 31
    true = jnp.array([1.0, 0.5, 0.5, -1.0])
    base = jnp.log(wins.sum(1))
    w, l = (x.reshape(-1) for x in jnp.indices((4, 4)))

    def shifted(x):
        return jnp.concatenate([jnp.zeros(1), x])

    rows = []
    for eta in (0.0, 0.1, 0.3, 1.0):

        def worst(x, eta=eta):
            return ad.adversarial_reward_loss(
                shifted(x), ref, base, wins, beta=beta, eta=eta
            )

        def rpo(x, eta=eta):
            logp, none = jax.nn.log_softmax(shifted(x)), jnp.zeros(16)
            pair = preference.Pair(logp[w], logp[l], ref[w], ref[l], none, none)
            return wins.reshape(-1) @ preference.rpo(pair, beta=beta, eta=eta)

        rewards = newton(worst, jnp.zeros(3))
        logp = jax.nn.log_softmax(ref + shifted(rewards) / beta)
        value = ad.adversarial_payoff(
            logp, shifted(rewards), ref, base, wins, beta=beta, eta=eta
        )
        other = newton(rpo, ref[1:] - ref[0])
        least = rpo(other) + eta * beta * jnp.exp(base) @ ref
        law = jax.nn.log_softmax(shifted(other))
        rows.append(
            (
                eta,
                ", ".join(f"{p:.3f}" for p in jnp.exp(logp)),
                ", ".join(f"{p:.3f}" for p in jnp.exp(law)),
                f"{value:.4f}",
                f"{least:.4f}",
                f"{jnp.exp(logp) @ true:.3f}",
            )
        )
    return (
        "\n## Adversarial rewards\n\nRPO (arXiv 2405.16436) seeks the best policy against "
        "the worst reward that comparisons allow: `adversarial_payoff`, η times the "
        "regularised reward above a base's, and the comparisons' loss. The best reply to "
        "a reward is known, so that the worst reward minimises "
        "`adversarial_reward_loss`, and its policy is that of DPO with an SFT term, "
        "`preference.rpo`. Four completions, the last of them bad (true rewards 1, .5, "
        ".5, −1) but winner of two of its three comparisons; β = .2, and the constant "
        "ηβ E log ρ is added to DPO + SFT:\n"
        + table(
            (
                "η",
                "policy of the worst reward",
                "policy of DPO + SFT",
                "the game's value",
                "least DPO + SFT",
                "true reward",
            ),
            *rows,
        )
    )


def constrained() -> list[tuple]:
    """One state, a critic that is right at the data and wrong beyond."""
    data = jnp.array([[-0.4], [0.1], [0.5]])

    def truth(a):
        return 1 - jnp.square(a - 0.6)

    def critic(a):
        return truth(a) + 4 * jnp.square(jnp.maximum(jnp.abs(a) - 0.5, 0))

    q = critic(data[:, 0])
    best = jnp.broadcast_to(data[jnp.argmax(q)], data.shape)
    everywhere, nowhere = jnp.ones(3, bool), jnp.zeros(3, bool)

    def nearest(actions):
        none = jnp.zeros((3, 1))
        return ad.nearest_actions(none, actions, none, data, state_weight=2.0)[0]

    rows = []
    for name, targets in (
        ("none", lambda _: (data, nowhere)),
        ("TD3+BC: the data's actions", lambda _: (data, everywhere)),
        ("PRDC: the nearest one", lambda x: (nearest(x), everywhere)),
        (
            "A2PR: the better of two",
            lambda _: ad.advantage_guided_targets(
                data, best, q, critic(best[:, 0]), jnp.full(3, q.mean())
            ),
        ),
    ):

        def loss(a, targets=targets):
            actions = jnp.broadcast_to(a, (3, 1))
            values = critic(actions[:, 0])
            return jnp.mean(
                ad.constrained_actor_losses(
                    values, actions, *targets(actions), alpha=0.1
                )
            )

        a = jax.lax.fori_loop(
            0,
            3000,
            lambda _, a, loss=loss: jnp.clip(a - 0.02 * jax.grad(loss)(a), -1, 1),
            jnp.zeros(()),
        )
        rows.append((name, f"{a:.3f}", f"{critic(a):.3f}", f"{truth(a):.3f}"))
    return rows


def offline() -> str:
    """Targets in the data, a critic's warm-up, and boosting towards an expert."""
    keys = jax.random.split(jax.random.key(3), 6)
    rewards = jax.random.normal(keys[0], (4, 3))
    steps = jax.nn.log_softmax(2 * jax.random.normal(keys[1], (4, 3, 4)))
    initial = jax.nn.log_softmax(jax.random.normal(keys[2], (4,)))
    logp = jax.nn.log_softmax(rewards)

    @jax.jit
    def backup(values):
        return ad.policy_backup(values, rewards, steps, logp, discount=0.9)

    def visited(logp):
        return ad.occupancy(initial, steps, logp, discount=0.9)

    exact_q = jnp.zeros((4, 3))
    for _ in range(400):
        exact_q = backup(exact_q)
    q = exact_q + 4 * jax.random.normal(keys[3], (4, 3))
    warm = [("(before)", "", f"{jnp.sum(visited(logp) * rewards):.3f}")]
    for sweep in range(31):
        if sweep in (0, 1, 3, 10, 30):
            better = jax.nn.log_softmax(logp + q)
            error = jnp.max(jnp.abs(q - q.mean() - exact_q + exact_q.mean()))
            value = jnp.sum(visited(better) * rewards)
            warm.append((sweep, f"{error:.3f}", f"{value:.3f}"))
        q = backup(q)
    critics = jax.random.normal(jax.random.key(1), (10, 2000))
    least, least_of_all = (
        float(jnp.mean(ad.subset_minimum(jax.random.key(2), critics, size=size)))
        for size in (2, 10)
    )
    expert = visited(jax.nn.log_softmax(jax.random.normal(keys[4], (4, 3))))
    flat = expert.reshape(-1)

    def greedy(values):
        return jax.nn.log_softmax(
            jnp.where(values == values.max(1, keepdims=True), 0.0, -jnp.inf)
        )

    @jax.jit
    def reply(rewards):
        def sweep(_, values):
            return ad.policy_backup(
                values, rewards, steps, greedy(values), discount=0.9
            )

        return visited(greedy(jax.lax.fori_loop(0, 200, sweep, jnp.zeros((4, 3)))))

    boosted = []
    for alpha in (0.3, 0.1):
        mixture, laws, found = visited(jnp.full((4, 3), -jnp.log(3.0))), [], []
        first = mixture
        for rounds in range(41):
            if rounds in (0, 1, 5, 10, 40):
                ages = jnp.arange(len(laws) - 1, -1, -1)
                shares = ad.age_weights(ages, alpha=alpha)
                whole = first * (1 - alpha) ** rounds
                for share, law in zip(shares, laws, strict=True):
                    whole = whole + share * law
                log_ratio = jnp.log(whole.reshape(-1) / flat)
                found.append(
                    ad.variational_bound(
                        dv.reverse_kl(), log_ratio, whole.reshape(-1), flat
                    )
                )
            laws.append(reply(-jnp.log(mixture / expert)))
            mixture = (1 - alpha) * mixture + alpha * laws[-1]
        boosted.append((alpha, *(f"{x:.4f}" for x in found)))
    return (
        "\n## Offline data\n\nWhat holds a policy near data, `constrained_actor_losses`: "
        "a square to a target, and Q with its scale taken out. Targets are the data's "
        "actions (TD3+BC, arXiv 2106.06860), that of the nearest point "
        "(`nearest_actions`, PRDC, arXiv 2306.06569), or the better of the data's and a "
        "generated one (`advantage_guided_targets`, A2PR, arXiv 2405.19909; generated is "
        "here the data's best). One state, "
        "data at −.4, .1 and .5, a true Q with its top at .6, and a critic that is right "
        "at the data and ever more wrong beyond .5; from 0, within ±1, α = .1:\n"
        + table(("target", "action", "critic", "true Q"), *constrained())
        + "\nWSRL (arXiv 2412.07762) plays the pretrained policy, frozen, before the first "
        "update, so that the critic is right where the policy goes: sweeps of "
        "`policy_backup` over every pair before one step `π e^Q`, four states, a critic "
        "that is off by 4 in deviation. Its critics are `subset_minimum`, the least of two "
        f"drawn from ten: with independent errors of deviation 1, {least:.2f} from the "
        f"truth on average (all ten: {least_of_all:.2f}).\n"
        + table(
            (
                "sweeps",
                "largest error of Q, but for a constant",
                "reward after the step",
            ),
            *warm,
        )
        + "\nAILBoost (arXiv 2404.08513) adds to a mixture of policies, weights "
        "`age_weights`, the best reply to a critic of the whole mixture "
        "(`variational_bound`). With exact critics and replies KL(mixture‖expert) of "
        "occupancies, four states, falls, not at every round, and further with a smaller step:\n"
        + table(("α", *(f"{n} rounds" for n in (0, 1, 5, 10, 40))), *boosted)
    )


def bilevel() -> str:
    """The reference's quadratic world."""

    def outer(x, y):
        return (jnp.sum(jnp.square(y - 1)) + 0.2 * jnp.sum(jnp.square(x))) / 2

    def inner(x, y):
        return jnp.sum(jnp.square(y - 2 * x)) / 2

    x = jnp.array([0.8])
    exact_slope = ad.hypergradient(outer, inner, x, 2 * x)[0]
    rows = []
    for sigma in (1.0, 0.1, 0.01, 0.001):
        near = (sigma + 2 * x) / (1 + sigma)
        value, slope = jax.value_and_grad(
            lambda x, near=near, sigma=sigma: ad.penalised_value(
                outer, inner, x, near, jnp.array([1.6]), sigma=sigma
            )
        )(x)
        bias = exact_slope - slope[0]
        rows.append((sigma, f"{value:.4f}", f"{slope[0]:.4f}", f"{bias / sigma:.3f}"))
    return (
        "\n## Bilevel penalties\n\nA loss at the minimum of another, as a reward that is "
        "judged by the policy trained on it: its exact slope (`hypergradient`) solves "
        "with the inner Hessian; `penalised_value` (arXiv 2309.01753) takes two inner "
        "minima and first derivatives alone, at a bias of the order of σ. "
        "`f = ½(y − 1)² + .1x²`, `g = ½(y − 2x)²` at x = .8, where "
        f"f(x, y*) = {outer(x, 2 * x):.4f} and its slope is {exact_slope:.4f}:\n"
        + table(("σ", "ψ_σ", "its slope", "bias/σ"), *rows)
        + "\nThe tests have the same order where the inner problem is a policy with a KL "
        "and x its rewards.\n"
    )


def collapse() -> str:
    """A linear autoencoder at several β."""
    eigenvalues = jnp.array([3.0, 1.2, 0.7, 0.3])
    rows = []
    for beta in (0.5, 1.0, 2.0, 3.0):
        best = ad.linear_vae(eigenvalues, latents=3, noise=0.5, beta=beta)
        basis = jnp.eye(4)[:, :3]
        gain = jnp.sqrt(best.decoder)
        loss = ad.linear_vae_loss(
            basis * gain[None],
            (basis * (gain / (best.decoder + beta * 0.5))[None]).T,
            jnp.log(best.variance),
            jnp.diag(eigenvalues),
            noise=0.5,
            beta=beta,
        )
        rows.append(
            (
                beta,
                ", ".join(f"{x:.2f}" for x in best.decoder),
                ", ".join(f"{x:.2f}" for x in best.variance),
                ", ".join(f"{x:.3f}" for x in best.kl),
                f"{best.loss:.4f}",
                f"{loss:.4f}",
            )
        )
    return (
        "\n## Collapse of a posterior\n\nA linear β-VAE's best decoder gives a direction of "
        "variance λ the length `w² = (λ − βσ²)_+` and `½ log(λ/βσ²)` nats, none if "
        "λ ≤ βσ²: its posterior collapses at the optimum, whatever the optimiser "
        "(`linear_vae`; arXiv 1911.02469 for β = 1, where the loss is probabilistic "
        "PCA's likelihood). Variances 3, 1.2, .7 and .3, three latents, σ² = .5; the "
        "last column is `linear_vae_loss` at that point, and the tests find no lower "
        "one:\n"
        + table(
            ("β", "w²", "posterior's variance", "nats", "loss", "at the point"), *rows
        )
        + "\nWith β = 1 the best σ² is the mean of the variances that have no latent, and "
        "nothing above it collapses.\n"
    )


def text() -> str:
    with jax.enable_x64(True):
        later = occupancies() + adversary() + offline() + bilevel() + collapse()
    return HEAD + distillation() + scores() + control() + later + LEFT_OUT


if __name__ == "__main__":
    (FOLDER / "adjacent.md").write_text(text(), encoding="utf-8")
