"""What a task makes of rewards that are none."""

from types import SimpleNamespace

import numpy as np

from alignax.pipeline import data
from alignax.train import tasks


def test_failed_rewards_get_what_was_asked_and_are_counted(capsys):
    """The reward sees texts and numbered records; NaN stays where nothing is given."""
    tokens = np.array([[97, 258], [98, 258], [99, 258]])
    rollout = SimpleNamespace(tokens=tokens, attended=np.ones((3, 2), bool))
    records = [{"prompt": "x"}, {"prompt": "y", "index": "mine"}]
    seen = []

    def reward(texts, asked):
        seen.extend(zip(texts, (r["index"] for r in asked), strict=True))
        return [1.0, float("nan"), 3.0]

    for on_failed, value in ((None, np.nan), (-1.0, -1.0)):
        judge = tasks.judge_texts(
            records, reward, data.byte_tokenizer(), on_failed=on_failed
        )
        fields = judge(rollout, np.array([0, 1, 0]))
        np.testing.assert_array_equal(fields["rewards"], [1.0, value, 3.0])
    assert fields["failed"].tolist() == [False, True, False]
    assert seen[:3] == [("a", 0), ("b", "mine"), ("c", 0)]
    assert "nan for record 1 (completion 1)" in capsys.readouterr().err
