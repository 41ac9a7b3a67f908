"""A question that the log does not answer is refused by what changed, and by nothing that only follows from it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, StepLR

import purestate as ps
from tests.helpers import Linear, Mlp, batch, build
from tests.run.tiny import Ask, checkpoint, loader, start


def accuracies() -> tuple[Any, Any]:
    def accuracy(y_pred, y_true):
        return (y_pred.argmax(1) == y_true).sum()

    first = accuracy

    def accuracy(y_pred, y_true):
        return (y_pred.argmax(1) != y_true).sum()

    return first, accuracy


ACCURACY, OTHER_ACCURACY = accuracies()


def one_byte_else() -> Any:
    x, y = batch(8)
    x = x.clone()
    x.view(torch.uint8)[5, 3] ^= 1
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4, shuffle=True)


def scheduler(cls: type = StepLR, **arguments: Any) -> dict[str, Any]:
    return dict(recipe=dict(epoch_scheduler_cls=cls, epoch_scheduler_args=arguments))


STEP = scheduler(step_size=2)["recipe"]
# what changes, then the only change that is reported: name, recorded, now (... where it is a digest)
CHANGES: dict[str, tuple[dict[str, Any], str, Any, Any]] = {
    "learning rate": (dict(lr=0.1), "optimizer lr", 0.05, 0.1),
    "dropout rate": (dict(module=partial(Mlp, dropout=0.25)), "module.net.2.p", 0.5, 0.25),
    "seed": (dict(seed=1), "seed", 0, 1),
    "optimizer class": (
        dict(recipe=STEP | dict(optimizer_cls=torch.optim.RMSprop)),
        "optimizer class",
        "torch.optim.sgd.SGD",
        "torch.optim.rmsprop.RMSprop",
    ),
    "loss": (dict(recipe=STEP | dict(loss_cls=nn.MultiMarginLoss)), "loss class", ..., ...),
    "loss argument": (
        dict(recipe=STEP | dict(loss_args=dict(label_smoothing=0.1), loss_cls=nn.CrossEntropyLoss)),
        "loss label_smoothing",
        "the default",
        0.1,
    ),
    "scheduler argument": (scheduler(step_size=3), "epoch_scheduler step_size", 2, 3),
    "scheduler argument that was left out": (scheduler(step_size=2, gamma=0.5), "epoch_scheduler gamma", "the default", 0.5),
    "clipping": (dict(recipe=STEP | dict(clip_grad_norm=1.0)), "gradient clipping norm", None, 1.0),
    "precision": (dict(recipe=STEP | dict(precision="bfloat16")), "precision", None, "bfloat16"),
    "a byte of the data": (dict(train_dl=one_byte_else()), "training data: dataset.tensors.0", ..., ...),
    "a byte of the validation data": (dict(val_dl=loader(4, seed=2, shuffle=False)), "validation data: ", ..., ...),
    "batch size": (dict(train_dl=loader(batch_size=2)), "training data: batch_size", 4, 2),
    "shuffling": (
        dict(train_dl=loader(shuffle=False)),
        "training data: batch_sampler.sampler",
        "torch.utils.data.sampler.RandomSampler",
        "torch.utils.data.sampler.SequentialSampler",
    ),
    "a metric's code": (dict(options=dict(epochs=2, metrics=[OTHER_ACCURACY])), "code of metric accuracy", ..., ...),
    "a step scheduler": (
        dict(recipe=STEP | dict(step_scheduler_cls=ExponentialLR, step_scheduler_args=dict(gamma=0.9))),
        "step_scheduler",
        None,
        "torch.optim.lr_scheduler.ExponentialLR",
    ),
    "no epoch scheduler": (dict(recipe={}), "epoch_scheduler", "torch.optim.lr_scheduler.StepLR", None),
    "another size of the data": (dict(train_dl=loader(12)), "training data: dataset.samples", 8, 12),
    "no validation": (dict(val_dl=None), "validation data", "content", None),
    "a metric more": (
        dict(options=dict(epochs=2, metrics=[ACCURACY, ps.metric_binaccuracy])),
        "metric binaccuracy",
        None,
        "purestate.core._metrics.metric_binaccuracy",
    ),
    "another module": (dict(module=Linear), "module", "Mlp", "Linear"),
    "a wider layer": (dict(module=partial(Mlp, hidden=4)), "module.net.", ..., ...),
    "weights": (dict(module=lambda: build(Mlp, 7)), "input params", ..., ...),
    "warm-up": (dict(options=dict(epochs=2, metrics=[ACCURACY], warmup=1)), "warmup", None, 1),
}


@pytest.fixture(scope="module")
def recorded() -> ps.Checkpoint:
    ck = checkpoint()
    Ask(options=dict(epochs=2, metrics=[ACCURACY])).of(ck)
    return ck


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_named_alone(recorded, what):
    change, name, old, new = CHANGES[what]
    ask = Ask(**{**dict(options=dict(epochs=2, metrics=[ACCURACY])), **change})
    head = recorded.head
    with pytest.raises(ps.StaleRecordError) as caught:
        ask.of(recorded)
    error = caught.value
    assert (error.checkpoint, error.op, error.dependents) == ("a", 0, ())
    assert [change[0] for change in error.changes if not change[0].startswith(name)] == [], error
    first, *rest = str(error).splitlines()
    assert first.startswith(f"checkpoint 'a', train 0: {name}")
    if old is not ...:
        assert error.changes == ((name, old, new),)
        assert new is None or repr(new) in first
        assert old is None or f"was {old if old == 'the default' else repr(old)} when" in first
    assert "ck.reset(0)" in rest[-1]
    assert "ck.accept(0)" in rest[-1]
    assert recorded.head == head


def test_what_depends_on_a_record_is_said(memory):
    ck, ask = checkpoint(memory), Ask(options=dict(epochs=1))
    s1 = ask.of(ck)
    s2 = ck.train(s1, ask.train_dl, epochs=1)
    ck.train(s2, ask.train_dl, epochs=1)
    with pytest.raises(ps.StaleRecordError, match="trains 1, 2 depend on it") as caught:
        Ask(lr=0.1, options=ask.options).of(ck)
    assert caught.value.dependents == (1, 2)
    with pytest.raises(ps.StaleRecordError, match="train 2 depends on it") as caught:
        ck.train(s1, loader(batch_size=2), epochs=1)
    assert (caught.value.op, caught.value.dependents) == (1, (2,))
    assert [name for name, *_ in caught.value.changes] == ["training data: batch_size"]


def test_another_answer_as_input_is_named_by_what_it_answers(memory):
    ck, ask = checkpoint(memory), Ask(options=dict(epochs=1))
    ck.train(ask.of(ck), ask.train_dl, epochs=1)
    with pytest.raises(ps.StaleRecordError) as caught:
        ck.train(ask.of(ck, epochs=2), ask.train_dl, epochs=1)
    assert caught.value.changes == (("input", "a train 0, 1 epochs", "a train 0, 2 epochs"),)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda s: ps.set_lr(s, 0.3), ("set_lr", None, [0.3])),
        (lambda s: ps.set_lr(ps.set_lr(s, 0.1), 0.2), ("set_lr", None, [0.2])),
        (lambda s: ps.freeze(s, "net.0.*"), ("freeze", None, ["net.0.*"])),
        (lambda s: s.replace(key=ps.Key.from_seed(3)), ("input key", ..., ...)),
        (lambda s: s.replace(params={name: t + 1 for name, t in s.params.items()}), ("input params", ..., ...)),
        (
            lambda s: ps.setup(s, optimizer_cls=torch.optim.SGD, optimizer_args=dict(lr=1.0, momentum=0.9)),
            ("optimizer lr", 0.05, 1.0),
        ),
    ],
)
def test_what_was_done_to_an_answer_is_named(memory, edit, expected):
    ck, ask = checkpoint(memory), Ask(recipe={}, options=dict(epochs=1))
    s1 = ask.of(ck)
    ck.train(s1, ask.train_dl, epochs=1)
    with pytest.raises(ps.StaleRecordError) as caught:
        ck.train(edit(s1), ask.train_dl, epochs=1)
    (name, old, new), *more = caught.value.changes
    assert name == expected[0]
    assert expected[1] is ... or (old, new, more) == (*expected[1:], [])
    assert caught.value.op == 1


def test_many_changes_are_counted_and_all_listed(memory):
    ck = checkpoint(memory)
    Ask().of(ck)
    with pytest.raises(ps.StaleRecordError) as caught:
        Ask(seed=1, lr=0.1, train_dl=loader(batch_size=2), val_dl=None, options=dict(epochs=2, warmup=2)).of(ck)
    names = [name for name, *_ in caught.value.changes]
    assert names == ["seed", "optimizer lr", "warmup", "metric accuracy", "training data: batch_size", "validation data"]
    assert str(caught.value).splitlines()[0].endswith("; and 3 more.")


SCRIPT = """
import sys
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import purestate as ps


