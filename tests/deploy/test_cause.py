"""Ray passes failures on as text with whole tracebacks; people get the cause in one line."""

from __future__ import annotations

import pytest

from deploy.cause import cause, reason

OF_A_REPLICA = """The deployment failed to start 3 times in a row. Error:
Traceback (most recent call last):
  File "python/ray/_raylet.pyx", line 1870, in ray._raylet.execute_task
    raise ActorDiedError
  File "/srv/weir/workers/models/weights.py", line 52, in error
    return ConfigError(text)
weir.errors.ConfigError: family tiny: pipeline: /srv/tiny: there is no file /srv/tiny/model_index.json; fetch it again
"""
OF_THE_BUILDER = (
    "Deploying app 'weir' failed:\nTraceback (most recent call last):\n  File \"x.py\", line 1, in <module>"
    "\nValueError: no room\n\nSee the logs for details."
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (OF_A_REPLICA, "family tiny: pipeline: /srv/tiny: there is no file /srv/tiny/model_index.json; fetch it again"),
        (OF_THE_BUILDER, "ValueError: no room"),
        (
            '{"msg": "Traceback (most recent call last):\\n  ...\\nRuntimeError: CUDA error\\n"}',
            "RuntimeError: CUDA error",
        ),
        ("no such model", "no such model"),
        ("first\nlast.\n", "last"),
        ("", ""),
    ],
    ids=["replica", "builder", "JSON", "one line", "two lines", "empty"],
)
def test_the_cause_is_the_line_with_the_exception(text: str, line: str) -> None:
    assert cause(text) == line


def test_an_exception_without_a_message_is_its_type() -> None:
    assert reason(TimeoutError()) == "TimeoutError"
    assert reason(ValueError("num_cpus is -1")) == "num_cpus is -1"
