"""Sound: read as it is meant, cut and padded without a trace, and the log-mel network against a float64 reference."""

from __future__ import annotations

import io
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from modalities import Audio, Geometry
from modalities.encoders.log_mel_cnn import FLOOR, LogMelCNN
from modalities.testing import check_modality
from modalities.transformers_loader import import_transformers
from pipeline.models.network import build_network, load_network, save_network

transformers = import_transformers()

WHOLE = Geometry()


def tone(seconds: float, rate: int = 16_000, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def sound_file(sound: np.ndarray, rate: int = 16_000, kind: str = "WAV", subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def test_it_keeps_the_contract() -> None:
    samples = [sound_file(tone(1.0)), sound_file(tone(0.3, 8000), 8000), sound_file(tone(0.1, 44_100), 44_100, "FLAC")]
    check_modality(Audio(seconds=0.5), samples, specs=[{"name": "log_mel_cnn", "width": 4}])


def test_noise_lies_so_many_decibels_below_every_sound() -> None:
    sound, noisy = tone(2.0), Audio(snr=10.0, gain=0.0)
    check_modality(noisy, sound_file(sound), specs=[{"name": "log_mel_cnn", "width": 4}])
    for rng in (None, np.random.default_rng(0)):
        noise = noisy.augment(sound, WHOLE, 0, rng).numpy() - sound
        assert 20 * np.log10(sound.std() / noise.std()) == pytest.approx(10, abs=0.2)
        assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.03  # white
    other = noisy.augment(sound * 2, WHOLE, 0, None).numpy() - 2 * sound
    assert abs(np.corrcoef(other, noisy.augment(sound, WHOLE, 0, None).numpy() - sound)[0, 1]) < 0.03  # its own


@pytest.mark.parametrize(
    ("kind", "subtype", "exact"),
    [("WAV", "PCM_U8", 0.01), ("WAV", "PCM_16", 1e-4), ("WAV", "PCM_24", 1e-6), ("WAV", "FLOAT", 0),
     ("FLAC", "PCM_16", 1e-4), ("FLAC", "PCM_24", 1e-6), ("OGG", "VORBIS", 0.1)],
)  # fmt: skip
def test_formats_and_channels(kind: str, subtype: str, exact: float) -> None:
    stereo = np.stack([tone(0.5), np.zeros(8000, np.float32)], 1)
    got = Audio().decode(sound_file(stereo, 16_000, kind, subtype), {})
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, stereo.mean(1), atol=exact)


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 9])
def test_the_mean_over_the_channels_is_the_exact_one(channels: int) -> None:
    sound = np.random.default_rng(channels).uniform(-1, 1, (5000, channels)).astype(np.float32)
    got = Audio().decode(sound_file(sound, subtype="FLOAT"), {})
    np.testing.assert_allclose(got, sound.astype(np.float64).mean(1), atol=2e-7)


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000])
def test_resampling_keeps_pitch_duration_and_loudness(rate: int) -> None:
    got = Audio(rate=16_000).decode(sound_file(tone(1.0, rate, 1000.0), rate), {})
    assert len(got) == pytest.approx(16_000, abs=1)
    spectrum = np.abs(np.fft.rfft(got[:16_000]))
    assert spectrum.argmax() * 16_000 / len(got[:16_000]) == pytest.approx(1000, abs=1.1)
    assert np.abs(got[1000:-1000]).max() == pytest.approx(0.5, rel=0.01)


