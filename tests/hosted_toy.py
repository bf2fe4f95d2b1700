"""Tiny stock models of every family, all weights random, biases too."""

import functools

import torch
import transformers

import discdiff as dd
from discdiff.models.hosted import HostedModel
from discdiff.models.hosts import FAMILIES

ROWS, LENGTH, POSITIONS = 61, 12, 40
ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": POSITIONS, "vocab_size": ROWS}
SHAPE |= {"hidden_size": 32, "intermediate_size": 48, **ENDS}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
CONFIGS = {
    "gpt2": (
        "GPT2Config",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS, "vocab_size": ROWS, **ENDS},
    ),
    "llama": ("LlamaConfig", GROUPED),
    "qwen2": ("Qwen2Config", {**GROUPED, "tie_word_embeddings": True}),
    "qwen2-local": (
        "Qwen2Config",
        {**GROUPED, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 8}),
    "bert": ("BertConfig", SHAPE),
    "roberta": ("RobertaConfig", SHAPE),
    "modernbert": (
        "ModernBertConfig",
        {**SHAPE, "local_attention": 4, "global_attn_every_n_layers": 2, "cls_token_id": 0, "sep_token_id": 1},
    ),
}
DECODERS = [name for name in CONFIGS if FAMILIES[name.split("-")[0]].decoder]
ENCODERS = [name for name in CONFIGS if name not in DECODERS]


def stock(name, seed=0, dtype=torch.float64, **changes):
    """A stock model whose every parameter is random."""
    kind, values = CONFIGS[name]
    config = getattr(transformers, kind)(**{**values, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, FAMILIES[name.split("-")[0]].model)(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return model


def hosted(name, seed=0, dtype=torch.float64, **options):
    return HostedModel.from_host(stock(name, seed, dtype), **options)


@functools.cache
def tokens(rows=3, length=LENGTH):
    return torch.randint(2, ROWS - 3, (rows, length), generator=torch.Generator().manual_seed(1))


STILL = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # dropout that some families have by default
STILL_BERT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def trained_a_step(name, folder, **settings):
    """Gradients of one step of training, by parameter; 8 rows, shared out among the ranks there are."""
    still = {"gpt2": STILL, "bert": STILL_BERT, "roberta": STILL_BERT}.get(name, {})
    model, kept = HostedModel.from_host(stock(name, dtype=torch.float32, **still)), {}

    class Keep(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            kept.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    data = [{"tokens": row} for row in tokens(8)]
    chosen = dd.TrainingSettings(steps=1, batch_size=8, clip=0.0, progress=False, **settings)
    goal = dd.Elbo(dd.Absorbing())
    dd.DiffusionTrainer(model, chosen, goal, layout(model), data, output_dir=folder, callbacks=[Keep()]).train()
    return {n.removeprefix("module."): x for n, x in kept.items()}


def layout(model, length=LENGTH, **options):
    return dd.Layout(model.vocab, (dd.Segment("text", "text", (length,)),), **options)


@torch.no_grad()
def logits(model, ids=None, **given):
    """(batch, length, ROWS) of the library's model, masks and legality left aside."""
    lay = layout(model, (tokens() if ids is None else ids).shape[1])
    return row_logits(model, dd.make_batch(lay, tokens() if ids is None else ids, **given))


@torch.no_grad()
def row_logits(model, batch):
    hidden = model(batch=batch).hidden
    sites = torch.arange(batch.tokens.numel())
    return (model.select(hidden, batch, sites) @ model.head_weight(0, ROWS).T).view(*batch.tokens.shape, ROWS)
