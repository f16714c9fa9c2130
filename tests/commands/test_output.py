"""What is printed may fail: a reader that ended, a closed stream, a character that the encoding does not have."""

import io
import os
import sys

import pytest
from runs import run_of, short, status_of

from kaizen.commands.output import unfailing_output
from kaizen.commands.train import main


def test_a_run_that_nobody_reads_ends_well(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `| head -1`, and in a terminal of ASCII alone; the interpreter's flush at its end finds nothing left."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(short(tiny)) == 0
        assert sys.stdout is stream
    assert status_of(run_of(tiny))["state"] == "done"


def test_characters_that_an_encoding_lacks_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="latin-1") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with unfailing_output():
            print("é√╭ \udcff")
    with os.fdopen(reader, "rb") as read:
        assert read.read() == "é?? ?\n".encode("latin-1")


def test_a_stream_that_is_closed_takes_everything_and_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        monkeypatch.setattr(sys, "stdout", stream)
        with unfailing_output():
            print("x")
            sys.stdout.flush()
        assert sys.stdout is stream
