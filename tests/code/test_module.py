"""The description of modules: a changed attribute shows, and every module of torch can be described."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from purestate.code import describe_module, fingerprint
from purestate.errors import FingerprintError

pytestmark = pytest.mark.moves_generators  # weights are drawn

FACTOR = 2.0


def double(x):
    return x * FACTOR


def pre_hook(module, args):
    return tuple(double(arg) for arg in args)


def hook_with_kwargs(module, args, kwargs, output):
    return output


class Net(nn.Module):
    def __init__(self, p=0.2):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Dropout(p))
        self.scale = 3
        self.act = lambda x: x.relu()
        self.table = torch.arange(3)

    def forward(self, x):
        return double(self.act(self.body(x))) * self.scale


class Shift(nn.Module):
    def forward(self, x):
        return x + 1


def hooked():
    module = nn.Linear(2, 2)
    module.register_forward_pre_hook(pre_hook)
    module.register_forward_hook(hook_with_kwargs, with_kwargs=True, always_call=True)
    module.register_full_backward_hook(lambda module, inputs, outputs: None)
    return module


def parametrized():
    module = nn.Linear(2, 2)
    parametrize.register_parametrization(module, "weight", Shift())
    return module


ZOO = {
    "linear": lambda: nn.Linear(2, 3),
    "bilinear": lambda: nn.Bilinear(2, 3, 4),
    "conv": lambda: nn.Sequential(nn.Conv1d(1, 2, 3), nn.Conv2d(1, 2, 3), nn.Conv3d(1, 2, 3), nn.ConvTranspose2d(1, 2, 3)),
    "norm": lambda: nn.Sequential(
        nn.BatchNorm2d(2), nn.SyncBatchNorm(2), nn.LayerNorm(2), nn.GroupNorm(1, 2), nn.InstanceNorm2d(2)
    ),
    "pool": lambda: nn.Sequential(
        nn.MaxPool2d(2), nn.AdaptiveAvgPool2d((1, None)), nn.FractionalMaxPool2d(2, output_size=3), nn.LPPool2d(2, 2)
    ),
    "rnn": lambda: nn.ModuleList([nn.RNN(2, 3), nn.GRU(2, 3), nn.LSTMCell(2, 3)]),
    "lstm": lambda: nn.LSTM(2, 3, num_layers=2, bidirectional=True, proj_size=1),
    "lstm on meta": lambda: nn.LSTM(2, 3, device="meta"),
    "attention": lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True, kdim=3),
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2, norm=nn.LayerNorm(4)),
    "transformer": lambda: nn.Transformer(4, 2, 1, 1, 8, batch_first=True),
    "embedding": lambda: nn.Sequential(nn.Embedding(3, 2, max_norm=1.0), nn.EmbeddingBag(3, 2)),
    "softmax": lambda: nn.AdaptiveLogSoftmaxWithLoss(16, 8, [2, 4]),
    "losses": lambda: nn.ModuleList(
        [nn.CTCLoss(), nn.TripletMarginWithDistanceLoss(distance_function=double), nn.BCELoss(torch.ones(2))]
    ),
    "containers": lambda: nn.ModuleDict({"a": nn.ParameterList([torch.ones(1)]), "b": nn.ParameterDict({"c": torch.ones(1)})}),
    "other": lambda: nn.Sequential(
        nn.Upsample(scale_factor=2), nn.Unflatten(1, (1, 2)), nn.PixelShuffle(2), nn.RReLU(), nn.Fold(2, 2)
    ),
    "lazy": lambda: nn.LazyLinear(3),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(2, 2)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(2, 2)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(2, 2)),
    "old spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(2, 2)),
    "parametrized": parametrized,
    "hooks": hooked,
    "user": Net,
    "meta": lambda: Net().to("meta"),
    "traced": lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 3), nn.ReLU())),
    "compiled": lambda: torch.compile(Net(), backend="eager"),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2)),
    "parallel": lambda: nn.DataParallel(Net()),
    "copied": lambda: copy.deepcopy(nn.LSTM(2, 3)),
}


@pytest.mark.parametrize("name", ZOO)
def test_every_module_can_be_described_and_again_from_other_weights(name):
    first, second = describe_module(ZOO[name]()), describe_module(ZOO[name]())
    assert first == second
    assert all(isinstance(value, str | int | float | dict | type(None)) for value in first.values())


@pytest.mark.filterwarnings("ignore")  # what torch says while building is not about us
def test_every_class_of_torch_nn_without_arguments():
    described = 0
    for name in sorted(vars(nn)):
        cls = getattr(nn, name)
        if isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__.startswith("torch.nn"):
            try:
                module = cls()
            except TypeError:
                continue
            described += "module" in describe_module(module)
    assert described > 50


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_what_the_old_weight_norm_computed_does_not_count():
    one, other = (nn.utils.weight_norm(nn.Linear(2, 2)) for _ in range(2))
    assert not torch.equal(one.weight, other.weight)
    assert describe_module(one) == describe_module(other)
    assert describe_module(one) != describe_module(nn.utils.weight_norm(nn.Linear(2, 2), dim=None))


def test_an_attribute_of_a_submodule_shows_under_its_name():
    before, after = describe_module(Net(0.2)), describe_module(Net(0.3))
    assert {key for key in before if before[key] != after[key]} == {"module.body.1.p"}
    assert (before["module.body.1.p"], after["module.body.1.p"]) == (0.2, 0.3)


def test_code_shows_by_method_and_reaches_helpers():
    described = describe_module(Net())
    assert {key for key in described if key.startswith("code.")} == {
        *("code.Net", "code.Net.__init__", "code.Net.forward", "code.Net.__init__.<lambda>", "code.double", "code.FACTOR")
    }
    assert described["module"] == "Net"
    assert described["module.act"] == {"code": "Net.__init__.<lambda>"}
    assert described["code.FACTOR"] == 2.0
    assert described["package.torch"] == torch.__version__


def test_a_compiled_module_is_the_same_before_and_after_it_compiled():
    module = torch.compile(nn.Sequential(nn.Linear(2, 2)), backend="eager")
    before = describe_module(module)
    module(torch.ones(1, 2))
    assert describe_module(module) == before
    assert before["module.compiler"] != describe_module(torch.compile(nn.Sequential(), backend="aot_eager"))["module.compiler"]


def test_training_weights_and_device_do_not_count():
    assert describe_module(Net().eval()) == describe_module(Net()) != describe_module(nn.Linear(4, 4))
    trained = Net()
    with torch.no_grad():
        trained.body[0].weight.add_(1)
    assert describe_module(trained) == describe_module(Net())


def test_a_tensor_attribute_counts_by_content():
    other = Net()
    other.table = torch.arange(4)
    assert describe_module(other)["module.table"] != describe_module(Net())["module.table"]


def test_hooks_and_their_order_count():
    plain = describe_module(nn.Linear(2, 2))
    described = describe_module(hooked())
    assert described.keys() - plain.keys() >= {"module.forward_pre_hooks", "module.forward_hooks", "code.pre_hook", "code.double"}
    orders = []
    for hooks in ((pre_hook, lambda module, args: None), (lambda module, args: None, pre_hook)):
        module = nn.Linear(2, 2)
        for hook in hooks:
            module.register_forward_pre_hook(hook)
        orders.append(describe_module(module)["module.forward_pre_hooks"])
    assert orders[0] != orders[1]


def test_a_method_bound_to_the_module_itself():
    module = Net()
    module.run = module.forward
    assert describe_module(module)["module.run"] == {"method": {"code": "Net.forward"}, "self": {"submodule": "module"}}


def test_a_shared_submodule_is_said_to_be_shared():
    layer = nn.Linear(2, 2)
    assert describe_module(nn.Sequential(layer, layer))["module.1"] == "same as module.0"
    assert describe_module(nn.Sequential(layer, nn.Linear(2, 2)))["module.1"] == "torch.nn.modules.linear.Linear"


def test_an_attribute_without_content_is_named(tmp_path):
    module = Net()
    with open(tmp_path / "log", "w") as module.body.log, pytest.raises(FingerprintError, match=r"^module\.body\.log is a _io"):
        describe_module(module)


def test_a_module_inside_something_else_counts_with_its_weights():
    frozen = nn.Linear(2, 2)

    def loss(x):
        return frozen(x)

    before = fingerprint(loss)
    assert fingerprint(loss) == before
    with torch.no_grad():
        frozen.weight.add_(1)
    assert fingerprint(loss) != before
