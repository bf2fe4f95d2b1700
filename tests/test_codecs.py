"""Wrapped codecs give the wrapped network's own codes and data, and keep the contract of all tokenizers."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    DacConfig,
    DacModel,
    Emu3VQVAE,
    Emu3VQVAEConfig,
    EncodecConfig,
    EncodecModel,
    JanusVQVAE,
    JanusVQVAEConfig,
    MimiConfig,
    MimiModel,
)

from tokenizers_vq import check_tokenizer, load_tokenizer
from tokenizers_vq.codecs.audio import DacTokenizer, EncodecTokenizer, MimiTokenizer
from tokenizers_vq.codecs.image import DiffusersTokenizer, Emu3Tokenizer, JanusTokenizer


def encodec():
    config = EncodecConfig(
        sampling_rate=640, target_bandwidths=[0.96], num_filters=4, hidden_size=16, num_lstm_layers=1,
        upsampling_ratios=[4, 2], codebook_size=16, codebook_dim=16, num_residual_layers=1,
    )  # fmt: skip
    model = EncodecModel(config)
    fill([layer.codebook.embed for layer in model.quantizer.layers], model.encoder(waves()[:, None]))
    return EncodecTokenizer, model


def dac():
    config = DacConfig(
        encoder_hidden_size=4, downsampling_ratios=[2, 4], decoder_hidden_size=16, n_codebooks=3, codebook_size=16,
        codebook_dim=4, sampling_rate=640,
    )  # fmt: skip
    model = DacModel(config)
    for layer in [*model.encoder.modules(), *model.decoder.modules()]:  # whose first weights let nothing through
        if isinstance(layer, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="linear").mul_(0.7)
    model.decoder.conv2.weight.mul_(0.1)  # nor saturate the tanh after it
    h = model.encoder(waves()[:, None])
    for q in model.quantizer.quantizers:
        torch.nn.init.normal_(q.in_proj.weight)
        fill([q.codebook.weight], q.in_proj(h))
        torch.nn.init.normal_(q.out_proj.weight, std=0.05)
        torch.nn.init.normal_(q.out_proj.bias, std=0.1)  # which must count once per level
    return DacTokenizer, model


def mimi(**more):
    config = MimiConfig(
        sampling_rate=640, num_filters=4, hidden_size=16, upsampling_ratios=[4, 2], codebook_size=16, codebook_dim=8,
        vector_quantization_hidden_dimension=8, num_quantizers=4, num_semantic_quantizers=1, num_hidden_layers=1,
        intermediate_size=16, num_attention_heads=2, num_key_value_heads=2, head_dim=8, upsample_groups=16, **more,
    )  # fmt: skip
    model = MimiModel(config)
    h = MimiTokenizer.encoder_output(SimpleNamespace(codec=model), waves()[:, None])
    for group in (
        model.quantizer.semantic_residual_vector_quantizer,
        model.quantizer.acoustic_residual_vector_quantizer,
    ):
        fill([layer.codebook.embed_sum for layer in group.layers], group.input_proj(h))
    return MimiTokenizer, model


def janus():
    config = JanusVQVAEConfig(
        embed_dim=4, num_embeddings=16, latent_channels=32, base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1,
        num_patches=4,
    )  # fmt: skip
    model = JanusVQVAE(config)
    fill([model.quantize.embedding.weight], model.quant_conv(model.encoder(pictures())))
    return JanusTokenizer, model


def emu3():
    config = Emu3VQVAEConfig(
        codebook_size=16, embed_dim=4, latent_channels=4, temporal_downsample_factor=2, base_channels=32,
        channel_multiplier=[1, 1], num_res_blocks=1, attn_resolutions=[1], hidden_size=32, num_attention_heads=1,
    )  # fmt: skip
    model = Emu3VQVAE(config)
    film = pictures()[:, None].repeat(1, 2, 1, 1, 1)
    fill([model.quantize.embedding.weight], model.quant_conv(model.encoder(film).transpose(1, 2))[:, :, 0])
    return Emu3Tokenizer, model


def vq_model():
    diffusers = pytest.importorskip("diffusers", reason="VQModel is of diffusers: pip install 'discdiff[hf]'")
    model = diffusers.VQModel(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4, num_vq_embeddings=16, norm_num_groups=4,
    )  # fmt: skip
    fill([model.quantize.embedding.weight], model.encode(pictures()).latents)
    return DiffusersTokenizer, model


def fill(books, h):
    """Codes of every level at residuals of latents (batch, width, *space), so that codes differ."""
    rest = h.flatten(2).mT.flatten(0, 1)
    for book in books:
        book.copy_(rest[torch.randperm(len(rest))[: len(book)]])
        rest = rest - book[torch.cdist(rest, book).argmin(1)]


SOUNDS, PICTURES = (encodec, dac, mimi), (janus, emu3, vq_model)


def made(build):
    torch.manual_seed(0)
    with torch.no_grad():
        kind, model = build()
    return kind.wrap(model.eval()), model.eval()


def waves(rows=8, samples=64):
    t, row = torch.arange(samples) / samples, torch.arange(rows)[:, None]
    return 0.8 * torch.sin(2 * math.pi * (2 + row % 3) * t + row)


def pictures(rows=6, height=8, width=8):
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    row = torch.arange(rows)[:, None, None]
    return torch.stack([torch.sin(3 * x + row), torch.cos(2 * y + row), torch.sin(x * y * row)], 1)


def own_codes(model, x):
    if isinstance(model, EncodecModel):
        return model.encode(x[:, None]).audio_codes[0].mT  # (chunks, batch, depth, slots)
    if isinstance(model, DacModel | MimiModel):
        return model.encode(x[:, None]).audio_codes.mT  # (batch, depth, slots)
    if isinstance(model, JanusVQVAE):
        return model.encode(x).image_tokens.view(len(x), -1, 1)
    if isinstance(model, Emu3VQVAE):
        tokens = model.encode(x, torch.tensor([x.shape[2:]] * len(x))).image_tokens
        return torch.stack(tokens).flatten(1)[..., None]
    return model.quantize(model.encode(x).latents)[2][2].view(len(x), -1, 1)


def own_decode(model, codes, shape):
    if isinstance(model, EncodecModel):
        return model.decode(codes.mT[None], [None]).audio_values[:, 0]
    if isinstance(model, DacModel):
        return model.decode(audio_codes=codes.mT).audio_values
    if isinstance(model, MimiModel):
        return model.decode(codes.mT).audio_values[:, 0]
    grid = codes.view(len(codes), shape[2] // 2, shape[3] // 2)
    if isinstance(model, JanusVQVAE):
        return model.decode(codes[..., 0])
    if isinstance(model, Emu3VQVAE):
        return model.decode(grid)
    return model.decode(codes.flatten(), force_not_quantize=True, shape=(*grid.shape, 4)).sample


@torch.no_grad()
@pytest.mark.parametrize("build", [*SOUNDS, *PICTURES], ids=lambda f: f.__name__)
def test_as_the_wrapped_network(build):
    tokenizer, model = made(build)
    if build is vq_model:
        model.register_to_config(lookup_from_codebook=True)
    x = waves() if build in SOUNDS else pictures()
    out = tokenizer.encode(x)
    assert torch.equal(out.codes, own_codes(model, x)) and len(out.codes.unique()) > 3
    theirs = own_decode(model, out.codes, x.shape)
    ours = tokenizer.decode(out.codes, out.grid)
    same = min(ours.shape[-1], theirs.shape[-1])
    assert ours.shape == x.shape and same >= x.shape[-1] - 8
    torch.testing.assert_close(ours[..., :same], theirs[..., :same], atol=2e-5, rtol=1e-4)
    if build in SOUNDS:  # fewer levels: every level brings its own share, projections' biases included
        fewer = tokenizer.decode(out.codes[..., :2])
        torch.testing.assert_close(
            fewer[..., :same], own_decode(model, out.codes[..., :2], x.shape)[..., :same], atol=2e-5, rtol=1e-4
        )
        assert (fewer - ours).abs().max() > 0.01 * ours.std()


def settle(tokenizer, x, steps):
    """A decoder that reads any number of levels, as training would give."""
    codes = tokenizer.encode(x).codes
    parts = [tokenizer.codes_to_embeddings(codes[..., : d + 1]).detach() for d in range(tokenizer.depth)]
    names = ("decoder", "decoder_transformer", "upsample", "post_quant_conv")
    trained = [p for n, p in tokenizer.codec.named_parameters() if n.split(".")[0] in names]
    optimizer = torch.optim.Adam(trained, 2e-2)
    grid = tokenizer.encode_latents(x[:1]).grid
    for _ in range(steps):
        loss = sum(2**d * (tokenizer.decode_embeddings(e, grid) - x).square().mean() for d, e in enumerate(parts))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tokenizer.eval()


@pytest.mark.parametrize("build", [*SOUNDS, *PICTURES], ids=lambda f: f.__name__)
def test_contract(build):
    tokenizer, _ = made(build)
    x = waves() if build in SOUNDS else pictures()
    settle(tokenizer, x, 120 if build in SOUNDS else 12)
    measured = check_tokenizer(tokenizer, x, bound=0.5 if build in SOUNDS else 0.8)
    assert measured["code_agreement"] == 1 or build in SOUNDS
    if build in SOUNDS:
        mask = torch.arange(64) < 8 * torch.randint(3, 8, (8, 1), generator=torch.Generator().manual_seed(0))
        out = tokenizer.encode(x, mask)
        assert torch.equal(out.mask, mask.view(8, -1, tokenizer.config.hop).any(-1)) and not out.codes[~out.mask].any()
        changed = tokenizer.encode(torch.where(mask, x, 9.0), mask)
        assert torch.equal(changed.codes, out.codes)


@pytest.mark.parametrize("build", SOUNDS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("samples", [64, 61, 57, 5])
def test_lengths(build, samples):
    tokenizer, _ = made(build)
    x = waves(2, samples)
    out = tokenizer.encode(x)
    hop = tokenizer.config.hop
    assert tuple(out.codes.shape) == tokenizer.token_shape(x.shape) == (2, -(-samples // hop), tokenizer.depth)
    assert tokenizer.decode(out.codes).shape[1] == out.codes.shape[1] * hop
    assert tokenizer.decode(out.codes, length=out.aux["length"]).shape == x.shape


@pytest.mark.parametrize("build", PICTURES, ids=lambda f: f.__name__)
def test_any_shape_of_picture(build):
    tokenizer, _ = made(build)
    x = pictures(2, 8, 12)
    out = tokenizer.encode(x)
    assert out.grid == (4, 6) and tokenizer.decode(out.codes, out.grid).shape == x.shape
    with pytest.raises(ValueError, match="grid"):
        tokenizer.decode(out.codes)
    for bad in (x[:, :2], x[..., :11], x.long(), 100 * x, x / 0):
        with pytest.raises(ValueError, match="pictures (are|span)"):
            tokenizer.encode(bad)


def test_fewer_levels(tmp_path):
    with torch.no_grad():
        kind, model = dac()
    tokenizer, whole = kind.wrap(model, num_quantizers=2), kind.wrap(model)
    assert torch.equal(tokenizer.encode(waves()).codes, whole.encode(waves()).codes[..., :2])
    tokenizer.save_pretrained(tmp_path / "dac")
    again = load_tokenizer(tmp_path / "dac")
    assert again.depth == 2 and torch.equal(again.encode(waves()).codes, tokenizer.encode(waves()).codes)


def test_codebook_follows_the_weights():
    tokenizer, _ = made(dac)
    before = tokenizer.codebook.clone()
    with torch.no_grad():
        tokenizer.codec.quantizer.quantizers[0].out_proj.bias.add_(1)
    torch.testing.assert_close(tokenizer.codebook[0], before[0] + 1)
    assert torch.equal(tokenizer.codebook[1], before[1])


def test_rate_of_a_stated_frame_rate():
    with torch.no_grad():
        kind, model = mimi(frame_rate=40)
    tokenizer = kind.wrap(model.eval())
    assert tokenizer.config.hop == 16 and tokenizer.config.rate == 40
    assert torch.equal(tokenizer.encode(waves()).codes, own_codes(model, waves()))


def test_what_cannot_be_wrapped():
    with pytest.raises(ValueError, match="EncodecModel"):
        EncodecTokenizer.wrap(made(dac)[1])
    loud = EncodecModel(
        EncodecConfig(normalize=True, num_filters=4, hidden_size=16, upsampling_ratios=[4, 2], codebook_size=16)
    )
    with pytest.raises(ValueError, match="normalize"):
        EncodecTokenizer.wrap(loud)
    tokenizer, _ = made(encodec)
    beyond = (waves() * 2, r"sounds span .*\[-1, 1\]")
    for bad, match in ((waves()[:, None], "mono"), (waves().long(), "floats"), (waves() / 0, "not finite"), beyond):
        with pytest.raises(ValueError, match=match):
            tokenizer.encode(bad)
    with pytest.raises(ValueError, match="mask"):
        tokenizer.encode(waves(), torch.ones(8, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="codes"):
        tokenizer.decode(torch.full((1, 2, 1), 16))
