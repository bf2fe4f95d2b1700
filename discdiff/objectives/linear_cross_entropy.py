"""Output head and cross-entropy in one step, without a `(positions, vocab)` tensor."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    row_weights: Tensor | None = None,
    bias: Tensor | None = None,
    banned: Tensor | None = None,
    chunk_bytes: int = 64 << 20,
) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of a linear head, computed over chunks of rows.

    `loss = sum_i row_weights[i] * nats[i]`, `nats[i] = -log softmax(hidden[i] @ weight.T + bias)[targets[i]]`.

    The gradients of `hidden`, `weight` and `bias` are formed chunk by chunk in the forward pass, from
    `d nats[i] / d logits[i] = softmax(logits[i]) - onehot(targets[i])`; backward only scales them. At most
    `chunk_bytes` of logits exist at a time (never less than one row), nothing is recomputed. Differentiable once.

    Args:
        hidden: `(n, width)`, usually the positions that carry loss, already selected. n = 0 gives loss 0.
        weight: `(vocab, width)`, the legal rows of the head; a slice of a bigger parameter passes its gradient on.
        targets: `(n,)` int64 row numbers of `weight`.
        row_weights: `(n,)`, one by default. Constants: they receive no gradient.
        bias: `(vocab,)`.
        banned: `(k,)` int64 row numbers of `weight` whose logit is -inf, such as a mask id inside the range.
        chunk_bytes: bytes of logits held at a time, all working copies together.

    Returns:
        `loss`, a scalar, and the unweighted `nats`, `(n,)`, detached; both float64 for float64 input, else float32.

    Precision: bfloat16 input multiplies matrices in bfloat16; log-sum-exp, row weights and the accumulation over
    chunks are float32. Autocast sets the dtype of the matrix products in the same way; gradients come back in the
    dtype of their tensor. float16 products are done in float32, because the range of float16 cannot hold gradients
    that are formed before a loss scaler multiplies the loss. float64 stays float64.

    Raises:
        ValueError: a shape, dtype or device does not fit; `row_weights` requires a gradient; or, only for CPU tensors
            outside `torch.compile` (elsewhere the check would wait for the device), a target or banned number is out
            of range or a target is banned. There a banned target gives infinite nats, one out of range a device error.
    """
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device)
    _check(hidden, weight, targets, row_weights, bias, banned, chunk_bytes, autocast)
    product = torch.get_autocast_dtype(device) if autocast and hidden.dtype != torch.float64 else hidden.dtype
    product = torch.float32 if product == torch.float16 else product
    with_grad = torch.is_grad_enabled()  # inside forward it is always off
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(
            hidden, weight, bias, targets, row_weights, banned, product, chunk_bytes, with_grad
        )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, row_weights, banned, product, chunk_bytes, with_grad):
        n, vocab = len(hidden), len(weight)
        wide = torch.float64 if product == torch.float64 else torch.float32
        rows = _rows_per_chunk(n, vocab * (wide.itemsize + (0 if product == wide else product.itemsize)), chunk_bytes)
        logits = hidden.new_empty(rows, vocab, dtype=wide)
        narrow = None if product == wide else hidden.new_empty(rows, vocab, dtype=product)
        nats = hidden.new_empty(n, dtype=wide)
        row_weights = nats.new_ones(n) if row_weights is None else row_weights.to(wide)
        head, offset = weight.to(product), None if bias is None else bias.to(product)

        need = [with_grad and needed for needed in ctx.needs_input_grad[:3]]
        grad_hidden = torch.empty_like(hidden) if need[0] else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if need[1] else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if need[2] else None

        for start in range(0, n, rows):
            chunk = slice(start, start + rows)
            h, target = hidden[chunk].to(product), targets[chunk, None]
            x = logits[: len(h)]
            y = x if narrow is None else narrow[: len(h)]  # x in the dtype of the matrix products
            if offset is None:
                torch.mm(h, head.t(), out=y)
            else:
                torch.addmm(offset, h, head.t(), out=y)
            if y is not x:
                x.copy_(y)
            if banned is not None:
                x.index_fill_(1, banned, -torch.inf)

            x.sub_(x.amax(1, keepdim=True))
            right = x.gather(1, target)
            total = x.exp_().sum(1, keepdim=True)
            nats[chunk] = (total.log() - right).squeeze(1)
            if not any(need):
                continue

            # x - total * onehot is the gradient times total / row_weight: that factor goes on the narrow side of the
            # products, which saves a pass over the vocabulary and keeps small entries in range.
            x.scatter_add_(1, target, -total)
            scale = row_weights[chunk, None] / total
            if y is not x:
                y.copy_(x)
            if grad_hidden is not None:
                grad_hidden[chunk] = torch.mm(y, head) * scale
            if grad_weight is not None and y is x:
                grad_weight.addmm_(y.t(), h * scale)
            elif grad_weight is not None:
                grad_weight.add_(torch.mm(y.t(), (h * scale).to(product)))
            if grad_bias is not None:
                grad_bias.addmv_(x.t(), scale.squeeze(1))

        ctx.save_for_backward(
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
        )
        ctx.mark_non_differentiable(nats)
        return (nats * row_weights).sum(), nats

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, _):
        # In place where the graph dies with this call: a second (vocab, width) tensor would double the peak.
        kept = torch.compiler.is_compiling() or torch._C._autograd._get_current_graph_task_keep_graph()
        scaled = [g if g is None else g.mul(grad_loss) if kept else g.mul_(grad_loss) for g in ctx.saved_tensors]
        return *scaled, None, None, None, None, None, None


