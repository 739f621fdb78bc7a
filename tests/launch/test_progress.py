"""Progress: silence for what is quick, a line for what is not, and a pipeline as it was."""

import re
import time
from types import SimpleNamespace

import pytest

from lvsa.launch import progress as module
from lvsa.launch.progress import progress, showing_phases


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    monkeypatch.setattr(module, "CALM", 0.05)


def test_what_is_quick_says_nothing(capsys):
    with progress("quick"):
        pass
    with progress("elsewhere", aloud=False):
        time.sleep(0.3)
    assert capsys.readouterr().err == ""


def test_what_takes_long_is_shown_with_its_seconds(capsys):
    with progress("slow"):
        time.sleep(1.3)
    assert re.search(r"slow: 00:01", capsys.readouterr().err)


def test_errors_pass_and_end_the_line(capsys):
    with pytest.raises(ZeroDivisionError), progress("failing"):
        time.sleep(0.3)
        raise ZeroDivisionError
    assert "failing" in capsys.readouterr().err


class Pipe(SimpleNamespace):
    """Encodes for a while."""

    def encode_prompt(self, prompt, device=None):
        time.sleep(0.4)
        return prompt


def test_a_pipeline_shows_its_phases_and_gets_its_methods_back(capsys):
    vae = SimpleNamespace(decode=lambda latents: time.sleep(0.4) or latents)
    pipe, decode = Pipe(vae=vae), vae.decode
    with showing_phases(pipe, aloud=True):
        assert pipe.encode_prompt("a", device="cpu") == "a" and pipe.vae.decode(3) == 3
    shown = capsys.readouterr().err
    assert "encoding the prompt" in shown and "decoding" in shown
    assert vars(pipe) == {"vae": vae} and vae.decode is decode
    with showing_phases(pipe, aloud=False):
        assert vars(pipe) == {"vae": vae}
