"""How far a fetch is, in the words of probes and log lines."""

from __future__ import annotations

import json
import logging

import pytest

from service.sources import Progress, ProgressLog, follow
from tests.apps import LineHandler


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Progress(), "fetching the model: looking for the newest"),
        (Progress("fetching", 50_000_000, 200_000_000), "fetching the model: 50.0 of 200.0 MB (25 %)"),
        (Progress("fetching", 1_234_567_890, None), "fetching the model: 1,234.6 MB"),
        (
            Progress("waiting", 5_000_000, 20_000_000),
            "fetching the model: 5.0 of 20.0 MB (25 %), another worker has it under way",
        ),
        (Progress("waiting", 0, None), "fetching the model: 0.0 MB, another worker has it under way"),
        (Progress("fetched", 7, 7), "loading the model"),
    ],
)
def test_progress_reads_as_a_sentence(progress: Progress, text: str) -> None:
    assert str(progress) == text


def test_what_the_process_says_is_reported_in_order() -> None:
    """Notes come with how far it was; the last word is the answer."""
    lines = [
        {"progress": {"state": "fetching", "received": 5, "total": 9}},
        {"note": "the connection broke"},
        {"fetched": {"path": "/model.ubj"}},
    ]
    reports: list[Progress] = []
    said = follow([json.dumps(line) for line in lines], reports.append)
    assert said == lines[-1]
    assert reports == [Progress("fetching", 5, 9), Progress("fetching", 5, 9, "the connection broke")]


def test_a_process_that_says_nothing_has_no_last_word() -> None:
    assert follow([], lambda progress: None) is None


def test_the_log_has_a_line_now_and_then_and_each_note() -> None:
    """With the numbers as fields; nothing while another worker fetches."""
    lines = LineHandler()
    log = logging.Logger("test")
    log.addHandler(lines)
    often, seldom = ProgressLog(log, every_seconds=0), ProgressLog(log, every_seconds=3600)
    for report in (often, seldom):
        report(Progress("waiting", 5, 9))
        report(Progress("fetching", 5, 9))
        report(Progress("fetching", 5, 9, "the connection broke"))
    wrote = [json.loads(line) for line in lines.lines]
    found = [(line["event"], line.get("received_bytes"), line.get("total_bytes"), line.get("reason")) for line in wrote]
    broke = ("fetching the model", None, None, "the connection broke")
    assert found == [("fetching the model", 5, 9, None), broke, broke]
