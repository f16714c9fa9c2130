"""Mixed images and stored logits on two processes compared with one; real steps are compared by test_curves.py."""

import json
from pathlib import Path

from launches import finish, start, torchrun

SCRIPT = str(Path(__file__).parent / "remembered.py")


def test_two_processes_give_the_terms_and_gradients_of_one(tmp_path: Path) -> None:
    finish(start(torchrun(2), SCRIPT, str(tmp_path), ACCELERATE_USE_CPU="1"))
    for rank in range(2):
        found = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        for name in ("mixed", "stored"):
            assert len(found[name]) == 2
            assert max(found[name]) < 1e-9, (name, found[name])
            ssl, distill, classifier, classifier_distill = found[f"{name} terms"]
            assert min(ssl, distill, classifier) > 0
            assert (classifier_distill > 0) == (name == "stored")
