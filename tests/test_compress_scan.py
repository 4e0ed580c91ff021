"""`mhe scan-layers`: the loss with one layer pruned, as data and picture, and ratios that follow from it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest
import torch

import prune_cases as cases
from mhe import open_catalog, open_job
from mhe.cli.main import main
from mhe.model_names import resolve_model
from mhe.pipelines import run_step
from mhe_compress.blocks import key_of
from mhe_compress.scan_results import LayerScan, ScannedBlock, ratios_by_block
from mhe_hf import HfOptions, collate_training, load_model

SAMPLES = 6


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    """The command on the trained model of the package, once."""
    out = tmp_path_factory.mktemp("scan") / "found" / "scan.json"
    with pytest.raises(SystemExit) as done:
        main(["scan-layers", "tiny-llava", "--task", "phantom-vqa", "--samples", str(SAMPLES), "--limit", "40",
              "--importance", "magnitude", "--module", "language", "--module", "vision", "--device", "cpu",
              "--offline", "--out", str(out)])  # fmt: skip
    assert done.value.code == 0
    return out


def test_every_layer_is_measured_alone(scanned):
    found = json.loads(scanned.read_text())
    model, processor = cases.loaded(resolve_model("tiny-llava", open_catalog()))
    blocks = {key_of(block): block for block in cases.blocks_of(model)}
    assert [row["key"] for row in found["blocks"]] == list(blocks)
    for row in found["blocks"]:
        assert row["units"] == blocks[row["key"]].units
        assert 0 < row["kept"] < row["units"]
        assert row["loss"] == pytest.approx(found["loss"] + row["rise"])
    assert len({round(row["loss"], 9) for row in found["blocks"]}) > len(blocks) // 2, "each layer has its own loss"
    assert found["samples"] == SAMPLES
    # The loss of the whole model, by the model itself on the same samples.
    from mhe_compress.calibration import draw_samples

    job = open_job(open_catalog(), "tiny-llava", ["phantom-vqa"], limit=40, offline=True)
    judged = draw_samples(job.validation or job.train, SAMPLES, 0, "")
    with torch.no_grad():
        losses = [float(model(**collate_training([one], processor, context=None)).loss) for one in judged]
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_the_loss_is_that_of_a_model_with_this_layer_cut(scanned, tmp_path):
    """The mask of a scan is what `prune` really does: the first attention alone, cut, has the scanned loss."""
    from mhe_compress.blocks import cut_heads
    from mhe_compress.calibration import draw_samples
    from mhe_compress.importance import measure_importance
    from mhe_compress.prune_choice import choose_units, legal_count

    found = json.loads(scanned.read_text())
    # A model of its own, because it is cut.
    spec = resolve_model("tiny-llava", open_catalog())
    model, processor = load_model(spec, HfOptions(device="cpu", dtype="float32"), offline=True)
    block = next(b for b in cases.blocks_of(model) if b.kind == "heads" and b.place.module == "language")
    kept = choose_units(block, legal_count(block, 0.3), measure_importance(model, [block], "magnitude")[key_of(block)])
    cut_heads(model, block, kept.units, kept.key_value_heads)
    job = open_job(open_catalog(), "tiny-llava", ["phantom-vqa"], limit=40, offline=True)
    judged = draw_samples(job.validation or job.train, SAMPLES, 0, "")
    with torch.no_grad():
        losses = [float(model(**collate_training([one], processor, context=None)).loss) for one in judged]
    row = next(row for row in found["blocks"] if row["key"] == key_of(block))
    assert row["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4, abs=1e-6)


def test_the_picture_has_a_bar_for_each_layer(scanned):
    found = json.loads(scanned.read_text())
    root = ET.fromstring(scanned.with_suffix(".svg").read_text())
    titles = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == len(found["blocks"])
    for row, title in zip(found["blocks"], titles, strict=True):
        assert title.startswith(row["key"])
    bars = [bar for bar in root.iter("{http://www.w3.org/2000/svg}rect") if len(bar)]
    highest = max(range(len(bars)), key=lambda n: float(bars[n].get("height")))
    assert highest == max(range(len(bars)), key=lambda n: abs(found["blocks"][n]["rise"]))


def test_prune_takes_more_where_the_loss_rose_less(scanned, tmp_path):
    catalog = open_catalog()
    step = cases.step_on(resolve_model("tiny-llava", catalog), scan=str(scanned), scan_spread=1.0, multiple=1)
    done = run_step(catalog, step, cases.place_at(tmp_path))
    scan = json.loads(scanned.read_text())
    model, _ = cases.loaded(done.model)
    left = {key_of(block): block.units for block in cases.blocks_of(model)}
    rows = [row for row in scan["blocks"] if (row["module"], row["kind"]) == ("language", "neurons")]
    rows.sort(key=lambda row: row["rise"])
    assert left[rows[0]["key"]] < left[rows[-1]["key"]]
    share = 1 - sum(left[row["key"]] for row in rows) / sum(row["units"] for row in rows)
    assert share == pytest.approx(0.3, abs=0.01), "the mean stays what was asked for"
    assert "ratios by layer from the scan of tiny-llava" in " ".join(done.checkpoint.notes)
    # The scan is part of what the step is known by, wherever the file lies and whatever it is called.
    assert done.checkpoint.recipe_options["scan"]["blocks"][0]["key"] == scan["blocks"][0]["key"]


def test_a_scan_of_another_model_is_refused(scanned, random_twins, tmp_path):
    from mhe import UserError

    step = cases.step_on(random_twins("tiny-qwen2-vl"), scan=str(scanned))
    with pytest.raises(UserError, match="the scan of tiny-llava does not fit this model"):
        run_step(open_catalog(), step, cases.place_at(tmp_path))


def made_scan():
    blocks = tuple(
        ScannedBlock(key=f"b{n}", module="language", kind="heads", units=8, kept=6, loss=1 + rise, rise=rise)
        for n, rise in enumerate([5.0, 0.0, 1.0, -0.5])
    )
    return LayerScan(
        model="m", fingerprint="f", task="t", samples=1, importance="taylor", ratio=0.3, loss=1.0, blocks=blocks
    )


def test_a_place_that_cannot_be_written_does_not_cost_the_scan(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mhe.open_job", lambda *_, **__: None)
    monkeypatch.setattr("mhe_compress.scan.scan_layers", lambda *_, **__: made_scan())
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as done:
        main(["scan-layers", "tiny-llava", "--task", "phantom-vqa", "--out", str(tmp_path / "file" / "scan.json")])
    assert done.value.code == 2
    said = capsys.readouterr()
    assert "b1" in said.out
    assert "cannot be written" in said.err


def test_ratios_keep_their_mean_and_their_order():
    scan = made_scan()
    found = ratios_by_block(scan, "language", "heads", 0.3, 0.5)
    assert sum(found.values()) / 4 == pytest.approx(0.3)
    assert found["b0"] < found["b2"] < found["b1"] < found["b3"]
    assert all(0.15 <= ratio <= 0.45 for ratio in found.values())
    assert set(ratios_by_block(scan, "language", "heads", 0.3, 0.0).values()) == {0.3}
    assert ratios_by_block(scan, "vision", "heads", 0.3, 0.5) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny-llava", "--task", "phantom-vqa", "--ratio", "0.97"], "leaves no head"),
        (["tiny-lava", "--task", "phantom-vqa"], "Did you mean 'tiny-llava'"),
        (["tiny-llava", "--task", "phantom-vqx"], "Did you mean 'phantom-vqa'"),
        (["tiny-llava"], "--task"),
    ],
)
def test_bad_calls_are_said(arguments, message, capsys, tmp_path):
    out = tmp_path / "scan.json"
    with pytest.raises(SystemExit) as done:
        main(["scan-layers", *arguments, "--limit", "4", "--samples", "2", "--offline", "--out", str(out)])
    assert done.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not out.exists()
