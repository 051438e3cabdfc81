"""The engine against recorded outputs of published torch packages (tests/golden/record.py); no torch needed."""

from pathlib import Path

import numpy as np
import pytest

from rvcd.mlx_engine import Engine
from rvcd.settings import Settings
from tests.support import measures, recipes, seeded

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the checkpoints are made again."""
    return tmp_path_factory.mktemp("golden")


@pytest.fixture(scope="module")
def engines(folder: Path) -> dict[bool, Engine]:
    """An engine over full-size models and one over tiny ones (True)."""
    return {
        tiny: Engine(
            content_encoder=seeded.content_encoder(folder / f"content-{tiny}", seed=recipes.SEED, tiny=tiny),
            pitch=seeded.pitch_model(folder / f"pitch-{tiny}.pt", seed=recipes.SEED, tiny=tiny),
            precision="float32",
        )
        for tiny in (True, False)
    }


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("recipe", recipes.CONTENT, ids=lambda recipe: recipe.name)
def test_content_features_are_those_of_transformers(
    engines: dict[bool, Engine], recipe: recipes.ModelRecipe, version: str
) -> None:
    features = engines[recipe.tiny].content_features(recipe.stem(), version=version)[:, :: recipe.thin]
    assert measures.relative_error(features, golden("content")[f"{recipe.name}-{version}"]) < 1e-4


@pytest.mark.parametrize("recipe", recipes.PITCH, ids=lambda recipe: recipe.name)
def test_pitch_is_that_of_the_reference_rmvpe(engines: dict[bool, Engine], recipe: recipes.ModelRecipe) -> None:
    recorded = golden("pitch")
    engine, stem = engines[recipe.tiny], recipe.stem()
    assert measures.relative_error(engine.salience(stem)[:: recipe.thin], recorded[f"{recipe.name}-salience"]) < 1e-4
    f0, expected = engine.f0(stem), recorded[f"{recipe.name}-f0"]
    assert measures.voicing_differences(f0, expected) == 0
    assert measures.largest_cents(f0, expected) < 1.0


@pytest.mark.parametrize("recipe", recipes.VOICES, ids=lambda recipe: recipe.name)
def test_voices_sing_as_in_the_reference(
    engines: dict[bool, Engine], folder: Path, recipe: recipes.VoiceRecipe
) -> None:
    engine = engines[recipe.tiny]
    voice = engine.load_voice(recipe.checkpoint(folder))
    sound = engine.synthesize(voice, recipe.features(), recipe.contour() if recipe.f0 else None, speaker_id=1)
    assert measures.relative_error(sound, golden("voices")[recipe.name]) < 1e-3


@pytest.mark.parametrize("recipe", recipes.PIPELINES, ids=lambda recipe: recipe.name)
def test_whole_conversions_equal_the_reference_pipeline(
    engines: dict[bool, Engine], folder: Path, recipe: recipes.PipelineRecipe
) -> None:
    engine, recorded = engines[True], golden("pipelines")
    voice = engine.load_voice(recipe.checkpoint(folder), index=recipe.index(folder))
    settings = Settings(
        semitones=recipe.semitones,
        index_rate=recipe.index_rate,
        protect=recipe.protect,
        loudness=recipe.loudness,
        speaker_id=1,
        search="ivf",
        windows=recipe.windows,
    )
    sound = engine.convert_reference(recipe.stem(), voice, settings, f0=recipe.contour())
    assert len(sound) == recorded[f"{recipe.name}-samples"]
    assert measures.signal_to_error_db(sound[:: recipe.thin], recorded[recipe.name]) > 50
