"""Printing may fail: an ended reader, a closed stream, a character that the encoding lacks."""

import io
import os
import sys

import pytest
from runs import run_of, short, status_of

from kaizen.commands.output import unfailing_output
from kaizen.commands.train import main


def test_a_run_that_nobody_reads_ends_well(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Output as after `| head -1` and to an ASCII terminal; nothing is left for the interpreter's final flush."""
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
