"""Values and gradients of the chunked head loss against `F.cross_entropy`, and the memory it promises."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from discdiff.objectives.linear_cross_entropy import linear_cross_entropy

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
N, WIDTH, VOCAB = 13, 6, 29
BANNED = (3, 17)


def problem(dtype=torch.float64, device="cpu", n=N, vocab=VOCAB, width=WIDTH, seed=0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)  # noqa: E731
    hidden, weight, bias = draw(n, width), draw(vocab, width), draw(vocab)
    legal = torch.tensor([i for i in range(vocab) if i not in BANNED])
    targets = legal[torch.randint(len(legal), (n,), generator=generator)].to(device)
    row_weights = torch.rand(n, generator=generator, dtype=torch.float64).to(device, dtype) * 3
    for leaf in (hidden, weight, bias):
        leaf.requires_grad_()
    return dict(hidden=hidden, weight=weight, bias=bias, targets=targets, row_weights=row_weights)


def reference(hidden, weight, targets, row_weights=None, bias=None, banned=None) -> tuple[torch.Tensor, torch.Tensor]:
    logits = F.linear(hidden, weight, bias)
    if banned is not None:
        logits = logits.index_fill(1, banned, -torch.inf)
    nats = F.cross_entropy(logits, targets, reduction="none")
    return (nats if row_weights is None else nats * row_weights).sum(), nats.detach()


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    got, want = got.detach().double(), want.detach().double()
    return float((got - want).abs().max() / want.abs().max().clamp_min(1e-300))


class Outputs(TorchDispatchMode):
    """Keeps every tensor that an operator returns, so that no storage is reused while they are counted."""

    def __init__(self):
        super().__init__()
        self.tensors: list[torch.Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.tensors += [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        return out

    def storages(self, numel: int) -> int:
        """Number of different storages that hold at least `numel` elements."""
        stores = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // t.itemsize for t in self.tensors}
        return sum(size >= numel for size in stores.values())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("options", [(), ("row_weights",), ("bias",), ("banned",), ("row_weights", "bias", "banned")])
@pytest.mark.parametrize("rows", [1, 5, 1000])  # 5 does not divide 13
def test_equals_cross_entropy(device, dtype, tolerance, options, rows):
    data = problem(dtype, device)
    extras = {name: data[name] for name in ("row_weights", "bias") if name in options}
    if "banned" in options:
        extras["banned"] = torch.tensor(BANNED, device=device)
    leaves = [data["hidden"], data["weight"]] + ([data["bias"]] if "bias" in options else [])

    want, want_nats = reference(data["hidden"], data["weight"], data["targets"], **extras)
    want_grads = torch.autograd.grad(want * 0.7, leaves)
    chunk_bytes = rows * VOCAB * dtype.itemsize
    got, nats = linear_cross_entropy(data["hidden"], data["weight"], data["targets"], **extras, chunk_bytes=chunk_bytes)
    grads = torch.autograd.grad(got * 0.7, leaves)

    assert got.dtype == nats.dtype == dtype and not nats.requires_grad
    assert relative(got, want) < tolerance and relative(nats, want_nats) < tolerance
    for grad, want_grad in zip(grads, want_grads, strict=True):
        assert relative(grad, want_grad) < tolerance
    if "banned" in options:
        assert not grads[1][list(BANNED)].any()


def test_large_logits_stay_finite_and_confident_rows_keep_their_gradient():
    data = problem(torch.float32)
    hidden, weight = data["hidden"].detach() * 100, data["weight"].detach().requires_grad_()
    loss, nats = linear_cross_entropy(hidden, weight, data["targets"])
    want, want_nats = reference(hidden, weight, data["targets"])
    assert relative(nats, want_nats) < 1e-5
    assert relative(*(torch.autograd.grad(value, weight)[0] for value in (loss, want))) < 1e-5


@pytest.mark.parametrize("scope", [slice(5, 20), slice(None, None, 2)])
def test_gradient_flows_through_a_slice_into_the_embedding(scope):
    embedding = torch.randn(40, 2 * WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    embedding.requires_grad_()
    data = problem(vocab=len(embedding[scope]))
    head = embedding[scope, ::2]  # neither dimension contiguous
    grads = [
        torch.autograd.grad(loss(data["hidden"], head, data["targets"])[0], embedding, retain_graph=True)[0]
        for loss in (linear_cross_entropy, reference)
    ]
    assert relative(*grads) < 1e-10
    outside = torch.ones(40, dtype=torch.bool)
    outside[scope] = False
    assert grads[0].abs().sum() > 0 and not grads[0][outside].any()


def test_gradcheck():
    data = problem(n=4, vocab=7, width=3)
    banned = torch.tensor([3])
    loss = lambda hidden, weight, bias: linear_cross_entropy(  # noqa: E731
        hidden, weight, data["targets"], row_weights=data["row_weights"], bias=bias, banned=banned, chunk_bytes=120
    )[0]
    assert torch.autograd.gradcheck(loss, (data["hidden"], data["weight"], data["bias"]))


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_a_frozen_input_gets_no_gradient_and_the_others_keep_theirs(frozen):
    data = problem()
    data[frozen] = data[frozen].detach()
    leaves = [data[name] for name in ("hidden", "weight", "bias") if name != frozen]
    losses = [loss(**data)[0] for loss in (linear_cross_entropy, reference)]
    got, want = (torch.autograd.grad(loss, leaves) for loss in losses)
    assert all(relative(a, b) < 1e-10 for a, b in zip(got, want, strict=True))


def test_no_rows_give_zero_loss_and_zero_gradients():
    data = problem(n=0)
    loss, nats = linear_cross_entropy(**data)
    loss.backward()
    assert loss.item() == 0 and nats.shape == (0,)
    assert data["hidden"].grad.shape == (0, WIDTH)
    assert not data["weight"].grad.any() and not data["bias"].grad.any()


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_keeps_the_log_sum_exp_in_float32(device):
    data = problem(torch.bfloat16, device, n=64, vocab=500, width=16)
    leaves = [data[name] for name in ("hidden", "weight", "bias")]
    loss, nats = linear_cross_entropy(**data, chunk_bytes=7 * 500 * 6)
    grads = torch.autograd.grad(loss, leaves)
    exact = {name: value.detach().double() if value.is_floating_point() else value for name, value in data.items()}
    exact_leaves = [exact[name].requires_grad_() for name in ("hidden", "weight", "bias")]
    want, want_nats = reference(**exact)
    assert loss.dtype == nats.dtype == torch.float32 and all(grad.dtype == torch.bfloat16 for grad in grads)
    assert relative(nats, want_nats) < 4e-3  # one rounding of the logits, half an ulp = 2 ** -9
    for grad, want_grad in zip(grads, torch.autograd.grad(want, exact_leaves), strict=True):
        assert relative(grad, want_grad) < 1.5e-2


def test_float16_survives_a_tiny_row_weight():
    data = problem(torch.float16)
    data["row_weights"] = data["row_weights"].float() * 1e-6
    loss, _ = linear_cross_entropy(**data)
    (grad,) = torch.autograd.grad(loss * 2.0**20, data["hidden"])
    exact = {name: value.detach().double() if value.is_floating_point() else value for name, value in data.items()}
    exact["hidden"].requires_grad_()
    (want,) = torch.autograd.grad(reference(**exact)[0] * 2.0**20, exact["hidden"])
    assert loss.dtype == torch.float32 and relative(loss, reference(**exact)[0]) < 1e-5
    assert relative(grad, want) < 2e-2


def test_autocast_multiplies_in_bfloat16_and_returns_float32_gradients():
    data = problem(torch.float32)
    low = {name: data[name].detach().bfloat16().requires_grad_() for name in ("hidden", "weight", "bias")}
    want, want_nats = linear_cross_entropy(**(data | low))
    want.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, nats = linear_cross_entropy(**data)
    loss.backward()
    assert torch.equal(nats, want_nats) and loss.dtype == torch.float32
    for name, leaf in low.items():
        assert data[name].grad.dtype == torch.float32
        assert torch.equal(data[name].grad.bfloat16(), leaf.grad)
    double = problem(torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear_cross_entropy(**double)[1], linear_cross_entropy(**problem(torch.float64))[1])


def test_no_grad_and_inference_do_no_gradient_work():
    data = problem()
    want = linear_cross_entropy(**data)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context, Outputs() as seen:
            loss, nats = linear_cross_entropy(**data)
        assert not loss.requires_grad and torch.equal(loss, want[0]) and torch.equal(nats, want[1])
        assert not any(t.shape == (VOCAB, WIDTH) and t.data_ptr() != data["weight"].data_ptr() for t in seen.tensors)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(use_reentrant):
    data = problem()
    loss, _ = linear_cross_entropy(**data)
    want = torch.autograd.grad(loss, [data["hidden"], data["weight"]])
    inner = lambda hidden, weight: linear_cross_entropy(**(data | dict(hidden=hidden, weight=weight)))[0]  # noqa: E731
    checkpoint(inner, data["hidden"], data["weight"], use_reentrant=use_reentrant).backward()
    assert torch.equal(data["hidden"].grad, want[0]) and torch.equal(data["weight"].grad, want[1])


def test_a_kept_graph_can_be_walked_again():
    data = problem()
    loss, _ = linear_cross_entropy(**data)
    first = torch.autograd.grad(loss * 3, data["weight"], retain_graph=True)[0]
    copy = first.clone()
    second = torch.autograd.grad(loss * 5, data["weight"])[0]
    assert torch.equal(first, copy) and relative(second / 5, first / 3) < 1e-12


def test_deterministic():
    runs = []
    for _ in range(2):
        data = problem(torch.float32)
        loss, nats = linear_cross_entropy(**data, chunk_bytes=500)
        runs.append((loss, nats, *torch.autograd.grad(loss, [data["hidden"], data["weight"], data["bias"]])))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_one_chunk_of_logits_and_one_weight_gradient():
    n, vocab, width, rows = 64, 1000, 4, 8
    data = problem(torch.float32, n=n, vocab=vocab, width=width)
    run = dict(row_weights=data["row_weights"], bias=data["bias"], banned=torch.tensor(BANNED))
    args = (data["hidden"], data["weight"], data["targets"])
    with Outputs() as ours:
        loss, _ = linear_cross_entropy(*args, **run, chunk_bytes=rows * vocab * 4)
        torch.autograd.grad(loss, [data["hidden"], data["weight"]])
    assert max(t.numel() for t in ours.tensors) == rows * vocab
    assert ours.storages(rows * vocab) == 1  # one buffer serves every chunk
    assert ours.storages(vocab * width) == 3  # that buffer, the weight, its gradient: backward adds no copy
    with Outputs() as naive:
        reference(*args, **run)[0].backward()
    assert naive.storages(n * vocab) >= 3


def test_the_saved_weight_gradient_itself_becomes_grad():
    data, address = problem(), []
    data["weight"].register_hook(lambda grad: address.append(grad.data_ptr()))
    linear_cross_entropy(**data)[0].backward()
    assert data["weight"].grad.data_ptr() == address[0]


def test_torch_compile():
    data = problem()
    leaves = [data[name] for name in ("hidden", "weight", "bias")]
    step = lambda **kw: linear_cross_entropy(**kw, chunk_bytes=5 * VOCAB * 8)  # noqa: E731
    want, want_nats = step(**data)
    want_grads = torch.autograd.grad(want, leaves)
    got, nats = torch.compile(step, backend="aot_eager", fullgraph=True)(**data)
    assert relative(got, want) < 1e-12 and relative(nats, want_nats) < 1e-12 and not nats.requires_grad
    assert all(relative(a, b) < 1e-12 for a, b in zip(torch.autograd.grad(got, leaves), want_grads, strict=True))


def test_distributed_data_parallel():
    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(problem()["weight"].detach())

        def forward(self, hidden, targets):
            return linear_cross_entropy(hidden, self.weight, targets)[0]

    data, head = problem(), Head()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        torch.nn.parallel.DistributedDataParallel(head)(data["hidden"], data["targets"]).backward()
    finally:
        torch.distributed.destroy_process_group()
    want = reference(data["hidden"], data["weight"], data["targets"])[0]
    assert relative(head.weight.grad, torch.autograd.grad(want, data["weight"])[0]) < 1e-10


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(hidden=torch.zeros(2, 3, WIDTH)), "flatten"),
        (dict(hidden=torch.zeros(N, WIDTH, dtype=torch.int64)), "floating"),
        (dict(weight=torch.zeros(VOCAB, WIDTH + 1, dtype=torch.float64)), "weight must have shape"),
        (dict(weight=torch.tensor(1.0)), "weight must have shape"),
        (dict(weight=torch.zeros(VOCAB, WIDTH)), "torch.autocast"),
        (dict(weight=torch.zeros(0, WIDTH, dtype=torch.float64), bias=None), "0 rows"),
        (dict(bias=torch.zeros(VOCAB + 1, dtype=torch.float64)), "bias must have shape"),
        (dict(targets=torch.zeros(N + 1, dtype=torch.int64)), "targets must have shape"),
        (dict(targets=torch.zeros(N, dtype=torch.int32)), "int64"),
        (dict(targets=torch.full((N,), VOCAB)), f"from {VOCAB} to {VOCAB}"),
        (dict(targets=torch.full((N,), -100)), "from -100"),
        (dict(targets=torch.zeros(N, dtype=torch.int64, device="meta")), "move one"),
        (dict(row_weights=torch.ones(N, requires_grad=True)), "detach"),
        (dict(row_weights=torch.ones(N, 1)), "row_weights must have shape"),
        (dict(banned=torch.tensor([VOCAB])), "banned reach"),
        (dict(banned=torch.ones(VOCAB, dtype=torch.bool)), "int64"),
        (dict(banned=torch.arange(VOCAB)), "is banned"),
        (dict(chunk_bytes=0), "chunk_bytes"),
    ],
)
def test_errors_name_the_value(change, message):
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**(problem() | change))
