"""The demo may run the file that is saved with a model whose head is ours, and no other."""

import json
from pathlib import Path

import pytest

from hf_transfer.errors import UserError
from hf_transfer.hub.space import assemble_space
from tests.families.abilities import Trial
from tests.families.checkpoints import FAMILIES


@pytest.mark.slow
@pytest.mark.parametrize("title", ["DINOv3 ViT", "T5"])
def test_the_demo_runs_the_file_that_is_saved_with_a_model_unless_it_was_changed(title: str, tmp_path: Path) -> None:
    (family,) = [one for one in FAMILIES if one.title == title]
    out = Trial(family, tmp_path).run("linear_probe")
    space = assemble_space(out, tmp_path / "space")
    assert json.loads((space / "settings.json").read_text(encoding="utf-8"))["trust_remote_code"] is True
    (code,) = (out / "model").glob("*.py")
    code.write_text(code.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    with pytest.raises(UserError, match="no code beside the model in"):
        assemble_space(out, tmp_path / "again")
