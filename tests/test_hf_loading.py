"""Finding and loading models: every way it fails is said in words, and nothing heavy is imported before `load`."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

import hf_models
from hf_models import answers, ask, open_backend
from mhe import BackendContext, MissingExtraError, ModelSpec, ModelUnusableError, digest_of
from mhe_hf import HfBackend, HfOptions, load_model, load_processor, locations, versions


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return hf_models.build_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "model"))


def spec_of(place: object, revision: str | None = None) -> ModelSpec:
    return ModelSpec(name="tiny", backend="hf", location=str(place), revision=revision)


def backend_of(place: object, *, offline: bool = True, **options: object) -> HfBackend:
    context = BackendContext(offline=offline, cache_dir=Path("cache"), training_samples=list)
    return HfBackend(spec_of(place), HfOptions(**options), context)


def load(place: object, **options: object) -> object:
    return load_model(spec_of(place), HfOptions(**options), offline=True)


class TestUnusableFolders:
    def test_missing(self, tmp_path):
        with pytest.raises(ModelUnusableError, match="there is no folder"):
            backend_of(tmp_path / "nowhere").describe()

    def test_a_file(self, folder):
        with pytest.raises(ModelUnusableError, match=r"is a file; give the folder"):
            backend_of(folder / "config.json").describe()

    def test_without_weights(self, folder):
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelUnusableError, match="no weights"):
            backend_of(folder).describe()
        with pytest.raises(ModelUnusableError, match="no weights"):
            load(folder)

    def test_without_configuration(self, folder):
        (folder / "config.json").unlink()
        with pytest.raises(ModelUnusableError, match=r"no config\.json"):
            load(folder)

    def test_configuration_that_is_no_json(self, folder):
        (folder / "config.json").write_text("{'model_type': llava")
        with pytest.raises(ModelUnusableError, match="cannot be read as JSON"):
            load(folder)

    @pytest.mark.parametrize("kept", [0, 5, 200, -1000, -1])
    def test_truncated_weights(self, folder, kept):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(ModelUnusableError, match=r"model\.safetensors is truncated"):
            load(folder)

    def test_corrupt_header(self, folder):
        path = folder / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[8:40] = b"\xff" * 32
        path.write_bytes(data)
        with pytest.raises(ModelUnusableError, match="is corrupt"):
            load(folder)

    def test_something_else_under_that_name(self, folder):
        (folder / "model.safetensors").write_bytes(b"<!DOCTYPE html><html>not found</html>" * 9)
        with pytest.raises(ModelUnusableError, match="not a safetensors file"):
            load(folder)

    def test_bytes_after_the_end(self, folder):
        with (folder / "model.safetensors").open("ab") as stream:
            stream.write(b"tail")
        with pytest.raises(ModelUnusableError, match="header promises"):
            load(folder)

    def test_a_missing_shard(self, folder):
        index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ModelUnusableError, match="lacks model-00001-of-00002"):
            load(folder)

    def test_weights_that_the_configuration_asks_for_and_are_not_there(self, folder):
        from safetensors.torch import load_file, save_file

        path = folder / "model.safetensors"
        weights = load_file(path)
        name = next(key for key in weights if "q_proj" in key and "language" in key)
        del weights[name]
        save_file(weights, path, metadata={"format": "pt"})
        with pytest.raises(ModelUnusableError, match=r"does not hold 1 of the weights.*q_proj"):
            load(folder)

    def test_weights_of_another_shape(self, folder):
        path = folder / "config.json"
        configuration = json.loads(path.read_text())
        configuration["text_config"]["intermediate_size"] = 100
        path.write_text(json.dumps(configuration))
        with pytest.raises(ModelUnusableError, match="weights"):
            load(folder)

    def test_pickles_are_refused_unless_asked_for(self, folder):
        from safetensors.torch import load_file

        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin")
        with pytest.raises(ModelUnusableError, match=r"pickle \(pytorch_model.bin\)[\s\S]*allow_pickle=true"):
            load(folder)
        model, _ = load(folder, allow_pickle=True)
        assert sum(p.numel() for p in model.parameters()) > 100_000

    def test_a_text_only_model(self, folder):
        from transformers import LlamaConfig, LlamaForCausalLM

        shutil.rmtree(folder / "nothing", ignore_errors=True)
        LlamaForCausalLM(
            LlamaConfig(
                hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=400
            )
        ).save_pretrained(folder)
        with pytest.raises(ModelUnusableError, match=r"'llama' do not take images"):
            load(folder)

    def test_without_a_processor(self, folder):
        (folder / "processor_config.json").unlink()
        with pytest.raises(ModelUnusableError, match=r"processor"):
            load(folder)

    def test_without_a_chat_template(self, folder):
        (folder / "chat_template.jinja").unlink()
        with pytest.raises(ModelUnusableError, match=r"no chat template.*chat_template\.jinja"):
            load(folder)

    def test_code_beside_the_weights_is_not_run_unless_asked_for(self, folder):
        path = folder / "config.json"
        configuration = json.loads(path.read_text())
        configuration |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MineConfig"}}
        path.write_text(json.dumps(configuration))
        (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
        with pytest.raises(ModelUnusableError, match="trust_remote_code=true"):
            load(folder)
        assert not (folder / "ran").exists()

    def test_torchvision_is_not_replaced_in_silence(self, folder):
        try:
            import torchvision  # noqa: F401
        except (ImportError, RuntimeError):
            with pytest.raises(ModelUnusableError, match="torchvision"):
                load(folder, image_processor="torchvision")
        else:
            _, processor = load(folder, image_processor="torchvision")
            assert processor.image_processor.backend == "torchvision"

    def test_a_device_that_is_not_here(self, folder):
        with pytest.raises(ModelUnusableError, match=r"device 'cuda:99'[\s\S]*device=cpu"):
            load(folder, device="cuda:99")


class TestHub:
    def test_not_cached_and_offline(self, monkeypatch, tmp_path):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(ModelUnusableError, match=r"--offline[\s\S]*hf download org/name"):
            backend_of("org/name").describe()

    def test_a_cached_commit_is_the_fingerprint(self, monkeypatch, tmp_path):
        commit = "0123456789abcdef0123456789abcdef01234567"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        reference = tmp_path / "models--org--name" / "refs" / "main"
        reference.parent.mkdir(parents=True)
        reference.write_text(commit)
        found = backend_of("org/name").describe().fingerprint
        assert found.digest == digest_of({"hub": "org/name", "commit": commit})
        pinned = locations.find_location(spec_of("org/name", revision=commit), offline=False)
        assert pinned.commit == commit
        reference.write_text(commit[::-1])
        assert backend_of("org/name").describe().fingerprint.digest != found.digest

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("GatedRepoError", "accept its licence"),
            ("RepositoryNotFoundError", "there is no model 'org/name' on the hub"),
            ("RevisionNotFoundError", "has no revision 'v9'"),
        ],
    )
    def test_what_the_hub_refuses(self, monkeypatch, name, expected):
        import huggingface_hub.errors as hub_errors

        http = importlib.import_module(hub_errors.Response.__module__.split(".")[0])
        response = http.Response(403, request=http.Request("GET", "https://hub.invalid"))
        error = getattr(hub_errors, name)("refused", response=response)

        def refuse(*args, **kwargs):
            raise error

        monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
        with pytest.raises(ModelUnusableError, match=expected):
            locations.find_commit("org/name", "v9", offline=False)

    def test_no_network(self, monkeypatch, tmp_path):
        import huggingface_hub.errors as hub_errors

        http = importlib.import_module(hub_errors.Response.__module__.split(".")[0])

        def refuse(*args, **kwargs):
            raise http.ConnectError("Name or service not known")

        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
        with pytest.raises(ModelUnusableError, match="could not be reached"):
            locations.find_commit("org/name", None, offline=False)


class TestDescription:
    def test_retrained_weights_at_the_same_path_change_the_fingerprint(self, folder):
        first = backend_of(folder).describe().fingerprint
        assert first.verified
        assert backend_of(folder).describe().fingerprint == first
        hf_models.build_llava(folder, seed=1)
        second = backend_of(folder).describe().fingerprint
        assert first.digest != second.digest
        assert first.bytes_on_disk == second.bytes_on_disk

    def test_a_changed_chat_template_changes_the_fingerprint(self, folder):
        first = backend_of(folder).describe().fingerprint
        path = folder / "chat_template.jinja"
        path.write_text(path.read_text() + " ")
        assert backend_of(folder).describe().fingerprint.digest != first.digest

    def test_options_that_may_change_an_answer_are_in_the_key_and_others_are_not(self, folder):
        described = backend_of(folder, batch_size=3, dtype="bfloat16").describe()
        assert described.key_options["dtype"] == "bfloat16"
        assert {"image_processor", "trust_remote_code", "quantization", "device"} <= set(described.key_options)
        assert set(described.neutral_options) == {
            "batch_size", "num_threads", "prefetch", "image_threads", "image_cache_mb", "adapter", "adapters",
            "other_base",
        }  # fmt: skip
        assert "transformers" in described.version

    def test_after_loading_it_says_what_runs_where(self, folder):
        before = backend_of(folder, device="cpu", num_threads=1).describe()
        backend = open_backend(folder, dtype="bfloat16")
        after = backend.describe()
        backend.close()
        assert (after.device, after.precision, after.bits_per_weight) == ("cpu", "bfloat16", 16.0)
        assert after.parameters == sum(after.module_parameters.values()) > 100_000
        assert set(after.module_parameters) == {"vision", "fusion", "language"}
        assert after.fingerprint == before.fingerprint
        assert before.parameters is None

    def test_describing_imports_nothing_heavy(self, folder):
        program = (
            "import sys, pathlib\n"
            "import mhe_hf\n"
            "hooks = [mhe_hf.register_backends(), mhe_hf.register_models(), mhe_hf.register_architectures()]\n"
            "assert [len(h) for h in hooks] == [1, 10, 7], hooks\n"
            "from mhe import BackendContext, ModelSpec\n"
            "factory = hooks[0][0].load()\n"
            "spec = ModelSpec(name='t', backend='hf', location=sys.argv[1])\n"
            "context = BackendContext(True, pathlib.Path('.'), list)\n"
            "assert factory(spec, factory.Options(), context).describe().fingerprint.verified\n"
            "names = {'torch', 'transformers', 'numpy', 'peft', 'accelerate', 'huggingface_hub', 'PIL'}\n"
            "heavy = names & set(sys.modules)\n"
            "assert not heavy, heavy\n"
        )
        done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def test_a_missing_library_names_its_extra(self):
        with pytest.raises(MissingExtraError, match=r"pip install 'mhe\[quant\]'"):
            versions.library_version("no-such-library", extra="quant", needed_for="quantization nf4")

    def test_options_that_contradict_each_other(self):
        with pytest.raises(ValidationError, match="double_quant needs"):
            HfOptions(double_quant=True)
        with pytest.raises(ValidationError, match="not both"):
            HfOptions(device="cpu", device_map="auto")
        with pytest.raises(ValidationError, match="batch_size"):
            HfOptions(batch_size=0)


def test_closing_gives_the_threads_back(folder):
    before = torch.get_num_threads()
    backend = open_backend(folder, num_threads=before + 1)
    assert torch.get_num_threads() == before + 1
    backend.close()
    backend.close()
    assert torch.get_num_threads() == before


def test_the_processor_that_is_handed_out_is_saved_as_it_was(folder, tmp_path):
    """Nothing of the backend's own may slip into a checkpoint."""
    from mhe_hf import Collator

    processor = load_processor(spec_of(folder))
    Collator(processor, cache_bytes=1000).collate([ask("a")])
    processor.save_pretrained(tmp_path / "saved")
    for name in ("processor_config.json", "chat_template.jinja"):
        assert (tmp_path / "saved" / name).read_text() == (folder / name).read_text()


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_models_answer_and_say_how_small_they_are(folder, kind):
    pytest.importorskip("bitsandbytes")
    backend = open_backend(folder, quantization=kind, quantized_modules=["language"], dtype="float32")
    described = backend.describe()
    assert kind in described.precision
    assert described.parameters == sum(described.module_parameters.values())
    assert described.bits_per_weight < 28
    kinds = {name: type(module).__name__ for name, module in backend._model.named_modules()}
    quantised = {name for name, found in kinds.items() if found in ("Linear4bit", "Linear8bitLt")}
    assert quantised
    assert all("language_model" in name for name in quantised)
    assert answers(backend, [ask("a")])["a"].text is not None
    backend.close()


def test_a_header_longer_than_the_format_allows(tmp_path):
    from mhe_hf.weight_files import check_safetensors

    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(ModelUnusableError, match="not a safetensors file"):
        check_safetensors(path)
    if os.geteuid() != 0:
        path.chmod(0)
        with pytest.raises(ModelUnusableError, match="cannot be read"):
            check_safetensors(path)
