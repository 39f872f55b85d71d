"""What is faster than the plain way gives what the plain way gives, within rounding. How fast it is, benchmarks tell."""

import pytest

torch = pytest.importorskip("torch")

from peft import LoraConfig, get_peft_model  # noqa: E402
from torch.nn.functional import scaled_dot_product_attention  # noqa: E402

from studio.ml.attention import DocumentsOnCpu, document_attention  # noqa: E402
from studio.ml.lora import fuse_lora  # noqa: E402

BF16 = torch.bfloat16


def off(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.detach().double() - truth.detach()).norm() / truth.detach().norm())


@pytest.mark.parametrize("length", [1, 5, 128, 301], ids=lambda length: f"{length} tokens")
@pytest.mark.parametrize("key_heads", [1, 3, 6], ids=lambda heads: f"{heads} of 6 heads")
def test_attention_on_a_processor_has_the_gradients_of_the_exact_one(length: int, key_heads: int):
    torch.manual_seed(length)
    query = (torch.randn(1, 6, length, 16) * 3).to(BF16).requires_grad_()
    key, value = ((torch.randn(1, key_heads, length, 16) * 3).to(BF16).requires_grad_() for _ in range(2))
    outer = torch.randn(1, 6, length, 16).to(BF16)
    exact = [tensor.detach().double().requires_grad_() for tensor in (query, key, value)]
    truth = scaled_dot_product_attention(*exact, is_causal=True, scale=0.3, enable_gqa=True)
    assert DocumentsOnCpu.takes(query, key, value)
    found = DocumentsOnCpu.apply(query, key, value, [(0, length)], 0.3).transpose(1, 2)
    assert off(found, truth) < 0.01
    for ours, theirs in zip(
        torch.autograd.grad(found, (query, key, value), outer), torch.autograd.grad(truth, exact, outer.double()), strict=True
    ):
        assert (ours.double() - theirs).norm() <= 0.02 * theirs.norm() + 1e-3 * outer.double().norm()


def test_documents_side_by_side_give_the_gradients_that_each_gives_alone():
    torch.manual_seed(0)
    spans = [(0, 7), (7, 40), (40, 41)]
    tensors = [torch.randn(1, heads, 41, 16).to(BF16).requires_grad_() for heads in (4, 2, 2)]
    outer = torch.randn(1, 41, 4, 16).to(BF16)
    together, _ = document_attention(torch.nn.Identity(), *tensors, None, documents=spans)
    grads = torch.autograd.grad(together, tensors, outer)
    for start, end in spans:
        alone = [tensor.detach()[:, :, start:end].requires_grad_() for tensor in tensors]
        single, _ = document_attention(torch.nn.Identity(), *alone, None)
        assert torch.equal(single, together[:, start:end])
        for whole, part in zip(grads, torch.autograd.grad(single, alone, outer[:, start:end]), strict=True):
            torch.testing.assert_close(whole[:, :, start:end], part, rtol=0.02, atol=1e-3)


class Two(torch.nn.Module):
    """Two layers that read the same, one with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = torch.nn.Linear(48, 32, bias=False), torch.nn.Linear(48, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.left(x) * self.right(x)


def adapted(**settings) -> torch.nn.Module:
    torch.manual_seed(1)
    model = get_peft_model(Two().to(BF16), LoraConfig(r=4, lora_alpha=12, target_modules=["left", "right"], **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def learnt(model: torch.nn.Module, x: torch.Tensor, *, bf16: bool) -> list[torch.Tensor]:
    """What comes out for x, and the gradients of x and of every trained tensor."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=BF16, enabled=bf16):
        out = model(x)
    out.float().pow(2).sum().backward()
    return [out, x.grad, *(parameter.grad for parameter in model.parameters() if parameter.requires_grad)]


def test_the_fused_adapter_gives_what_pefts_gives():
    x = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(2)).to(BF16)
    plain = learnt(adapted(), x, bf16=True)
    exact = learnt(adapted().float(), x.float(), bf16=False)
    model = adapted()
    assert fuse_lora(model) == 2
    fused = learnt(model, x, bf16=True)
    assert [tensor.dtype for tensor in fused] == [tensor.dtype for tensor in plain]
    for ours, theirs, truth in zip(fused, plain, exact, strict=True):
        assert off(ours, truth) < max(0.01, 1.3 * off(theirs, truth))


def test_an_adapter_that_is_switched_off_or_merged_is_pefts_own():
    x = torch.randn(1, 5, 48, generator=torch.Generator().manual_seed(3)).to(BF16)
    model, plain = adapted(), adapted()
    fuse_lora(model)
    with torch.autocast("cpu", dtype=BF16), torch.no_grad():
        with model.disable_adapter(), plain.disable_adapter():
            assert torch.equal(model(x), plain(x))
        model.merge_adapter()
        plain.merge_adapter()
        assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize("kind", [{"use_dora": True}, {"lora_dropout": 0.1}, {"lora_bias": True}], ids=str)
def test_other_kinds_of_adapter_are_left_as_they_are(kind: dict):
    assert fuse_lora(adapted(**kind)) == 0