BAD = {
    "not a sound": (b"hello, this is text" * 20, "cannot read an audio file"),
    "no samples": (sound_file(np.zeros(0, np.float32)), "no samples"),
    "not finite": (sound_file(np.array([0.1, np.nan, 0.2], np.float32), subtype="FLOAT"), "NaN or infinite"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named(case: str) -> None:
    data, words = BAD[case]
    with pytest.raises(ValueError, match=words):
        Audio().decode(data, {})


def test_a_huge_file_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modalities.audio.MOST_VALUES", 15_999)
    with pytest.raises(ValueError, match="1 s of audio is too long for one sample; split it"):
        Audio().decode(sound_file(tone(1.0)), {})


def test_excerpts_are_drawn_in_training_and_central_otherwise() -> None:
    audio, sound = Audio(seconds=0.01, gain=0.0), np.arange(1000, dtype=np.float32)
    centre = audio.augment(sound, WHOLE, 64, None)
    assert centre.tolist() == list(range(420, 580))
    starts = {int(audio.augment(sound, WHOLE, 64, np.random.default_rng(seed))[0]) for seed in range(200)}
    assert len(starts) > 100
    assert min(starts) >= 0
    assert max(starts) <= 840
    loud = Audio(seconds=0.01, gain=6.0)
    ratios = [float(loud.augment(np.ones(500, np.float32), WHOLE, 64, np.random.default_rng(s))[0]) for s in range(200)]
    assert 10 ** (-6 / 20) <= min(ratios) < 0.6 < 1.8 < max(ratios) <= 10 ** (6 / 20)


def reference_log_mel(sound: np.ndarray, rate: int, n_fft: int, window: int, hop: int, bands: int) -> np.ndarray:
    """Zero-padded frames, periodic Hann window in the middle of n_fft, power, triangles on the HTK scale; float64."""
    padded = np.pad(sound.astype(np.float64), n_fft // 2)
    hann = np.zeros(n_fft)
    left = (n_fft - window) // 2
    hann[left : left + window] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    frames = [padded[k * hop : k * hop + n_fft] * hann for k in range(len(sound) // hop + 1)]
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    mel = np.linspace(0, 2595 * math.log10(1 + rate / 2 / 700), bands + 2)
    corners = 700 * (10 ** (mel / 2595) - 1)
    bins = np.linspace(0, rate / 2, n_fft // 2 + 1)
    rising = (bins[:, None] - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins[:, None]) / (corners[2:] - corners[1:-1])
    return np.log(power @ np.clip(np.minimum(rising, falling), 0, None) + FLOOR).T


@pytest.mark.parametrize(
    ("rate", "window", "hop"), [(16_000, 0.025, 0.010), (8000, 0.032, 0.008), (44_100, 0.025, 0.010)]
)
def test_log_mel_against_a_plain_reference(rate: int, window: float, hop: float) -> None:
    rng = np.random.default_rng(0)
    sound = (tone(0.4, rate, 700.0) + 0.1 * rng.standard_normal(round(0.4 * rate))).astype(np.float32)
    encoder = LogMelCNN(rate, window=window, hop=hop, bands=40)
    got = encoder.log_mel(torch.from_numpy(sound)[None])[0]
    n_fft = encoder.spectrogram.n_fft
    expected = reference_log_mel(sound, rate, n_fft, round(window * rate), round(hop * rate), 40)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_padding_and_the_batch_change_nothing() -> None:
    torch.manual_seed(0)
    audio, encoder = Audio(), LogMelCNN(16_000, width=4)
    for layer in encoder.layers:  # statistics that are not the trivial ones
        layer[1].running_mean.normal_()
        layer[1].bias.data.normal_()
    encoder.eval()
    sounds = [torch.from_numpy(tone(s, hz=300 * s + 200)) for s in (0.1, 0.73, 0.5, 0.01)]
    together = encoder(audio.collate(sounds)).pooled
    alone = torch.cat([encoder(audio.collate([sound])).pooled for sound in sounds])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_masking_hides_in_training_only_and_is_the_seed_s() -> None:
    encoder = LogMelCNN(16_000, width=4, masking=0.3)
    batch = Audio().collate([torch.from_numpy(tone(0.5)) for _ in range(3)])

    def first(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return encoder._hide(torch.ones(3, 1, 64, 51))

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))
    kept = torch.stack([first(seed).mean() for seed in range(50)]).mean().item()
    assert kept == pytest.approx((1 - 0.15) ** 2, abs=0.03)
    encoder.eval()
    assert torch.equal(encoder(batch).pooled, encoder(batch).pooled)


SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}


@pytest.fixture(scope="module", params=["wav2vec2", "whisper", "ast"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    if request.param == "wav2vec2":
        config = transformers.Wav2Vec2Config(
            **SMALL, conv_dim=(8, 8), conv_stride=(5, 16), conv_kernel=(10, 16), feat_extract_norm="layer",
            do_stable_layer_norm=True, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        )  # fmt: skip
        network, extractor = (
            transformers.Wav2Vec2Model(config),
            transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True),
        )
    elif request.param == "whisper":
        config = transformers.WhisperConfig(
            d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=60, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            decoder_start_token_id=1,
        )  # fmt: skip
        network, extractor = transformers.WhisperModel(config), transformers.WhisperFeatureExtractor()
    else:
        config = transformers.ASTConfig(**SMALL, max_length=128, num_mel_bins=32)
        network = transformers.ASTModel(config)
        extractor = transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=128)
    network.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


def test_models_of_transformers_hear_each_sound_as_if_it_were_alone(model: Path) -> None:
    audio, spec = Audio(), {"name": "transformers", "model": str(model)}
    encoder = audio.encoder(spec).eval()
    sounds = [torch.from_numpy(tone(s, hz=300 * s + 200)) for s in (0.9, 0.3, 0.5)]
    with torch.no_grad():
        together = encoder(audio.collate(sounds)).pooled
        alone = torch.cat([encoder(audio.collate([sound])).pooled for sound in sounds])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)
    check_modality(audio, [sound_file(tone(0.4))], specs=[spec])
    with pytest.raises(ValueError, match="requires 16000 Hz, but the modality has 8000; set its `rate: 16000`"):
        Audio(rate=8000).encoder(spec)


def test_a_student_takes_model_and_extractor_with_it(model: Path, tmp_path: Path) -> None:
    own = shutil.copytree(model, tmp_path / "model")
    spec = {"name": "transformers", "model": str(own)}
    network = build_network({"name": "audio"}, spec, ["a", "b"], "student").eval()
    save_network(network, tmp_path / "student")
    shutil.rmtree(own)
    loaded = load_network(tmp_path / "student").eval()
    batch = Audio().collate([torch.from_numpy(tone(0.3))])
    assert torch.equal(network(batch).logits, loaded(batch).logits)


def test_a_model_that_does_not_hear_is_refused(tmp_path: Path) -> None:
    transformers.BertModel(transformers.BertConfig(**SMALL, vocab_size=9)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no feature extractor for audio: preprocessor_config.json is required"):
        Audio().encoder({"name": "transformers", "model": str(tmp_path)})


@pytest.mark.parametrize("rate", [8000, 16_000, 48_000])
@pytest.mark.parametrize("samples", [1, 2, 255, 256, 257, 1200])
def test_the_shortest_sounds_are_shown_and_heard(samples: int, rate: int) -> None:
    adapter = Audio(rate=rate)
    value = adapter.decode(sound_file(np.full(samples, 0.5, np.float32), rate), {})
    assert len(value) == samples
    picture = adapter.picture(value)
    assert picture.shape == (96, 144, 3)
    assert picture.any()
    assert adapter.caption(value).sound


@pytest.mark.parametrize("rate", [16_000, 11_025])
def test_caption_can_be_heard(rate: int) -> None:
    adapter = Audio(rate=rate, seconds=1.0)
    caption = adapter.caption(tone(2.5, rate))
    assert caption.text == "2.5 s"
    heard, heard_rate = soundfile.read(io.BytesIO(caption.sound))
    assert heard_rate == 16_000
    assert len(heard) / heard_rate == pytest.approx(1.0, abs=0.1)
    loudest = np.abs(np.fft.rfft(heard)).argmax() * heard_rate / len(heard)
    assert loudest == pytest.approx(440, abs=5)
