import json

import pytest


@pytest.fixture
def saved(make_encoder, tmp_path):
    """The folder of a tiny BERT, with a prompt."""
    return make_encoder(prompts={"query": "query: "}).save(tmp_path / "model")


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
