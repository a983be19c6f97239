"""A folder for a model hub is whole, says what the run says, and overwrites nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from firstlight.cli import main
from firstlight.run import open_run

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def test_the_folder_holds_file_script_and_a_card_filled_from_the_run(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(trained), "--hub", str(tmp_path / "hub")]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code and "hub/model.onnx" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "hub").iterdir()}
    assert names == {"README.md", "model.onnx", "model_classify.py"}
    assert [path.name for path in tmp_path.iterdir()] == ["hub"], "nothing is left aside"
    card, run = (tmp_path / "hub/README.md").read_text("utf-8"), open_run(trained)
    assert card.startswith("---\npipeline_tag: image-classification\n")
    assert run.summary.test_accuracy is not None
    for word in (run.recipe.name, f"{run.summary.test_accuracy:.2%}", *run.data.classes):
        assert word in card, word
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2 and "is not empty" in capsys.readouterr().err
