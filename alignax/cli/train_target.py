"""Train a policy towards a law: a posterior, a filter, or constraints on means (f-DPG).

  alignax train target --model FOLDER --data prompts.jsonl --target constraints \\
    --feature my.py:exclaims --moment 0.5 --divergence jensen_shannon
  alignax train target --model FOLDER --data problems.jsonl --target filter \\
    --reward numeric

The law is the model that one begins from, tilted by what is asked of it;
docs/targets.md says how, and docs/train.md has an example of each command.
"""

from alignax.train.runs import setting, target
from alignax.train.runs.target import Config

__all__ = ["Config", "main"]


def main(config: Config) -> None:
    """Run it, and say where things are.

    Args:
      config: the options.
    """
    result = target.run(config)
    setting.done(result.folder)
