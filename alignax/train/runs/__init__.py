"""Runs on one's own data and model, one file a kind: a frozen ``Config`` and ``run``.

>>> from alignax.train.runs import options, rl
>>> def tune():  # in a notebook; `alignax train rl` does the same
...     return rl.run(
...         rl.Config(
...             model=options.Model(folder="path/to/Qwen2.5-0.5B-Instruct"),
...             data=options.Data(source="sums.jsonl"),
...             reward=("numeric",),
...         )
...     )

A run's folder holds ``run.json``, ``metrics.jsonl``, checkpoints, the exported model or
adapter, ``samples.md`` and ``curves.png``.
"""