def doubled(x):
    return x * 2


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(doubled(x))


def main():
    x = torch.arange(24.0).reshape(8, 3).sin()
    loader = DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=4, shuffle=True, num_workers=0)
    s0 = ps.init(Net, seed=0)
    s0 = ps.setup(s0, loss_cls=nn.CrossEntropyLoss, optimizer_cls=torch.optim.Adam, optimizer_args=dict(lr=0.01))
    with ps.Store(sys.argv[1]) as store:
        ck = store.checkpoint("a", echo=None)
        s1 = ck.train(s0, loader, loader, epochs=2)
        ck.evaluate(s1, loader)
    print(ck.last.cached, s1.hash)
    for name in sys.modules:
        print(name)


if __name__ == "__main__":
    main()
"""
HEAVY = ["orbax", "jax", "matplotlib", "tensorstore", "torch._dynamo", "torch._inductor"]


def test_another_process_directory_and_appearance_is_the_same_question(python, tmp_path):
    """A hit in another process imports nothing heavy either; a changed helper of forward is named."""
    at = {name: tmp_path / name / "script.py" for name in ("first", "second", "third")}
    for path in at.values():
        path.parent.mkdir()
    at["first"].write_text(SCRIPT)
    looks_else = SCRIPT.replace(
        "    def forward(self, x):\n", '    def forward(self, x):\n        """Return scores."""\n\n        # twice\n'
    )
    at["second"].write_text(looks_else.replace("num_workers=0", "num_workers=2"))
    at["third"].write_text(SCRIPT.replace("x * 2", "x * 3"))

    first, second, third = (python(path, tmp_path / "store", PYTHONHASHSEED=str(i)) for i, path in enumerate(at.values(), 1))
    computed, found = first.stdout.splitlines(), second.stdout.splitlines()
    assert computed[0].startswith("False b3:"), first.stderr
    assert found[0] == computed[0].replace("False", "True"), second.stderr
    assert "torch._dynamo" in computed, "this test cannot see what it looks for"
    assert [name for name in HEAVY if name in found] == []
    assert third.returncode == 1
    assert "StaleRecordError: checkpoint 'a', train 0: code of doubled changed since this was recorded (b3:" in third.stderr


def imported(path: Path, source: str) -> ModuleType:
    path.parent.mkdir(parents=True)
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("a_script", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("self.fc(doubled(x))", "self.fc(doubled(x) + 1)", ["code of Net.forward"]),
        ("self.fc(doubled(x))", "self.fc(doubled(x)) + 1", ["code of Net.forward"]),
        ("    return x * 2", "    y = x\n    return y * 2", ["code of doubled"]),
        ("self.fc = nn.Linear(3, 2)", "self.fc = nn.Linear(3, 2, bias=False)", ["code of Net.__init__"]),
        ("    return x * 2", "    # twice\n    return (x  *  2)", []),
        ("import torch\n", "import torch\nimport textwrap\n", []),
        ("\nclass Net", "\n@staticmethod\ndef unused():\n    pass\n\n\nclass Net", []),
    ],
)
def test_an_edit_of_source(tmp_path, memory, old, new, changed):
    ck = checkpoint(memory)
    assert SCRIPT.count(old) == 1
    ask = Ask(imported(tmp_path / "a" / "script.py", SCRIPT).Net)
    ask.of(ck)
    other = Ask(imported(tmp_path / "b" / "elsewhere.py", SCRIPT.replace(old, new)).Net)
    if not changed:
        assert other.of(ck) == ask.of(ck)
        assert ck.last is not None
        assert ck.last.cached
    else:
        with pytest.raises(ps.StaleRecordError) as caught:
            other.of(ck)
        assert [name for name, *_ in caught.value.changes] == changed


class Images(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(64, 2))


def in_channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("weights", "images", "name"),
    [
        (in_channels_last, lambda x: x, "stride order of params.0.weight"),
        (lambda x: x, in_channels_last, "training data: batches.0.0"),
    ],
    ids=["weights", "images"],
)
def test_strides_decide_bits_and_are_asked_for(memory, weights, images, name):
    """Kernels choose their algorithm by strides, which are in no hash: equal states, another question."""

    def ask(weights: Callable[..., Any], images: Callable[..., Any]) -> ps.State:
        module = build(Images, 0)
        module[0].weight.data = weights(module[0].weight.data)
        return ck.train(start(lambda: module), [(images(torch.ones(4, 2, 6, 6)), torch.zeros(4, dtype=torch.long))], epochs=1)

    ck = checkpoint(memory)
    answer = ask(lambda x: x, lambda x: x)
    with pytest.raises(ps.StaleRecordError) as caught:
        ask(weights, images)
    assert [change[0] for change in caught.value.changes] == [name]
    assert ask(lambda x: x, lambda x: x) == answer


SCALE = 1.0


def scaled(x: torch.Tensor) -> torch.Tensor:
    return x * SCALE


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return scaled(self.net(x))


def scaled_loss(y_pred: torch.Tensor, y_true: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(scaled(y_pred), y_true)


@pytest.mark.parametrize(
    "made", [dict(module=Scaled), dict(recipe=dict(loss_cls=None, loss=scaled_loss))], ids=["forward", "loss"]
)
def test_code_is_read_when_the_question_is_asked(monkeypatch, memory, made):
    """In a notebook a global changes after `setup`; what is recorded is what ran."""
    ask, ck = Ask(**made), checkpoint(memory)
    state = ask.state()
    first = ck.train(state, ask.train_dl, epochs=1)
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    with pytest.raises(ps.StaleRecordError, match=r"code of (loss changed|SCALE was 1\.0 when)"):
        ck.train(state, ask.train_dl, epochs=1)
    other = checkpoint(memory, "b").train(state, ask.train_dl, epochs=1)
    assert other == checkpoint().train(ask.state(), ask.train_dl, epochs=1) != first


def test_a_dataset_that_moves_by_being_read_is_told(memory, capsys):
    class Cached(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.x, self.y = batch(8)
            self.cache: dict[int, Any] = {}

        def __len__(self) -> int:
            return 8

        def __getitem__(self, i: int) -> Any:
            return self.cache.setdefault(i, (self.x[i], self.y[i]))

    loader = torch.utils.data.DataLoader(Cached(), batch_size=4)
    memory.checkpoint("a").train(start(), loader, epochs=1)
    told, done = capsys.readouterr().out.splitlines()
    assert told.startswith("a: training data: dataset.cache: this moved while the op ran")
    assert "__purestate_fingerprint__" in told
    assert done.startswith("a train 0 | 1 epoch |")
