"""4-bit layers of any width answer on a CPU, also where bitsandbytes would pack them anew."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
bitsandbytes = pytest.importorskip("bitsandbytes")

from mhe_hf.quantization import keep_odd_layers_unpacked  # noqa: E402


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(128, 64), (96, 64), (128, 50), (96, 50), (288, 96)])
def test_a_4_bit_layer_of_any_width_gives_what_its_whole_weight_gives(inputs, outputs, double_quant):
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear4bit(
        inputs, outputs, bias=False, quant_type="nf4", compress_statistics=double_quant, compute_dtype=torch.float32
    )
    whole = torch.nn.Sequential(layer).to("cpu").eval()
    weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    keep_odd_layers_unpacked(whole)
    texts = torch.randn(3, inputs)
    with torch.inference_mode():
        found, expected = whole(texts), texts @ weight.T
        one = whole(texts[:1])
    # The packed form computes in bfloat16.
    tolerance = 1e-5 if inputs % 64 or outputs % 32 else 0.05
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(one, expected[:1], atol=tolerance, rtol=tolerance)