def _rows_per_chunk(n: int, row_bytes: int, chunk_bytes: int) -> int:
    """Chunks of nearly equal length, so that the last is not a stump."""
    most = max(1, chunk_bytes // row_bytes)
    chunks = max(1, -(-n // most))
    return max(1, -(-n // chunks))


def _check(hidden, weight, targets, row_weights, bias, banned, chunk_bytes, autocast) -> None:
    if hidden.ndim != 2 or not hidden.is_floating_point():
        raise ValueError(
            f"hidden must be floating (n, width), got {hidden.dtype} {tuple(hidden.shape)}: flatten it first"
        )
    (n, width), vocab = hidden.shape, weight.shape[0] if weight.ndim else 0
    inputs = {"weight": weight, "targets": targets, "row_weights": row_weights, "bias": bias, "banned": banned}
    shapes = {"weight": (vocab, width), "targets": (n,), "row_weights": (n,), "bias": (vocab,)}
    for name, tensor in inputs.items():
        if tensor is None:
            continue
        shape = shapes.get(name, (tensor.numel(),))  # any number of banned ids
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {shape} beside hidden {(n, width)}, got {tuple(tensor.shape)}")
        if tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device}, hidden on {hidden.device}: move one of them")
        if name in ("targets", "banned") and tensor.dtype != torch.int64:
            raise ValueError(f"{name} must be int64 row numbers of weight, got {tensor.dtype}: use .long()")
        if name in ("weight", "bias") and tensor.dtype != hidden.dtype and not autocast:
            raise ValueError(f"{name} is {tensor.dtype}, hidden {hidden.dtype}: cast one of them or use torch.autocast")
    if vocab == 0:
        raise ValueError("weight has 0 rows: give the head at least one legal id")
    if row_weights is not None and row_weights.requires_grad:
        raise ValueError("row_weights requires a gradient, but gets none here: pass row_weights.detach()")
    if chunk_bytes <= 0:
        raise ValueError(f"chunk_bytes must be positive, got {chunk_bytes}: the default is 64 MiB")
    if hidden.device.type != "cpu" or torch.compiler.is_compiling():
        return
    for name, index in (("targets", targets), ("banned", banned)):
        if index is not None and index.numel() and (index.min() < 0 or index.max() >= vocab):
            low, high = int(index.min()), int(index.max())
            raise ValueError(
                f"{name} reach from {low} to {high}, weight has rows 0 to {vocab - 1}: subtract the first id"
            )
    if banned is not None and (clash := targets[torch.isin(targets, banned)]).numel():
        raise ValueError(f"target {int(clash[0])} is banned, its loss would be infinite: drop that row or that ban")
