import pytest


@pytest.fixture
def saved(make_encoder, tmp_path):
    """The folder of a tiny BERT, with a prompt."""
    return make_encoder(prompts={"query": "query: "}).save(tmp_path / "model")
