"""Many runs of one command: which they are, who does them, what came of them.

``space`` says what the trials are, ``halving`` which of them go on, ``folder`` what
there is of each, ``work`` does them in processes; ``proposals`` has Optuna's samplers,
``executors`` has clusters, ``report`` the table and the pictures.
"""
