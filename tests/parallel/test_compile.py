"""torch.compile by Accelerate's settings: the same run, compiled once and not again for every task."""

from pathlib import Path

import pytest
import torch
from accelerate.utils import DynamoBackend
from launches import start
from runs import log_of, snapshots
from torch import nn

from kaizen.parallel import Parallel
from kaizen.parallel.compiling import Compiler

SHORT = ["--optim.epochs", "1", "--optim.warmup_epochs", "0", "--stream.tasks", "3", "--eval.readers", "[classifier]"]


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_a_compiled_run_gives_the_same_bits(tiny: list[str], tmp_path: Path) -> None:
    """Traced by dynamo and differentiated ahead of time, with the kernels of eager mode: equal to the last bit."""
    runs = {}
    for backend in ("no", "aot_eager"):
        run = tmp_path / backend
        arguments = ["digits-mocov2plus", *tiny[1:], *SHORT, "--run.dir", str(run)]
        launch = start([], "train.py", *arguments, ACCELERATE_DYNAMO_BACKEND=backend, TORCH_LOGS="recompiles")
        _, said = launch.communicate(timeout=600)
        assert launch.returncode == 0, said[-2000:]
        runs[backend] = (run, said)
    assert snapshots(runs["no"][0]) == snapshots(runs["aot_eager"][0])
    assert "Recompiling" not in runs["no"][1]
    assert 0 < runs["aot_eager"][1].count("Recompiling function") < 30
    seconds = [line["seconds"] for line in log_of(runs["aot_eager"][0])]
    last = len(seconds) // 3 * 2  # first step of the last task; seconds count over the run
    assert seconds[last] - seconds[last - 1] < seconds[0] / 5, "the last task reuses what earlier tasks compiled"


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_compiled_networks_keep_their_names_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def built() -> nn.ModuleDict:
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())
        return nn.ModuleDict({"encoder": encoder, "projector": nn.Linear(8, 4)})

    def passed(network: nn.ModuleDict) -> list[torch.Tensor]:
        z = network["projector"](network["encoder"](torch.arange(30.0).view(5, 6).sin()))
        z.square().sum().backward()
        return [z, *(p.grad for p in network.parameters() if p.grad is not None)]

    plain, compiled, compiler = built(), built(), Compiler(Parallel().accelerator)
    names = list(compiled.state_dict())
    compiler.compile(compiled, ())
    assert not compiler.on
    assert compiled["encoder"]._compiled_call_impl is None
    monkeypatch.setattr(compiler._plugin, "backend", DynamoBackend.INDUCTOR)
    compiler.on = True
    compiler.compile(compiled, ())
    assert compiled["encoder"]._compiled_call_impl is not None
    assert list(compiled.state_dict()) == names
    for one, other in zip(passed(plain), passed(compiled), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
